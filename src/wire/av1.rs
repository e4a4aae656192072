//! The size of AV1 pictures, by their sequence header: where no dependency descriptor tells it.

use super::bits::Bits;
use super::descriptor::{Sizes, one_size};

const SEQUENCE_HEADER: u8 = 1;

/// Where the payload (RTP Payload Format For AV1 §4.4) begins a coded video sequence: its first OBU is the sequence header.
pub fn sizes(payload: &[u8]) -> Option<Sizes> {
    let (&aggregation, mut obu) = payload.split_first()?;
    // |Z|Y| W |N|-|-|-|: nothing continued, a new sequence.
    if aggregation & 0x88 != 0x08 {
        return None;
    }
    // With W, the last of so many elements has no length.
    if aggregation >> 4 & 3 != 1 {
        let (bytes, rest) = leb128(obu)?;
        obu = rest.get(..bytes)?;
    }
    let (&header, mut body) = obu.split_first()?;
    // |F| type |X|S|-|
    if header >> 3 & 0x0f != SEQUENCE_HEADER {
        return None;
    }
    if header & 0x04 != 0 {
        body = body.get(1..)?;
    }
    if header & 0x02 != 0 {
        body = leb128(body)?.1;
    }
    sequence_size(&mut Bits::new(body))
}

/// A number of 7 bits a byte, the lowest first; and what follows it. Eight bytes at most (AV1 §4.10.5).
fn leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(8) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, &bytes[index + 1..]));
        }
    }
    None
}

/// `sequence_header_obu`: AV1 Bitstream & Decoding Process Specification §5.5.1, with the names of fields from there.
fn sequence_size(bits: &mut Bits) -> Option<Sizes> {
    let _seq_profile_and_still_picture = bits.take(4)?;
    let reduced_still_picture_header = bits.flag()?;
    if reduced_still_picture_header {
        let _seq_level_idx = bits.take(5)?;
    } else {
        skip_operating_points(bits)?;
    }
    let [width_bits, height_bits] = [bits.take(4)? as usize + 1, bits.take(4)? as usize + 1];
    let plus_one = |less: u64| (less as u16).saturating_add(1);
    let (width, height) = (bits.take(width_bits)?, bits.take(height_bits)?);
    Some(one_size(plus_one(width), plus_one(height)))
}

fn skip_operating_points(bits: &mut Bits) -> Option<()> {
    let mut delay_bits = None;
    let timing_info_present = bits.flag()?;
    if timing_info_present {
        let _num_units_in_display_tick_and_time_scale = bits.take(64)?;
        let equal_picture_interval = bits.flag()?;
        if equal_picture_interval {
            let _num_ticks_per_picture_minus_1 = bits.exp_golomb()?;
        }
        let decoder_model_info_present = bits.flag()?;
        if decoder_model_info_present {
            delay_bits = Some(bits.take(5)? as usize + 1);
            let _num_units_in_decoding_tick = bits.take(32)?;
            let _buffer_removal_and_frame_presentation_time_lengths = bits.take(10)?;
        }
    }
    let initial_display_delay_present = bits.flag()?;
    let operating_points_cnt_minus_1 = bits.take(5)?;
    for _ in 0..=operating_points_cnt_minus_1 {
        let _operating_point_idc = bits.take(12)?;
        let seq_level_idx = bits.take(5)?;
        if seq_level_idx > 7 {
            let _seq_tier = bits.flag()?;
        }
        if let Some(delay_bits) = delay_bits
            && bits.flag()?
        {
            let _decoder_and_encoder_buffer_delay = (bits.take(delay_bits)?, bits.take(delay_bits)?);
            let _low_delay_mode_flag = bits.flag()?;
        }
        if initial_display_delay_present && bits.flag()? {
            let _initial_display_delay_minus_1 = bits.take(4)?;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What libaom and SVT-AV1 wrote of test cards, by FFmpeg.
    const LIBAOM: [u8; 11] = [0x00, 0x00, 0x00, 0x24, 0xc6, 0xab, 0xdf, 0x36, 0xbe, 0x40, 0x10];
    const SVT: [u8; 11] = [0x02, 0x00, 0x00, 0x05, 0x21, 0xe7, 0xf6, 0x62, 0x57, 0xc8, 0x02];

    #[test]
    fn encoders_sizes_are_read_however_they_are_packed() {
        let libaom = Some(one_size(854, 480));
        assert_eq!(sizes(&[&[0x18, 0x08], &LIBAOM[..]].concat()), libaom, "one OBU");
        assert_eq!(sizes(&[&[0x28, 12, 0x08], &LIBAOM[..], &[0x30, 1]].concat()), libaom, "two of them");
        assert_eq!(sizes(&[&[0x08, 0x8c, 0, 0x08], &LIBAOM[..]].concat()), libaom, "any number");
        assert_eq!(sizes(&[&[0x18, 0x0e, 0, 11], &LIBAOM[..]].concat()), libaom, "with extension and size");
        assert_eq!(sizes(&[&[0x18, 0x08], &SVT[..]].concat()), Some(one_size(320, 180)));
    }

    #[test]
    fn what_begins_no_sequence_or_is_cut_has_no_size() {
        let whole = [&[0x18, 0x08], &LIBAOM[..]].concat();
        assert!((0..9).all(|bytes| sizes(&whole[..bytes]).is_none()));
        for (at, byte) in [(0, 0x10), (0, 0x98), (1, 0x30)] {
            let mut other = whole.clone();
            other[at] = byte;
            assert_eq!(sizes(&other), None, "{byte:#x} at {at}");
        }
        assert_eq!(sizes(&[0x08, 0xff, 0xff]), None);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(mut payload: Vec<u8>) {
            let _ = sizes(&payload);
            payload.splice(0..0, [0x18, 0x08]);
            let _ = sizes(&payload);
        }
    }
}
