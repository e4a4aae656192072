//! The numbers in a VP8 payload descriptor that must stay continuous when publishers change (RFC 7741 §4.2).

use str0m::rtp::{Vp8Descriptor, Vp8Patch};

/// The descriptor of one packet: its numbers, and where they stand.
#[derive(Clone, Copy, Debug)]
pub struct Vp8Header {
    descriptor: Vp8Descriptor,
    pub picture_id: Option<PictureId>,
    pub tl0_pic_idx: Option<u8>,
}

/// PictureID in the width that the publisher chose; rewriting keeps the width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureId {
    pub value: u16,
    /// 0x7f or 0x7fff.
    pub mask: u16,
}

impl PictureId {
    pub fn plus(self, offset: u16) -> PictureId {
        PictureId { value: self.value.wrapping_add(offset) & self.mask, ..self }
    }
}

impl Vp8Header {
    /// `None` when the payload is too short for what its flags promise.
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
    /// ```
    pub fn parse(payload: &[u8]) -> Option<Vp8Header> {
        let descriptor = Vp8Descriptor::parse(payload).ok()?;
        let mut header = Vp8Header { descriptor, picture_id: None, tl0_pic_idx: None };
        if payload.first()? & 0x80 == 0 {
            return Some(header);
        }
        let flags = *payload.get(1)?;
        let mut at = 2;
        if flags & 0x80 != 0 {
            let first = *payload.get(at)?;
            at += 1;
            header.picture_id = Some(if first & 0x80 != 0 {
                let second = *payload.get(at)?;
                at += 1;
                PictureId { value: u16::from(first & 0x7f) << 8 | u16::from(second), mask: 0x7fff }
            } else {
                PictureId { value: u16::from(first), mask: 0x7f }
            });
        }
        if flags & 0x40 != 0 {
            header.tl0_pic_idx = Some(*payload.get(at)?);
        }
        Some(header)
    }

    /// The byte replacements that add the offsets; `None` when there is nothing to change.
    pub fn patch(&self, picture_id_offset: u16, tl0_pic_idx_offset: u8) -> Option<Vp8Patch> {
        if picture_id_offset == 0 && tl0_pic_idx_offset == 0 {
            return None;
        }
        let mut patch = self.descriptor.patch();
        if let Some(id) = self.picture_id {
            patch = patch.picture_id(id.plus(picture_id_offset).value);
        }
        if let Some(idx) = self.tl0_pic_idx {
            patch = patch.tl0_pic_idx(idx.wrapping_add(tl0_pic_idx_offset));
        }
        patch.build().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(payload: &[u8], picture_id: Option<(u16, u16)>, tl0: Option<u8>) {
        let header = Vp8Header::parse(payload).expect("parses");
        assert_eq!(header.picture_id.map(|p| (p.value, p.mask)), picture_id, "{payload:02x?}");
        assert_eq!(header.tl0_pic_idx, tl0, "{payload:02x?}");
    }

    #[test]
    fn the_numbers_are_read_in_every_shape() {
        check(&[0x10, 0x00, 0x9d], None, None);
        check(&[0x90, 0x80, 0x7f, 0x00], Some((0x7f, 0x7f)), None);
        check(&[0x90, 0x80, 0x81, 0x02, 0x00], Some((0x102, 0x7fff)), None);
        check(&[0x90, 0xe0, 0xff, 0xff, 0x42, 0x20, 0x00], Some((0x7fff, 0x7fff)), Some(0x42));
    }

    #[test]
    fn a_truncated_descriptor_is_refused() {
        for payload in [&[][..], &[0x90], &[0x90, 0x80], &[0x90, 0x80, 0x80], &[0x90, 0xc0, 0x01]] {
            assert!(Vp8Header::parse(payload).is_none(), "{payload:02x?}");
        }
    }

    #[test]
    fn a_picture_id_wraps_within_its_width() {
        assert_eq!(PictureId { value: 0x7f, mask: 0x7f }.plus(2).value, 1);
        assert_eq!(PictureId { value: 0x7fff, mask: 0x7fff }.plus(2).value, 1);
    }
}
