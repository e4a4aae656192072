//! How time runs in a replay of the past: so much faster that it meets the present when the replay does.
//!
//! Each replayed packet has, at the moment when it is due, the timestamp that one captured just then would have. With times of
//! its own a decoder would stay behind for ever; with times that run at another pace than the packets come, its jitter
//! buffer would take the difference for a slow network, and wait.
//!
//! A publisher that is away, or whose picture stands still, has sent nothing for a while: that time is all but left out, or the
//! first picture after it would come that much too early.
//!
//! ```text
//! captured  keyframe · · · · · · · · newest                    now · · · · · end
//! shown                                        keyframe · · newest,now · · · end
//! ```

use std::time::Duration;

use crate::units::Instant;
use crate::wire::packet::CanonicalPacket;

/// At most so many times faster: 60 frames/s are 1/4 ms apart then, a clear step forward.
const FACTOR_MAX: u32 = 64;

/// What was captured longer ago comes no more.
const LATE_MAX: u32 = 10_000 * TICKS_PER_MS;

/// What comes so long after replay and present met, and is still of before, has a clock that stood still during the silence.
const OVERDUE: Duration = Duration::from_secs(1);

const TICKS_PER_MS: u32 = 90;
/// 99 minutes: three of them are less than half the range.
const TICKS_MAX: u32 = u32::MAX / 8;

/// From a keyframe of the past to where replay and present meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Squeeze {
    /// Canonical timestamp where they meet: from there on time is as it is.
    end: u32,
    /// Ticks from the keyframe to `end`, without the silence: as captured, and as shown.
    captured: u32,
    shown: u32,
    /// Ticks from the newest packet to the start of the replay.
    silence: u32,
    /// When they meet.
    meets: Instant,
    /// The first canonical number behind `end`, once it is known: timestamps alone are ambiguous after some hours.
    until: u64,
}

impl Squeeze {
    /// What has come from `keyframe` to `newest` is to be sent within `takes` from now on.
    pub fn new(now: Instant, keyframe: &CanonicalPacket, newest: &CanonicalPacket, takes: Duration) -> Squeeze {
        let age = newest.timestamp.wrapping_sub(keyframe.timestamp).cast_signed().max(0).cast_unsigned();
        // A publisher whose timestamps jump has not sent for hours.
        let age = age.min(ticks(newest.packet.arrival.since(keyframe.packet.arrival)));
        let silence = ticks(now.since(newest.packet.arrival));
        let shown = ticks(takes).max((age + shown_of(silence)).div_ceil(FACTOR_MAX - 1));
        let takes = shown + shown_of(silence);
        let end = newest.timestamp.wrapping_add(silence + takes);
        let meets = now + duration(takes);
        Squeeze { end, captured: age + takes, shown, silence, meets, until: u64::MAX }
    }

    /// Canonical timestamp of what is captured when the replay starts.
    pub fn start(&self) -> u32 {
        self.end.wrapping_sub(self.takes())
    }

    /// Whether the packet's time is squeezed.
    #[inline]
    pub fn holds(&self, packet: &CanonicalPacket) -> bool {
        packet.seq < self.until && self.before_end(packet) > 0
    }

    /// Whether the packet, which nothing has overtaken, should have met the present long ago.
    #[inline]
    pub fn is_overdue(&self, packet: &CanonicalPacket) -> bool {
        self.holds(packet) && packet.packet.arrival.since(self.meets) > OVERDUE
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
        let takes = self.takes();
        duration(takes - self.shown_before_end(packet).min(takes))
    }

    /// Ticks from the keyframe to `end` as shown, which are those from the start of the replay to `end`.
    fn takes(&self) -> u32 {
        self.shown + shown_of(self.silence)
    }

    fn before_end(&self, packet: &CanonicalPacket) -> i32 {
        self.end.wrapping_sub(packet.timestamp).cast_signed()
    }

    fn shown_before_end(&self, packet: &CanonicalPacket) -> u32 {
        let before_end = self.before_end(packet).max(0).cast_unsigned();
        let silence = before_end.saturating_sub(self.takes()).min(self.silence);
        let moving = u64::from(before_end - silence) * u64::from(self.shown) / u64::from(self.captured.max(1));
        moving as u32 + shown_of(silence)
    }
}

/// How long the end of a silence, or all of it, is shown, in ticks as it is given.
fn shown_of(silence: u32) -> u32 {
    silence.min(LATE_MAX) / FACTOR_MAX
}

fn duration(ticks: u32) -> Duration {
    Duration::from_micros(u64::from(ticks) * 1000 / u64::from(TICKS_PER_MS))
}

fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_micros() * u128::from(TICKS_PER_MS) / 1000).unwrap_or(u32::MAX).min(TICKS_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::descriptor::Rewrite;
    use crate::wire::packet::MediaPacket;
    use crate::wire::packet::testing::video;

    /// Numbered by the milliseconds at which it came.
    fn packet(seq: u64, timestamp: u32) -> CanonicalPacket {
        let arrival = Instant::from_nanos(seq * 1_000_000);
        let packet = Arc::new(MediaPacket { arrival, ..video(1, 0, false, 10) });
        CanonicalPacket { packet, seq, timestamp, marker: false, rewrite: Rewrite::default() }
    }

    fn squeeze(keyframe: &CanonicalPacket, newest: &CanonicalPacket, takes_ms: u64) -> Squeeze {
        Squeeze::new(newest.packet.arrival, keyframe, newest, Duration::from_millis(takes_ms))
    }

    #[test]
    fn a_past_of_seven_seconds_is_shown_within_one() {
        let start = u32::MAX - 90_000;
        let at = |ms: u32| packet(u64::from(ms), start.wrapping_add(90 * ms));
        let squeeze = squeeze(&at(0), &at(7000), 1000);
        let shown = |ms| squeeze.timestamp(&at(ms)).wrapping_sub(at(7000).timestamp) / 90;
        assert_eq!([0, 4000, 7992].map(shown), [0, 500, 999]);
        assert_eq!([0, 4000, 7992].map(|ms| squeeze.due(&at(ms)).as_millis()), [0, 500, 999]);
        assert!(squeeze.holds(&at(7999)) && !squeeze.holds(&at(8000)));
    }

    #[test]
    fn what_was_shown_last_a_while_ago_is_shown_now() {
        let at = |ms: u32| packet(u64::from(ms), 90 * ms);
        // A picture of a publisher who has sent nothing for 6.4 s since.
        let squeeze = Squeeze::new(at(7400).packet.arrival, &at(0), &at(1000), Duration::from_millis(250));
        let shown = |ms| squeeze.timestamp(&at(ms)) / 90;
        assert_eq!([0, 1000, 7400, 7749].map(shown), [7400, 7585, 7685, 7749]);
        assert_eq!([0, 1000, 7400].map(|ms| squeeze.due(&at(ms)).as_millis()), [0, 185, 285]);
        assert!(!squeeze.holds(&at(7750)));
        assert_eq!(squeeze.start(), at(7400).timestamp);
    }

    #[test]
    fn what_came_behind_its_end_ends_it_whatever_timestamps_do_later() {
        let mut squeeze = squeeze(&packet(10, 0), &packet(1010, 90_000), 100);
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
        let squeeze = squeeze(&keyframe, &newest, 500);
        assert!(squeeze.due(&newest) <= Duration::from_secs(1), "{:?}", squeeze.due(&newest));
        assert_eq!(squeeze.due(&keyframe), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn time_goes_forward_and_joins_the_present(
            start: u32,
            age in prop_oneof![Just(0), 0u32..1_200_000],
            takes in prop_oneof![Just(0), 0u64..12_000],
            silence in prop_oneof![0u64..50, 50u64..10_000, 10_000u64..5_000_000],
            ran: bool,
            steps in prop::collection::vec(1500u32..9000, 1..200),
        ) {
            let (keyframe, newest) = (packet(0, start), packet(u64::from(age / 90) + 1, start.wrapping_add(age)));
            let now = newest.packet.arrival + Duration::from_millis(silence);
            let squeeze = Squeeze::new(now, &keyframe, &newest, Duration::from_millis(takes));
            prop_assert_eq!(squeeze.due(&keyframe), Duration::ZERO);
            let timestamp = |p: &CanonicalPacket| if squeeze.holds(p) { squeeze.timestamp(p) } else { p.timestamp };
            // What follows was captured after the silence, or comes late.
            let silent = if ran || silence > 10_000 { silence as u32 * 90 } else { 0 };
            let (mut last, mut captured) = (keyframe, 0);
            for step in steps {
                let passes = captured <= age && captured + step > age;
                captured += step;
                let after = if captured > age { silent } else { 0 };
                let next = packet(2, start.wrapping_add(captured + after));
                let forward = timestamp(&next).wrapping_sub(timestamp(&last));
                let most = step + if passes { silent.min(900_000) / 64 + 1 } else { 0 };
                prop_assert!((20..=most).contains(&forward), "{} ticks for {}", forward, step);
                last = next;
            }
        }
    }
}
