//! The size of H.264 pictures, by their sequence parameter set.

use super::bits::Bits;
use super::descriptor::{Sizes, one_size};
use super::keyframe;

const SPS: u8 = 7;
const STAP_A: u8 = 24;

/// Sequence parameter sets have some 30 bytes; what is told of the size stands before what may make them longer.
const SPS_BYTES_MAX: usize = 256;

/// Pictures have 65,535 pixels each way at most (levels end at 8192 x 4320); a macroblock has 16.
const MACROBLOCKS_MAX: u32 = 4095;

/// Where the payload (RFC 6184) holds a sequence parameter set that can be read.
pub fn sizes(payload: &[u8]) -> Option<Sizes> {
    let (&header, body) = payload.split_first()?;
    match header & 0x1f {
        SPS => size(body),
        STAP_A => {
            let parameters = keyframe::aggregated(body).find(|unit| unit.first().is_some_and(|h| h & 0x1f == SPS))?;
            size(&parameters[1..])
        }
        _ => None,
    }
}

/// Of what follows the NAL unit's header: ITU-T H.264 §7.3.2.1.1, with the names of fields from there.
fn size(parameters: &[u8]) -> Option<Sizes> {
    let bytes = without_emulation_prevention(parameters);
    let mut bits = Bits::new(&bytes);
    let profile_idc = bits.take(8)?;
    let _constraints_and_level = bits.take(16)?;
    let _seq_parameter_set_id = bits.exp_golomb()?;
    let chroma = if has_chroma_format(profile_idc) { chroma_format(&mut bits)? } else { Chroma::default() };
    let _log2_max_frame_num_minus4 = bits.exp_golomb()?;
    skip_picture_order(&mut bits)?;
    let _max_num_ref_frames = bits.exp_golomb()?;
    let _gaps_in_frame_num_value_allowed_flag = bits.flag()?;
    let width_in_macroblocks = macroblocks(&mut bits)?;
    let height_in_map_units = macroblocks(&mut bits)?;
    let frame_mbs_only = bits.flag()?;
    if !frame_mbs_only {
        let _mb_adaptive_frame_field_flag = bits.flag()?;
    }
    let _direct_8x8_inference_flag = bits.flag()?;
    let [left, right, top, bottom] = if bits.flag()? { crop(&mut bits)? } else { [0; 4] };
    let fields = if frame_mbs_only { 1 } else { 2 };
    let width = (16 * width_in_macroblocks).checked_sub(chroma.crop_width * (left + right))?;
    let height = (16 * fields * height_in_map_units).checked_sub(chroma.crop_height * fields * (top + bottom))?;
    Some(one_size(u16::try_from(width).ok()?, u16::try_from(height).ok()?))
}

/// A 3 behind two zeros keeps start codes out of a NAL unit (§7.4.1).
fn without_emulation_prevention(unit: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(unit.len().min(SPS_BYTES_MAX));
    let mut zeros = 0;
    for byte in unit.iter().take(SPS_BYTES_MAX) {
        if zeros >= 2 && *byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if *byte == 0 { zeros + 1 } else { 0 };
        bytes.push(*byte);
    }
    bytes
}

/// In how many pixels a picture is cropped.
struct Chroma {
    crop_width: u32,
    crop_height: u32,
}

/// 4:2:0.
impl Default for Chroma {
    fn default() -> Chroma {
        Chroma { crop_width: 2, crop_height: 2 }
    }
}

fn has_chroma_format(profile_idc: u64) -> bool {
    matches!(profile_idc, 100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135)
}

fn chroma_format(bits: &mut Bits) -> Option<Chroma> {
    let chroma_format_idc = bits.exp_golomb()?;
    if chroma_format_idc == 3 {
        let _separate_colour_plane_flag = bits.flag()?;
    }
    let _bit_depth_luma_minus8 = bits.exp_golomb()?;
    let _bit_depth_chroma_minus8 = bits.exp_golomb()?;
    let _qpprime_y_zero_transform_bypass_flag = bits.flag()?;
    let seq_scaling_matrix_present = bits.flag()?;
    if seq_scaling_matrix_present {
        for list in 0..if chroma_format_idc == 3 { 12 } else { 8 } {
            if bits.flag()? {
                skip_scaling_list(bits, if list < 6 { 16 } else { 64 })?;
            }
        }
    }
    let (crop_width, crop_height) = match chroma_format_idc {
        1 => (2, 2),
        2 => (2, 1),
        _ => (1, 1),
    };
    Some(Chroma { crop_width, crop_height })
}

/// §7.3.2.1.1.1.
fn skip_scaling_list(bits: &mut Bits, entries: usize) -> Option<()> {
    let mut scale = 8i64;
    for _ in 0..entries {
        scale = (scale + signed(bits.exp_golomb()?)).rem_euclid(256);
        if scale == 0 {
            break;
        }
    }
    Some(())
}

