//! One numbering for a track, whoever publishes it: sequence numbers, timestamps and the codec's own numbers go on
//! where the last publisher left them.
//!
//! Each shard keeps its own (not the publisher's shard): a stream's publishers may live on different shards, and
//! their numbering then needs no hand-over. A viewer never changes its shard, so it sees only one of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use str0m::media::MediaKind;

use crate::id::Generation;
use crate::units::Instant;
use crate::wire::codec::Codec;
use crate::wire::descriptor::{Numbers, PictureId, Rewrite};
use crate::wire::packet::{CanonicalPacket, MediaPacket};

/// A stream's audio or video in the numbering that this shard's viewers see.
#[derive(Debug, Default)]
pub struct Canonical {
    source: Option<Source>,
    /// The newest packet given out.
    newest: Option<Newest>,
}

/// The publisher's track that is bound now, and what to add to its numbers.
#[derive(Debug)]
struct Source {
    generation: Generation,
    ssrc: u32,
    /// How its sequence numbers map: one at least, newest first; what is older than the last one belongs to the time before. A
    /// repair may be older than the newest: it keeps its place.
    ranges: VecDeque<SeqRange>,
    /// The picture that was left out last.
    left_out: Option<PictureId>,
}

/// Ranges between packets that are left out (in a row they make one range): padding, with which a publisher probes a few times
/// a second; in renditions of fewer layers, part of each picture. A packet that is older is refused. 1 s of 60 pictures a second,
/// of which a loss cuts each in two, is more than a repair takes. 4 kB of a track that leaves something out.
const RANGES: usize = 128;

/// From `first` up to the next range's.
#[derive(Clone, Copy, Debug)]
struct SeqRange {
    first: u64,
    offset: i64,
    timestamp_offset: u32,
    rewrite: Rewrite,
}

/// A timestamp that is so far ahead of what a packet without delay would have, or behind the newest, is of an RTP clock that has
/// jumped.
const JUMP: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
struct Newest {
    seq: u64,
    timestamp: u32,
    /// Of whatever came last.
    arrival: Instant,
    /// The timestamp of a packet that came then without delay.
    prompt: u32,
    captured: Instant,
    /// The newest of each, as given out.
    numbers: Numbers,
}

/// Why a packet has no place in the canonical numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// From a publisher that was replaced, or older than the switch.
    Stale,
    /// A new publisher's video that a decoder cannot start on: the switch waits for its keyframe.
    AwaitingKeyframe,
    /// Nothing but padding: its number is closed up.
    Padding,
}

impl Canonical {
    /// Gives the packet its place.
    ///
    /// # Errors
    /// [`Refused`]: the packet goes to nobody.
    pub fn place(&mut self, packet: &Arc<MediaPacket>) -> Result<CanonicalPacket, Refused> {
        let source = match &self.source {
            Some(source) if source.is(packet) => source,
            Some(source) if packet.generation < source.generation => return Err(Refused::Stale),
            _ if packet.kind == MediaKind::Video && !packet.starts_keyframe => return Err(Refused::AwaitingKeyframe),
            _ if packet.payload.is_empty() => return Err(Refused::Padding),
            _ => self.bind(packet),
        };
        let (seq, range) = source.place(packet.seq).ok_or(Refused::Stale)?;
        if packet.payload.is_empty() {
            self.leave_out(packet);
            return Err(Refused::Padding);
        }
        let timestamp = self.timestamp(packet, seq, range);
        let rewrite = range.rewrite;
        let canonical = CanonicalPacket { packet: packet.clone(), seq, timestamp, marker: packet.marker, rewrite };
        if self.newest.is_none_or(|n| seq >= n.seq) {
            let numbers = packet.descriptor.numbers.plus(rewrite);
            let prompt = self.newest.map_or(timestamp, |newest| newest.prompt_at(packet));
            let is_early = timestamp.wrapping_sub(prompt).cast_signed() > 0;
            self.newest = Some(Newest {
                seq,
                timestamp,
                // Were it that of one which was overtaken, the time from there on would count again.
                arrival: self.newest.map_or(packet.arrival, |newest| newest.arrival.max(packet.arrival)),
                prompt: if is_early { timestamp } else { prompt },
                captured: packet.captured,
                numbers: numbers.or(self.newest.map(|n| n.numbers).unwrap_or_default()),
            });
        }
        Ok(canonical)
    }

