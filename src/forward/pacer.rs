//! How much of a track leaves at once: a keyframe may be as large as a second of what follows it, and must not arrive as
//! one burst that overflows the queues on its way.

use std::time::Duration;

use super::bucket::Bucket;
use crate::units::Instant;

/// What a keyframe is spread at, of the track's own bitrate or of what a path is measured to carry; libwebrtc's pacer has the
/// same factor.
pub const SPREAD_PERCENT: u64 = 250;

/// What always leaves at once: two full messages of segments, or what is sent in this time.
const BURST_BYTES_MIN: u64 = 2 * 16 * 1200;
const BURST: Duration = Duration::from_millis(40);

const SLOTS: usize = 10;
const SLOT: Duration = Duration::from_millis(100);

/// Bytes of a track in the second that has passed.
#[derive(Debug, Default)]
pub struct Meter {
    slots: [u64; SLOTS],
    /// Number of the newest slot since [`Instant::ZERO`].
    slot: u64,
    /// Slots since the beginning, as far as that matters.
    filled: usize,
}

impl Meter {
    pub fn count(&mut self, now: Instant, bytes: usize) {
        self.advance(now);
        self.slots[self.slot as usize % SLOTS] += bytes as u64;
    }

    fn advance(&mut self, now: Instant) {
        let slot = now.as_nanos() / SLOT.as_nanos() as u64;
        let passed = slot.saturating_sub(self.slot).min(SLOTS as u64) as usize;
        for i in 0..passed {
            self.slots[(slot - i as u64) as usize % SLOTS] = 0;
        }
        let starts = self.filled == 0 || passed == SLOTS;
        self.filled = if starts { 1 } else { (self.filled + passed).min(SLOTS) };
        self.slot = self.slot.max(slot);
    }

    /// In the second that has passed, or as far as there was one, bit/s.
    pub fn bitrate(&mut self, now: Instant) -> u64 {
        self.advance(now);
        let bits = self.slots.iter().sum::<u64>() * 8;
        bits * SLOTS as u64 / self.filled.max(1) as u64
    }

    /// `None` before a second has passed.
    pub fn bytes_per_second(&mut self, now: Instant) -> Option<u64> {
        self.advance(now);
        (self.filled == SLOTS).then(|| self.slots.iter().sum())
    }
}

/// Lets a track pass at a multiple of its own bitrate.
#[derive(Debug, Default)]
pub struct Pacer(Bucket);

impl Pacer {
    /// Takes `bytes`, or says when they may leave. `rate`: the track's own, bytes per second; unknown means unbounded.
    pub fn take(&mut self, now: Instant, rate: Option<u64>, bytes: usize) -> Result<(), Instant> {
        let Some(rate) = rate else { return Ok(()) };
        let rate = (rate * SPREAD_PERCENT / 100).max(1);
        let depth = BURST_BYTES_MIN.max(rate * BURST.as_millis() as u64 / 1000);
        // One message of segments may be larger than what a quiet track earns.
        self.0.take(now, rate, depth, bytes as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_meter_sees_the_second_that_has_passed() {
        let mut meter = Meter::default();
        for ms in 0..2000 {
            meter.count(at(ms), 100);
            assert_eq!(meter.bytes_per_second(at(ms)).is_some(), ms >= 900, "{ms}");
        }
        assert_eq!(meter.bytes_per_second(at(1999)), Some(100_000));
        assert_eq!(meter.bytes_per_second(at(2499)), Some(50_000));
        assert_eq!(meter.bytes_per_second(at(9000)), None, "after a silence it starts again");
    }

    #[test]
    fn ordinary_frames_pass_and_a_keyframe_is_spread() {
        let mut pacer = Pacer::default();
        // 2 Mbit/s, frames of 8 kB.
        let rate = Some(250_000);
        for frame in 0..30 {
            assert_eq!(pacer.take(at(1000 + frame * 33), rate, 8_000), Ok(()));
        }
        let (mut now, mut sent) = (at(2000), 0);
        while sent < 150_000 {
            match pacer.take(now, rate, 16_000) {
                Ok(()) => sent += 16_000,
                Err(later) => {
                    assert!(later > now);
                    now = later;
                }
            }
        }
        let took = now.since(at(2000));
        assert!((160..=200).contains(&took.as_millis()), "150 kB less a burst at 625 kB/s: {took:?}");
        assert_eq!(Pacer::default().take(at(5), None, 1_000_000), Ok(()));
    }
}
