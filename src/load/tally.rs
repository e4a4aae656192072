//! What arrived of one RTP stream: losses, duplicates, reordering, and which losses to ask for again.

use std::time::Duration;

use crate::units::Instant;

/// Sequence numbers that are remembered: 2 s of 1000 packets/s. What is older counts as lost for good.
const WINDOW: u64 = 2048;

/// A gap this young may be mere reordering.
const NACK_DELAY: Duration = Duration::from_millis(5);

/// Times that one packet is asked for; libwebrtc asks 10 times.
const NACKS_MAX: u8 = 10;

/// Losses that are asked for at a time. Filling this means that a second of the stream is gone: no repair will help.
const MISSING_MAX: usize = 1000;

/// Counters since the stream began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// From the first to the highest sequence number.
    pub expected: u64,
    /// Different packets, repaired ones too.
    pub received: u64,
    pub duplicates: u64,
    /// Came by themselves after a packet with a higher number.
    pub reordered: u64,
    /// Came by RTX.
    pub repaired: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.expected += other.expected;
        self.received += other.received;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.repaired += other.repaired;
    }

    /// None when repairs of earlier losses outweigh them.
    pub fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.received)
    }

    pub fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            expected: self.expected - earlier.expected,
            received: self.received - earlier.received,
            duplicates: self.duplicates - earlier.duplicates,
            reordered: self.reordered - earlier.reordered,
            repaired: self.repaired - earlier.repaired,
        }
    }
}

/// One stream's numbers.
#[derive(Debug)]
pub(super) struct Tally {
    first: u64,
    highest: u64,
    /// One bit per number, at its place modulo `WINDOW`.
    seen: Box<[u64; (WINDOW / 64) as usize]>,
    counts: Counts,
    missing: Vec<Missing>,
    /// Between two requests for the same packet.
    retry: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Missing {
    seq: u64,
    due: Instant,
    asked: u8,
}

impl Tally {
    /// `retry`: at least the round trip.
    pub fn new(seq: u16, retry: Duration) -> Tally {
        // One roll-over ahead, so that what comes before the first packet has a number too.
        let first = u64::from(seq) + (1 << 16);
        let counts = Counts { expected: 1, received: 1, ..Counts::default() };
        let mut tally = Tally { first, highest: first, seen: Box::default(), counts, missing: Vec::new(), retry };
        tally.mark(first);
        tally
    }

    /// A packet that came by itself. Returns whether it is the first of its number.
    pub fn note(&mut self, now: Instant, seq: u16) -> bool {
        let seq = self.extend(seq);
        if seq > self.highest {
            self.advance(now, seq);
            self.counts.received += 1;
            return true;
        }
        let fresh = self.fill(seq);
        self.counts.reordered += u64::from(fresh);
        fresh
    }

    /// A packet that came by RTX, by its original number. Returns whether it was still missing.
    pub fn repair(&mut self, seq: u16) -> bool {
        let seq = self.extend(seq);
        // Above the highest nothing was asked for; such a repair is a probe.
        let fresh = seq <= self.highest && self.fill(seq);
        self.counts.repaired += u64::from(fresh);
        fresh
    }

    /// Numbers to ask for now, ascending, into `out`.
    pub fn due(&mut self, now: Instant, out: &mut Vec<u16>) {
        out.clear();
        let retry = self.retry;
        self.missing.retain_mut(|missing| {
            if missing.due > now {
                return true;
            }
            if missing.asked >= NACKS_MAX {
                return false;
            }
            missing.asked += 1;
            missing.due = now + retry;
            out.push(missing.seq as u16);
            true
        });
    }

    /// When something is to be asked for.
    pub fn next_timeout(&self) -> Instant {
        self.missing.iter().map(|m| m.due).min().unwrap_or(Instant::FAR_FUTURE)
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The highest number with its roll-overs, as a receiver report says it.
    pub fn highest(&self) -> u32 {
        (self.highest - (1 << 16)) as u32
    }

    fn extend(&self, seq: u16) -> u64 {
        let ahead = seq.wrapping_sub(self.highest as u16).cast_signed();
        self.highest.saturating_add_signed(ahead.into())
    }

    fn advance(&mut self, now: Instant, seq: u64) {
        for gap in self.highest + 1..seq {
            self.clear(gap);
            if self.missing.len() < MISSING_MAX {
                self.missing.push(Missing { seq: gap, due: now + NACK_DELAY, asked: 0 });
            }
        }
        self.counts.expected += seq - self.highest;
        self.highest = seq;
        self.mark(seq);
    }

    /// A number at or below the highest. Returns whether it was missing.
    fn fill(&mut self, seq: u64) -> bool {
        if seq < self.first {
            // Sent before we began to count.
            return false;
        }
        if self.highest - seq >= WINDOW || self.is_marked(seq) {
            self.counts.duplicates += 1;
            return false;
        }
        self.mark(seq);
        self.counts.received += 1;
        self.missing.retain(|m| m.seq != seq);
        true
    }

    fn mark(&mut self, seq: u64) {
        self.seen[(seq % WINDOW / 64) as usize] |= 1 << (seq % 64);
    }

    fn clear(&mut self, seq: u64) {
        self.seen[(seq % WINDOW / 64) as usize] &= !(1 << (seq % 64));
    }

    fn is_marked(&self, seq: u64) -> bool {
        self.seen[(seq % WINDOW / 64) as usize] & 1 << (seq % 64) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn tally(seqs: impl IntoIterator<Item = u16>) -> Tally {
        let mut seqs = seqs.into_iter();
        let mut tally = Tally::new(seqs.next().unwrap(), Duration::from_millis(50));
        for seq in seqs {
            tally.note(at(0), seq);
        }
        tally
    }

    #[test]
    fn a_whole_stream_has_no_faults() {
        let counts = tally((0..10_000u32).map(|n| (n + 60_000) as u16)).counts();
        assert_eq!(counts, Counts { expected: 10_000, received: 10_000, ..Counts::default() });
    }

    #[test]
    fn losses_duplicates_and_reordering_are_told_apart() {
        let counts = tally([65_534, 65_535, 1, 0, 0, 4, 65_000]).counts();
        assert_eq!(counts, Counts { expected: 7, received: 5, duplicates: 1, reordered: 1, repaired: 0 });
    }

    #[test]
    fn a_gap_is_asked_for_until_it_is_repaired() {
        let mut tally = tally([10, 14]);
        let mut lost = Vec::new();
        tally.due(at(1), &mut lost);
        assert!(lost.is_empty(), "it may be reordering");
        tally.due(at(5), &mut lost);
        assert_eq!(lost, [11, 12, 13]);
        assert!(tally.repair(12));
        assert!(!tally.repair(12), "a second repair is a duplicate");
        assert_eq!(tally.next_timeout(), at(55));
        tally.due(at(55), &mut lost);
        assert_eq!(lost, [11, 13]);
        for n in 2..20 {
            tally.due(at(5 + 50 * n), &mut lost);
        }
        assert_eq!(tally.next_timeout(), Instant::FAR_FUTURE, "it gives up");
        let counts = tally.counts();
        assert_eq!((counts.expected, counts.received, counts.repaired, counts.duplicates), (5, 3, 1, 1));
    }

    #[test]
    fn a_number_of_a_lap_ago_does_not_count_as_seen() {
        let mut tally = tally((0..2048).chain([2050]));
        assert!(tally.note(at(0), 2049));
        assert!(!tally.note(at(0), 2050));
    }
}
