//! How time runs in a replay of the past: so much faster that it meets the present when the replay does.
//!
//! Each replayed packet has, at the moment when it is due, the timestamp that one captured just then would have. With times of
//! its own a decoder would stay behind for ever; with times that run at another pace than the packets come, its jitter
//! buffer would take the difference for a slow network, and wait.

use std::time::Duration;

use crate::wire::packet::CanonicalPacket;

/// At most so many times faster: 60 frames/s are 1/4 ms apart then, a clear step forward.
const FACTOR_MAX: u32 = 64;

const TICKS_PER_MS: u128 = 90;

/// From a keyframe of the past to where replay and present meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Squeeze {
    /// Canonical timestamp where they meet: from there on time is as it is.
    end: u32,
    /// Ticks from the keyframe to `end`: as captured, and as shown.
    captured: u32,
    shown: u32,
    /// The first canonical number behind `end`, once it is known: timestamps alone are ambiguous after some hours.
    until: u64,
}

impl Squeeze {
    /// What has come from `keyframe` to `newest` is to be sent within `takes`.
    pub fn new(keyframe: &CanonicalPacket, newest: &CanonicalPacket, takes: Duration) -> Squeeze {
        let age = newest.timestamp.wrapping_sub(keyframe.timestamp).cast_signed().max(0).cast_unsigned();
        // A publisher whose timestamps jump has not sent for hours.
        let since = newest.packet.arrival.since(keyframe.packet.arrival);
        let age = age.min(u32::try_from(since.as_micros() * TICKS_PER_MS / 1000).unwrap_or(u32::MAX / 4));
        let shown =
            u32::try_from(takes.as_micros() * TICKS_PER_MS / 1000).unwrap_or(u32::MAX / 4).max(age / FACTOR_MAX);
        Squeeze { end: newest.timestamp.wrapping_add(shown), captured: age + shown, shown, until: u64::MAX }
    }

    /// Whether the packet's time is squeezed.
    #[inline]
    pub fn holds(&self, packet: &CanonicalPacket) -> bool {
        packet.seq < self.until && self.before_end(packet) > 0
    }

    /// Takes note of the first packet that it does not hold.
    #[inline]
    pub fn passes(&mut self, packet: &CanonicalPacket) {
        if self.until == u64::MAX && !self.holds(packet) {
            self.until = packet.seq;
        }
    }

    /// Of a packet that it holds.
    pub fn timestamp(&self, packet: &CanonicalPacket) -> u32 {
        self.end.wrapping_sub(self.shown_before_end(packet))
    }

    /// When a packet's time has come, from the start of the replay on.
    pub fn due(&self, packet: &CanonicalPacket) -> Duration {
        let ticks = self.shown - self.shown_before_end(packet).min(self.shown);
        Duration::from_micros(u64::from(ticks) * 1000 / TICKS_PER_MS as u64)
    }

    fn before_end(&self, packet: &CanonicalPacket) -> i32 {
        self.end.wrapping_sub(packet.timestamp).cast_signed()
    }

    fn shown_before_end(&self, packet: &CanonicalPacket) -> u32 {
        let captured = u64::from(self.before_end(packet).max(0).cast_unsigned());
        (captured * u64::from(self.shown) / u64::from(self.captured.max(1))) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::units::Instant;
    use crate::wire::descriptor::Rewrite;
    use crate::wire::packet::MediaPacket;
    use crate::wire::packet::testing::video;

    /// Numbered by the milliseconds at which it came.
    fn packet(seq: u64, timestamp: u32) -> CanonicalPacket {
        let arrival = Instant::from_nanos(seq * 1_000_000);
        let packet = Arc::new(MediaPacket { arrival, ..video(1, 0, false, 10) });
        CanonicalPacket { packet, seq, timestamp, marker: false, rewrite: Rewrite::default() }
    }

    #[test]
    fn a_past_of_seven_seconds_is_shown_within_one() {
        let start = u32::MAX - 90_000;
        let at = |ms: u32| packet(u64::from(ms), start.wrapping_add(90 * ms));
        let squeeze = Squeeze::new(&at(0), &at(7000), Duration::from_secs(1));
        let shown = |ms| squeeze.timestamp(&at(ms)).wrapping_sub(at(7000).timestamp) / 90;
        assert_eq!([0, 4000, 7992].map(shown), [0, 500, 999]);
        assert_eq!([0, 4000, 7992].map(|ms| squeeze.due(&at(ms)).as_millis()), [0, 500, 999]);
        assert!(squeeze.holds(&at(7999)) && !squeeze.holds(&at(8000)));
    }

    #[test]
    fn what_came_behind_its_end_ends_it_whatever_timestamps_do_later() {
        let mut squeeze = Squeeze::new(&packet(10, 0), &packet(1010, 90_000), Duration::from_millis(100));
        squeeze.passes(&packet(1011, 98_999));
        assert!(squeeze.holds(&packet(1012, 98_999)));
        squeeze.passes(&packet(1012, 99_000));
        squeeze.passes(&packet(1020, 120_000));
        assert!(squeeze.holds(&packet(1011, 98_999)), "to be sent again as it was");
        // Half a range of timestamps later.
        assert!(!squeeze.holds(&packet(1_000_000, 98_000)));
    }

    #[test]
    fn timestamps_that_jump_are_not_waited_for() {
        // Two hours within a second.
        let (keyframe, newest) = (packet(0, 7), packet(1000, 648_000_000));
        let squeeze = Squeeze::new(&keyframe, &newest, Duration::from_millis(500));
        assert!(squeeze.due(&newest) <= Duration::from_secs(1), "{:?}", squeeze.due(&newest));
        assert_eq!(squeeze.due(&keyframe), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn time_goes_forward_and_joins_the_present(
            start: u32, age in 0u32..1_200_000, takes in 0u64..12_000, steps in prop::collection::vec(1500u32..9000, 1..200),
        ) {
            let (keyframe, newest) = (packet(0, start), packet(u64::from(age / 90) + 1, start.wrapping_add(age)));
            let squeeze = Squeeze::new(&keyframe, &newest, Duration::from_millis(takes));
            prop_assert_eq!(squeeze.due(&keyframe), Duration::ZERO);
            let timestamp = |p: &CanonicalPacket| if squeeze.holds(p) { squeeze.timestamp(p) } else { p.timestamp };
            let mut last = keyframe;
            for step in steps {
                let next = packet(2, last.timestamp.wrapping_add(step));
                let forward = timestamp(&next).wrapping_sub(timestamp(&last));
                prop_assert!((20..=step).contains(&forward), "{} ticks for {}", forward, step);
                last = next;
            }
        }
    }
}