    /// Of a packet in `range`. Where the publisher's timestamps have jumped, those that viewers see go on by the time that has
    /// passed.
    fn timestamp(&mut self, packet: &MediaPacket, seq: u64, range: SeqRange) -> u32 {
        let timestamp = packet.timestamp.wrapping_add(range.timestamp_offset);
        let (Some(newest), Some(source)) = (self.newest, &mut self.source) else { return timestamp };
        let ahead = |timestamp: u32| i64::from(timestamp.wrapping_sub(newest.timestamp).cast_signed());
        let front = source.ranges[0];
        if seq <= newest.seq || range.first != front.first {
            // It may have been sent under the new clock, and overtaken by the first one that was seen of that.
            let newer = packet.timestamp.wrapping_add(front.timestamp_offset);
            return if ahead(newer).abs() < ahead(timestamp).abs() { newer } else { timestamp };
        }
        let jump = i64::from(ticks(packet.kind, JUMP));
        let early = timestamp.wrapping_sub(newest.prompt_at(packet)).cast_signed();
        if ahead(timestamp) >= -jump && i64::from(early) <= jump {
            return timestamp;
        }
        let passed = packet.arrival.since(newest.arrival);
        let timestamp = newest.timestamp.wrapping_add(frames(packet.kind, passed));
        let timestamp_offset = timestamp.wrapping_sub(packet.timestamp);
        source.push(packet.seq, SeqRange { first: packet.seq, timestamp_offset, ..front });
        timestamp
    }

    /// The packet goes to nobody: padding, which probes on the media SSRC, or what is above a rendition. In order, the next
    /// packet takes its number; late, the gap stays: that number may have been promised already.
    pub fn leave_out(&mut self, packet: &MediaPacket) {
        let Some(source) = self.source.as_mut().filter(|s| s.is(packet)) else { return };
        let Some((seq, _)) = source.place(packet.seq) else { return };
        if self.newest.is_some_and(|n| seq > n.seq) {
            source.close_up(packet);
        }
    }

    /// The publisher's track that is bound now, by its generation and SSRC.
    pub fn source(&self) -> Option<(Generation, u32)> {
        self.source.as_ref().map(|s| (s.generation, s.ssrc))
    }

    /// Nobody watches any more: whatever comes next is numbered anew, also what has had its place.
    pub fn unbind(&mut self) {
        self.source = None;
    }

    /// From this packet on: though a decoder cannot start on it, there are viewers who can go on with it.
    pub fn resume(&mut self, packet: &MediaPacket) {
        self.bind(packet);
    }

    /// Whether a packet of the publisher that is bound now has had its place, or is too old for one.
    pub fn has_placed(&self, packet: &MediaPacket) -> bool {
        let of_source = self.source.as_ref().is_some_and(|s| s.is(packet));
        of_source && self.number(packet).is_none_or(|seq| self.newest.is_some_and(|n| seq <= n.seq))
    }

    /// The canonical number of a packet of the publisher that is bound now, if it has a place.
    pub fn number(&self, packet: &MediaPacket) -> Option<u64> {
        let source = self.source.as_ref().filter(|s| s.is(packet))?;
        source.place(packet.seq).map(|(seq, _)| seq)
    }

    /// Offsets are computed once per publisher and then constant: computing them per packet would add jitter.
    fn bind(&mut self, packet: &MediaPacket) -> &Source {
        let mut range = SeqRange { first: packet.seq, offset: 0, timestamp_offset: 0, rewrite: Rewrite::default() };
        if let Some(newest) = self.newest {
            range.offset = (newest.seq + 1).wrapping_sub(packet.seq).cast_signed();
            range.rewrite = Rewrite::following(&newest.numbers, &packet.descriptor.numbers);
            let elapsed = packet.captured.since(newest.captured);
            let timestamp = newest.timestamp.wrapping_add(frames(packet.kind, elapsed));
            range.timestamp_offset = timestamp.wrapping_sub(packet.timestamp);
        }
        self.source.insert(Source {
            generation: packet.generation,
            ssrc: packet.ssrc,
            ranges: VecDeque::from([range]),
            left_out: None,
        })
    }
}

