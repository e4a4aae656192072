//! The VP9 payload descriptor (RFC 9628 §4.2).

use super::descriptor::{Descriptor, PictureId, SPATIAL_LAYERS_MAX, Sizes};

/// `P_DIFF`s of one picture (RFC 9628 §4.2.1).
const REFERENCES_MAX: usize = 3;

/// `None` when the payload is too short for what its flags promise.
///
/// ```text
///       0 1 2 3 4 5 6 7
///      +-+-+-+-+-+-+-+-+
///      |I|P|L|F|B|E|V|Z|
///      +-+-+-+-+-+-+-+-+
/// I:   |M| PICTURE ID  |   M: one more octet follows
///      +-+-+-+-+-+-+-+-+
/// L:   | TID |U| SID |D|
///      +-+-+-+-+-+-+-+-+
///      |   TL0PICIDX   |   with L, without F
///      +-+-+-+-+-+-+-+-+
/// P,F: |    P_DIFF   |N|   up to 3 times, N: one more follows
///      +-+-+-+-+-+-+-+-+
/// V:   | SS ..         |
///      +-+-+-+-+-+-+-+-+
/// ```
pub fn parse(payload: &[u8]) -> Option<Descriptor> {
    let first = *payload.first()?;
    let [has_picture_id, predicted, has_layer, flexible] = [0x80, 0x40, 0x20, 0x10].map(|m| first & m != 0);
    let mut parsed = Descriptor::default();
    let (numbers, layer) = (&mut parsed.numbers, &mut parsed.layer);
    layer.ends_frame = first & 0x04 != 0;
    let mut at = 1;
    if has_picture_id {
        let id = PictureId::parse(&payload[at..])?;
        (numbers.picture_id, numbers.picture_id_at) = (Some(id), at as u8);
        at += id.bytes();
    }
    if has_layer {
        let layers = *payload.get(at)?;
        at += 1;
        (layer.temporal, layer.spatial) = (layers >> 5, (layers >> 1 & 0x07).min(SPATIAL_LAYERS_MAX as u8 - 1));
        if !flexible {
            (numbers.tl0_pic_idx, numbers.tl0_at) = (Some(*payload.get(at)?), at as u8);
            at += 1;
        }
    }
    if predicted && flexible {
        let differences = payload.get(at..)?.iter().take(REFERENCES_MAX);
        let last = differences.clone().position(|d| d & 1 == 0).unwrap_or(REFERENCES_MAX - 1);
        at += last + 1;
    }
    layer.starts_picture = first & 0x08 != 0 && layer.spatial == 0;
    // A descriptor without a payload behind it is cut short.
    payload.get(at)?;
    if first & 0x02 != 0 {
        layer.sizes = sizes(&payload[at..]);
    }
    Some(parsed)
}

/// By the scalability structure (RFC 9628 §4.2.1).
///
/// ```text
/// +-+-+-+-+-+-+-+-+
/// | N_S |Y|G|-|-|-|
/// +-+-+-+-+-+-+-+-+
/// |     WIDTH     |   with Y, N_S + 1 times, 16 bits each
/// |     HEIGHT    |
/// +-+-+-+-+-+-+-+-+
/// ```
fn sizes(structure: &[u8]) -> Option<Sizes> {
    let (&first, told) = structure.split_first()?;
    if first & 0x10 == 0 {
        return None;
    }
    let mut sizes = Sizes::default();
    for (layer, size) in told.get(..4 * (usize::from(first >> 5) + 1))?.chunks_exact(4).enumerate() {
        let [w, wide, h, high] = *size else { continue };
        sizes[layer.min(SPATIAL_LAYERS_MAX - 1)] = (u16::from_be_bytes([w, wide]), u16::from_be_bytes([h, high]));
    }
    Some(sizes)
}

#[cfg(test)]
#[expect(clippy::unusual_byte_groupings, reason = "bits are grouped by field, as the RFC draws them")]
mod tests {
    use super::*;
    use crate::wire::descriptor::Rewrite;

    struct Expected {
        picture_id: Option<(u16, u16)>,
        tl0: Option<u8>,
        /// Spatial, temporal.
        layer: (u8, u8),
        starts_picture: bool,
        ends_frame: bool,
        sizes: Option<Sizes>,
    }

    const BARE: Expected =
        Expected { picture_id: None, tl0: None, layer: (0, 0), starts_picture: true, ends_frame: false, sizes: None };

