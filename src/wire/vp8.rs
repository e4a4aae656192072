//! The VP8 payload descriptor (RFC 7741 §4.2).

use super::descriptor::{Descriptor, PictureId, Sizes, one_size};

const PICTURE_ID_AT: usize = 2;

/// `None` when the payload is too short for what its flags promise. `marker`: of the packet, the end of a frame.
///
/// ```text
///       0 1 2 3 4 5 6 7
///      +-+-+-+-+-+-+-+-+
///      |X|R|N|S|R| PID |
///      +-+-+-+-+-+-+-+-+
/// X:   |I|L|T|K| RSV   |
///      +-+-+-+-+-+-+-+-+
/// I:   |M| PictureID   |   M: one more octet follows
///      +-+-+-+-+-+-+-+-+
/// L:   |   TL0PICIDX   |
///      +-+-+-+-+-+-+-+-+
/// T/K: |TID|Y| KEYIDX  |
///      +-+-+-+-+-+-+-+-+
/// ```
pub fn parse(payload: &[u8], marker: bool) -> Option<Descriptor> {
    let mut parsed = Descriptor::default();
    let (numbers, layer) = (&mut parsed.numbers, &mut parsed.layer);
    let first = *payload.first()?;
    let mut at = 1;
    layer.starts_picture = first & 0x17 == 0x10;
    layer.ends_frame = marker;
    if first & 0x80 != 0 {
        let flags = *payload.get(at)?;
        at = PICTURE_ID_AT;
        if flags & 0x80 != 0 {
            let id = PictureId::parse(&payload[at..])?;
            (numbers.picture_id, numbers.picture_id_at) = (Some(id), at as u8);
            at += id.bytes();
        }
        if flags & 0x40 != 0 {
            (numbers.tl0_pic_idx, numbers.tl0_at) = (Some(*payload.get(at)?), at as u8);
            at += 1;
        }
        if flags & 0x30 != 0 {
            let layers = *payload.get(at)?;
            at += 1;
            if flags & 0x20 != 0 {
                layer.temporal = layers >> 6;
            }
        }
    }
    // A descriptor without a payload behind it is cut short.
    payload.get(at)?;
    if layer.starts_picture {
        layer.sizes = size(&payload[at..]);
    }
    Some(parsed)
}

/// Of a key frame, by its header (RFC 6386 §9.1): a tag of 3 bytes whose lowest bit says "not a key frame", a start code,
/// 14 bits each of width and height below their scales.
fn size(frame: &[u8]) -> Option<Sizes> {
    match frame.first_chunk::<10>()? {
        [tag, _, _, 0x9d, 0x01, 0x2a, w, wide, h, high] if tag & 1 == 0 => {
            Some(one_size(u16::from_le_bytes([*w, *wide]) & 0x3fff, u16::from_le_bytes([*h, *high]) & 0x3fff))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::descriptor::Rewrite;

    fn check(payload: &[u8], picture_id: Option<(u16, u16)>, tl0: Option<u8>, temporal: u8, starts_picture: bool) {
        let Descriptor { numbers, layer } = parse(payload, true).expect("parses");
        assert_eq!(numbers.picture_id.map(|p| (p.value, p.mask)), picture_id, "{payload:02x?}");
        assert_eq!(numbers.tl0_pic_idx, tl0, "{payload:02x?}");
        assert_eq!((layer.temporal, layer.starts_picture), (temporal, starts_picture), "{payload:02x?}");
        assert!(layer.ends_frame);
    }

    #[test]
    fn numbers_and_layers_are_read_in_every_shape() {
        check(&[0x10, 0x01, 0x9d], None, None, 0, true);
        check(&[0x90, 0x80, 0x7f, 0x01], Some((0x7f, 0x7f)), None, 0, true);
        check(&[0x90, 0x80, 0x81, 0x02, 0x01], Some((0x102, 0x7fff)), None, 0, true);
        check(&[0x90, 0xe0, 0xff, 0xff, 0x42, 0x80, 0x01], Some((0x7fff, 0x7fff)), Some(0x42), 2, true);
        check(&[0x80, 0xe0, 0xff, 0xff, 0x42, 0x60, 0x01], Some((0x7fff, 0x7fff)), Some(0x42), 1, false);
        check(&[0x11, 0x01, 0x9d], None, None, 0, false);
        // KEYIDX alone: what would be TID and Y means nothing.
        check(&[0x90, 0x10, 0xc0, 0x01], None, None, 0, true);
    }

    #[test]
    fn a_truncated_descriptor_is_refused() {
        for payload in
            [&[][..], &[0x10], &[0x90], &[0x90, 0x80], &[0x90, 0x80, 0x80], &[0x90, 0xc0, 0x01], &[0x90, 0x20, 0]]
        {
            assert!(parse(payload, false).is_none(), "{payload:02x?}");
        }
    }

    #[test]
    fn a_key_frame_tells_its_size() {
        let key = [0x10, 0x10, 0x02, 0x00, 0x9d, 0x01, 0x2a, 0x80, 0x42, 0xe0, 0x01];
        let size = |payload: &[u8]| parse(payload, false).expect("parses").layer.sizes;
        assert_eq!(size(&key), Some(one_size(640, 480)), "the scale in the upper bits is not part of it");
        for (at, value) in [(0, 0x00), (0, 0x11), (1, 0x11), (4, 0x9c)] {
            let mut other = key;
            other[at] = value;
            assert_eq!(size(&other), None, "byte {at} is {value:#x}");
        }
        assert_eq!(size(&key[..10]), None, "cut");
        assert_eq!(size(&[&[0x90, 0x10, 0x05], &key[1..]].concat()), Some(one_size(640, 480)), "behind KEYIDX");
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm_and_a_rewrite_changes_the_numbers_alone(
            payload in proptest::collection::vec(proptest::num::u8::ANY, 0..24),
            picture_id: u16,
            tl0_pic_idx: u8,
        ) {
            let Some(before) = parse(&payload, false) else { return Ok(()) };
            let rewrite = Rewrite { picture_id, tl0_pic_idx, frame_number: 0 };
            let mut copy = payload.clone();
            rewrite.apply(&before.numbers, &mut copy);
            let after = parse(&copy, false).expect("the same shape");
            proptest::prop_assert_eq!(after, Descriptor { numbers: before.numbers.plus(rewrite), ..before });
            let (picture_id, tl0_pic_idx) = (picture_id.wrapping_neg(), tl0_pic_idx.wrapping_neg());
            Rewrite { picture_id, tl0_pic_idx, frame_number: 0 }.apply(&after.numbers, &mut copy);
            proptest::prop_assert_eq!(copy, payload);
        }
    }
}
