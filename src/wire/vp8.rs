//! The numbers in a VP8 payload descriptor that must stay continuous when publishers change (RFC 7741 §4.2).

/// The numbers of one packet, and where they stand in its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vp8Header {
    pub picture_id: Option<PictureId>,
    /// TL0PICIDX.
    pub tl0_pic_idx: Option<u8>,
    /// Of TL0PICIDX; PictureID always stands at 2.
    tl0_at: u8,
}

/// What to write over a payload's numbers, so that they go on from publisher to publisher. The length stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vp8Rewrite {
    picture_id: Option<PictureId>,
    tl0_pic_idx: Option<u8>,
    tl0_at: u8,
}

const PICTURE_ID_AT: usize = 2;

impl Vp8Rewrite {
    /// `payload` is a copy of the one whose header made this.
    #[inline]
    pub fn apply(&self, payload: &mut [u8]) {
        if let Some(id) = self.picture_id {
            match (id.mask, &mut payload[PICTURE_ID_AT..]) {
                (0x7f, [only, ..]) => *only = id.value as u8,
                (_, [high, low, ..]) => [*high, *low] = (id.value | 0x8000).to_be_bytes(),
                _ => {}
            }
        }
        if let (Some(idx), Some(byte)) = (self.tl0_pic_idx, payload.get_mut(usize::from(self.tl0_at))) {
            *byte = idx;
        }
    }
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
        let mut header = Vp8Header { picture_id: None, tl0_pic_idx: None, tl0_at: 0 };
        if payload.first()? & 0x80 == 0 {
            // A descriptor without a payload behind it is cut short.
            payload.get(1)?;
            return Some(header);
        }
        let flags = *payload.get(1)?;
        let mut at = PICTURE_ID_AT;
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
            header.tl0_at = at as u8;
        }
        Some(header)
    }

    /// The rewrite that adds the offsets; `None` when there is nothing to change.
    pub fn rewrite(&self, picture_id_offset: u16, tl0_pic_idx_offset: u8) -> Option<Vp8Rewrite> {
        if picture_id_offset == 0 && tl0_pic_idx_offset == 0 {
            return None;
        }
        Some(Vp8Rewrite {
            picture_id: self.picture_id.map(|id| id.plus(picture_id_offset)),
            tl0_pic_idx: self.tl0_pic_idx.map(|idx| idx.wrapping_add(tl0_pic_idx_offset)),
            tl0_at: self.tl0_at,
        })
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

    #[test]
    fn a_rewrite_changes_the_numbers_alone() {
        for payload in [
            &[0x90, 0xe0, 0xff, 0xff, 0x42, 0x20, 0x00, 7][..],
            &[0x90, 0xe0, 0x7f, 0x42, 0x20, 0x00, 7],
            &[0x90, 0x80, 0x05, 0x00, 7],
            &[0x90, 0x40, 0x05, 0x00, 7],
        ] {
            let header = Vp8Header::parse(payload).expect("parses");
            let mut copy = payload.to_vec();
            header.rewrite(3, 200).expect("a change").apply(&mut copy);
            let after = Vp8Header::parse(&copy).expect("parses");
            assert_eq!(after.picture_id, header.picture_id.map(|p| p.plus(3)));
            assert_eq!(after.tl0_pic_idx, header.tl0_pic_idx.map(|t| t.wrapping_add(200)));
            assert_eq!((copy.len(), copy.last()), (payload.len(), Some(&7)));
        }
        assert_eq!(Vp8Header::parse(&[0x90, 0x80, 0x05, 0x00]).expect("parses").rewrite(0, 0), None);
    }
}
