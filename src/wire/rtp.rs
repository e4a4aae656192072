//! RTP packets as we write and read them ourselves (RFC 3550 §5.1): header, header extensions (RFC 8285), padding, RTX.
//!
//! ```text
//!  0                   1                   2                   3
//! |V=2|P|X|  CC   |M|     PT      |       sequence number         |
//! |                           timestamp                           |
//! |                             SSRC                              |
//! |                        CSRC, CC times                         |
//! |    extension's profile        |        length in words        |  with X
//! |                       extension elements                      |
//! ```

/// Without CSRCs and extensions.
pub const HEADER_BYTES: usize = 12;

/// The original sequence number, before the payload of a retransmission (RFC 4588 §4).
pub const OSN_BYTES: usize = 2;

const VERSION_2: u8 = 0x80;
const PADDING: u8 = 0x20;
const EXTENSION: u8 = 0x10;
const MARKER: u8 = 0x80;

const EXTENSION_HEADER_BYTES: usize = 4;
const ONE_BYTE_FORM: u16 = 0xBEDE;
/// With 4 bits below it that mean nothing here (RFC 8285 §4.3).
const TWO_BYTE_FORM: u16 = 0x1000;
/// "Stop" in the one-byte form (RFC 8285 §4.2).
const ONE_BYTE_ID_STOP: u8 = 15;

/// The fixed part of a header. What we write has no CSRCs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RtpHeader {
    /// Below 128.
    pub payload_type: u8,
    pub marker: bool,
    pub seq: u16,
    pub timestamp: u32,
    pub ssrc: u32,
    /// P: the last byte of the packet says how many bytes of padding there are, itself included.
    pub padding: bool,
}

/// Which forms of header extensions a peer can read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExtensionForms {
    #[default]
    OneByte,
    /// `a=extmap-allow-mixed` was agreed on.
    Mixed,
}

/// Writes header and extensions to the front of `buf` and returns their length, a multiple of 4. Allocates nothing.
///
/// `extensions` are pairs of the id that the peer gave and the value. The form is the one-byte one (ids 1 to 14, values
/// of 1 to 16 bytes), unless one of them needs the two-byte form (ids to 255, values of 0 to 255 bytes) and it is
/// allowed. One that fits no allowed form is left out.
///
/// # Panics
///
/// When `buf` is too short: 19 bytes and, for each extension, 2 more than its value always do.
#[inline]
pub fn write_header(buf: &mut [u8], header: &RtpHeader, extensions: &[(u8, &[u8])], forms: ExtensionForms) -> usize {
    debug_assert!(header.payload_type < 128, "a payload type has 7 bits");
    buf[0] = VERSION_2 | if header.padding { PADDING } else { 0 };
    buf[1] = header.payload_type | if header.marker { MARKER } else { 0 };
    buf[2..4].copy_from_slice(&header.seq.to_be_bytes());
    buf[4..8].copy_from_slice(&header.timestamp.to_be_bytes());
    buf[8..12].copy_from_slice(&header.ssrc.to_be_bytes());

    let two_byte = forms == ExtensionForms::Mixed && extensions.iter().any(|e| !fits_one_byte(e) && fits_two_byte(e));
    let fits = if two_byte { fits_two_byte } else { fits_one_byte };
    let start = HEADER_BYTES + EXTENSION_HEADER_BYTES;
    let mut at = start;
    for extension @ (id, value) in extensions {
        if !fits(extension) {
            continue;
        }
        if two_byte {
            buf[at] = *id;
            buf[at + 1] = value.len() as u8;
            at += 2;
        } else {
            buf[at] = id << 4 | (value.len() - 1) as u8;
            at += 1;
        }
        buf[at..at + value.len()].copy_from_slice(value);
        at += value.len();
    }
    if at == start {
        return HEADER_BYTES;
    }
    let end = at.next_multiple_of(4);
    buf[at..end].fill(0);
    let form = if two_byte { TWO_BYTE_FORM } else { ONE_BYTE_FORM };
    let words = ((end - start) / 4) as u16;
    buf[0] |= EXTENSION;
    buf[12..14].copy_from_slice(&form.to_be_bytes());
    buf[14..16].copy_from_slice(&words.to_be_bytes());
    end
}

fn fits_one_byte((id, value): &(u8, &[u8])) -> bool {
    (1..ONE_BYTE_ID_STOP).contains(id) && (1..=16).contains(&value.len())
}

