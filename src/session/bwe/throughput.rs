//! How much arrives: what came within the last half second, and the most within a moment of it.
//!
//! A viewer that goes up a layer gets three times as much from one frame to the next, and a keyframe that fills a queue at
//! once. An average that takes seconds to follow (libwebrtc's `bitrate_estimator.cc`) would take the link for what the
//! lower layer used of it; its successor, `robust_throughput_estimator.cc`, counts over a window, as this does.

const SLOTS: usize = 20;
const SLOT_MICROS: i64 = 25_000;
/// Frames come each 33 ms, so fewer slots would measure their distance.
const PEAK_SLOTS: usize = 4;
const WINDOW_MICROS: i64 = SLOTS as i64 * SLOT_MICROS;

#[derive(Debug, Default)]
pub(super) struct Throughput {
    /// By the slot's number, modulo [`SLOTS`].
    bytes: [u64; SLOTS],
    span: Option<Span>,
    /// What was known before the last silence.
    before_bps: Option<f64>,
}

/// What is counted, without silences.
#[derive(Clone, Copy, Debug)]
struct Span {
    start_micros: i64,
    newest_micros: i64,
}

impl Throughput {
    /// In bit/s; `None` within the first half second. After a silence it is what was known before, for half a second.
    pub fn bps(&self) -> Option<f64> {
        self.window_bps().or(self.before_bps)
    }

    fn window_bps(&self) -> Option<f64> {
        let Span { start_micros, newest_micros } = self.span?;
        // A receiver's clock may be anywhere.
        let begin = (slot(newest_micros) - SLOTS as i64 + 1).saturating_mul(SLOT_MICROS);
        if begin <= start_micros {
            return None;
        }
        let elapsed = newest_micros.saturating_sub(begin);
        // Bytes per µs are Mbit/s when multiplied by 8.
        Some(self.bytes.iter().sum::<u64>() as f64 * 8e6 / elapsed as f64)
    }

    /// Of the fastest [`PEAK_SLOTS`] in the window, bit/s: what a link lets through while it is full, however short that was.
    pub fn peak_bps(&self) -> Option<f64> {
        let newest_slot = slot(self.span?.newest_micros);
        let at = |ago: usize| self.bytes[place(newest_slot - ago as i64)];
        // The newest slot is not over.
        let sums = (1..=SLOTS - PEAK_SLOTS).map(|ago| (ago..ago + PEAK_SLOTS).map(at).sum::<u64>());
        let most = sums.max().unwrap_or_default();
        Some(most as f64 * 8e6 / (PEAK_SLOTS as i64 * SLOT_MICROS) as f64)
    }

    /// A packet at a time of any clock; a little out of order does no harm.
    pub fn add(&mut self, at_micros: i64, bytes: u16) {
        let span =
            self.span.filter(|span| at_micros.saturating_sub(span.newest_micros).saturating_abs() <= WINDOW_MICROS);
        let Some(span) = span else {
            // Silence, or a clock that was set: nothing is known of the time between.
            let span = Span { start_micros: at_micros, newest_micros: at_micros };
            *self = Throughput { span: Some(span), before_bps: self.bps(), ..Throughput::default() };
            self.bytes[place(slot(at_micros))] = bytes.into();
            return;
        };
        let (newest_slot, slot) = (slot(span.newest_micros), slot(at_micros));
        for passed in newest_slot + 1..=slot {
            self.bytes[place(passed)] = 0;
        }
        if slot > newest_slot - SLOTS as i64 {
            self.bytes[place(slot)] += u64::from(bytes);
        }
        self.span = Some(Span { newest_micros: span.newest_micros.max(at_micros), ..span });
    }
}

fn slot(at_micros: i64) -> i64 {
    at_micros.div_euclid(SLOT_MICROS)
}

fn place(slot: i64) -> usize {
    slot.rem_euclid(SLOTS as i64) as usize
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

    fn assert_near(bps: Option<f64>, expected: f64) {
        let bps = bps.expect("an estimate");
        assert!((bps / expected - 1.0).abs() < 0.05, "{bps}, expected {expected}");
    }

    #[test]
    fn a_steady_stream_is_measured_after_half_a_second() {
        let mut throughput = Throughput::default();
        steady(&mut throughput, 0, 45, 1250);
        assert_eq!(throughput.bps(), None);
        steady(&mut throughput, 450, 10, 1250);
        assert_near(throughput.bps(), 1e6);
    }

    #[test]
    fn a_change_is_followed_within_half_a_second_and_its_peak_at_once() {
        let mut throughput = Throughput::default();
        steady(&mut throughput, 0, 300, 250);
        assert_near(throughput.peak_bps(), 2e5);
        steady(&mut throughput, 3000, 20, 1250);
        assert_near(throughput.peak_bps(), 1e6);
        steady(&mut throughput, 3200, 30, 1250);
        assert_near(throughput.bps(), 1e6);
        steady(&mut throughput, 3500, 50, 250);
        assert_near(throughput.bps(), 2e5);
        assert_near(throughput.peak_bps(), 2e5);
    }

    #[test]
    fn clocks_at_the_end_of_time_do_no_harm() {
        for at_micros in [i64::MIN, i64::MIN + 1, i64::MAX - 1, i64::MAX] {
            let mut throughput = Throughput::default();
            (0..3).for_each(|_| throughput.add(at_micros, 1250));
            assert!(throughput.bps().is_none_or(f64::is_finite), "{at_micros}");
            assert!(throughput.peak_bps().is_some_and(f64::is_finite), "{at_micros}");
        }
    }

    #[test]
    fn silence_and_clocks_that_jump_do_not_count_as_time() {
        let mut throughput = Throughput::default();
        steady(&mut throughput, 0, 100, 1250);
        for from in [60_000, -60_000, i64::MAX / 4000, i64::MIN / 4000] {
            for millis in [0, 200, 400] {
                steady(&mut throughput, from + millis, 20, 1250);
                assert_near(throughput.bps(), 1e6);
            }
        }
    }
}
