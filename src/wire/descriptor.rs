//! What a payload or dependency descriptor says, whatever the codec: the numbers that must stay continuous when publishers or layers
//! change, and where the packet stands in the layers.

/// Parsed once per packet. The default is that of a codec that says nothing: one layer, no numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    pub numbers: Numbers,
    pub layer: LayerInfo,
}

/// Spatial layers that are told apart: browsers send three at most, AV1 has four. Those above count as the fourth.
pub const SPATIAL_LAYERS_MAX: usize = 4;

/// Width and height in pixels of each spatial layer, from the lowest on; 0: there is none, or it is not told.
pub type Sizes = [(u16, u16); SPATIAL_LAYERS_MAX];

/// Where a packet stands in its stream's layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerInfo {
    /// Below [`SPATIAL_LAYERS_MAX`].
    pub spatial: u8,
    pub temporal: u8,
    /// The first packet of a picture, which is the frames of all spatial layers.
    pub starts_picture: bool,
    /// The last packet of its layer's frame.
    pub ends_frame: bool,
    /// Where a keyframe tells them.
    pub sizes: Option<Sizes>,
}

/// Of a codec or stream without spatial layers.
pub fn one_size(width: u16, height: u16) -> Sizes {
    let mut sizes = Sizes::default();
    sizes[0] = (width, height);
    sizes
}

/// The numbers of one packet, and where they stand in its payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// PictureID of VP8 and VP9.
    pub picture_id: Option<PictureId>,
    /// TL0PICIDX of VP8 and VP9.
    pub tl0_pic_idx: Option<u8>,
    /// AV1's, in its dependency descriptor; the others are in the payload.
    pub frame_number: Option<u16>,
    pub(super) picture_id_at: u8,
    pub(super) tl0_at: u8,
}

/// PictureID in the width that the publisher chose; rewriting keeps the width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureId {
    pub value: u16,
    /// 0x7f or 0x7fff.
    pub mask: u16,
}

/// What to add to a packet's numbers. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    pub picture_id: u16,
    pub tl0_pic_idx: u8,
    pub frame_number: u16,
}

impl PictureId {
    pub fn plus(self, offset: u16) -> PictureId {
        PictureId { value: self.value.wrapping_add(offset) & self.mask, ..self }
    }

    /// ```text
    ///  0 1 2 3 4 5 6 7
    /// +-+-+-+-+-+-+-+-+
    /// |M| PictureID   |   M: one more octet follows
    /// +-+-+-+-+-+-+-+-+
    /// ```
    /// The same in VP8 (RFC 7741 §4.2) and VP9 (RFC 9628 §4.2). `None` when it is cut.
    pub(super) fn parse(bytes: &[u8]) -> Option<PictureId> {
        let first = *bytes.first()?;
        if first & 0x80 == 0 {
            return Some(PictureId { value: u16::from(first), mask: 0x7f });
        }
        Some(PictureId { value: u16::from_be_bytes([first & 0x7f, *bytes.get(1)?]), mask: 0x7fff })
    }

    /// On the wire.
    pub(super) fn bytes(self) -> usize {
        if self.mask == 0x7f { 1 } else { 2 }
    }
}

impl Numbers {
    /// What is not there is as in `earlier`.
    #[must_use]
    pub fn or(self, earlier: Numbers) -> Numbers {
        Numbers {
            picture_id: self.picture_id.or(earlier.picture_id),
            tl0_pic_idx: self.tl0_pic_idx.or(earlier.tl0_pic_idx),
            frame_number: self.frame_number.or(earlier.frame_number),
            ..self
        }
    }

    #[must_use]
    pub fn plus(self, rewrite: Rewrite) -> Numbers {
        Numbers {
            picture_id: self.picture_id.map(|id| id.plus(rewrite.picture_id)),
            tl0_pic_idx: self.tl0_pic_idx.map(|idx| idx.wrapping_add(rewrite.tl0_pic_idx)),
            frame_number: self.frame_number.map(|number| number.wrapping_add(rewrite.frame_number)),
            ..self
        }
    }
}

