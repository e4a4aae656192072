//! Where a decoder can start: told from one RTP payload, without decoding and without state.

use super::codec::Codec;

/// What makes a packet one to start on.
///
/// In H264 and H265 a keyframe often comes as a packet of parameter sets and then the picture, all with one RTP
/// timestamp. A stream must then be started on the first of them. So `Picture` is a start only if no `Parameters` of
/// the same timestamp came before it; otherwise it is the middle of one. The other codecs know `Picture` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyframeStart {
    /// Holds parameter sets (VPS, SPS), perhaps a picture too: the first packet worth having of its access unit.
    Parameters,
    /// Holds the beginning of a picture that needs no other picture.
    Picture,
}

/// Whether this is the first packet of a frame that a decoder can start on, or one of two such (see [`KeyframeStart`]).
pub fn starts_keyframe(codec: Codec, payload: &[u8]) -> bool {
    keyframe_start(codec, payload).is_some()
}

/// As [`starts_keyframe`], and why. `payload` is an RTP payload without header and padding; one that is cut or empty
/// starts nothing, except that Opus can be started on anything.
pub fn keyframe_start(codec: Codec, payload: &[u8]) -> Option<KeyframeStart> {
    match codec {
        // One whole Opus packet (RFC 7587 §4.2), and a decoder may start on any.
        Codec::Opus => Some(KeyframeStart::Picture),
        Codec::Vp8 => vp8(payload),
        Codec::Vp9 => vp9(payload),
        Codec::H264 => h264(payload),
        Codec::H265 => h265(payload),
        Codec::Av1 => av1(payload),
    }
}

/// ```text
///      0 1 2 3 4 5 6 7                      0 1 2 3 4 5 6 7
///     +-+-+-+-+-+-+-+-+                    +-+-+-+-+-+-+-+-+
///     |X|R|N|S|R| PID | (REQUIRED)         |Size0|H| VER |P|
///     +-+-+-+-+-+-+-+-+                    +-+-+-+-+-+-+-+-+
/// X:  |I|L|T|K| RSV   | (OPTIONAL)          payload header, in the first
///     +-+-+-+-+-+-+-+-+                     packet of a frame: RFC 7741 §4.3
/// I:  |M| PictureID   | (OPTIONAL)
///     +-+-+-+-+-+-+-+-+
///     |   PictureID   | (if M)
///     +-+-+-+-+-+-+-+-+
/// L:  |   TL0PICIDX   | (OPTIONAL)
///     +-+-+-+-+-+-+-+-+
/// T/K:|TID|Y| KEYIDX  | (OPTIONAL)
///     +-+-+-+-+-+-+-+-+
/// ```
/// RFC 7741 §4.2. S with PID 0 begins a frame; P is the *inverse* key frame flag.
fn vp8(payload: &[u8]) -> Option<KeyframeStart> {
    let (&required, mut rest) = payload.split_first()?;
    let begins_frame = required & 0x10 != 0 && required & 0x07 == 0;
    if !begins_frame {
        return None;
    }
    if required & 0x80 != 0 {
        let (&extension, after) = rest.split_first()?;
        let wide_picture_id = extension & 0x80 != 0 && after.first()? & 0x80 != 0;
        let has = |mask: u8| usize::from(extension & mask != 0);
        let optional = has(0x80) + usize::from(wide_picture_id) + has(0x40) + has(0x30);
        rest = after.get(optional..)?;
    }
    let key = rest.first()? & 0x01 == 0;
    key.then_some(KeyframeStart::Picture)
}

