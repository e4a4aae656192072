//! How often a figure was how large.

use std::marker::PhantomData;
use std::time::Duration;

/// What a histogram counts: the upper bounds of its buckets, ascending, and what one of them is in the unit that is shown.
pub trait Scale {
    const BOUNDS: [u64; 12];
    const UNIT: f64;
}

/// Counts by bucket; the last bucket is everything above the bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<S> {
    buckets: [u64; 13],
    sum: u64,
    scale: PhantomData<S>,
}

impl<S> Default for Histogram<S> {
    fn default() -> Self {
        Histogram { buckets: [0; 13], sum: 0, scale: PhantomData }
    }
}

impl<S: Scale> Histogram<S> {
    pub fn observe(&mut self, value: u64, times: u64) {
        let bucket = S::BOUNDS.iter().position(|b| value <= *b).unwrap_or(S::BOUNDS.len());
        self.buckets[bucket] += times;
        self.sum += value * times;
    }

    /// For scales in nanoseconds. A value is 584 years at most.
    pub fn observe_duration(&mut self, value: Duration, times: u64) {
        self.observe(value.as_nanos() as u64, times);
    }

    /// In the order of [`Scale::BOUNDS`], and what is above.
    pub fn buckets(&self) -> &[u64; 13] {
        &self.buckets
    }

    /// In the unit that is shown.
    pub fn sum(&self) -> f64 {
        self.sum as f64 * S::UNIT
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

const US: u64 = 1_000;
const MS: u64 = 1_000_000;

/// From a datagram's receipt to the return of the flush that sent its copies: nanoseconds, shown in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardLatency;

impl Scale for ForwardLatency {
    const BOUNDS: [u64; 12] =
        [20 * US, 50 * US, 100 * US, 200 * US, 500 * US, MS, 2 * MS, 5 * MS, 10 * MS, 20 * MS, 50 * MS, 100 * MS];
    const UNIT: f64 = 1e-9;
}

/// From our sender report to the viewer's report on it, without its own delay: nanoseconds, shown in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundTrip;

impl Scale for RoundTrip {
    const BOUNDS: [u64; 12] =
        [MS, 2 * MS, 5 * MS, 10 * MS, 20 * MS, 50 * MS, 100 * MS, 200 * MS, 300 * MS, 500 * MS, 1000 * MS, 2000 * MS];
    const UNIT: f64 = 1e-9;
}

/// The fraction of a viewer's video that was lost since its report before, as RFC 3550 has it: 1/256, shown as a fraction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FractionLost;

impl Scale for FractionLost {
    const BOUNDS: [u64; 12] = [0, 1, 3, 5, 8, 13, 20, 26, 38, 51, 77, 128];
    const UNIT: f64 = 1.0 / 256.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_bucket_that_holds_it() {
        let mut latency = Histogram::<ForwardLatency>::default();
        latency.observe_duration(Duration::from_micros(20), 1);
        latency.observe_duration(Duration::from_micros(21), 2);
        latency.observe_duration(Duration::from_secs(1), 1);
        assert_eq!((latency.buckets()[0], latency.buckets()[1], latency.buckets()[12]), (1, 2, 1));
        assert_eq!(latency.count(), 4);
        assert!((latency.sum() - 1.000_062).abs() < 1e-9, "{}", latency.sum());
    }
}
