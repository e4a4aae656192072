//! A viewer's way from one rendition of a layer to another: up at a keyframe, down to fewer spatial or temporal layers at any
//! picture.
//!
//! The two renditions have queues of their own, of which either may be ahead, and the viewer is to get each picture whole and
//! once. So the old one is stopped before the beginning of a picture, and the new one goes on with just that:
//!
//! ```text
//! old, S0 to S2:  [0 1 2] [0 1 2]│
//!                                │ the viewer's numbers and timestamps go on as if nothing had changed
//! new, S0 to S1:                 │[0 1] [0 1]
//! ```

use std::ops::Range;

use crate::id::Generation;
use crate::wire::descriptor::Rewrite;
use crate::wire::packet::{CanonicalPacket, MediaPacket, Rendition};

/// Where a viewer's track stands in its publisher's packets.
#[derive(Debug, Default)]
pub(super) struct Crossing {
    last: Option<Last>,
    /// The newest beginning of a picture in the new rendition that was not the viewer's turn.
    passed: Option<u64>,
    /// The old rendition is sent no further; the new one is to go on with this packet.
    stopped_before: Option<u64>,
}

/// The highest number sent.
#[derive(Clone, Copy, Debug)]
struct Last {
    generation: Generation,
    ssrc: u32,
    seq: u64,
    /// In its rendition's numbers, which have gaps only where something is not there yet.
    canonical_seq: u64,
    ends_picture: bool,
    /// From the publisher's timestamps and numbers to the viewer's.
    timestamp_offset: u32,
    rewrite: Rewrite,
    /// From the publisher's numbers to those of its rendition.
    canonical: Rewrite,
}

/// What the new rendition has for the viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The packet to go on with, by index.
    At(usize),
    /// What it was to go on with is lost.
    Missed,
    NotYet,
}

impl Crossing {
    /// The highest number was sent, with this timestamp.
    #[inline]
    pub fn handle_sent(&mut self, canonical: &CanonicalPacket, timestamp: u32, rewrite: Rewrite) {
        let packet = &canonical.packet;
        self.last = Some(Last {
            generation: packet.generation,
            ssrc: packet.ssrc,
            seq: packet.seq,
            canonical_seq: canonical.seq,
            ends_picture: canonical.marker,
            timestamp_offset: timestamp.wrapping_sub(packet.timestamp),
            rewrite,
            canonical: canonical.rewrite,
        });
    }

    /// The highest number was sent with a timestamp that is squeezed: what comes next cannot go on from it as it is.
    pub fn handle_squeezed(&mut self) {
        self.last = None;
    }

    /// Another goal, or the goal is reached: true if the viewer was left without either rendition.
    pub fn reset(&mut self) -> bool {
        self.passed = None;
        self.stopped_before.take().is_some()
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped_before.is_some()
    }

    /// How much of `run` of the old rendition is still to be sent on the way down to `lower`. It stops before a picture of both
    /// only when the new rendition is seen to come, and has not come so far; and not where a picture may be missing, for which
    /// there would be no place afterwards.
    pub fn stop_at_picture(
        &mut self,
        packets: &[CanonicalPacket],
        run: Range<usize>,
        lower: &Rendition,
    ) -> Range<usize> {
        let (Some(passed), Some(mut last)) = (self.passed, self.last) else { return run };
        for index in run.clone() {
            let packet = &packets[index].packet;
            let is_of_both = last.starts_picture_with(packet) && lower.takes(packet) == Some(true);
            let is_next = last.ends_picture && packets[index].seq == last.canonical_seq + 1;
            if is_next && is_of_both && packet.seq > passed.max(last.seq) {
                self.stop_before(&packets[index]);
                return run.start..index;
            }
            last.pass(&packets[index]);
        }
        run
    }

    /// How much of `run` of the old rendition is still to be sent on the way up. A keyframe that comes late would turn time back.
    pub fn stop_at_keyframe(&mut self, packets: &[CanonicalPacket], run: Range<usize>) -> Range<usize> {
        let mut last = self.last;
        for index in run.clone() {
            let packet = &packets[index].packet;
            if packet.starts_keyframe && last.is_none_or(|last| last.is_before(packet)) {
                self.stop_before(&packets[index]);
                return run.start..index;
            }
            if let Some(last) = &mut last {
                last.pass(&packets[index]);
            }
        }
        run
    }