fn fits_two_byte((id, value): &(u8, &[u8])) -> bool {
    *id != 0 && value.len() <= 255
}

/// Makes all after the first `unpadded_bytes` of a packet padding, and says so in its header. Nothing there: no change.
///
/// # Panics
///
/// When the padding is longer than 255 bytes, the most that its count can say.
#[inline]
pub fn pad(packet: &mut [u8], unpadded_bytes: usize) {
    let padding = &mut packet[unpadded_bytes..];
    let count = u8::try_from(padding.len()).expect("padding is at most 255 bytes");
    let Some((last, rest)) = padding.split_last_mut() else { return };
    rest.fill(0);
    *last = count;
    debug_assert_eq!(packet[0] & PADDING, 0, "a packet is padded once");
    packet[0] |= PADDING;
}

/// Writes the front of a retransmission's payload; the payload of the packet that was lost follows it.
///
/// # Panics
///
/// When `payload` is shorter than [`OSN_BYTES`].
#[inline]
pub fn write_osn(payload: &mut [u8], original_seq: u16) {
    payload[..OSN_BYTES].copy_from_slice(&original_seq.to_be_bytes());
}

/// The original sequence number and payload of a retransmission. `None` for padding, which probes send on RTX too.
pub fn parse_rtx(payload: &[u8]) -> Option<(u16, &[u8])> {
    let (osn, payload) = payload.split_first_chunk()?;
    Some((u16::from_be_bytes(*osn), payload))
}

/// What of a packet can be read while its payload is still sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClearPart {
    pub header: RtpHeader,
    /// Of all before the payload: CSRCs and extensions too.
    pub header_bytes: usize,
}

impl ClearPart {
    /// `None` when it is not version 2, or shorter than its header says.
    pub fn parse(packet: &[u8]) -> Option<ClearPart> {
        let fixed = packet.first_chunk::<HEADER_BYTES>()?;
        if fixed[0] >> 6 != 2 {
            return None;
        }
        let mut header_bytes = HEADER_BYTES + 4 * usize::from(fixed[0] & 0x0f);
        if fixed[0] & EXTENSION != 0 {
            let words = u16_at(packet, header_bytes + 2)?;
            header_bytes += EXTENSION_HEADER_BYTES + 4 * usize::from(words);
        }
        let header = RtpHeader {
            payload_type: fixed[1] & 0x7f,
            marker: fixed[1] & MARKER != 0,
            seq: u16_at(fixed, 2)?,
            timestamp: u32_at(fixed, 4)?,
            ssrc: u32_at(fixed, 8)?,
            padding: fixed[0] & PADDING != 0,
        };
        (packet.len() >= header_bytes).then_some(ClearPart { header, header_bytes })
    }
}

/// A plain packet, borrowed from its datagram.
#[derive(Clone, Copy, Debug)]
pub struct RtpView<'a> {
    pub header: RtpHeader,
    /// Of all before the payload: CSRCs and extensions too.
    pub header_bytes: usize,
    /// Without padding. Empty in packets that are padding only, as probes are.
    pub payload: &'a [u8],
    form: u16,
    elements: &'a [u8],
}

impl<'a> RtpView<'a> {
    /// `None` when it is not version 2, or its lengths do not add up. Allocates nothing.
    pub fn parse(packet: &'a [u8]) -> Option<RtpView<'a>> {
        let ClearPart { header, header_bytes } = ClearPart::parse(packet)?;
        let (front, mut payload) = packet.split_at(header_bytes);
        if header.padding {
            let count = usize::from(*payload.last()?);
            let unpadded_bytes = payload.len().checked_sub(count)?;
            if count == 0 {
                return None;
            }
            payload = &payload[..unpadded_bytes];
        }
        let mut view = RtpView { header, header_bytes, payload, form: 0, elements: &[] };
        if front[0] & EXTENSION != 0 {
            let at = HEADER_BYTES + 4 * usize::from(front[0] & 0x0f);
            view.form = u16_at(front, at)?;
            view.elements = front.get(at + EXTENSION_HEADER_BYTES..)?;
        }
        Some(view)
    }

    /// Ids and values, until the end or the first element that overruns. None when the form is neither of RFC 8285's.
    pub fn extensions(&self) -> Extensions<'a> {
        let two_byte = self.form & 0xfff0 == TWO_BYTE_FORM;
        let known = two_byte || self.form == ONE_BYTE_FORM;
        Extensions { two_byte, rest: if known { self.elements } else { &[] } }
    }
}