/// ```text
///       0 1 2 3 4 5 6 7
///      +-+-+-+-+-+-+-+-+
///      |I|P|L|F|B|E|V|Z| (REQUIRED)
///      +-+-+-+-+-+-+-+-+
/// I:   |M| PICTURE ID  | (REQUIRED)
///      +-+-+-+-+-+-+-+-+
/// M:   | EXTENDED PID  | (RECOMMENDED)
///      +-+-+-+-+-+-+-+-+
/// L:   | TID |U| SID |D| (Conditionally RECOMMENDED)
///      +-+-+-+-+-+-+-+-+
/// ```
/// RFC 9628 §4.2. B begins a frame, P says that it is predicted from other pictures. A frame of a higher spatial layer
/// without P still needs the lower layers of its picture, so only layer 0 is a start.
fn vp9(payload: &[u8]) -> Option<KeyframeStart> {
    let (&required, rest) = payload.split_first()?;
    let [has_picture_id, predicted, has_layer, begins_frame] = [0x80, 0x40, 0x20, 0x08].map(|m| required & m != 0);
    if predicted || !begins_frame {
        return None;
    }
    let picture_id = match rest.first() {
        _ if !has_picture_id => 0,
        Some(first) => 1 + usize::from(first & 0x80 != 0),
        None => return None,
    };
    let rest = rest.get(picture_id..)?;
    let spatial_layer = if has_layer { rest.first()? >> 1 & 0x07 } else { 0 };
    (spatial_layer == 0).then_some(KeyframeStart::Picture)
}

/// ```text
/// +---------------+
/// |0|1|2|3|4|5|6|7|      1..=23  one NAL unit                        RFC 6184 §5.6
/// +-+-+-+-+-+-+-+-+      24      STAP-A: (16-bit size, NAL unit)*    §5.7.1
/// |F|NRI|  Type   |      28      FU-A: FU header, part of a unit     §5.8
/// +---------------+
/// ```
/// RFC 6184 §5.3, §5.4. The other types belong to the interleaved mode, which nobody offers in WebRTC.
fn h264(payload: &[u8]) -> Option<KeyframeStart> {
    const STAP_A: u8 = 24;
    const FU_A: u8 = 28;

    let (&header, rest) = payload.split_first()?;
    match header & 0x1f {
        // `min`: parameters before picture, whatever else is there.
        STAP_A => aggregated(rest).filter_map(h264_unit).min(),
        FU_A => {
            // |S|E|R|  Type   |
            let (&fu_header, part) = rest.split_first()?;
            let first = fu_header & 0x80 != 0;
            if first { h264_nal(fu_header & 0x1f, part) } else { None }
        }
        _ => h264_unit(payload),
    }
}

fn h264_unit(unit: &[u8]) -> Option<KeyframeStart> {
    let (&header, body) = unit.split_first()?;
    h264_nal(header & 0x1f, body)
}

/// ITU-T H.264 table 7-1. A slice begins with `first_mb_in_slice` as ue(v): its first bit is 1 when that is 0, which
/// tells the first slice of a picture from those that follow (§7.3.3).
fn h264_nal(nal_type: u8, body: &[u8]) -> Option<KeyframeStart> {
    const IDR_SLICE: u8 = 5;
    const SPS: u8 = 7;
    match nal_type {
        SPS => Some(KeyframeStart::Parameters),
        IDR_SLICE if body.first()? & 0x80 != 0 => Some(KeyframeStart::Picture),
        _ => None,
    }
}

/// ```text
/// +---------------+---------------+
/// |0|1|2|3|4|5|6|7|0|1|2|3|4|5|6|7|      0..=47  one NAL unit                        RFC 7798 §4.4.1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+      48      AP: (16-bit size, NAL unit)*        §4.4.2
/// |F|   Type    |  LayerId  | TID |      49      FU: FU header, part of a unit       §4.4.3
/// +-------------+-----------------+
/// ```
/// RFC 7798 §1.1.4. Without the DONL fields: WebRTC has no `sprop-max-don-diff` above 0.
fn h265(payload: &[u8]) -> Option<KeyframeStart> {
    const AGGREGATION: u8 = 48;
    const FRAGMENTATION: u8 = 49;

    let (header, rest) = payload.split_first_chunk::<2>()?;
    match header[0] >> 1 & 0x3f {
        AGGREGATION => aggregated(rest).filter_map(h265_unit).min(),
        FRAGMENTATION => {
            // |S|E|  FuType   |
            let (&fu_header, part) = rest.split_first()?;
            let first = fu_header & 0x80 != 0;
            if first { h265_nal(fu_header & 0x3f, part) } else { None }
        }
        _ => h265_unit(payload),
    }
}