impl Rewrite {
    /// What makes `now` follow `last` by one. A number that one of them lacks stays.
    pub fn following(last: &Numbers, now: &Numbers) -> Rewrite {
        let mut rewrite = Rewrite::default();
        if let (Some(last), Some(now)) = (last.picture_id, now.picture_id) {
            rewrite.picture_id = last.value.wrapping_add(1).wrapping_sub(now.value);
        }
        if let (Some(last), Some(now)) = (last.tl0_pic_idx, now.tl0_pic_idx) {
            rewrite.tl0_pic_idx = last.wrapping_add(1).wrapping_sub(now);
        }
        if let (Some(last), Some(now)) = (last.frame_number, now.frame_number) {
            rewrite.frame_number = last.wrapping_add(1).wrapping_sub(now);
        }
        rewrite
    }

    /// Both, one after the other.
    #[must_use]
    pub fn plus(self, other: Rewrite) -> Rewrite {
        Rewrite {
            picture_id: self.picture_id.wrapping_add(other.picture_id),
            tl0_pic_idx: self.tl0_pic_idx.wrapping_add(other.tl0_pic_idx),
            frame_number: self.frame_number.wrapping_add(other.frame_number),
        }
    }

    /// What makes both, after `other`, to be this one.
    #[must_use]
    pub fn minus(self, other: Rewrite) -> Rewrite {
        Rewrite {
            picture_id: self.picture_id.wrapping_sub(other.picture_id),
            tl0_pic_idx: self.tl0_pic_idx.wrapping_sub(other.tl0_pic_idx),
            frame_number: self.frame_number.wrapping_sub(other.frame_number),
        }
    }

    /// `payload` is a copy of the one that `numbers` were parsed from. Its length stays.
    #[inline]
    pub fn apply(self, numbers: &Numbers, payload: &mut [u8]) {
        if self == Rewrite::default() {
            return;
        }
        let numbers = numbers.plus(self);
        if let Some(id) = numbers.picture_id {
            match (id.mask, payload.get_mut(usize::from(numbers.picture_id_at)..)) {
                (0x7f, Some([only, ..])) => *only = id.value as u8,
                (_, Some([high, low, ..])) => [*high, *low] = (id.value | 0x8000).to_be_bytes(),
                _ => {}
            }
        }
        if let (Some(idx), Some(byte)) = (numbers.tl0_pic_idx, payload.get_mut(usize::from(numbers.tl0_at))) {
            *byte = idx;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_id_wraps_within_its_width() {
        assert_eq!(PictureId { value: 0x7f, mask: 0x7f }.plus(2).value, 1);
        assert_eq!(PictureId { value: 0x7fff, mask: 0x7fff }.plus(2).value, 1);
    }

    #[test]
    fn numbers_follow_by_one_across_widths_and_wraps() {
        let id = |value, mask| Some(PictureId { value, mask });
        let numbers = |picture_id, tl0_pic_idx| Numbers { picture_id, tl0_pic_idx, ..Numbers::default() };
        let frame = |frame_number| Numbers { frame_number, ..Numbers::default() };
        for (last, now, expected) in [
            (numbers(id(0x7fff, 0x7fff), Some(255)), numbers(id(9, 0x7fff), Some(9)), numbers(id(0, 0x7fff), Some(0))),
            (numbers(id(0x7f, 0x7f), Some(1)), numbers(id(9, 0x7f), Some(9)), numbers(id(0, 0x7f), Some(2))),
            (numbers(id(300, 0x7fff), None), numbers(id(9, 0x7f), Some(9)), numbers(id(301 & 0x7f, 0x7f), Some(9))),
            (numbers(None, None), numbers(id(9, 0x7f), None), numbers(id(9, 0x7f), None)),
            (frame(Some(65_535)), frame(Some(9)), frame(Some(0))),
            (frame(None), frame(Some(9)), frame(Some(9))),
        ] {
            let rewrite = Rewrite::following(&last, &now);
            assert_eq!(now.plus(rewrite), expected);
            let more = Rewrite { picture_id: 5, tl0_pic_idx: 6, frame_number: 7 };
            assert_eq!(now.plus(rewrite.plus(more)), expected.plus(more));
        }
    }
}