/// See [`RtpView::extensions`].
#[derive(Clone, Debug)]
pub struct Extensions<'a> {
    two_byte: bool,
    rest: &'a [u8],
}

impl<'a> Extensions<'a> {
    fn element(&mut self) -> Option<(u8, &'a [u8])> {
        // Zeros are padding, between elements too.
        let start = self.rest.iter().position(|b| *b != 0)?;
        let (&first, rest) = self.rest[start..].split_first()?;
        let (id, length, rest) = if self.two_byte {
            let (&length, rest) = rest.split_first()?;
            (first, usize::from(length), rest)
        } else {
            (first >> 4, usize::from(first & 0x0f) + 1, rest)
        };
        if !self.two_byte && id == ONE_BYTE_ID_STOP {
            return None;
        }
        let (value, rest) = rest.split_at_checked(length)?;
        self.rest = rest;
        Some((id, value))
    }
}

impl<'a> Iterator for Extensions<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let element = self.element();
        if element.is_none() {
            self.rest = &[];
        }
        element
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: RtpHeader = RtpHeader {
        payload_type: 96,
        marker: true,
        seq: 0x1234,
        timestamp: 0xdeca_fbad,
        ssrc: 0xcafe_babe,
        padding: false,
    };

    fn write(extensions: &[(u8, &[u8])], forms: ExtensionForms) -> Vec<u8> {
        let mut buf = vec![0xff; 2048];
        let length = write_header(&mut buf, &HEADER, extensions, forms);
        buf.truncate(length);
        buf
    }

    fn extensions(packet: &[u8]) -> Vec<(u8, Vec<u8>)> {
        RtpView::parse(packet).unwrap().extensions().map(|(id, value)| (id, value.to_vec())).collect()
    }

    #[test]
    fn a_header_without_extensions() {
        let bytes = write(&[], ExtensionForms::OneByte);
        assert_eq!(bytes, [0x80, 0xe0, 0x12, 0x34, 0xde, 0xca, 0xfb, 0xad, 0xca, 0xfe, 0xba, 0xbe]);
        assert_eq!(RtpView::parse(&bytes).unwrap().header, HEADER);
    }

    #[test]
    fn the_one_byte_form() {
        let bytes = write(&[(1, b"0"), (3, &[0x12, 0x34])], ExtensionForms::Mixed);
        assert_eq!(bytes[0], 0x90);
        assert_eq!(bytes[12..], [0xbe, 0xde, 0, 2, 0x10, b'0', 0x31, 0x12, 0x34, 0, 0, 0]);
        assert_eq!(extensions(&bytes), [(1, b"0".to_vec()), (3, vec![0x12, 0x34])]);
    }

    #[test]
    fn the_two_byte_form_where_needed_and_allowed() {
        let long = [7; 17];
        let all: [(u8, &[u8]); 3] = [(1, b"0"), (3, &long), (15, b"")];
        let mixed = write(&all, ExtensionForms::Mixed);
        assert_eq!(mixed[12..16], [0x10, 0x00, 0, 6]);
        assert_eq!(extensions(&mixed), all.map(|(id, value)| (id, value.to_vec())));
        assert_eq!(extensions(&write(&all, ExtensionForms::OneByte)), [(1, b"0".to_vec())]);
    }

    #[test]
    fn what_fits_no_form_is_left_out() {
        let too_long = [0; 256];
        for forms in [ExtensionForms::OneByte, ExtensionForms::Mixed] {
            assert_eq!(write(&[(0, b"x"), (4, &too_long)], forms).len(), HEADER_BYTES);
            assert_eq!(
                write(&[(0, b"x"), (4, &too_long), (2, b"y")], forms)[12..],
                [0xbe, 0xde, 0, 1, 0x20, b'y', 0, 0]
            );
        }
    }

    #[test]
    fn elements_are_read_past_padding_up_to_the_stop_or_an_overrun() {
        let packet = |form: u16, elements: &[u8; 8]| {
            [&[0x90, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7][..], &form.to_be_bytes(), &[0, 2], elements].concat()
        };
        let check = |form, elements, expected: &[(u8, &[u8])]| {
            let expected: Vec<_> = expected.iter().map(|(id, value)| (*id, value.to_vec())).collect();
            assert_eq!(extensions(&packet(form, elements)), expected);
        };
        check(0xbede, &[0, 0x10, 1, 0, 0, 0x21, 2, 3], &[(1, &[1]), (2, &[2, 3])]);
        check(0xbede, &[0x10, 1, 0xf0, 9, 0x20, 2, 0, 0], &[(1, &[1])]);
        check(0xbede, &[0x10, 1, 0, 0, 0x2f, 2, 3, 4], &[(1, &[1])]);
        check(0x1007, &[15, 0, 1, 3, 1, 2, 3, 0], &[(15, &[]), (1, &[1, 2, 3])]);
        check(0x1000, &[1, 1, 9, 0, 0, 0, 0, 2], &[(1, &[9])]);
        check(0x2000, &[0x10, 1, 0, 0, 0, 0, 0, 0], &[]);
    }

    #[test]
    fn csrcs_are_stepped_over() {
        let mut packet = write(&[], ExtensionForms::OneByte);
        packet[0] |= 2;
        packet.extend([0; 8]);
        packet.extend(b"media");
        let view = RtpView::parse(&packet).unwrap();
        assert_eq!((view.header_bytes, view.payload), (20, &b"media"[..]));
    }

    #[test]
    fn padding_is_taken_off() {
        for count in [0, 1, 2, 255] {
            let mut packet = write(&[], ExtensionForms::OneByte);
            packet.extend(b"media");
            let unpadded_bytes = packet.len();
            packet.resize(unpadded_bytes + count, 0xee);
            pad(&mut packet, unpadded_bytes);
            let view = RtpView::parse(&packet).unwrap();
            assert_eq!((view.header.padding, view.payload), (count > 0, &b"media"[..]));
        }
    }

    #[test]
    fn padding_that_does_not_add_up_is_refused() {
        let mut packet = write(&[], ExtensionForms::OneByte);
        packet[0] |= PADDING;
        assert!(RtpView::parse(&packet).is_none(), "no byte to count in");
        packet.extend([9, 9, 0]);
        assert!(RtpView::parse(&packet).is_none(), "a count of 0");
        packet[14] = 4;
        assert!(RtpView::parse(&packet).is_none(), "longer than the payload");
        packet[14] = 3;
        assert!(RtpView::parse(&packet).unwrap().payload.is_empty());
    }

    #[test]
    fn a_cut_header_is_refused() {
        let whole = write(&[(1, b"0"), (3, &[0x12, 0x34])], ExtensionForms::OneByte);
        for n in 0..whole.len() {
            assert!(RtpView::parse(&whole[..n]).is_none(), "cut to {n}");
        }
        let mut version_1 = whole;
        version_1[0] = 0x50;
        assert!(RtpView::parse(&version_1).is_none());
    }

    #[test]
    fn rtx_carries_the_original_number() {
        let mut payload = [0; 7];
        write_osn(&mut payload, 0xbeef);
        payload[OSN_BYTES..].copy_from_slice(b"media");
        assert_eq!(parse_rtx(&payload), Some((0xbeef, &b"media"[..])));
        assert_eq!(parse_rtx(&payload[..1]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(first in 0x80u8..=0xbf, mut bytes: Vec<u8>) {
            if let Some(b) = bytes.first_mut() {
                *b = first;
            }
            if let Some(view) = RtpView::parse(&bytes) {
                view.extensions().for_each(drop);
            }
        }

        #[test]
        fn what_is_written_is_read(
            payload_type in 0u8..128, marker: bool, seq: u16, timestamp: u32, ssrc: u32,
            elements in proptest::collection::vec((1u8..=20, proptest::collection::vec(any::<u8>(), 0..20)), 0..6),
            payload: Vec<u8>,
        ) {
            let header = RtpHeader { payload_type, marker, seq, timestamp, ssrc, padding: false };
            let borrowed: Vec<(u8, &[u8])> = elements.iter().map(|(id, value)| (*id, &value[..])).collect();
            let mut packet = vec![0xff; 300];
            let length = write_header(&mut packet, &header, &borrowed, ExtensionForms::Mixed);
            packet.truncate(length);
            packet.extend(&payload);
            let view = RtpView::parse(&packet).unwrap();
            prop_assert_eq!((view.header, view.header_bytes, view.payload), (header, length, &payload[..]));
            prop_assert_eq!(view.extensions().collect::<Vec<_>>(), borrowed);
        }
    }
}
