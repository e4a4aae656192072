//! Durations counted in buckets that are 1.6 % wide: percentiles of millions of samples in 30 kB.

use std::time::Duration;

/// Buckets per doubling.
const STEPS: u64 = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Up to 2⁶⁴ ns.
const BUCKETS: usize = ((64 - STEP_BITS + 1) as usize) * STEPS as usize;

/// Samples of one kind.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    buckets: Box<[u64]>,
    samples: u64,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: vec![0; BUCKETS].into(), samples: 0, max: Duration::ZERO }
    }
}

impl Histogram {
    pub fn note(&mut self, sample: Duration) {
        self.buckets[bucket(u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX))] += 1;
        self.samples += 1;
        self.max = self.max.max(sample);
    }

    pub fn samples(&self) -> u64 {
        self.samples
    }

    pub fn max(&self) -> Duration {
        self.max
    }

    /// The duration that `part` (0 to 1) of the samples do not exceed; `None` without samples.
    pub fn percentile(&self, part: f64) -> Option<Duration> {
        let rank = ((self.samples as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(Duration::from_nanos(upper(found)).min(self.max))
    }
}

/// ```text
/// nanoseconds   0..64        one bucket each
///               2^e..2^(e+1) 64 buckets, by the six bits after the highest
/// ```
fn bucket(nanos: u64) -> usize {
    if nanos < STEPS {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - STEP_BITS;
    (u64::from(shift + 1) * STEPS + (nanos >> shift) - STEPS) as usize
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let (row, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    match row.checked_sub(1) {
        None => step,
        Some(shift) => ((u128::from(STEPS + step + 1) << shift) - 1).min(u64::MAX.into()) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_bucket() {
        let mut histogram = Histogram::default();
        (1..=100_000).for_each(|n| histogram.note(Duration::from_nanos(n * 100)));
        for (part, exact) in [(0.5, 5_000_000.0), (0.99, 9_900_000.0), (0.999, 9_990_000.0)] {
            let found = histogram.percentile(part).unwrap().as_nanos() as f64;
            assert!((found / exact - 1.0).abs() < 0.016, "{part}: {found}");
        }
        assert_eq!((histogram.samples(), histogram.max()), (100_000, Duration::from_millis(10)));
    }

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for nanos in [0, 1, 63, 64, 65, 127, 128, 129, 1 << 20, (1 << 20) - 1, u64::MAX] {
            let found = bucket(nanos);
            assert!(upper(found) >= nanos, "{nanos}");
            assert!(found == 0 || upper(found - 1) < nanos, "{nanos}");
            assert!(found < BUCKETS);
        }
    }

    #[test]
    fn nothing_has_no_percentile() {
        assert_eq!(Histogram::default().percentile(0.5), None);
    }
}