fn h265_unit(unit: &[u8]) -> Option<KeyframeStart> {
    let (header, body) = unit.split_first_chunk::<2>()?;
    h265_nal(header[0] >> 1 & 0x3f, body)
}

/// ITU-T H.265 table 7-1: BLA, IDR and CRA are the random access pictures; 22 and 23 are reserved. Their slices begin
/// with `first_slice_segment_in_pic_flag` (§7.3.6.1).
fn h265_nal(nal_type: u8, body: &[u8]) -> Option<KeyframeStart> {
    const BLA_W_LP: u8 = 16;
    const CRA: u8 = 21;
    const VPS: u8 = 32;
    const SPS: u8 = 33;
    match nal_type {
        VPS | SPS => Some(KeyframeStart::Parameters),
        BLA_W_LP..=CRA if body.first()? & 0x80 != 0 => Some(KeyframeStart::Picture),
        _ => None,
    }
}

/// ```text
///  0 1 2 3 4 5 6 7
/// +-+-+-+-+-+-+-+-+
/// |Z|Y| W |N|-|-|-|
/// +-+-+-+-+-+-+-+-+
/// ```
/// RTP Payload Format For AV1 §4.4, aggregation header. N: the first packet of a coded video sequence, which begins
/// with a sequence header and a key frame. Z (the packet continues an OBU) contradicts it.
fn av1(payload: &[u8]) -> Option<KeyframeStart> {
    let (&header, obus) = payload.split_first()?;
    let begins_sequence = header & 0x08 != 0 && header & 0x80 == 0;
    (begins_sequence && !obus.is_empty()).then_some(KeyframeStart::Picture)
}

/// The NAL units of an aggregation packet, each behind its 16-bit size; ends early where a size overruns the packet.
pub(super) fn aggregated(mut units: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (size, rest) = units.split_first_chunk::<2>()?;
        let (unit, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*size)))?;
        units = rest;
        Some(unit)
    })
}

#[cfg(test)]
#[expect(clippy::unusual_byte_groupings, reason = "bits are grouped by field, as the RFCs draw them")]
mod tests {
    use super::KeyframeStart::{Parameters, Picture};
    use super::*;
    use proptest::prelude::*;

    fn check(codec: Codec, table: &[(&str, &[u8], Option<KeyframeStart>)]) {
        for &(what, payload, expected) in table {
            assert_eq!(keyframe_start(codec, payload), expected, "{codec}: {what}");
            assert_eq!(starts_keyframe(codec, payload), expected.is_some());
        }
    }

    #[test]
    fn opus_starts_anywhere() {
        check(Codec::Opus, &[("any", &[0xfc, 0xff, 0xfe], Some(Picture)), ("empty", &[], Some(Picture))]);
    }

