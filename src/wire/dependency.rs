//! The dependency descriptor: an RTP header extension that tells a frame's place among the layers, and can be read where the
//! payload cannot (RTP Payload Format For AV1, appendix A).

mod structure;

use std::sync::Arc;

use str0m::rtp::{ExtensionSerializer, ExtensionValues};

use super::bits::Bits;
use super::descriptor::{Descriptor, LayerInfo, Numbers};
use structure::{Structure, Target};

pub const URI: &str = "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension";

/// The most that a header extension carries (RFC 8285 §4.3).
pub const BYTES_MAX: usize = 255;

/// Bits before what the five flags of a longer descriptor announce, and before the flag for a mask of active targets.
const EXTENDED_AT: usize = 24 + 5;
const MASK_FLAG_AT: usize = 24 + 1;

/// The newest structure of a track: what a descriptor means depends on it, and only those of keyframes bring one.
#[derive(Debug, Default)]
pub struct Dependencies {
    structure: Option<Box<Structure>>,
}

/// What a descriptor says of its packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The first packet of a coded video sequence.
    pub starts_keyframe: bool,
    pub descriptor: Descriptor,
    pub targets: Targets,
}

/// A packet's descriptor, and what it takes to tell a viewer of fewer decode targets.
#[derive(Clone, Debug)]
pub struct Dependency {
    /// 3 to 255.
    pub bytes: Arc<[u8]>,
    pub targets: Targets,
}

/// The decode targets of a packet's structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    of: Arc<[Target]>,
    /// Those that the publisher sends, the first one in the lowest bit.
    active: u32,
    /// Bits before `active_decode_targets_bitmask`, or before the place where it would stand.
    mask_at: u16,
    has_mask: bool,
}

/// As they came: for str0m, which keeps what an extension says by the type of its value.
#[derive(Debug)]
pub struct Carried(pub Arc<[u8]>);

/// What str0m is told to do with the extension.
#[derive(Debug)]
pub struct Serializer;

impl Dependencies {
    /// Reads the descriptor of packet `seq` (extended). `None` when it is cut, contradicts itself, or belongs to a structure that is
    /// not known.
    ///
    /// ```text
    ///  0                   1                   2
    ///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3
    /// +-+-+-----------+-------------------------------+
    /// |S|E|template id|         frame number          |
    /// +-+-+-+-+-+-----+-------------------------------+
    /// |T|A|I|D|C|     |   if longer than 3 bytes: structure, mask of active targets,
    /// +-+-+-+-+-+-----+   the frame's own indications, differences and chains follow, as their flags say
    /// ```
    pub fn read(&mut self, seq: u64, bytes: &[u8]) -> Option<Frame> {
        let mut bits = Bits::new(bytes);
        let (starts_frame, ends_frame) = (bits.flag()?, bits.flag()?);
        let template_id = bits.take(6)? as u8;
        let frame_number = bits.take(16)? as u16;
        let flags = if bytes.len() > 3 { bits.take(5)? } else { 0 };
        let [has_structure, has_mask] = [16, 8].map(|flag| flags & flag != 0);
        let mut attached = if has_structure { Some(Box::new(Structure::read(&mut bits, seq)?)) } else { None };
        let structure = attached.as_mut().or(self.structure.as_mut())?;
        let mask_at = if bytes.len() > 3 { bits.position() } else { EXTENDED_AT };
        let mut active = structure.active;
        let template = structure.template(template_id)?;
        let layer = LayerInfo {
            spatial: template.spatial,
            temporal: template.temporal,
            starts_picture: starts_frame && template.spatial == 0,
            ends_frame,
            sizes: structure.sizes.filter(|_| has_structure),
        };
        if has_mask {
            active = bits.take(structure.targets.len())? as u32;
            if seq >= structure.since {
                (structure.active, structure.since) = (active, seq);
            }
        }
        let of = structure.targets.clone();
        // The repair of an earlier keyframe comes late: those of now do not belong to its structure.
        if has_structure && self.structure.as_ref().is_none_or(|known| seq >= known.since) {
            self.structure = attached;
        }
        let numbers = Numbers { frame_number: Some(frame_number), ..Numbers::default() };
        let targets = Targets { of, active, mask_at: mask_at as u16, has_mask };
        let starts_keyframe = starts_frame && has_structure;
        Some(Frame { starts_keyframe, descriptor: Descriptor { numbers, layer }, targets })
    }
}

