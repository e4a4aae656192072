//! How much arrives: samples of a window, each weighed by how well it fits what is known (libwebrtc's
//! `bitrate_estimator.cc`).

/// The first estimate wants more to go by than the ones after it (libwebrtc).
const FIRST_WINDOW_MICROS: i64 = 500_000;
const WINDOW_MICROS: i64 = 150_000;
/// How doubtful a sample is for its distance from the estimate, and how fast the estimate grows doubtful by itself, in
/// kbit/s (libwebrtc).
const DISTANCE_DOUBT: f64 = 10.0;
const VARIANCE_START: f64 = 50.0;
const VARIANCE_PER_WINDOW: f64 = 5.0;

#[derive(Debug, Default)]
pub(super) struct Throughput {
    /// Start and bytes of the window, and its newest packet.
    window: Option<Window>,
    estimate: Option<Estimate>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    start_micros: i64,
    last_micros: i64,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Estimate {
    kbps: f64,
    variance: f64,
}

impl Throughput {
    /// In bit/s; `None` within the first half second.
    pub fn bps(&self) -> Option<f64> {
        self.estimate.map(|e| e.kbps * 1e3)
    }

    /// A packet at a time of any clock; a little out of order does no harm.
    pub fn add(&mut self, at_micros: i64, bytes: u16) {
        let length = if self.estimate.is_some() { WINDOW_MICROS } else { FIRST_WINDOW_MICROS };
        let fresh = Window { start_micros: at_micros, last_micros: at_micros, bytes: 0 };
        let window = self.window.get_or_insert(fresh);
        let step = at_micros.saturating_sub(window.last_micros);
        if step.saturating_abs() > length {
            // Silence, or a clock that was set: nothing is known of the time between.
            *window = fresh;
        }
        window.last_micros = window.last_micros.max(at_micros);
        let elapsed = window.last_micros.saturating_sub(window.start_micros);
        if elapsed >= length {
            // Bytes per µs are Mbit/s when multiplied by 8.
            let sample_kbps = window.bytes as f64 * 8e3 / elapsed as f64;
            *window = Window { start_micros: window.last_micros, ..fresh };
            window.last_micros = window.start_micros;
            self.weigh(sample_kbps);
        }
        if let Some(window) = &mut self.window {
            window.bytes += u64::from(bytes);
        }
    }

    fn weigh(&mut self, sample_kbps: f64) {
        let Some(Estimate { kbps, variance }) = self.estimate else {
            self.estimate = Some(Estimate { kbps: sample_kbps, variance: VARIANCE_START });
            return;
        };
        let doubt = DISTANCE_DOUBT * (kbps - sample_kbps).abs() / kbps.max(1.0);
        let sample_variance = doubt * doubt;
        let expected_variance = variance + VARIANCE_PER_WINDOW;
        let both = sample_variance + expected_variance;
        self.estimate = Some(Estimate {
            kbps: (sample_variance * kbps + expected_variance * sample_kbps) / both,
            variance: sample_variance * expected_variance / both,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1250 bytes every 10 ms are 1 Mbit/s.
    fn steady(throughput: &mut Throughput, from_millis: i64, packets: i64, bytes: u16) {
        for n in 0..packets {
            throughput.add((from_millis + 10 * n) * 1000, bytes);
        }
    }

    fn assert_near(throughput: &Throughput, expected: f64) {
        let bps = throughput.bps().expect("an estimate");
        assert!((bps / expected - 1.0).abs() < 0.05, "{bps}, expected {expected}");
    }

    #[test]
    fn a_steady_stream_is_measured_after_half_a_second() {
        let mut throughput = Throughput::default();
        steady(&mut throughput, 0, 50, 1250);
        assert_eq!(throughput.bps(), None);
        steady(&mut throughput, 500, 50, 1250);
        assert_near(&throughput, 1e6);
    }

    #[test]
    fn a_fall_is_half_followed_within_a_second_and_wholly_within_three() {
        let mut throughput = Throughput::default();
        steady(&mut throughput, 0, 300, 1250);
        steady(&mut throughput, 3000, 100, 250);
        assert!(throughput.bps().is_some_and(|bps| bps < 5e5), "{:?}", throughput.bps());
        steady(&mut throughput, 4000, 200, 250);
        assert_near(&throughput, 2e5);
    }

    #[test]
    fn silence_and_clocks_that_jump_do_not_count_as_time() {
        let mut throughput = Throughput::default();
        steady(&mut throughput, 0, 100, 1250);
        for from in [60_000, -60_000, i64::MAX / 4000, i64::MIN / 4000] {
            steady(&mut throughput, from, 50, 1250);
            assert_near(&throughput, 1e6);
        }
    }
}
