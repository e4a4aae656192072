//! A video track's packets since its last keyframe: what a viewer that joins between two keyframes is started with.

use std::time::Duration;

use super::early::Early;
use crate::units::Instant;
use crate::wire::packet::{CanonicalPacket, MediaPacket};

/// Bounds of one group of pictures. OBS and ffmpeg send a keyframe every 8 to 10 s; a longer or larger one is not worth its
/// memory, nor the time that it takes to send: then only the keyframe is kept, until the next one.
const DURATION_MAX: Duration = Duration::from_secs(12);
const BYTES_MAX: usize = 8 * 1024 * 1024;
const PACKETS_MAX: usize = 6000;

/// Packets that stand between the place of a number and where it came, at most. What comes later is not found.
const LATE_MAX: usize = 64;

/// Packets in the order of their arrival, a keyframe's first one in front.
#[derive(Debug)]
pub struct Gop<P> {
    packets: Vec<P>,
    bytes: usize,
    /// Of these, how many belong to the keyframe, and their payload.
    keyframe_packets: usize,
    keyframe_bytes: usize,
    /// What came after the keyframe did not fit.
    cut: bool,
    /// What came last and is not kept.
    early: Early<P>,
    /// The keyframe's first packet came after others of it.
    overtaken: bool,
    /// Between the beginnings of the keyframe and of the one before, if there was one.
    interval: Option<Duration>,
}

impl<P> Default for Gop<P> {
    fn default() -> Self {
        Gop {
            packets: Vec::new(),
            bytes: 0,
            keyframe_packets: 0,
            keyframe_bytes: 0,
            cut: false,
            early: Early::default(),
            overtaken: false,
            interval: None,
        }
    }
}

impl<P: AsRef<MediaPacket>> Gop<P> {
    pub fn insert(&mut self, packet: P) {
        let media = packet.as_ref();
        if media.starts_keyframe {
            return self.restart(packet);
        }
        let Some(first) = self.packets.first().map(AsRef::as_ref).filter(|_| !self.cut) else {
            return self.early.remember(packet);
        };
        let of_keyframe = self.keyframe_packets == self.packets.len()
            && (first.timestamp, first.ssrc) == (media.timestamp, media.ssrc);
        let full = self.packets.len() >= PACKETS_MAX
            || self.bytes + media.payload.len() > BYTES_MAX
            || media.arrival.since(first.arrival) > DURATION_MAX;
        match (of_keyframe, full) {
            (true, false) => {
                self.push(packet);
                self.keyframe_packets += 1;
                self.keyframe_bytes = self.bytes;
            }
            (false, false) => self.push(packet),
            // Half a keyframe is of no use to anybody.
            (true, true) => self.clear(),
            (false, true) => self.cut_down(),
        }
    }

    /// Only the keyframe stays: what comes next, of another frame, does not follow what is here.
    pub fn cut_before(&mut self, next: &MediaPacket) {
        let keyframe = self.packets.first().map(|p| p.as_ref().timestamp);
        if !self.cut && keyframe.is_some_and(|timestamp| timestamp != next.timestamp) {
            self.cut_down();
        }
    }

    /// Only the keyframe stays.
    fn cut_down(&mut self) {
        self.cut = true;
        self.packets.truncate(self.keyframe_packets);
        self.packets.shrink_to_fit();
        self.bytes = self.keyframe_bytes;
    }

    /// A keyframe begins. Packets of it may have come before its first one: that was overtaken, or lost and repaired.
    fn restart(&mut self, packet: P) {
        let (ssrc, seq) = (packet.as_ref().ssrc, packet.as_ref().seq);
        let interval = self.began().map(|before| packet.as_ref().arrival.since(before));
        let before = std::mem::take(&mut self.packets).into_iter();
        let before = before.chain(self.early.take());
        self.clear();
        self.interval = interval;
        self.push(packet);
        self.keyframe_packets = 1;
        self.keyframe_bytes = self.bytes;
        let late = before.filter(|p| p.as_ref().ssrc == ssrc && p.as_ref().seq > seq);
        late.for_each(|p| self.insert(p));
        // None of them was a later keyframe.
        self.overtaken = self.packets.len() > 1 && self.packets[0].as_ref().seq == seq;
    }