    #[test]
    #[rustfmt::skip]
    fn vp8_starts_on_partition_0_of_a_key_frame() {
        // Descriptor: X R N S R PID. Extension: I L T K RSV. Payload header: Size0 H VER P.
        check(Codec::Vp8, &[
            ("key, no extension",        &[0b0_0_0_1_0_000, 0b000_1_000_0], Some(Picture)),
            ("delta, no extension",      &[0b0_0_0_1_0_000, 0b000_1_000_1], None),
            ("key, not referenced",      &[0b0_0_1_1_0_000, 0b000_1_000_0], Some(Picture)),
            ("not the partition's first", &[0b0_0_0_0_0_000, 0b000_1_000_0], None),
            ("partition 1",              &[0b0_0_0_1_0_001, 0b000_1_000_0], None),
            ("empty extension",          &[0b1_0_0_1_0_000, 0b0_0_0_0_0000, 0b000_1_000_0], Some(Picture)),
            ("7-bit PictureID",          &[0b1_0_0_1_0_000, 0b1_0_0_0_0000, 0b0_1111111, 0b000_1_000_0], Some(Picture)),
            ("7-bit PictureID, delta",   &[0b1_0_0_1_0_000, 0b1_0_0_0_0000, 0b0_1111110, 0b000_1_000_1], None),
            ("15-bit PictureID",         &[0b1_0_0_1_0_000, 0b1_0_0_0_0000, 0b1_0000001, 1, 0b000_1_000_0], Some(Picture)),
            ("TL0PICIDX without TID",    &[0b1_0_0_1_0_000, 0b0_1_0_0_0000, 1, 0b000_1_000_0], Some(Picture)),
            ("TID",                      &[0b1_0_0_1_0_000, 0b0_0_1_0_0000, 1, 0b000_1_000_0], Some(Picture)),
            ("KEYIDX",                   &[0b1_0_0_1_0_000, 0b0_0_0_1_0000, 1, 0b000_1_000_0], Some(Picture)),
            ("TID and KEYIDX share one", &[0b1_0_0_1_0_000, 0b0_0_1_1_0000, 1, 0b000_1_000_0, 1], Some(Picture)),
            ("all, key",   &[0b1_0_0_1_0_000, 0b1_1_1_1_0000, 0b1_0000001, 1, 1, 0b01_1_00001, 0b000_1_000_0], Some(Picture)),
            ("all, delta", &[0b1_0_0_1_0_000, 0b1_1_1_1_0000, 0b1_0000000, 0, 0, 0b00_0_00000, 0b000_1_000_1], None),
            ("cut before payload",       &[0b1_0_0_1_0_000, 0b1_1_1_1_0000, 0b1_0000001, 1, 1, 1], None),
            ("cut in PictureID",         &[0b1_0_0_1_0_000, 0b1_0_0_0_0000, 0b1_0000001], None),
            ("cut before PictureID",     &[0b1_0_0_1_0_000, 0b1_0_0_0_0000], None),
            ("cut before extension",     &[0b1_0_0_1_0_000], None),
            ("no payload header",        &[0b0_0_0_1_0_000], None),
            ("empty",                    &[], None),
        ]);
    }

    #[test]
    #[rustfmt::skip]
    fn vp9_starts_on_layer_0_of_an_unpredicted_picture() {
        // Descriptor: I P L F B E V Z. Layer: TID U SID D.
        check(Codec::Vp9, &[
            ("bare",                    &[0b0_0_0_0_1_0_0_0, 0], Some(Picture)),
            ("predicted",               &[0b0_1_0_0_1_0_0_0, 0], None),
            ("not the frame's first",   &[0b0_0_0_0_0_0_0_0, 0], None),
            ("7-bit PID, layer 0",      &[0b1_0_1_0_1_0_0_0, 0b0_1111111, 0b000_0_000_0, 0], Some(Picture)),
            ("15-bit PID, layer 0",     &[0b1_0_1_0_1_0_1_0, 0b1_1111111, 0xff, 0b000_0_000_0, 0], Some(Picture)),
            ("15-bit PID, no layer",    &[0b1_0_0_1_1_0_1_0, 0b1_1111111, 0xff, 0xff], Some(Picture)),
            ("layer 0, no PID",         &[0b0_0_1_0_1_0_0_0, 0b111_1_000_1, 0], Some(Picture)),
            ("SID 1 of a key picture",  &[0b1_0_1_0_1_0_0_0, 0b0_0000001, 0b000_0_001_1, 0], None),
            ("SID 2, flexible",         &[0b1_0_1_1_1_1_0_1, 0b1_0000001, 1, 0b000_0_010_1], None),
            ("predicted layer 0",       &[0b1_1_1_0_1_0_0_0, 0b0_0000001, 0b000_0_000_0, 0], None),
            ("cut before PID",          &[0b1_0_0_0_1_0_0_0], None),
            ("cut in PID",              &[0b1_0_0_0_1_0_0_0, 0b1_0000001], None),
            ("cut before layer",        &[0b1_0_1_0_1_0_0_0, 0b0_0000001], None),
            ("empty",                   &[], None),
        ]);
    }