    fn stop_before(&mut self, next: &CanonicalPacket) {
        self.stopped_before = Some(next.packet.seq);
        // What the old rendition has closed up since the last packet stays closed up.
        if let Some(last) = &mut self.last {
            last.rewrite = last.rewrite.plus(next.rewrite).minus(last.canonical);
            last.canonical = next.rewrite;
        }
    }

    /// Whether the new rendition, from here on, is the same track where the old one has not been yet.
    pub fn goes_on_with(&self, first: &CanonicalPacket) -> bool {
        self.last.is_some_and(|last| last.is_of_track(&first.packet) && first.packet.seq > last.seq)
    }

    /// Whether the viewer has got this packet, or a later one of its track, in another rendition.
    pub fn has_passed(&self, packet: &MediaPacket) -> bool {
        self.last.is_some_and(|last| last.is_of_track(packet) && packet.seq <= last.seq)
    }

    /// Looks for the viewer's turn in `run` of the new rendition.
    pub fn find(&mut self, packets: &[CanonicalPacket], run: Range<usize>) -> Found {
        let Some(last) = self.last else { return Found::NotYet };
        for index in run {
            let packet = &packets[index].packet;
            if !last.starts_picture_with(packet) {
                continue;
            }
            match self.stopped_before {
                Some(before) if packet.seq == before => return Found::At(index),
                Some(before) if packet.seq > before => return Found::Missed,
                _ if packet.seq <= last.seq => self.passed = self.passed.max(Some(packet.seq)),
                // All before it was sent.
                None if last.ends_picture && packet.seq == last.seq + 1 => return Found::At(index),
                _ => self.passed = self.passed.max(Some(packet.seq)),
            }
        }
        Found::NotYet
    }

    /// What to add to the canonical timestamps and numbers of the rendition that `first` is of, so that the viewer's stay
    /// those that it would have got without the change.
    pub fn offsets(&self, first: &CanonicalPacket) -> (u32, Rewrite) {
        let Some(last) = self.last else { return Default::default() };
        let timestamp = first.packet.timestamp.wrapping_add(last.timestamp_offset);
        (timestamp.wrapping_sub(first.timestamp), last.rewrite.minus(first.rewrite))
    }
}

impl Last {
    fn is_of_track(&self, packet: &MediaPacket) -> bool {
        (packet.generation, packet.ssrc) == (self.generation, self.ssrc)
    }

    /// Whether the packet comes later: another track's is not late.
    fn is_before(&self, packet: &MediaPacket) -> bool {
        !self.is_of_track(packet) || packet.seq > self.seq
    }

    /// The packet is to be sent too.
    fn pass(&mut self, canonical: &CanonicalPacket) {
        if self.is_of_track(&canonical.packet) && canonical.packet.seq > self.seq {
            (self.seq, self.canonical_seq) = (canonical.packet.seq, canonical.seq);
            self.ends_picture = canonical.marker;
        }
    }