    fn push(&mut self, packet: P) {
        self.bytes += packet.as_ref().payload.len();
        self.packets.push(packet);
    }

    pub fn clear(&mut self) {
        self.packets.clear();
        self.bytes = 0;
        self.keyframe_packets = 0;
        self.keyframe_bytes = 0;
        self.cut = false;
        self.early.clear();
        self.overtaken = false;
        self.interval = None;
    }

    /// The keyframe, and what came after it, unless it [is cut](Self::is_whole).
    pub fn packets(&self) -> &[P] {
        &self.packets
    }

    /// What came last and is not kept.
    pub fn early(&self) -> impl Iterator<Item = &P> {
        self.early.iter()
    }

    /// Whether the keyframe's first packet came after others that follow it.
    pub fn is_overtaken(&self) -> bool {
        self.overtaken
    }

    pub fn keyframe(&self) -> &[P] {
        &self.packets[..self.keyframe_packets]
    }

    /// Everything since the keyframe is there, so that a decoder can go on with what comes next.
    pub fn is_whole(&self) -> bool {
        !self.cut && !self.packets.is_empty()
    }

    /// Nothing of the keyframe is known to be missing at its end, or something else has come since.
    pub fn is_past_keyframe(&self) -> bool {
        let ends = self.keyframe().last().is_some_and(|p| p.as_ref().marker);
        ends || self.keyframe_packets < self.packets.len()
    }

    /// The keyframe's payload.
    pub fn keyframe_bytes(&self) -> usize {
        self.keyframe_bytes
    }

    /// Between the beginnings of the keyframe and of the one before, if there was one.
    pub fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// Payload.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When its keyframe began to arrive.
    pub fn began(&self) -> Option<Instant> {
        self.packets.first().map(|p| p.as_ref().arrival)
    }
}

impl Gop<CanonicalPacket> {
    /// By canonical number.
    pub fn get(&self, seq: u64) -> Option<&CanonicalPacket> {
        self.near(seq).iter().find(|p| p.seq == seq)
    }