    #[test]
    #[rustfmt::skip]
    fn h264_starts_on_an_sps_or_an_idr_picture() {
        // NAL header: F NRI Type. FU header: S E R Type.
        check(Codec::H264, &[
            ("SPS",                     &[0b0_11_00111, 0x42, 0xe0, 0x1f], Some(Parameters)),
            ("PPS",                     &[0b0_11_01000, 0xce], None),
            ("access unit delimiter",   &[0b0_00_01001, 0x10], None),
            ("SEI",                     &[0b0_00_00110, 5, 1, 0, 0x80], None),
            ("IDR, first slice",        &[0b0_11_00101, 0b1_0001000], Some(Picture)),
            ("IDR, second slice",       &[0b0_11_00101, 0b0_1001000], None),
            ("non-IDR slice",           &[0b0_10_00001, 0b1_0011010], None),
            ("STAP-A of SPS and PPS",   &[0b0_11_11000, 0, 2, 0b0_11_00111, 0x42, 0, 2, 0b0_11_01000, 0xce], Some(Parameters)),
            ("STAP-A, SPS after AUD",   &[0b0_11_11000, 0, 2, 0b0_00_01001, 0x10, 0, 2, 0b0_11_00111, 0x42], Some(Parameters)),
            ("STAP-A of SPS and IDR",   &[0b0_11_11000, 0, 2, 0b0_11_00111, 0x42, 0, 2, 0b0_11_00101, 0x88], Some(Parameters)),
            ("STAP-A of SEI and IDR",   &[0b0_11_11000, 0, 2, 0b0_00_00110, 0x80, 0, 2, 0b0_11_00101, 0x88], Some(Picture)),
            ("STAP-A of two slices",    &[0b0_10_11000, 0, 2, 0b0_10_00001, 0x9a, 0, 2, 0b0_10_00001, 0x4a], None),
            ("STAP-A, empty unit",      &[0b0_11_11000, 0, 0, 0, 2, 0b0_11_00111, 0x42], Some(Parameters)),
            ("STAP-A, overrun",         &[0b0_11_11000, 0, 9, 0b0_11_00111, 0x42], None),
            ("STAP-A, cut size",        &[0b0_11_11000, 0], None),
            ("FU-A, start of IDR",      &[0b0_11_11100, 0b1_0_0_00101, 0b1_0001000], Some(Picture)),
            ("FU-A, start of slice 2",  &[0b0_11_11100, 0b1_0_0_00101, 0b0_1001000], None),
            ("FU-A, middle of IDR",     &[0b0_11_11100, 0b0_0_0_00101, 0b1_0001000], None),
            ("FU-A, end of IDR",        &[0b0_11_11100, 0b0_1_0_00101, 0b1_0001000], None),
            ("FU-A, start of non-IDR",  &[0b0_10_11100, 0b1_0_0_00001, 0b1_0011010], None),
            ("FU-A, start of SPS",      &[0b0_11_11100, 0b1_0_0_00111, 0x42], Some(Parameters)),
            ("FU-A without header",     &[0b0_11_11100], None),
            ("IDR without slice",       &[0b0_11_00101], None),
            ("empty",                   &[], None),
        ]);
    }