#[cfg(test)]
impl Dependency {
    /// Bytes that nobody reads.
    pub fn of(bytes: Vec<u8>) -> Dependency {
        let targets = Targets { of: Arc::default(), active: 0, mask_at: 0, has_mask: false };
        Dependency { bytes: bytes.into(), targets }
    }
}

impl Dependency {
    /// For a viewer that gets layers up to these: the other decode targets are not active (§A.4.4). Each packet says so, for
    /// any of them may be lost. Unchanged where nothing would be left, or there is no room.
    #[must_use]
    pub fn limited(&self, spatial_max: u8, temporal_max: u8) -> Dependency {
        let Targets { of, active, mask_at, has_mask } = &self.targets;
        let within = |t: &Target| t.spatial <= spatial_max && t.temporal <= temporal_max;
        let mask = of.iter().enumerate().fold(0, |mask, (bit, t)| mask | u32::from(within(t)) << bit) & active;
        let limited = Targets { active: mask, has_mask: true, ..self.targets.clone() };
        let old = if *has_mask { of.len() } else { 0 };
        match with_mask(&self.bytes, usize::from(*mask_at), old, mask, of.len()) {
            Some(bytes) if mask != 0 => Dependency { bytes: bytes.into(), targets: limited },
            _ => self.clone(),
        }
    }
}

/// A copy of `descriptor` in which at bit `at` a mask of `count` bits stands, instead of `old` bits.
fn with_mask(descriptor: &[u8], at: usize, old: usize, mask: u32, count: usize) -> Option<Vec<u8>> {
    let end = descriptor.len() * 8;
    let bytes = (at.max(EXTENDED_AT) + count + end.saturating_sub(at + old)).div_ceil(8);
    if bytes > BYTES_MAX {
        return None;
    }
    let mut copy = vec![0; bytes];
    let mut next = 0;
    let mut put = |bit: bool| {
        copy[next / 8] |= u8::from(bit) << (7 - next % 8);
        next += 1;
    };
    let bit_of = |index: usize| descriptor.get(index / 8).is_some_and(|byte| byte >> (7 - index % 8) & 1 == 1);
    (0..at).for_each(|index| put(index == MASK_FLAG_AT || bit_of(index)));
    (0..count).rev().for_each(|bit| put(mask >> bit & 1 == 1));
    (at + old..end).for_each(|index| put(bit_of(index)));
    Some(copy)
}

/// Writes `descriptor` to the front of `copy` with `by` added to its frame number, and returns that. Empty where there is none.
#[inline]
pub fn renumber<'a>(descriptor: &[u8], by: u16, copy: &'a mut [u8; BYTES_MAX]) -> &'a [u8] {
    let Some(copy) = copy.get_mut(..descriptor.len()) else { return &[] };
    copy.copy_from_slice(descriptor);
    if let Some([_, high, low]) = copy.first_chunk_mut() {
        [*high, *low] = u16::from_be_bytes([*high, *low]).wrapping_add(by).to_be_bytes();
    }
    copy
}

impl ExtensionSerializer for Serializer {
    fn write_to(&self, buf: &mut [u8], values: &ExtensionValues) -> usize {
        let Some(Carried(bytes)) = values.user_values.get() else { return 0 };
        let Some(buf) = buf.get_mut(..bytes.len()) else { return 0 };
        buf.copy_from_slice(bytes);
        bytes.len()
    }

    fn parse_value(&self, bytes: &[u8], values: &mut ExtensionValues) -> bool {
        values.user_values.set(Carried(Arc::from(bytes)));
        true
    }

    fn is_video(&self) -> bool {
        true
    }

    fn is_audio(&self) -> bool {
        false
    }