    /// Whether this is the beginning of a picture of the same track.
    fn starts_picture_with(&self, packet: &MediaPacket) -> bool {
        self.is_of_track(packet) && packet.descriptor.layer.starts_picture
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::packet::testing::video;

    const LOWER: Rendition = Rendition { layer: 0, spatial_max: 1, temporal_max: u8::MAX };
    const PICTURES: u64 = 8;
    const SPATIALS: u64 = 3;
    /// Of each spatial layer's frame.
    const PACKETS: u64 = 2;

    /// All pictures in a rendition, whose canonical numbers begin with `base`.
    fn pictures(spatial_max: u8, base: u64, rewrite: u16) -> Vec<CanonicalPacket> {
        let rendition = Rendition { spatial_max, ..Rendition::default() };
        let all = (0..PICTURES * SPATIALS * PACKETS).map(|n| {
            let (picture, spatial) = (n / (SPATIALS * PACKETS), n / PACKETS % SPATIALS);
            let mut packet = video(100 + n, picture as u32 * 3000, n == 0, 10);
            packet.descriptor.layer.spatial = spatial as u8;
            packet.descriptor.layer.starts_picture = spatial == 0 && n % PACKETS == 0;
            packet.descriptor.layer.ends_frame = n % PACKETS == PACKETS - 1;
            packet.marker = spatial == SPATIALS - 1 && packet.descriptor.layer.ends_frame;
            Arc::new(packet)
        });
        let within = all.filter(|p| rendition.takes(p) == Some(true)).zip(base..);
        let canonical = |(packet, seq): (Arc<MediaPacket>, u64)| CanonicalPacket {
            marker: rendition.marker(&packet),
            timestamp: packet.timestamp.wrapping_add(rewrite.into()),
            packet,
            seq,
            rewrite: Rewrite { picture_id: rewrite, ..Rewrite::default() },
        };
        within.map(canonical).collect()
    }

    /// A viewer that goes down while the runs of both come in some order.
    struct Viewer {
        crossing: Crossing,
        below: Option<(u32, Rewrite)>,
        /// Publisher's sequence numbers.
        got: Vec<u64>,
        missed: bool,
    }

    impl Viewer {
        fn get(&mut self, packets: &[CanonicalPacket]) {
            for packet in packets {
                let (timestamp_offset, rewrite) = self.below.unwrap_or_default();
                let (timestamp, rewrite) =
                    (packet.timestamp.wrapping_add(timestamp_offset), packet.rewrite.plus(rewrite));
                // Those of the upper rendition are 7 above the publisher's.
                assert_eq!((timestamp, rewrite.picture_id), (packet.packet.timestamp + 7, 7));
                self.crossing.handle_sent(packet, timestamp, rewrite);
                self.got.push(packet.packet.seq);
            }
        }

        fn upper(&mut self, packets: &[CanonicalPacket], run: Range<usize>) {
            if self.below.is_none() && !self.crossing.is_stopped() && !self.missed {
                let run = self.crossing.stop_at_picture(packets, run, &LOWER);
                self.get(&packets[run]);
            }
        }

        fn lower(&mut self, packets: &[CanonicalPacket], run: Range<usize>) {
            if self.below.is_some() {
                return self.get(&packets[run]);
            }
            match self.crossing.find(packets, run.clone()) {
                Found::At(index) => {
                    self.below = Some(self.crossing.offsets(&packets[index]));
                    self.crossing.reset();
                    self.get(&packets[index..run.end]);
                }
                Found::Missed => self.missed = true,
                Found::NotYet => {}
            }
        }
    }

    proptest! {
        #[test]
        fn each_picture_comes_whole_and_once_whichever_queue_is_ahead(
            runs in proptest::collection::vec((any::<bool>(), 1usize..8), 1..40),
            joins_at in 0..PICTURES - 2,
        ) {
            let (upper, mut lower) = (pictures(255, 40, 7), pictures(1, 9, 5000));
            lower.retain(|p| p.packet.timestamp >= joins_at as u32 * 3000);
            let mut viewer = Viewer { crossing: Crossing::default(), below: None, got: Vec::new(), missed: false };
            let (mut above, mut below) = (0, 0);
            let rest = [(true, upper.len()), (false, lower.len())];
            for (is_upper, count) in runs.into_iter().chain(rest) {
                let (packets, at) = if is_upper { (&upper, &mut above) } else { (&lower, &mut below) };
                let run = *at..(*at + count).min(packets.len());
                *at = run.end;
                if is_upper { viewer.upper(packets, run) } else { viewer.lower(packets, run) }
            }
            prop_assert!(!viewer.missed);
            let picture_of = |seq: &u64| (seq - 100) / (SPATIALS * PACKETS);
            let mut counts = [0; PICTURES as usize];
            viewer.got.iter().for_each(|seq| counts[picture_of(seq) as usize] += 1);
            prop_assert!(viewer.got.is_sorted());
            let lowered = counts.iter().position(|count| *count != SPATIALS * PACKETS).unwrap_or(counts.len());
            prop_assert!(counts[lowered..].iter().all(|count| *count == 2 * PACKETS), "{:?}", counts);
        }
    }

    /// One run of each for a picture, as they come while nothing waits.
    fn steps(viewer: &mut Viewer, pictures: Range<u32>, upper: &[CanonicalPacket], lower: &[CanonicalPacket]) {
        let of = |packets: &[CanonicalPacket], picture: u32| {
            let is = |p: &CanonicalPacket| p.packet.timestamp == picture * 3000;
            let start = packets.iter().position(is).unwrap_or(packets.len());
            start..start + packets[start..].iter().filter(|p| is(p)).count()
        };
        for picture in pictures {
            viewer.upper(upper, of(upper, picture));
            viewer.lower(lower, of(lower, picture));
        }
    }

    #[test]
    fn the_way_down_takes_a_picture_or_two_and_a_lost_beginning_ends_it() {
        let (upper, lower) = (pictures(255, 40, 7), pictures(1, 9, 5000));
        let viewer = || Viewer { crossing: Crossing::default(), below: None, got: Vec::new(), missed: false };
        let mut down = viewer();
        steps(&mut down, 0..3, &upper, &lower);
        assert_eq!((down.below.is_some(), down.got.len()), (true, 6 + 4 + 4));
        let mut lossy = viewer();
        steps(&mut lossy, 0..1, &upper, &lower);
        let without: Vec<_> = lower.iter().filter(|p| p.packet.seq != 106).cloned().collect();
        steps(&mut lossy, 1..2, &upper, &without);
        assert!(lossy.crossing.is_stopped() && !lossy.missed);
        steps(&mut lossy, 2..3, &upper, &without);
        assert!(lossy.missed);
        let mut restarted = viewer();
        steps(&mut restarted, 0..1, &upper, &lower);
        let others = lower.iter().cloned().map(|mut p| {
            p.packet = Arc::new(MediaPacket { generation: Generation(2), ..MediaPacket::clone(&p.packet) });
            p
        });
        restarted.lower(&others.collect::<Vec<_>>(), 4..8);
        assert!(restarted.below.is_none(), "another publisher's pictures are no way down");
    }

    #[test]
    fn the_way_down_waits_for_a_picture_behind_which_nothing_is_missing() {
        let (upper, lower) = (pictures(255, 40, 7), pictures(1, 9, 5000));
        let mut viewer = Viewer { crossing: Crossing::default(), below: None, got: Vec::new(), missed: false };
        steps(&mut viewer, 0..1, &upper, &lower);
        // The next picture is late.
        steps(&mut viewer, 2..3, &upper, &lower);
        assert_eq!((viewer.below.is_some(), viewer.got.len()), (false, 6 + 6));
        steps(&mut viewer, 3..4, &upper, &lower);
        assert_eq!((viewer.below.is_some(), viewer.got.len()), (true, 6 + 6 + 4));
    }

    #[test]
    fn the_way_up_is_no_keyframe_that_came_late() {
        let mut lower = pictures(1, 9, 5000);
        let is_key =
            |p: &CanonicalPacket| p.packet.seq >= 100 + SPATIALS * PACKETS && p.packet.descriptor.layer.starts_picture;
        lower.iter_mut().filter(|p| is_key(p)).for_each(|p| Arc::make_mut(&mut p.packet).starts_keyframe = true);
        // Each picture is a keyframe of 4 packets; the first packet of the second one comes behind the next one's end, or amid it.
        let key = lower.remove(4);
        for at in [9, 11] {
            let mut run = lower[..11].to_vec();
            run.insert(at, key.clone());
            let mut viewer = Crossing::default();
            viewer.handle_sent(&run[3], 0, Rewrite::default());
            assert_eq!(viewer.stop_at_keyframe(&run, 4..7), 4..7, "the rest of the second one");
            assert_eq!(viewer.stop_at_keyframe(&run, at..at + 1), at..at, "it is ahead of the first one");
            viewer = Crossing::default();
            viewer.handle_sent(&run[at - 1], 0, Rewrite::default());
            assert_eq!(viewer.stop_at_keyframe(&run, at..at + 1), at..at + 1, "late");
            assert!(!viewer.is_stopped());
        }
    }
}