    #[test]
    #[rustfmt::skip]
    fn numbers_and_layers_are_read_in_every_mode() {
        // Flags: I P L F B E V Z. Layer: TID U SID D.
        let table: [(&str, &[u8], Expected); 11] = [
            ("bare", &[0b0_0_0_0_1_1_0_0, 0], Expected { ends_frame: true, ..BARE }),
            ("7-bit id", &[0b1_0_0_0_1_0_0_0, 0x7f, 0], Expected { picture_id: Some((0x7f, 0x7f)), ..BARE }),
            ("non-flexible, temporal 2", &[0b1_1_1_0_1_1_0_0, 0xff, 0xfe, 0b010_0_001_1, 0x42, 0],
                Expected { picture_id: Some((0x7ffe, 0x7fff)), tl0: Some(0x42), layer: (1, 2), starts_picture: false, ends_frame: true, ..BARE }),
            ("non-flexible, U", &[0b1_1_1_0_1_0_0_0, 0x80, 0x01, 0b001_1_000_0, 7, 0],
                Expected { picture_id: Some((1, 0x7fff)), tl0: Some(7), layer: (0, 1), ..BARE }),
            ("flexible, no TL0PICIDX, two references", &[0b1_1_1_1_1_0_0_0, 0x80, 0x01, 0b001_0_010_0, 0x03, 0x04, 0],
                Expected { picture_id: Some((1, 0x7fff)), layer: (2, 1), starts_picture: false, ..BARE }),
            ("flexible, three references and no more", &[0b1_1_0_1_1_0_0_0, 0x01, 3, 5, 7, 0],
                Expected { picture_id: Some((1, 0x7f)), ..BARE }),
            ("structure of three layers", &[0b1_0_1_0_1_0_1_0, 1, 0, 9, 0b010_1_1_000, 0, 80, 0, 45, 0, 160, 0, 90, 1, 64, 0, 180, 1],
                Expected { picture_id: Some((1, 0x7f)), tl0: Some(9), sizes: Some([(80, 45), (160, 90), (320, 180), (0, 0)]), ..BARE }),
            ("middle of a frame", &[0b1_1_1_0_0_0_0_0, 1, 0b001_0_000_0, 7, 0],
                Expected { picture_id: Some((1, 0x7f)), tl0: Some(7), layer: (0, 1), starts_picture: false, ..BARE }),
            ("five spatial layers", &[0b0_0_1_1_1_0_1_0, 0b000_0_100_0, 0b100_1_0_000,
                0, 1, 0, 1, 0, 2, 0, 2, 0, 3, 0, 3, 0, 4, 0, 4, 0, 5, 0, 5],
                Expected { layer: (3, 0), starts_picture: false, sizes: Some([(1, 1), (2, 2), (3, 3), (5, 5)]), ..BARE }),
            ("structure cut short", &[0b0_0_0_0_1_0_1_0, 0b001_1_0_000, 0, 80, 0, 45, 0, 160], BARE),
            ("structure without sizes", &[0b0_0_0_0_1_0_1_0, 0b010_0_1_000, 0], BARE),
        ];
        for (what, payload, expected) in table {
            let Descriptor { numbers, layer } = parse(payload).expect(what);
            assert_eq!(numbers.picture_id.map(|p| (p.value, p.mask)), expected.picture_id, "{what}");
            assert_eq!(numbers.tl0_pic_idx, expected.tl0, "{what}");
            assert_eq!((layer.spatial, layer.temporal), expected.layer, "{what}");
            assert_eq!((layer.starts_picture, layer.ends_frame), (expected.starts_picture, expected.ends_frame), "{what}");
            assert_eq!(layer.sizes, expected.sizes, "{what}");
        }
    }

    #[test]
    fn a_truncated_descriptor_is_refused() {
        for payload in [&[][..], &[0x80], &[0x80, 0x80], &[0x80, 1], &[0xa0, 1, 0], &[0xa0, 1, 0, 9], &[0xd0, 1, 3]] {
            assert!(parse(payload).is_none(), "{payload:02x?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm_and_a_rewrite_changes_the_numbers_alone(
            payload in proptest::collection::vec(proptest::num::u8::ANY, 0..24),
            picture_id: u16,
            tl0_pic_idx: u8,
        ) {
            let Some(before) = parse(&payload) else { return Ok(()) };
            let rewrite = Rewrite { picture_id, tl0_pic_idx, frame_number: 0 };
            let mut copy = payload.clone();
            rewrite.apply(&before.numbers, &mut copy);
            let after = parse(&copy).expect("the same shape");
            proptest::prop_assert_eq!(after, Descriptor { numbers: before.numbers.plus(rewrite), ..before });
            let (picture_id, tl0_pic_idx) = (picture_id.wrapping_neg(), tl0_pic_idx.wrapping_neg());
            Rewrite { picture_id, tl0_pic_idx, frame_number: 0 }.apply(&after.numbers, &mut copy);
            proptest::prop_assert_eq!(copy, payload);
        }
    }
}