    #[test]
    #[rustfmt::skip]
    fn h265_starts_on_a_vps_an_sps_or_a_random_access_picture() {
        // NAL header: F Type LayerId(1 bit here), LayerId TID. FU header: S E FuType.
        check(Codec::H265, &[
            ("VPS",                     &[0b0_100000_0, 1, 0x0c], Some(Parameters)),
            ("SPS",                     &[0b0_100001_0, 1, 0x01], Some(Parameters)),
            ("PPS",                     &[0b0_100010_0, 1, 0xc1], None),
            ("access unit delimiter",   &[0b0_100011_0, 1, 0x50], None),
            ("RASL_R, last before IRAP", &[0b0_001001_0, 1, 0x80], None),
            ("BLA_W_LP",                &[0b0_010000_0, 1, 0b1_0101111], Some(Picture)),
            ("IDR_W_RADL",              &[0b0_010011_0, 1, 0b1_0101111], Some(Picture)),
            ("IDR_N_LP",                &[0b0_010100_0, 1, 0b1_0101111], Some(Picture)),
            ("CRA",                     &[0b0_010101_0, 1, 0b1_0101111], Some(Picture)),
            ("reserved IRAP 22",        &[0b0_010110_0, 1, 0b1_0101111], None),
            ("IDR, second slice",       &[0b0_010011_0, 1, 0b0_0101111], None),
            ("TRAIL_R",                 &[0b0_000001_0, 1, 0b1_1010000], None),
            ("AP of VPS, SPS, PPS",     &[0b0_110000_0, 1, 0, 2, 0b0_100000_0, 1, 0, 2, 0b0_100001_0, 1, 0, 2, 0b0_100010_0, 1], Some(Parameters)),
            ("AP of AUD and SPS",       &[0b0_110000_0, 1, 0, 2, 0b0_100011_0, 1, 0, 2, 0b0_100001_0, 1], Some(Parameters)),
            ("AP of SEI and IDR",       &[0b0_110000_0, 1, 0, 2, 0b0_100111_0, 1, 0, 3, 0b0_010011_0, 1, 0x80], Some(Picture)),
            ("AP of trailing pictures", &[0b0_110000_0, 1, 0, 3, 0b0_000001_0, 1, 0x80, 0, 3, 0b0_000001_0, 1, 0x40], None),
            ("AP, overrun",             &[0b0_110000_0, 1, 0, 9, 0b0_100000_0, 1], None),
            ("FU, start of IDR",        &[0b0_110001_0, 1, 0b1_0_010011, 0b1_0101111], Some(Picture)),
            ("FU, start of slice 2",    &[0b0_110001_0, 1, 0b1_0_010011, 0b0_0101111], None),
            ("FU, middle of IDR",       &[0b0_110001_0, 1, 0b0_0_010011, 0b1_0101111], None),
            ("FU, end of IDR",          &[0b0_110001_0, 1, 0b0_1_010011, 0b1_0101111], None),
            ("FU, start of TRAIL_R",    &[0b0_110001_0, 1, 0b1_0_000001, 0b1_1010000], None),
            ("FU without header",       &[0b0_110001_0, 1], None),
            ("half a header",           &[0b0_100000_0], None),
            ("empty",                   &[], None),
        ]);
    }

    #[test]
    #[rustfmt::skip]
    fn av1_starts_on_a_new_coded_video_sequence() {
        // Aggregation header: Z Y W N ---.
        check(Codec::Av1, &[
            ("new sequence",            &[0b0_0_10_1_000, 0x0a], Some(Picture)),
            ("new sequence, OBU goes on", &[0b0_1_10_1_000, 0x0a], Some(Picture)),
            ("delta",                   &[0b0_0_01_0_000, 0x32], None),
            ("continued OBU",           &[0b1_0_01_0_000, 0x32], None),
            ("Z and N contradict",      &[0b1_0_01_1_000, 0x32], None),
            ("nothing behind header",   &[0b0_0_10_1_000], None),
            ("empty",                   &[], None),
        ]);
    }

    proptest! {
        #[test]
        fn any_payload_is_read_without_panic(payload: Vec<u8>) {
            for codec in [Codec::Opus, Codec::Vp8, Codec::Vp9, Codec::H264, Codec::H265, Codec::Av1] {
                let _ = starts_keyframe(codec, &payload);
            }
        }

        /// What is cut cannot become a start that the whole was not.
        #[test]
        fn a_cut_payload_starts_nothing_new(payload: Vec<u8>, cut: prop::sample::Index) {
            let cut = &payload[..cut.index(payload.len() + 1)];
            for codec in [Codec::Vp8, Codec::Vp9, Codec::H264, Codec::H265, Codec::Av1] {
                prop_assert!(!starts_keyframe(codec, cut) || starts_keyframe(codec, &payload));
            }
        }
    }
}