    /// Numbers rise but for what came late, so few packets are looked at, also for a number that never was.
    fn near(&self, seq: u64) -> &[CanonicalPacket] {
        let place = self.packets.partition_point(|p| p.seq < seq);
        &self.packets[place.saturating_sub(LATE_MAX)..self.packets.len().min(place + LATE_MAX)]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::descriptor::Rewrite;
    use crate::wire::packet::testing::video;

    fn gop_of(packets: impl IntoIterator<Item = (u64, u64, usize, bool)>) -> Gop<Arc<MediaPacket>> {
        let mut gop = Gop::default();
        for (frame, at_ms, bytes, key) in packets {
            let mut packet = video(frame, frame as u32 * 3000, key, bytes);
            packet.arrival = Instant::from_nanos(at_ms * 1_000_000);
            gop.insert(Arc::new(packet));
        }
        gop
    }

    #[test]
    fn it_begins_with_the_last_keyframe() {
        let gop = gop_of([(1, 0, 10, false), (2, 33, 10, true), (3, 66, 20, false), (4, 99, 30, false)]);
        assert_eq!((gop.packets().len(), gop.keyframe().len(), gop.bytes(), gop.is_whole()), (3, 1, 60, true));
        assert_eq!(gop.began(), Some(Instant::from_nanos(33_000_000)));
        let gop = gop_of([(2, 33, 10, true), (2, 34, 11, false), (3, 66, 20, false), (4, 99, 5, true)]);
        assert_eq!((gop.packets().len(), gop.bytes()), (1, 5));
        let gop = gop_of([(2, 33, 10, true), (2, 34, 11, false), (3, 66, 20, false)]);
        assert_eq!((gop.packets().len(), gop.keyframe().len()), (3, 2));
        assert!(!gop_of([(1, 0, 10, false)]).is_whole());
    }

    #[test]
    fn a_keyframe_past_the_bounds_is_not_kept() {
        let gop = gop_of((0..7000).map(|i| (1, i, 10, i == 0)));
        assert_eq!((gop.packets().len(), gop.bytes(), gop.is_whole()), (0, 0, false));
    }

    #[test]
    fn a_keyframe_whose_first_packet_comes_late_keeps_the_others() {
        let mut gop = gop_of([(1, 0, 10, true), (2, 33, 10, false), (4, 66, 10, false), (5, 70, 10, false)]);
        gop.insert(Arc::new(video(3, 4 * 3000, true, 10)));
        assert_eq!(gop.packets().iter().map(|p| p.seq).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(gop.keyframe().len(), 2);
    }

    #[test]
    fn a_keyframe_that_nothing_was_kept_before_has_what_overtook_it() {
        let mut gop = gop_of([(1, 0, 10, false), (2, 33, 10, false), (4, 66, 10, false)]);
        gop.insert(Arc::new(video(3, 4 * 3000, true, 10)));
        assert_eq!(gop.packets().iter().map(|p| p.seq).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(gop.keyframe().len(), 2);
        let mut cut = gop_of((0..6002).map(|i| (i, i, 10, i == 0)));
        cut.insert(Arc::new(video(6000, 6001 * 3000, true, 10)));
        assert_eq!(cut.packets().iter().map(|p| p.seq).collect::<Vec<_>>(), [6000, 6001]);
    }

    #[test]
    fn past_any_bound_only_the_keyframe_stays_until_the_next_one() {
        let long = (0..400).map(|i| (i, i * 33, 10, i == 0));
        let many = (0..6001).map(|i| (i, i, 10, i == 0));
        let large = (0..1000).map(|i| (i, i, 10_000, i == 0));
        for packets in [long.collect::<Vec<_>>(), many.collect(), large.collect()] {
            let mut packets = packets;
            let cut = gop_of(packets.iter().copied());
            assert_eq!((cut.packets().len(), cut.is_whole()), (1, false));
            assert_eq!(cut.bytes(), packets[0].2);
            packets.extend([(7000, 90_000, 7, true), (7001, 90_033, 8, false)]);
            let next = gop_of(packets);
            assert_eq!((next.packets().len(), next.bytes(), next.is_whole()), (2, 15, true));
        }
    }

    proptest! {
        /// However much is lost, whatever comes half as late as it may, and whatever else is asked for.
        #[test]
        fn a_number_is_found_without_a_search(
            fates in vec((0..4u64, 0..LATE_MAX as u64 / 2), 200..1000),
            lost in (0..200usize, 0..3000u64),
            never in any::<u64>(),
        ) {
            let (mut seq, mut gop) = (1000, Gop::default());
            let mut arrivals = Vec::new();
            for (at, (step, late)) in fates.into_iter().enumerate() {
                seq += step.max(1) + if at == lost.0 { lost.1 } else { 0 };
                arrivals.push((at as u64 + if at == 0 { 0 } else { late }, seq));
            }
            let first = arrivals[0].1;
            arrivals.sort();
            let sent: HashSet<u64> = arrivals.iter().map(|(_, seq)| *seq).collect();
            for (_, seq) in &arrivals {
                let packet = Arc::new(video(*seq, *seq as u32 * 3000, *seq == first, 10));
                let (timestamp, marker, rewrite) = (packet.timestamp, false, Rewrite::default());
                gop.insert(CanonicalPacket { packet, seq: *seq, timestamp, marker, rewrite });
            }
            for seq in first - 100..seq + 100 {
                prop_assert_eq!(gop.get(seq).map(|p| p.seq), sent.get(&seq).copied());
            }
            for seq in [never, 0, first, first + 1, seq, u64::MAX] {
                prop_assert!(gop.near(seq).len() <= 2 * LATE_MAX);
            }
        }
    }
}