    fn requires_two_byte_form(&self, values: &ExtensionValues) -> bool {
        values.user_values.get().is_some_and(|Carried(bytes)| bytes.len() > 16)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::descriptor::one_size;

    /// Bits in the order of the wire.
    #[derive(Clone, Default)]
    struct Writer(Vec<bool>);

    impl Writer {
        fn put(mut self, count: usize, value: u64) -> Writer {
            self.0.extend((0..count).rev().map(|bit| value >> bit & 1 == 1));
            self
        }

        fn put_all(self, count: usize, values: &[u64]) -> Writer {
            values.iter().fold(self, |writer, value| writer.put(count, *value))
        }

        fn bytes(&self) -> Vec<u8> {
            let byte = |bits: &[bool]| (0..8).fold(0, |byte, i| byte << 1 | u8::from(bits.get(i) == Some(&true)));
            self.0.chunks(8).map(byte).collect()
        }
    }

    const START: u64 = 2;
    const END: u64 = 1;

    fn mandatory(edges: u64, template_id: u64, frame_number: u64) -> Writer {
        Writer::default().put(2, edges).put(6, template_id).put(16, frame_number)
    }

    /// The five flags: structure, active targets, indications, differences, chains.
    const STRUCTURE: u64 = 0b10000;
    const ACTIVE: u64 = 0b01000;
    const INDICATIONS: u64 = 0b00100;

    /// L1T3 as in §A.10.2.1, behind a first template of this id.
    fn l1t3(writer: Writer, first_template_id: u64) -> Writer {
        writer
            .put(6, first_template_id)
            .put(5, 3 - 1)
            // Steps from template to template: T0, T0, T1, T2, T2.
            .put_all(2, &[0, 1, 1, 0, 3])
            .put_all(2, &[2, 2, 2, 2, 2, 2, 2, 1, 0, 1, 0, 0, 1, 0, 0])
            // None for a keyframe; one less 1 between two flags for each of the others: 4, 2, 1, 1.
            .put(1, 0)
            .put_all(6, &[0b10_0110, 0b10_0010, 0b10_0000, 0b10_0000])
            // One chain of ns(4); of one chain, ns(1) takes no bits.
            .put(2, 1)
            .put_all(4, &[0, 4, 2, 1, 3])
            .put(1, 1)
            .put_all(16, &[640 - 1, 360 - 1])
    }

    /// The first packet of an L1T3 stream of 640x360, whose templates have the ids 10 to 14.
    pub(crate) fn keyframe(number: u64) -> Vec<u8> {
        l1t3(mandatory(START, 10, number).put(5, STRUCTURE), 10).bytes()
    }

    #[test]
    fn a_keyframe_brings_the_structure_that_others_need() {
        let mut dependencies = Dependencies::default();
        let delta = mandatory(START | END, 12, 9).bytes();
        assert_eq!(dependencies.read(1, &delta), None, "no structure yet");
        let key = dependencies.read(2, &keyframe(8)).expect("whole");
        assert!(key.starts_keyframe);
        let base = LayerInfo { starts_picture: true, sizes: Some(one_size(640, 360)), ..LayerInfo::default() };
        assert_eq!(key.descriptor.layer, base);
        assert_eq!(key.descriptor.numbers.frame_number, Some(8));
        let frame = dependencies.read(3, &delta).expect("known");
        assert!(!frame.starts_keyframe);
        let layer = LayerInfo { temporal: 1, starts_picture: true, ends_frame: true, ..LayerInfo::default() };
        assert_eq!(frame.descriptor.layer, layer);
        assert_eq!(frame.descriptor.numbers.frame_number, Some(9));
    }

    #[test]
    fn every_template_is_read_whatever_follows_it() {
        let mut dependencies = Dependencies::default();
        dependencies.read(1, &keyframe(1)).expect("whole");
        let mut check = |writer: Writer, expected: Option<(u8, u32)>| {
            let frame = dependencies.read(2, &writer.bytes());
            assert_eq!(frame.map(|f| (f.descriptor.layer.temporal, f.targets.active)), expected);
        };
        for (id, temporal) in [(9, None), (10, Some(0)), (11, Some(0)), (12, Some(1)), (13, Some(2)), (14, Some(2))] {
            check(mandatory(0, id, 2), temporal.map(|temporal| (temporal, 0b111)));
        }
        [15, 63].into_iter().for_each(|id| check(mandatory(0, id, 2), None));
        check(mandatory(0, 12, 2).put(5, INDICATIONS).put_all(2, &[3, 1, 0]), Some((1, 0b111)));
        check(mandatory(0, 13, 2).put(5, ACTIVE | INDICATIONS).put(3, 0b011).put_all(2, &[2, 0, 0]), Some((2, 0b011)));
        check(mandatory(0, 12, 2), Some((1, 0b011)));
    }

    #[test]
    fn fewer_targets_are_told_in_every_packet() {
        let read = |bytes: &[u8]| {
            let mut dependencies = Dependencies::default();
            dependencies.read(1, &keyframe(1));
            dependencies.read(2, bytes).expect("whole")
        };
        let limit = |bytes: Vec<u8>, temporal_max| {
            let frame = read(&bytes);
            let limited = Dependency { bytes: bytes.into(), targets: frame.targets }.limited(0, temporal_max);
            let read = read(&limited.bytes);
            assert_eq!((read.starts_keyframe, read.descriptor), (frame.starts_keyframe, frame.descriptor));
            assert_eq!(read.targets, limited.targets);
            let padding = limited.bytes.iter().rev().take_while(|byte| **byte == 0).count();
            (limited.bytes[..limited.bytes.len() - padding].to_vec(), read.targets.active)
        };
        let (key, active) = limit(keyframe(1), 1);
        // The first target is the one with all three layers.
        assert_eq!(active, 0b110);
        assert!(key.len() <= keyframe(1).len() + 1, "a mask of three bits");
        let delta = mandatory(START | END, 12, 2);
        assert_eq!(limit(delta.bytes(), 1), (delta.clone().put(5, ACTIVE).put(3, 0b110).bytes(), 0b110));
        assert_eq!(limit(delta.bytes(), 0), (delta.clone().put(5, ACTIVE).put(3, 0b100).bytes(), 0b100));
        // What follows the mask stays behind it.
        let custom = |mask: Option<u64>| {
            let flags = INDICATIONS | if mask.is_some() { ACTIVE } else { 0 };
            let head = delta.clone().put(5, flags);
            mask.map_or(head.clone(), |mask| head.put(3, mask)).put_all(2, &[3, 1, 2]).bytes()
        };
        assert_eq!(limit(custom(None), 0).0, custom(Some(0b100)));
        assert_eq!(limit(custom(Some(0b011)), 1).0, custom(Some(0b010)), "the publisher has stopped the lowest");
        assert_eq!(limit(custom(Some(0b001)), 1).0, custom(Some(0b001)), "nothing would be left");
    }

    #[test]
    fn template_ids_wrap() {
        let mut dependencies = Dependencies::default();
        let first = l1t3(mandatory(START, 62, 1).put(5, STRUCTURE), 62).bytes();
        assert!(dependencies.read(1, &first).is_some());
        let temporal = |id| dependencies.structure.as_ref().and_then(|s| s.template(id)).map(|t| t.temporal);
        assert_eq!([62, 63, 0, 1, 2, 3].map(temporal), [Some(0), Some(0), Some(1), Some(2), Some(2), None]);
    }

    #[test]
    fn a_late_structure_does_not_replace_a_newer_one() {
        let mut dependencies = Dependencies::default();
        dependencies.read(20, &l1t3(mandatory(START, 20, 1).put(5, STRUCTURE), 20).bytes()).expect("whole");
        let late = dependencies.read(10, &keyframe(0)).expect("its own is attached");
        assert!(late.starts_keyframe);
        assert!(dependencies.read(21, &mandatory(0, 22, 2).bytes()).is_some());
        assert!(dependencies.read(22, &keyframe(3)).is_some());
        assert!(dependencies.read(23, &mandatory(0, 22, 4).bytes()).is_none());
    }

    /// Three spatial and three temporal layers, 480x270 at most, as Chromium sent them; LiveKit's tests hold the same capture.
    #[test]
    fn chromiums_own_are_read() {
        let hex = |text: &str| -> Vec<u8> {
            let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
            (0..text.len()).step_by(2).map(digits).collect()
        };
        let mut dependencies = Dependencies::default();
        let first = "c1017280081485214eafffaaaa863cf0430c10c302afc0aaa0063c00430010c002a000a80006000040001d954926e082b04a\
                     0941b820ac1282503157f974000ca864330e222222eca8655304224230eca877530077004200ef008601df010d";
        let frames = [first, "86017340fc", "46017340fc", "c3017540fc", "88017640fc", "c2017840fc", "8b0174", "0b0174"];
        let read = frames.map(|f| dependencies.read(1, &hex(f)).expect(f));
        let layer = |f: &Frame| {
            let LayerInfo { spatial, temporal, ends_frame, .. } = f.descriptor.layer;
            (f.descriptor.numbers.frame_number.expect("always"), spatial, temporal, ends_frame)
        };
        assert_eq!(read[0].descriptor.layer.sizes, Some([(120, 67), (240, 135), (480, 270), (0, 0)]));
        // Temporal layers of the first spatial one, then of the next.
        let (lowest, middle) = ((0, 0), (1, 2));
        let limited = |(spatial, temporal)| {
            let first = Dependency { bytes: hex(first).into(), targets: read[0].targets.clone() };
            first.limited(spatial, temporal).targets.active
        };
        assert_eq!([lowest, middle].map(limited), [0b000_000_001, 0b000_111_111]);
        let expected = [
            (0x172, 0, 0, true),
            (0x173, 1, 0, false),
            (0x173, 1, 0, true),
            (0x175, 0, 2, true),
            (0x176, 1, 2, false),
            (0x178, 0, 1, true),
            (0x174, 2, 0, false),
            (0x174, 2, 0, false),
        ];
        assert_eq!(read.each_ref().map(layer), expected);
        assert_eq!(read.each_ref().map(|f| f.starts_keyframe), [true, false, false, false, false, false, false, false]);
    }

    #[test]
    fn what_is_cut_or_beyond_all_bounds_is_refused() {
        let whole = keyframe(1);
        for n in 0..whole.len() {
            assert_eq!(Dependencies::default().read(1, &whole[..n]), None, "cut to {n}");
        }
        // One decode target, and all that follows the steps is 0.
        let stepping = |steps: &[u64]| {
            let writer = mandatory(START, 0, 1).put(5, STRUCTURE).put(6, 0).put(5, 0).put_all(2, steps).put(2, 3);
            Dependencies::default().read(1, &writer.put_all(50, &[0; 10]).bytes()).is_some()
        };
        assert_eq!([stepping(&[2; 3]), stepping(&[2; 4])], [true, false], "spatial layers");
        assert_eq!([stepping(&[1; 7]), stepping(&[1; 8])], [true, false], "temporal layers");
        assert_eq!([stepping(&[0; 63]), stepping(&[0; 64])], [true, false], "templates");
    }

    #[test]
    fn str0m_keeps_them_as_they_came() {
        let bytes = keyframe(7);
        let mut values = ExtensionValues::default();
        assert!(Serializer.parse_value(&bytes, &mut values));
        assert!(Serializer.requires_two_byte_form(&values));
        let mut buf = [0; BYTES_MAX];
        let written = Serializer.write_to(&mut buf, &values);
        assert_eq!(buf[..written], bytes);
        assert_eq!(Serializer.write_to(&mut buf[..5], &values), 0);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(packets: Vec<(u64, Vec<u8>)>, structure: Vec<u8>) {
            let mut dependencies = Dependencies::default();
            // Most arbitrary bytes are no structure: this one begins as one does.
            let begun = [&mandatory(START, 0, 1).put(5, STRUCTURE).bytes()[..], &structure].concat();
            let _ = dependencies.read(0, &begun);
            for (seq, bytes) in packets {
                let _ = dependencies.read(seq, &bytes);
                let mut known = Dependencies::default();
                known.read(0, &keyframe(1));
                let Some(frame) = known.read(seq, &bytes) else { continue };
                let limited = Dependency { bytes: bytes.into(), targets: frame.targets }.limited(0, 1);
                let read = known.read(seq, &limited.bytes).expect("as the one that it is made of");
                prop_assert_eq!(read.descriptor, frame.descriptor);
                prop_assert_eq!(read.targets, limited.targets);
            }
        }

        #[test]
        fn another_number_changes_16_bits_alone(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
            by: u16,
        ) {
            let mut copy = [0; BYTES_MAX];
            let renumbered = renumber(&bytes, by, &mut copy);
            if bytes.len() > BYTES_MAX {
                prop_assert!(renumbered.is_empty());
                return Ok(());
            }
            prop_assert_eq!(renumbered.len(), bytes.len());
            if let ([first, high, low, rest @ ..], [kept, new_high, new_low, others @ ..]) = (&bytes[..], renumbered) {
                prop_assert_eq!((first, rest), (kept, others));
                let number = |high: &u8, low: &u8| u16::from_be_bytes([*high, *low]);
                prop_assert_eq!(number(new_high, new_low), number(high, low).wrapping_add(by));
            }
        }
    }
}
