//! What was sent to one viewer, by transport-wide sequence number, until feedback tells what became of it.

use std::num::NonZeroU8;

use crate::limits::SEND_HISTORY_PACKETS;
use crate::units::Instant;
use crate::wire::transport_cc::PacketStatus;

/// Packets that were sent to measure the link: one probe. The numbers begin anew after 255, long after the reports on
/// the first have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterId(pub(super) NonZeroU8);

/// 16 bytes, so that the hot path touches one cache line for four packets.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Instant,
    bytes: u16,
    cluster: Option<ClusterId>,
    fate: Fate,
}

const _: () = assert!(size_of::<Sent>() == 16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Unknown,
    Missing,
    Arrived,
}

/// What feedback has told of one packet, and what we know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub sent: Instant,
    pub bytes: u16,
    pub cluster: Option<ClusterId>,
    /// In the receiver's ticks; `None`: it is missing.
    pub arrival_ticks: Option<i64>,
    /// An earlier report missed it.
    pub was_missing: bool,
}

/// A ring of the last [`SEND_HISTORY_PACKETS`] packets.
pub(super) struct SendHistory {
    ring: Box<[Sent; SEND_HISTORY_PACKETS]>,
    /// Sequence numbers given out so far; the wire shows the lower 16 bits.
    next_seq: u64,
}

impl SendHistory {
    pub fn new() -> SendHistory {
        let unused = Sent { at: Instant::ZERO, bytes: 0, cluster: None, fate: Fate::Unknown };
        SendHistory { ring: Box::new([unused; SEND_HISTORY_PACKETS]), next_seq: 0 }
    }

    /// The sequence number for a packet that leaves now.
    pub fn record(&mut self, now: Instant, bytes: u16, cluster: Option<ClusterId>) -> u16 {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.ring[slot(seq)] = Sent { at: now, bytes, cluster, fate: Fate::Unknown };
        // The wire's counter wraps.
        seq as u16
    }

    /// What `status` tells that was not known. `None` for what is known, was never sent, or was sent too long ago.
    pub fn report(&mut self, status: PacketStatus) -> Option<Report> {
        let age = (self.next_seq as u16).wrapping_sub(status.seq);
        let seq = self.next_seq.checked_sub(age.into())?;
        if age == 0 || usize::from(age) > SEND_HISTORY_PACKETS {
            return None;
        }
        let sent = &mut self.ring[slot(seq)];
        let fate = if status.arrival_ticks.is_some() { Fate::Arrived } else { Fate::Missing };
        if sent.fate == fate || sent.fate == Fate::Arrived {
            return None;
        }
        let was_missing = sent.fate == Fate::Missing;
        sent.fate = fate;
        let Sent { at, bytes, cluster, .. } = *sent;
        Some(Report { sent: at, bytes, cluster, arrival_ticks: status.arrival_ticks, was_missing })
    }
}

fn slot(seq: u64) -> usize {
    (seq % SEND_HISTORY_PACKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn status(seq: u16, arrival_ticks: Option<i64>) -> PacketStatus {
        PacketStatus { seq, arrival_ticks }
    }

    #[test]
    fn a_packet_is_reported_once_and_a_missing_one_may_still_arrive() {
        let mut history = SendHistory::new();
        assert_eq!(history.record(at(1), 100, None), 0);
        assert_eq!(history.record(at(2), 200, None), 1);
        assert!(history.report(status(0, Some(5))).is_some());
        assert_eq!(history.report(status(0, Some(5))), None, "a duplicate");
        assert_eq!(history.report(status(0, None)), None, "what has arrived stays so");
        assert_eq!(history.report(status(1, None)).map(|r| (r.sent, r.bytes)), Some((at(2), 200)));
        assert_eq!(history.report(status(1, None)), None);
        assert_eq!(history.report(status(1, Some(9))).map(|r| r.was_missing), Some(true));
    }

    #[test]
    fn numbers_wrap_on_the_wire_only() {
        let mut history = SendHistory::new();
        for n in 0..70_000_u64 {
            assert_eq!(history.record(at(n), (n % 1000) as u16, None), n as u16);
        }
        let newest = history.report(status((69_999 % 65_536) as u16, Some(0))).expect("the newest");
        assert_eq!((newest.sent, newest.bytes), (at(69_999), 999));
        let oldest = 70_000 - SEND_HISTORY_PACKETS as u64;
        assert_eq!(history.report(status(oldest as u16, Some(0))).map(|r| r.sent), Some(at(oldest)));
    }

    #[test]
    fn what_was_never_sent_or_long_ago_is_ignored() {
        let mut history = SendHistory::new();
        assert_eq!(history.report(status(65_535, Some(0))), None);
        for n in 0..SEND_HISTORY_PACKETS as u64 + 5 {
            history.record(at(n), 1, None);
        }
        let next = SEND_HISTORY_PACKETS as u16 + 5;
        for forged in [next, next + 1, 4, 0, 40_000] {
            assert_eq!(history.report(status(forged, Some(0))), None, "{forged}");
        }
        assert!(history.report(status(5, Some(0))).is_some());
    }
}