impl Source {
    fn is(&self, packet: &MediaPacket) -> bool {
        self.generation == packet.generation && self.ssrc == packet.ssrc
    }

    /// The canonical number; `None` when it is not known any more, or was padding's and is closed up.
    fn place(&self, seq: u64) -> Option<(u64, SeqRange)> {
        let at = self.ranges.partition_point(|r| r.first > seq);
        let range = self.ranges.get(at)?;
        let canonical = range.canonical(seq);
        let newer = at.checked_sub(1).map(|newer| self.ranges[newer]);
        newer.is_none_or(|r| canonical < r.canonical(r.first)).then_some((canonical, *range))
    }

    /// From the packet `from` on numbers map in another way.
    fn push(&mut self, from: u64, range: SeqRange) {
        // Nothing was given out in between.
        if self.ranges.front().is_some_and(|front| front.first == from) {
            self.ranges.pop_front();
        }
        self.ranges.truncate(RANGES - 1);
        self.ranges.push_front(range);
    }

    /// The packet after `left_out`, which is the newest, takes its number, and in VP8 the picture after its picture takes
    /// that one's. (VP9's references count in picture ids, so there a gap must stay.)
    fn close_up(&mut self, left_out: &MediaPacket) {
        let SeqRange { first, offset, timestamp_offset, mut rewrite } = self.ranges[0];
        if left_out.seq < first {
            return;
        }
        let picture = left_out.descriptor.numbers.picture_id.filter(|_| left_out.format.codec == Codec::Vp8);
        if picture.is_some() && picture != self.left_out {
            rewrite.picture_id = rewrite.picture_id.wrapping_sub(1);
            self.left_out = picture;
        }
        self.push(left_out.seq, SeqRange { first: left_out.seq + 1, offset: offset - 1, timestamp_offset, rewrite });
    }
}

impl Newest {
    /// What the packet's timestamp would be, had nothing delayed it.
    fn prompt_at(&self, packet: &MediaPacket) -> u32 {
        self.prompt.wrapping_add(ticks(packet.kind, packet.arrival.since(self.arrival)))
    }
}

impl SeqRange {
    fn canonical(&self, seq: u64) -> u64 {
        seq.wrapping_add_signed(self.offset)
    }
}

/// Elapsed time in the clock of a kind.
fn ticks(kind: MediaKind, elapsed: Duration) -> u32 {
    let clock_rate = if kind == MediaKind::Audio { 48_000 } else { 90_000 };
    // Truncation is what a wrapping clock does.
    (elapsed.as_nanos() * clock_rate / 1_000_000_000) as u32
}