/// `se(v)` (§9.1.1).
fn signed(code: u32) -> i64 {
    let half = (i64::from(code) + 1) / 2;
    if code % 2 == 1 { half } else { -half }
}

fn skip_picture_order(bits: &mut Bits) -> Option<()> {
    match bits.exp_golomb()? {
        0 => {
            let _log2_max_pic_order_cnt_lsb_minus4 = bits.exp_golomb()?;
        }
        1 => {
            let _delta_pic_order_always_zero_flag = bits.flag()?;
            let _offset_for_non_ref_pic = bits.exp_golomb()?;
            let _offset_for_top_to_bottom_field = bits.exp_golomb()?;
            // Each takes a bit at least, so the set's end bounds this.
            for _ in 0..bits.exp_golomb()? {
                bits.exp_golomb()?;
            }
        }
        _ => {}
    }
    Some(())
}

fn macroblocks(bits: &mut Bits) -> Option<u32> {
    bits.exp_golomb().filter(|minus_one| *minus_one < MACROBLOCKS_MAX).map(|minus_one| minus_one + 1)
}

fn crop(bits: &mut Bits) -> Option<[u32; 4]> {
    let mut edge = || bits.exp_golomb().filter(|units| *units <= u32::from(u16::MAX));
    Some([edge()?, edge()?, edge()?, edge()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
        (0..text.len()).step_by(2).map(digits).collect()
    }

    /// What FFmpeg wrote of test cards.
    const X264_BASELINE: &str = "6742c028da01e0089f970110000003001000000303c0f1832a";

    #[test]
    fn encoders_sizes_are_read() {
        for (what, parameters, width, height) in [
            ("x264, baseline", X264_BASELINE, 1920, 1080),
            ("x264, high", "6764001facd9405005bb0110000003001000000303c0f1831960", 1280, 720),
            ("x264, high, 4:4:4", "67f4001e919b281405ff178088000003000800000301e078b16cb0", 640, 358),
            ("x264, high, gray", "6764000df365054678f8bc05b2000003000200000300781e28532c", 322, 182),
            ("x264, high, 4:2:2", "677a000dbcd941519e222f0110000003001000000303c0f1429960", 322, 182),
            ("x264, fields", "6764001facd940b424d80880000003008000001e0f8b16cb", 720, 576),
            ("OpenH264", "6742c01e8c680a02ff970101e1108d40", 640, 360),
        ] {
            let parameters = hex(parameters);
            let expected = Some(one_size(width, height));
            assert_eq!(sizes(&parameters), expected, "{what}");
            let aggregated = [&[24, 0, 2, 9, 0x10, 0, parameters.len() as u8], &parameters[..], &[0, 1, 8]].concat();
            assert_eq!(sizes(&aggregated), expected, "{what}, aggregated");
        }
    }

    #[test]
    fn scaling_lists_and_picture_orders_are_passed_over() {
        // High, levels and ids of no matter; then bits: ue(0) id, ue(1) chroma, ue(0) ue(0) depths, 0, 1 scaling lists.
        let set = |tail: &str| {
            let bits: Vec<u8> = tail.bytes().filter(|b| *b != b' ').map(|b| b - b'0').collect();
            let bytes = bits.chunks(8).map(|c| (0..8).fold(0, |byte, i| byte << 1 | c.get(i).copied().unwrap_or(0)));
            [&[0x67, 100, 0, 30], &bytes.collect::<Vec<_>>()[..]].concat()
        };
        // Frame numbers, order, references, gaps; then 2 x 1 macroblocks, frames only, no cropping.
        let (head, size) = ("1 010 1 1 0", "1 0 010 1 1 1 0");
        let none = set(&format!("{head} 0 1 1 1 {size}"));
        assert_eq!(sizes(&none), Some(one_size(32, 16)));
        // The first list ends at once (-8), the seventh is given whole (64 times 0), the others are not there.
        let lists = format!("1 000010001 0 0 0 0 0 1 {} 0", "1".repeat(64));
        assert_eq!(sizes(&set(&format!("{head} 1 {lists} 1 1 1 {size}"))), Some(one_size(32, 16)));
        // Order type 1: a flag, two offsets, two more.
        assert_eq!(sizes(&set(&format!("{head} 0 1 010 0 1 1 011 1 1 {size}"))), Some(one_size(32, 16)));
    }

    #[test]
    fn what_is_no_parameter_set_or_is_cut_has_no_size() {
        let whole = hex(X264_BASELINE);
        assert!((0..8).all(|bytes| sizes(&whole[..bytes]).is_none()));
        assert_eq!(sizes(&[0x65, 0x88, 0x84]), None);
        assert_eq!(sizes(&[24, 0, 9, 0x67]), None);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(mut payload: Vec<u8>, profile: u8) {
            let _ = sizes(&payload);
            payload.splice(0..0, [0x67, profile, 0, 30]);
            let _ = sizes(&payload);
        }
    }
}
