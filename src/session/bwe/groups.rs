//! Packets that left together are one group; from group to group the delay grows or shrinks (draft-ietf-rmcat-gcc-02
//! §5.1, §5.2; libwebrtc's `inter_arrival_delta.cc`).

use crate::units::Instant;
use crate::wire::transport_cc::TICK_MICROS;

/// Packets that leave within so long are one group (libwebrtc; the draft's burst_time).
const GROUP_MICROS: i64 = 5_000;
/// A packet that comes so soon after the one before, with less delay, was held up with it on the way.
const BURST_MICROS: i64 = 5_000;
const BURST_LENGTH_MICROS: i64 = 100_000;
/// A delay that changes by so much from group to group is a clock that was set, ours or theirs (libwebrtc; it looks for
/// growth only).
const JUMP_MICROS: i64 = 3_000_000;
/// Groups in a row that arrive before the one ahead of them: then it is their clock, not the order (libwebrtc).
const BACKWARDS_MAX: u32 = 3;

/// From one group to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Variation {
    /// When the later group was complete, by the receiver's clock.
    pub arrival_millis: f64,
    pub send_delta_millis: f64,
    pub arrival_delta_millis: f64,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    first_sent: Instant,
    last_sent: Instant,
    first_arrival: i64,
    last_arrival: i64,
}

#[derive(Debug, Default)]
pub(super) struct Groups {
    complete: Option<Group>,
    growing: Option<Group>,
    backwards: u32,
}

impl Groups {
    /// Takes the packets that have arrived, in the order of sending. `Some` when one begins a new group after two others.
    pub fn add(&mut self, sent: Instant, arrival_ticks: i64) -> Option<Variation> {
        let arrival = arrival_ticks.saturating_mul(TICK_MICROS);
        let fresh = Group { first_sent: sent, last_sent: sent, first_arrival: arrival, last_arrival: arrival };
        let Some(growing) = &mut self.growing else {
            self.growing = Some(fresh);
            return None;
        };
        if sent < growing.first_sent {
            return None;
        }
        if growing.takes(sent, arrival) {
            growing.last_sent = growing.last_sent.max(sent);
            growing.last_arrival = growing.last_arrival.max(arrival);
            return None;
        }
        let later = *growing;
        self.growing = Some(fresh);
        let earlier = self.complete.replace(later)?;
        self.variation(&earlier, &later)
    }

    fn variation(&mut self, earlier: &Group, later: &Group) -> Option<Variation> {
        let send_delta = micros(earlier.last_sent, later.last_sent);
        let arrival_delta = later.last_arrival.saturating_sub(earlier.last_arrival);
        self.backwards = if arrival_delta < 0 { self.backwards + 1 } else { 0 };
        if self.backwards >= BACKWARDS_MAX || arrival_delta.saturating_sub(send_delta).saturating_abs() > JUMP_MICROS {
            *self = Groups::default();
            return None;
        }
        (arrival_delta >= 0).then(|| Variation {
            arrival_millis: later.last_arrival as f64 / 1e3,
            send_delta_millis: send_delta as f64 / 1e3,
            arrival_delta_millis: arrival_delta as f64 / 1e3,
        })
    }
}

impl Group {
    fn takes(&self, sent: Instant, arrival: i64) -> bool {
        let after = arrival.saturating_sub(self.last_arrival);
        let caught_up = after < micros(self.last_sent, sent);
        let is_burst =
            caught_up && after <= BURST_MICROS && arrival.saturating_sub(self.first_arrival) < BURST_LENGTH_MICROS;
        micros(self.first_sent, sent) <= GROUP_MICROS || is_burst
    }
}

/// Negative when `to` is the earlier.
fn micros(from: Instant, to: Instant) -> i64 {
    let nanos = i128::from(to.as_nanos()) - i128::from(from.as_nanos());
    i64::try_from(nanos / 1000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets by (sent, arrived), in ms.
    fn check(packets: &[(u64, i64)], expected: &[(f64, f64)]) {
        let mut groups = Groups::default();
        let variations: Vec<_> = packets
            .iter()
            .filter_map(|(sent, arrived)| groups.add(Instant::from_nanos(sent * 1_000_000), arrived * 4))
            .map(|v| (v.send_delta_millis, v.arrival_delta_millis))
            .collect();
        assert_eq!(variations, expected);
    }

    #[test]
    fn packets_within_five_milliseconds_are_one_group() {
        check(&[(0, 10), (3, 14), (5, 16), (20, 30), (24, 36), (40, 50)], &[(19.0, 20.0)]);
    }

    #[test]
    fn what_was_held_up_together_is_one_group() {
        // The link was silent until 100, then let four packets go at once.
        check(&[(0, 10), (20, 100), (40, 101), (60, 102), (80, 103), (120, 133)], &[(80.0, 93.0)]);
    }

    #[test]
    fn what_is_out_of_order_or_jumps_is_left_out() {
        check(&[(0, 10), (20, 30), (1, 31), (40, 50)], &[(20.0, 20.0)]);
        check(&[(0, 10), (20, 9000), (40, 9020), (60, 9040), (80, 9060), (100, 9080)], &[(20.0, 20.0)]);
        check(&[(0, i64::MAX / 4), (20, i64::MIN / 4), (40, 0), (60, 1)], &[]);
    }
}