/// One frame at least, so that timestamps never stand still.
fn frames(kind: MediaKind, elapsed: Duration) -> u32 {
    ticks(kind, elapsed).max(if kind == MediaKind::Audio { 960 } else { 3_000 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::StreamId;
    use crate::wire::codec::Format;
    use crate::wire::packet::EndToEnd;
    use crate::wire::{vp8, vp9};

    /// A VP8 packet with a 15-bit picture id.
    fn packet(
        generation: u64,
        seq: u64,
        timestamp: u32,
        at_ms: u64,
        picture_id: u16,
        tl0: u8,
        key: bool,
    ) -> Arc<MediaPacket> {
        let id = picture_id.to_be_bytes();
        let payload = vec![0x90, 0xe0, 0x80 | id[0], id[1], tl0, 0, u8::from(!key), 0x9d, 0x01, 0x2a];
        Arc::new(MediaPacket {
            stream: StreamId(1),
            kind: MediaKind::Video,
            layer: 0,
            generation: Generation(generation),
            format: Format::VP8,
            ssrc: 100 + generation as u32,
            seq,
            timestamp,
            marker: false,
            starts_keyframe: key,
            descriptor: vp8::parse(&payload, false).expect("well-formed"),
            dependency: None,
            extensions: EndToEnd::default(),
            arrival: Instant::from_nanos(at_ms * 1_000_000),
            captured: Instant::from_nanos(at_ms * 1_000_000),
            payload: Arc::from(payload),
        })
    }

    #[test]
    fn numbers_go_on_where_the_last_publisher_left_them() {
        let mut canonical = Canonical::default();
        for (seq, ts, at, pid) in [(65_534, u32::MAX - 2999, 0, 0x7ffe), (65_535, 0, 33, 0x7fff), (65_536, 3000, 66, 0)]
        {
            let first = packet(1, seq, ts, at, pid, pid as u8, seq == 65_534);
            let placed = canonical.place(&first).expect("in order");
            assert_eq!((placed.seq, placed.timestamp), (seq, ts));
            assert_eq!(placed.rewrite, Rewrite::default(), "the first publisher's numbers are not touched");
        }
        let rewrite = Rewrite { picture_id: 1u16.wrapping_sub(500), tl0_pic_idx: 1u8.wrapping_sub(9), frame_number: 0 };
        // The second one has other bases, and comes 934 ms later.
        let second = packet(2, 7, 1_000_000, 1000, 500, 9, true);
        let placed = canonical.place(&second).expect("a keyframe");
        assert_eq!(placed.seq, 65_537);
        assert_eq!(placed.timestamp, 3000 + 934 * 90);
        assert_eq!(placed.rewrite, rewrite);
        let second = packet(2, 8, 1_003_000, 1033, 501, 10, false);
        let placed = canonical.place(&second).expect("the next one");
        assert_eq!((placed.seq, placed.timestamp), (65_538, 3000 + 934 * 90 + 3000));
        assert_eq!(placed.rewrite, rewrite);
    }

    /// A packet of a codec whose descriptor begins with these bytes; `seq` and its publisher alone matter otherwise.
    fn described(generation: u64, seq: u64, codec: Codec, payload: &[u8]) -> Arc<MediaPacket> {
        let mut described = Arc::into_inner(packet(generation, seq, 0, 0, 1, 1, true)).expect("the only one");
        let parsed = if codec == Codec::Vp9 { vp9::parse(payload) } else { vp8::parse(payload, false) };
        described.descriptor = parsed.expect("well-formed");
        described.payload = Arc::from(payload);
        Arc::new(described)
    }

    /// What viewers see of a packet's payload.
    fn seen(canonical: &mut Canonical, packet: &Arc<MediaPacket>) -> Vec<u8> {
        let placed = canonical.place(packet).expect("has a place");
        let mut payload = packet.payload.to_vec();
        placed.rewrite.apply(&packet.descriptor.numbers, &mut payload);
        payload
    }

    #[test]
    fn timestamps_that_jump_go_on_by_the_time_that_has_passed() {
        let mut canonical = Canonical::default();
        let mut see = |seq, timestamp, at_ms| {
            let placed = canonical.place(&packet(1, seq, timestamp, at_ms, 7, 7, seq == 1)).expect("has a place");
            (placed.seq, placed.timestamp)
        };
        let hour = 3600 * 90_000;
        assert_eq!([see(1, 3000, 0), see(2, 6000, 33)], [(1, 3000), (2, 6000)]);
        // An encoder that began anew an hour ahead, and one at nothing; each overtook a packet of its own and one before.
        assert_eq!(see(5, hour + 6000, 133), (5, 6000 + 9000));
        assert_eq!([see(4, hour + 3000, 134), see(3, 9000, 135)], [(4, 6000 + 6000), (3, 9000)]);
        assert_eq!(see(6, hour + 9000, 166), (6, 18_000));
        assert_eq!([see(8, 3000, 233), see(7, 0, 234), see(9, 6000, 266)], [(8, 24_030), (7, 21_030), (9, 27_030)]);
        // Neither a pause nor packets that have waited are a jump, nor that others were lost behind those.
        assert_eq!([see(10, 906_000, 10_266), see(11, 909_000, 15_266)], [(10, 927_030), (11, 930_030)]);
        assert_eq!([see(12, 912_000, 15_267), see(90, 1_350_000, 15_270)], [(12, 933_030), (90, 1_371_030)]);
        assert_eq!(see(91, 1_440_000, 15_274), (91, 1_374_030));
    }

    #[test]
    fn packets_that_overtake_each_other_hide_no_jump() {
        let mut canonical = Canonical::default();
        let mut see = |seq, timestamp, at_ms| {
            let placed = canonical.place(&packet(1, seq, timestamp, at_ms, 7, 7, seq == 1)).expect("has a place");
            placed.timestamp
        };
        for seq in 1..=100_u32 {
            let at_ms = u64::from(seq) * 20 + if seq % 2 == 0 { 40 } else { 0 };
            assert_eq!(see(seq.into(), seq * 1800, at_ms), seq * 1800);
        }
        // A second ahead.
        assert_eq!(see(101, 101 * 1800 + 90_000, 2060), 100 * 1800 + 3000);
    }

    #[test]
    fn vp9_numbers_go_on_in_both_modes() {
        let mut canonical = Canonical::default();
        let mut see =
            |generation, seq, payload: &[u8]| seen(&mut canonical, &described(generation, seq, Codec::Vp9, payload));
        // I, L, B; PictureID 0x7fff; layer; TL0PICIDX 255.
        let first = [0xa8, 0xff, 0xff, 0x00, 0xff, 1];
        assert_eq!(see(1, 10, &first), first);
        assert_eq!(see(2, 50, &[0xa8, 0x81, 0x00, 0x00, 0x20, 2]), [0xa8, 0x80, 0x00, 0x00, 0x00, 2]);
        assert_eq!(see(2, 51, &[0xa8, 0x81, 0x01, 0x00, 0x21, 2]), [0xa8, 0x80, 0x01, 0x00, 0x01, 2]);
        // Flexible mode has no TL0PICIDX; the one after it goes on from the last there was.
        assert_eq!(see(3, 90, &[0xb8, 0x83, 0x00, 0x00, 3]), [0xb8, 0x80, 0x02, 0x00, 3]);
        assert_eq!(see(4, 10, &[0xa8, 0x85, 0x00, 0x00, 0x70, 4]), [0xa8, 0x80, 0x03, 0x00, 0x02, 4]);
    }

    #[test]
    fn av1_frame_numbers_go_on_across_restarts_and_wraps() {
        let mut canonical = Canonical::default();
        let mut see = |generation, seq, number| {
            let mut packet = Arc::into_inner(packet(generation, seq, 0, 0, 1, 1, true)).expect("the only one");
            (packet.format.codec, packet.descriptor) = (Codec::Av1, Default::default());
            packet.descriptor.numbers.frame_number = Some(number);
            let placed = canonical.place(&Arc::new(packet)).expect("has a place");
            number.wrapping_add(placed.rewrite.frame_number)
        };
        assert_eq!([see(1, 10, 65_534), see(1, 11, 65_534), see(1, 12, 65_535)], [65_534, 65_534, 65_535]);
        assert_eq!([see(2, 70, 500), see(2, 71, 500), see(2, 72, 501)], [0, 0, 1]);
        assert_eq!([see(2, 74, 65_535), see(2, 75, 0)], [65_035, 65_036]);
        assert_eq!(see(2, 73, 502), 2, "late");
        assert_eq!(see(3, 5, 7), 65_037);
    }

    #[test]
    fn a_7_bit_picture_id_goes_on_in_7_bits_and_a_late_packet_keeps_its_own() {
        let mut canonical = Canonical::default();
        let mut see = |generation, seq, id| {
            seen(&mut canonical, &described(generation, seq, Codec::Vp8, &[0x90, 0x80, id, 0x00]))[2]
        };
        assert_eq!([see(1, 10, 126), see(1, 11, 127)], [126, 127]);
        assert_eq!(see(2, 70, 5), 0);
        assert_eq!([see(2, 72, 7), see(2, 71, 6)], [2, 1], "reordered");
        assert_eq!(see(3, 5, 100), 3, "goes on from the newest, not from the last to come");
    }

    #[test]
    fn a_new_publisher_is_switched_to_at_its_keyframe_only() {
        let mut canonical = Canonical::default();
        canonical.place(&packet(1, 10, 0, 0, 1, 1, true)).expect("keyframe");
        assert_eq!(canonical.place(&packet(2, 50, 9, 10, 1, 1, false)).unwrap_err(), Refused::AwaitingKeyframe);
        // Until then the old one goes on.
        canonical.place(&packet(1, 11, 3000, 33, 2, 2, false)).expect("still bound");
        canonical.place(&packet(2, 51, 12, 40, 2, 2, true)).expect("switch");
        assert_eq!(canonical.place(&packet(1, 12, 6000, 66, 3, 3, true)).unwrap_err(), Refused::Stale);
        assert_eq!(canonical.place(&packet(2, 50, 9, 70, 1, 1, false)).unwrap_err(), Refused::Stale);
    }

    #[test]
    fn a_loss_upstream_leaves_its_gap_and_a_late_packet_keeps_its_place() {
        let mut canonical = Canonical::default();
        let place = |c: &mut Canonical, seq| c.place(&packet(1, seq, 0, 0, 1, 1, true)).map(|p| p.seq);
        assert_eq!(place(&mut canonical, 10), Ok(10));
        assert_eq!(place(&mut canonical, 12), Ok(12));
        assert_eq!(place(&mut canonical, 11), Ok(11));
        assert_eq!(place(&mut canonical, 13), Ok(13));
    }

    #[test]
    fn padding_leaves_no_gap() {
        let mut canonical = Canonical::default();
        let mut padding = Arc::into_inner(packet(1, 11, 0, 0, 1, 1, false)).expect("the only one");
        padding.payload = Arc::from([]);
        let padding = Arc::new(padding);
        canonical.place(&packet(1, 10, 0, 0, 1, 1, true)).expect("first");
        assert_eq!(canonical.place(&padding).unwrap_err(), Refused::Padding);
        assert_eq!(canonical.place(&packet(1, 12, 0, 0, 1, 1, false)).expect("next").seq, 11);
    }

    #[test]
    fn a_repair_from_before_padding_keeps_its_place() {
        let mut canonical = Canonical::default();
        let mut place = |seq, padding: bool| {
            let mut packet = Arc::into_inner(packet(1, seq, 0, 0, 1, 1, true)).expect("the only one");
            if padding {
                packet.payload = Arc::from([]);
            }
            canonical.place(&Arc::new(packet)).map(|p| p.seq)
        };
        let padding = Err(Refused::Padding);
        assert_eq!(place(10, false), Ok(10));
        // 11 is lost.
        assert_eq!(place(12, false), Ok(12));
        assert_eq!([place(13, true), place(14, true)], [padding, padding]);
        assert_eq!(place(15, false), Ok(13));
        // 16 is lost, 17 closes up behind it.
        assert_eq!(place(17, true), padding);
        assert_eq!(place(18, false), Ok(15));
        assert_eq!([place(16, false), place(11, false)], [Ok(14), Ok(11)]);
        assert_eq!(place(9, false), Err(Refused::Stale));
    }

    #[test]
    fn what_is_older_than_all_ranges_is_refused() {
        let mut canonical = Canonical::default();
        let mut place = |seq: u64, padding: bool| {
            let mut packet = Arc::into_inner(packet(1, seq, 0, 0, 1, 1, true)).expect("the only one");
            if padding {
                packet.payload = Arc::from([]);
            }
            canonical.place(&Arc::new(packet)).map(|p| p.seq)
        };
        // Media, a loss, padding, over and over: each padding begins a range.
        for seq in (0..3 * RANGES as u64).step_by(3) {
            let _ = (place(seq, false), place(seq + 2, true));
        }
        assert_eq!(place(1, false), Err(Refused::Stale));
        assert_eq!(place(4, false), Ok(3));
    }

    #[test]
    fn a_repair_has_its_place_a_second_late_in_part_of_60_pictures_a_second() {
        let mut canonical = Canonical::default();
        let packet = |seq| packet(1, seq, 0, 0, 1, 1, seq == 0);
        // Of each picture's three packets the last one is above the rendition; the second one of the first is lost.
        for seq in (0..3 * 61).filter(|seq| *seq != 1) {
            match seq % 3 {
                2 => canonical.leave_out(&packet(seq)),
                _ => assert_eq!(canonical.place(&packet(seq)).map(|p| p.seq), Ok(seq - seq / 3)),
            }
        }
        assert_eq!(canonical.place(&packet(1)).map(|p| p.seq), Ok(1));
        (183..30_000).step_by(3).for_each(|seq| {
            canonical.place(&packet(seq)).expect("in order");
            canonical.leave_out(&packet(seq + 2));
        });
        assert_eq!(canonical.source.expect("bound").ranges.len(), RANGES);
    }

    #[test]
    fn timestamps_advance_by_a_frame_at_least() {
        assert_eq!(frames(MediaKind::Video, Duration::ZERO), 3000);
        assert_eq!(frames(MediaKind::Audio, Duration::from_millis(100)), 4800);
    }

    proptest::proptest! {
        /// A number is an index under which viewers' packets are sealed: twice would give both away. Of each source a
        /// number comes once (str0m sees to it), in whatever order, with padding, from sources that take turns.
        #[test]
        fn no_number_is_given_out_twice(
            steps in proptest::collection::vec((0..4usize, 0..6u64, 0..8u8), 1..200),
            kind in proptest::sample::select(vec![MediaKind::Audio, MediaKind::Video]),
        ) {
            let mut canonical = Canonical::default();
            let mut given = std::collections::BTreeSet::new();
            // The bound source's numbers and what became of them.
            let (mut current, mut first) = (std::collections::BTreeMap::<u64, u64>::new(), 0);
            // Two SSRCs each of two publishers: the numbers not used yet below the highest one, and the next.
            let mut sources = [(1, 1), (1, 2), (2, 3), (2, 4)].map(|(g, ssrc)| (g, ssrc, Vec::new(), 65_500));
            for (at, (which, step, flags)) in steps.into_iter().enumerate() {
                let (generation, ssrc, late, next) = &mut sources[which];
                let seq = match late.pop() {
                    Some(seq) if step == 0 => seq,
                    other => {
                        late.extend(other);
                        late.extend(*next..*next + step);
                        *next += step + 1;
                        *next - 1
                    }
                };
                let mut packet = Arc::into_inner(packet(*generation, seq, 0, at as u64, 1, 1, flags & 3 == 0)).expect("one");
                (packet.ssrc, packet.kind) = (*ssrc, kind);
                if flags & 4 != 0 {
                    packet.payload = Arc::from([]);
                }
                let padding = packet.payload.is_empty();
                let before = canonical.source().zip(canonical.source.as_ref().and_then(|s| s.ranges.back()).map(|r| r.first));
                let placed = canonical.place(&Arc::new(packet));
                if let Ok(placed) = &placed {
                    proptest::prop_assert!(given.insert(placed.seq), "{} again", placed.seq);
                }
                // Of the source that is bound, numbers are in the order of its own; who bound it anew starts over.
                let source = canonical.source();
                if source != before.map(|(source, _)| source) {
                    current.clear();
                    first = seq;
                }
                if source != Some((Generation(*generation), *ssrc)) || padding {
                    continue;
                }
                let remembered = before.filter(|_| !current.is_empty()).map_or(first, |(_, oldest)| oldest);
                proptest::prop_assert!(placed.is_ok() || seq < remembered, "{} refused", seq);
                if let Ok(placed) = placed {
                    let below = current.range(..seq).next_back().is_none_or(|(_, below)| *below < placed.seq);
                    let above = current.range(seq..).next().is_none_or(|(_, above)| *above > placed.seq);
                    proptest::prop_assert!(below && above, "{} out of order", seq);
                    current.insert(seq, placed.seq);
                }
            }
        }
    }
}
