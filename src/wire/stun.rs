//! STUN as far as we read and write it ourselves (RFC 8489): a peek at Binding requests, and what a STUN server is asked.
//!
//! str0m answers the requests. This file stands before it, because a datagram must be known to be authentic before
//! its 4-tuple is learned, and because which session it belongs to is written in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use aws_lc_rs::{constant_time, hmac};
use crc::{CRC_32_ISO_HDLC, Crc};

/// Chosen by whoever asks; the response carries it back.
pub type TransactionId = [u8; 12];

const HEADER_BYTES: usize = 20;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const MAGIC_COOKIE: [u8; 4] = 0x2112_A442_u32.to_be_bytes();

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;

const MAPPED_ADDRESS: u16 = 0x0001;
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const PRIORITY: u16 = 0x0024;
const USE_CANDIDATE: u16 = 0x0025;
const FINGERPRINT: u16 = 0x8028;
const ICE_CONTROLLING: u16 = 0x802A;

/// Of a peer-reflexive host candidate: type preference 110, local preference 65,535, component 1 (RFC 8445 §5.1.2.1).
const PEER_REFLEXIVE_PRIORITY: u32 = 110 << 24 | 0xFFFF << 8 | 255;

/// HMAC-SHA1.
const INTEGRITY_BYTES: usize = 20;

/// "Less than 513 bytes" in RFC 5389 §15.3, which clients were built for; RFC 8489 §14.3 narrowed it to 508. Ufrags in
/// use have 4 to 16 characters.
const USERNAME_BYTES_MAX: usize = 512;

/// "STUN" in ASCII: keeps the check value apart from another protocol's CRC-32 (RFC 8489 §14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554E;

const CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Why a datagram is not a Binding request that could be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StunError {
    #[error("the length field does not fit the datagram")]
    Length,
    #[error("no magic cookie")]
    Cookie,
    #[error("another method or class")]
    Type,
    #[error("an attribute overruns the message or has the wrong size")]
    Attribute,
    #[error("FINGERPRINT is wrong or not last")]
    Fingerprint,
    #[error("USERNAME is missing, too long or not two ufrags")]
    Username,
    #[error("no MESSAGE-INTEGRITY")]
    NoIntegrity,
}

/// An ICE password, made ready for HMAC-SHA1 once instead of at each request.
#[derive(Clone, Debug)]
pub struct StunKey(hmac::Key);

impl StunKey {
    /// `pwd` as in `a=ice-pwd` of whoever receives the request: the key of a short-term credential (RFC 8489 §9.1.1).
    pub fn new(pwd: &str) -> StunKey {
        StunKey(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, pwd.as_bytes()))
    }
}

/// A Binding request of ICE, borrowed from its datagram. Well-formed, but not authentic before `verify`.
#[derive(Clone, Copy, Debug)]
pub struct StunRequest<'a> {
    /// From the header up to MESSAGE-INTEGRITY: what the HMAC covers.
    signed: &'a [u8],
    integrity: &'a [u8; INTEGRITY_BYTES],
    transaction_id: TransactionId,
    local_ufrag: &'a str,
    remote_ufrag: &'a str,
    priority: Option<u32>,
    use_candidate: bool,
}

impl<'a> StunRequest<'a> {
    /// Reads a Binding request without allocating.
    ///
    /// Of an attribute that comes twice the first one counts (RFC 8489 §14). What follows MESSAGE-INTEGRITY is
    /// ignored, because nobody signed it, except FINGERPRINT (§14.5). Unknown attributes are left to str0m.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong; see [`StunError`]. A request of no use to ICE (without USERNAME or
    /// MESSAGE-INTEGRITY) is wrong too. A missing PRIORITY is not: FFmpeg 8.0 leaves it out.
    pub fn parse(datagram: &'a [u8]) -> Result<StunRequest<'a>, StunError> {
        let message = Message::parse(datagram)?;
        if message.kind != BINDING_REQUEST {
            return Err(StunError::Type);
        }

        let mut username = None;
        let mut priority = None;
        let mut use_candidate = false;
        for attribute in message.attributes() {
            match attribute.kind {
                USERNAME => username = username.or(Some(attribute.value)),
                PRIORITY => {
                    let value = attribute.value.try_into().map_err(|_| StunError::Attribute)?;
                    priority = priority.or(Some(u32::from_be_bytes(value)));
                }
                USE_CANDIDATE => use_candidate = true,
                MESSAGE_INTEGRITY => {
                    let (local_ufrag, remote_ufrag) = split_username(username.ok_or(StunError::Username)?)?;
                    return Ok(StunRequest {
                        signed: &datagram[..attribute.offset],
                        integrity: attribute.value.try_into().map_err(|_| StunError::Attribute)?,
                        transaction_id: message.transaction_id,
                        local_ufrag,
                        remote_ufrag,
                        priority,
                        use_candidate,
                    });
                }
                _ => {}
            }
        }
        Err(StunError::NoIntegrity)
    }

    /// Whether the sender knows `pwd`, the receiver's ICE password. Takes the same time wherever the difference is.
    pub fn verify(&self, pwd: &str) -> bool {
        self.verify_with(&StunKey::new(pwd))
    }

    /// As [`StunRequest::verify`], with a key that was made before.
    pub fn verify_with(&self, key: &StunKey) -> bool {
        let expected = integrity_of(self.signed, key);
        constant_time::verify_slices_are_equal(expected.as_ref(), self.integrity).is_ok()
    }

    /// The ufrag of whoever receives the request: ours, so it names the session.
    pub fn local_ufrag(&self) -> &'a str {
        self.local_ufrag
    }

    /// The ufrag of whoever sent the request.
    pub fn remote_ufrag(&self) -> &'a str {
        self.remote_ufrag
    }

    pub fn transaction_id(&self) -> TransactionId {
        self.transaction_id
    }

    /// The controlling peer nominates this path (RFC 8445 §7.1.1.2).
    pub fn use_candidate(&self) -> bool {
        self.use_candidate
    }

    /// Required by RFC 8445 §7.1.1.1 and by str0m, yet absent from FFmpeg 8.0.
    pub fn priority(&self) -> Option<u32> {
        self.priority
    }
}

/// A request without PRIORITY (FFmpeg 8.0's) as it should have been: the same attributes and PRIORITY, signed anew.
///
/// `request` must have been verified with `key`: this signature is ours, and str0m believes it. `None` for a request
/// longer than any path is known to carry whole.
pub fn with_priority(request: &StunRequest, key: &StunKey) -> Option<Vec<u8>> {
    /// The least MTU of IPv6 (RFC 8489 §6.1).
    const REQUEST_BYTES_MAX: usize = 1280;
    if request.signed.len() > REQUEST_BYTES_MAX {
        return None;
    }
    let mut writer = Writer { bytes: request.signed.to_vec() };
    writer.attribute(PRIORITY, &PEER_REFLEXIVE_PRIORITY.to_be_bytes());
    writer.integrity(key);
    writer.fingerprint();
    Some(writer.bytes)
}

/// An ICE check as a controlling client sends it to us. `username` is `<our ufrag>:<its ufrag>`, `pwd` is ours.
///
/// For tests and the simulator: real checks are str0m's.
pub fn write_binding_request(username: &str, pwd: &str, transaction_id: TransactionId, use_candidate: bool) -> Vec<u8> {
    /// Breaks a tie only between two controlling agents; we are lite, hence never one.
    const TIE_BREAKER: u64 = 1;

    let mut writer = Writer::new(BINDING_REQUEST, transaction_id);
    writer.attribute(USERNAME, username.as_bytes());
    writer.attribute(ICE_CONTROLLING, &TIE_BREAKER.to_be_bytes());
    writer.attribute(PRIORITY, &PEER_REFLEXIVE_PRIORITY.to_be_bytes());
    if use_candidate {
        writer.attribute(USE_CANDIDATE, &[]);
    }
    writer.integrity(&StunKey::new(pwd));
    writer.fingerprint();
    writer.bytes
}

/// An ICE check as FFmpeg 8.0 sends it: always a nomination, without PRIORITY and ICE-CONTROLLING. For tests.
pub fn write_ffmpeg_binding_request(username: &str, pwd: &str, transaction_id: TransactionId) -> Vec<u8> {
    let mut writer = Writer::new(BINDING_REQUEST, transaction_id);
    writer.attribute(USERNAME, username.as_bytes());
    writer.attribute(USE_CANDIDATE, &[]);
    writer.integrity(&StunKey::new(pwd));
    writer.fingerprint();
    writer.bytes
}

/// The bare question "which address do you see?" to a STUN server.
pub fn write_plain_binding_request(transaction_id: TransactionId) -> [u8; HEADER_BYTES] {
    header(BINDING_REQUEST, 0, transaction_id)
}

/// A STUN server's answer, for the responder that tests ask.
pub fn write_binding_success(transaction_id: TransactionId, mapped: SocketAddr) -> Vec<u8> {
    let mut writer = Writer::new(BINDING_SUCCESS, transaction_id);
    let pad = xor_pad(transaction_id);
    let port = xor(mapped.port().to_be_bytes(), &pad);
    let family = if mapped.is_ipv4() { 1 } else { 2 };
    let mut value = vec![0, family, port[0], port[1]];
    match mapped.ip() {
        IpAddr::V4(ip) => value.extend(xor(ip.octets(), &pad)),
        IpAddr::V6(ip) => value.extend(xor(ip.octets(), &pad)),
    }
    writer.attribute(XOR_MAPPED_ADDRESS, &value);
    writer.fingerprint();
    writer.bytes
}

/// The address that a STUN server saw: XOR-MAPPED-ADDRESS, or MAPPED-ADDRESS of a server of RFC 3489's time.
///
/// `None` for anything but a well-formed success response to `transaction_id`.
pub fn parse_mapped_address(response: &[u8], transaction_id: TransactionId) -> Option<SocketAddr> {
    let message = Message::parse(response).ok()?;
    if message.kind != BINDING_SUCCESS || message.transaction_id != transaction_id {
        return None;
    }
    let value_of = |kind| message.attributes().find(|a| a.kind == kind).map(|a| a.value);
    match value_of(XOR_MAPPED_ADDRESS) {
        Some(value) => parse_address(value, &xor_pad(transaction_id)),
        None => parse_address(value_of(MAPPED_ADDRESS)?, &[0; 16]),
    }
}

/// Any STUN message whose header, attribute bounds and FINGERPRINT are in order.
struct Message<'a> {
    bytes: &'a [u8],
    kind: u16,
    transaction_id: TransactionId,
}

impl<'a> Message<'a> {
    /// ```text
    ///  0                   1                   2                   3
    ///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |0 0|     STUN Message Type     |         Message Length        |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |                         Magic Cookie                          |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |                     Transaction ID (96 bits)                  |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ```
    /// RFC 8489 §5. The length leaves out the header and is a multiple of 4.
    fn parse(bytes: &'a [u8]) -> Result<Message<'a>, StunError> {
        let (head, body) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(StunError::Length)?;
        let [k0, k1, l0, l1, c0, c1, c2, c3, transaction_id @ ..] = *head;
        if [c0, c1, c2, c3] != MAGIC_COOKIE {
            return Err(StunError::Cookie);
        }
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        if length != body.len() || !length.is_multiple_of(4) {
            return Err(StunError::Length);
        }
        let message = Message { bytes, kind: u16::from_be_bytes([k0, k1]), transaction_id };
        message.check_attributes()?;
        Ok(message)
    }

    fn check_attributes(&self) -> Result<(), StunError> {
        let mut attributes = self.attributes();
        while let Some(attribute) = attributes.next() {
            if attribute.kind != FINGERPRINT {
                continue;
            }
            // It covers all that precedes it, and must be last (RFC 8489 §14.7).
            let crc = CRC32.checksum(&self.bytes[..attribute.offset]) ^ FINGERPRINT_XOR;
            if attribute.value != crc.to_be_bytes() || attributes.offset != self.bytes.len() {
                return Err(StunError::Fingerprint);
            }
        }
        if attributes.offset != self.bytes.len() {
            return Err(StunError::Attribute);
        }
        Ok(())
    }

    fn attributes(&self) -> Attributes<'a> {
        Attributes { message: self.bytes, offset: HEADER_BYTES }
    }
}

struct Attribute<'a> {
    kind: u16,
    /// Without padding.
    value: &'a [u8],
    /// Of the attribute's header, in bytes from the start of the message.
    offset: usize,
}

/// Walks the attributes; stops where one would overrun the message, short of its end.
struct Attributes<'a> {
    message: &'a [u8],
    offset: usize,
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    /// ```text
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |             Type              |            Length             |
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// |              Value (variable), padded to 4 bytes           ....
    /// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /// ```
    /// RFC 8489 §14. The length leaves out the padding.
    fn next(&mut self) -> Option<Attribute<'a>> {
        let offset = self.offset;
        let (head, rest) = self.message.get(offset..)?.split_first_chunk::<ATTRIBUTE_HEADER_BYTES>()?;
        let [k0, k1, l0, l1] = *head;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let padded = length.next_multiple_of(4);
        let value = rest.get(..padded)?.get(..length)?;
        self.offset = offset + ATTRIBUTE_HEADER_BYTES + padded;
        Some(Attribute { kind: u16::from_be_bytes([k0, k1]), value, offset })
    }
}

/// A message under construction; its length field is right after every call.
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn new(kind: u16, transaction_id: TransactionId) -> Writer {
        Writer { bytes: header(kind, 0, transaction_id).to_vec() }
    }

    /// # Panics
    ///
    /// If the message grows beyond its 16-bit length field: what we write is a few hundred bytes.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len()).expect("an attribute of ours is short");
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let body = u16::try_from(self.bytes.len() - HEADER_BYTES).expect("a message of ours is short");
        self.bytes[2..4].copy_from_slice(&body.to_be_bytes());
    }

    fn integrity(&mut self, key: &StunKey) {
        let tag = integrity_of(&self.bytes, key);
        self.attribute(MESSAGE_INTEGRITY, tag.as_ref());
    }

    fn fingerprint(&mut self) {
        // The CRC covers the length field as it will be: put the attribute there, then fill it in.
        let covered = self.bytes.len();
        self.attribute(FINGERPRINT, &[0; 4]);
        let crc = CRC32.checksum(&self.bytes[..covered]) ^ FINGERPRINT_XOR;
        self.bytes[covered + ATTRIBUTE_HEADER_BYTES..].copy_from_slice(&crc.to_be_bytes());
    }
}

fn header(kind: u16, length: u16, transaction_id: TransactionId) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..2].copy_from_slice(&kind.to_be_bytes());
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes[4..8].copy_from_slice(&MAGIC_COOKIE);
    bytes[8..].copy_from_slice(&transaction_id);
    bytes
}

/// HMAC-SHA1 over `signed`, which ends where MESSAGE-INTEGRITY begins.
///
/// The length field counts as if the message ended with MESSAGE-INTEGRITY, whatever follows it (RFC 8489 §14.5).
fn integrity_of(signed: &[u8], key: &StunKey) -> hmac::Tag {
    let length = signed.len() - HEADER_BYTES + ATTRIBUTE_HEADER_BYTES + INTEGRITY_BYTES;
    // `signed` is part of a message whose own length fits 16 bits.
    let length = (length as u16).to_be_bytes();
    let mut context = hmac::Context::with_key(&key.0);
    context.update(&signed[..2]);
    context.update(&length);
    context.update(&signed[4..]);
    context.sign()
}

/// `<receiver's ufrag>:<sender's ufrag>` (RFC 8445 §7.2.2). The colon is no ice-char, so the first one parts them.
fn split_username(value: &[u8]) -> Result<(&str, &str), StunError> {
    if value.len() > USERNAME_BYTES_MAX {
        return Err(StunError::Username);
    }
    let username = std::str::from_utf8(value).map_err(|_| StunError::Username)?;
    username.split_once(':').filter(|(local, _)| !local.is_empty()).ok_or(StunError::Username)
}

/// ```text
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |0 0 0 0 0 0 0 0|    Family     |         (X-)Port              |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |            (X-)Address (32 bits or 128 bits)               ....
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
/// RFC 8489 §14.1, §14.2. `pad` is zero for MAPPED-ADDRESS.
fn parse_address(value: &[u8], pad: &[u8; 16]) -> Option<SocketAddr> {
    let ([_, family, p0, p1], address) = value.split_first_chunk::<4>()?;
    let ip = match family {
        1 => IpAddr::V4(Ipv4Addr::from(xor(address.try_into().ok()?, pad))),
        2 => IpAddr::V6(Ipv6Addr::from(xor::<16>(address.try_into().ok()?, pad))),
        _ => return None,
    };
    let port = u16::from_be_bytes(xor([*p0, *p1], pad));
    Some(SocketAddr::new(ip, port))
}

/// Port and IPv4 address are XORed with the cookie, an IPv6 address also with the transaction (RFC 8489 §14.2).
fn xor_pad(transaction_id: TransactionId) -> [u8; 16] {
    let mut pad = [0; 16];
    pad[..4].copy_from_slice(&MAGIC_COOKIE);
    pad[4..].copy_from_slice(&transaction_id);
    pad
}

/// `N` is at most the 16 bytes of `pad`: a port or an address.
fn xor<const N: usize>(value: [u8; N], pad: &[u8; 16]) -> [u8; N] {
    std::array::from_fn(|i| value[i] ^ pad[i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use str0m::ice::{StunMessage, TransId};

    const ID: TransactionId = *b"transaction!";
    const PWD: &str = "VOkJxbRl1RmTxUk/WvJxBt";

    /// RFC 5769 §2.1: sample request, short-term credential.
    #[rustfmt::skip]
    const RFC5769_REQUEST: [u8; 108] = [
        0x00, 0x01, 0x00, 0x58, // request type and message length
        0x21, 0x12, 0xa4, 0x42, // magic cookie
        0xb7, 0xe7, 0xa7, 0x01, // transaction ID
        0xbc, 0x34, 0xd6, 0x86,
        0xfa, 0x87, 0xdf, 0xae,
        0x80, 0x22, 0x00, 0x10, // SOFTWARE "STUN test client"
        0x53, 0x54, 0x55, 0x4e,
        0x20, 0x74, 0x65, 0x73,
        0x74, 0x20, 0x63, 0x6c,
        0x69, 0x65, 0x6e, 0x74,
        0x00, 0x24, 0x00, 0x04, // PRIORITY
        0x6e, 0x00, 0x01, 0xff,
        0x80, 0x29, 0x00, 0x08, // ICE-CONTROLLED
        0x93, 0x2f, 0xf9, 0xb1,
        0x51, 0x26, 0x3b, 0x36,
        0x00, 0x06, 0x00, 0x09, // USERNAME "evtj:h6vY", padded with spaces
        0x65, 0x76, 0x74, 0x6a,
        0x3a, 0x68, 0x36, 0x76,
        0x59, 0x20, 0x20, 0x20,
        0x00, 0x08, 0x00, 0x14, // MESSAGE-INTEGRITY
        0x9a, 0xea, 0xa7, 0x0c,
        0xbf, 0xd8, 0xcb, 0x56,
        0x78, 0x1e, 0xf2, 0xb5,
        0xb2, 0xd3, 0xf2, 0x49,
        0xc1, 0xb5, 0x71, 0xa2,
        0x80, 0x28, 0x00, 0x04, // FINGERPRINT
        0xe5, 0x7a, 0x3b, 0xcf,
    ];

    /// RFC 5769 §2.2: sample IPv4 response.
    #[rustfmt::skip]
    const RFC5769_RESPONSE_V4: [u8; 80] = [
        0x01, 0x01, 0x00, 0x3c, // response type and message length
        0x21, 0x12, 0xa4, 0x42, // magic cookie
        0xb7, 0xe7, 0xa7, 0x01, // transaction ID
        0xbc, 0x34, 0xd6, 0x86,
        0xfa, 0x87, 0xdf, 0xae,
        0x80, 0x22, 0x00, 0x0b, // SOFTWARE "test vector"
        0x74, 0x65, 0x73, 0x74,
        0x20, 0x76, 0x65, 0x63,
        0x74, 0x6f, 0x72, 0x20,
        0x00, 0x20, 0x00, 0x08, // XOR-MAPPED-ADDRESS
        0x00, 0x01, 0xa1, 0x47,
        0xe1, 0x12, 0xa6, 0x43,
        0x00, 0x08, 0x00, 0x14, // MESSAGE-INTEGRITY
        0x2b, 0x91, 0xf5, 0x99,
        0xfd, 0x9e, 0x90, 0xc3,
        0x8c, 0x74, 0x89, 0xf9,
        0x2a, 0xf9, 0xba, 0x53,
        0xf0, 0x6b, 0xe7, 0xd7,
        0x80, 0x28, 0x00, 0x04, // FINGERPRINT
        0xc0, 0x7d, 0x4c, 0x96,
    ];

    /// RFC 5769 §2.3: sample IPv6 response.
    #[rustfmt::skip]
    const RFC5769_RESPONSE_V6: [u8; 92] = [
        0x01, 0x01, 0x00, 0x48, // response type and message length
        0x21, 0x12, 0xa4, 0x42, // magic cookie
        0xb7, 0xe7, 0xa7, 0x01, // transaction ID
        0xbc, 0x34, 0xd6, 0x86,
        0xfa, 0x87, 0xdf, 0xae,
        0x80, 0x22, 0x00, 0x0b, // SOFTWARE "test vector"
        0x74, 0x65, 0x73, 0x74,
        0x20, 0x76, 0x65, 0x63,
        0x74, 0x6f, 0x72, 0x20,
        0x00, 0x20, 0x00, 0x14, // XOR-MAPPED-ADDRESS
        0x00, 0x02, 0xa1, 0x47,
        0x01, 0x13, 0xa9, 0xfa,
        0xa5, 0xd3, 0xf1, 0x79,
        0xbc, 0x25, 0xf4, 0xb5,
        0xbe, 0xd2, 0xb9, 0xd9,
        0x00, 0x08, 0x00, 0x14, // MESSAGE-INTEGRITY
        0xa3, 0x82, 0x95, 0x4e,
        0x4b, 0xe6, 0x7b, 0xf1,
        0x17, 0x84, 0xc9, 0x7c,
        0x82, 0x92, 0xc2, 0x75,
        0xbf, 0xe3, 0xed, 0x41,
        0x80, 0x28, 0x00, 0x04, // FINGERPRINT
        0xc8, 0xfb, 0x0b, 0x4c,
    ];

    const RFC5769_ID: TransactionId = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

    fn request() -> Vec<u8> {
        write_binding_request("ours:theirs", PWD, ID, true)
    }

    /// Takes FINGERPRINT off, so that what is tested is not found by the CRC already.
    fn without_fingerprint(mut message: Vec<u8>) -> Vec<u8> {
        message.truncate(message.len() - 8);
        set_length(&mut message);
        message
    }

    fn set_length(message: &mut [u8]) {
        let length = u16::try_from(message.len() - HEADER_BYTES).unwrap();
        message[2..4].copy_from_slice(&length.to_be_bytes());
    }

    fn error(datagram: &[u8]) -> StunError {
        StunRequest::parse(datagram).unwrap_err()
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_rfc_5769_request_is_read_and_verified() {
        let request = StunRequest::parse(&RFC5769_REQUEST).unwrap();
        assert_eq!(request.local_ufrag(), "evtj");
        assert_eq!(request.remote_ufrag(), "h6vY");
        assert_eq!(request.transaction_id(), RFC5769_ID);
        assert_eq!(request.priority(), Some(0x6e00_01ff));
        assert!(!request.use_candidate());
        assert!(request.verify(PWD));
        assert!(request.verify_with(&StunKey::new(PWD)));
        assert!(!request.verify("VOkJxbRl1RmTxUk/WvJxBT"));
        assert!(!request.verify(""));
    }

    #[test]
    fn the_rfc_5769_responses_are_read() {
        let v4 = parse_mapped_address(&RFC5769_RESPONSE_V4, RFC5769_ID);
        assert_eq!(v4, Some(addr("192.0.2.1:32853")));
        let v6 = parse_mapped_address(&RFC5769_RESPONSE_V6, RFC5769_ID);
        assert_eq!(v6, Some(addr("[2001:db8:1234:5678:11:2233:4455:6677]:32853")));
        assert_eq!(parse_mapped_address(&RFC5769_RESPONSE_V4, ID), None, "another transaction");
    }

    #[test]
    fn a_request_of_str0m_is_read_and_verified() {
        let hmac = str0m_aws_lc_rs::default_provider().sha1_hmac_provider;
        let message = StunMessage::binding_request("ours:theirs", TransId::new(), true, 7, 0x1234, true);
        let mut buf = [0; 256];
        let n = message.to_bytes(Some(PWD.as_bytes()), &mut buf, |k, p| hmac.sha1_hmac(k, p)).unwrap();
        let request = StunRequest::parse(&buf[..n]).unwrap();
        assert_eq!((request.local_ufrag(), request.remote_ufrag()), ("ours", "theirs"));
        assert_eq!(request.priority(), Some(0x1234));
        assert!(request.use_candidate());
        assert!(request.verify(PWD));
    }

    #[test]
    fn str0m_reads_and_verifies_a_request_of_ours() {
        let hmac = str0m_aws_lc_rs::default_provider().sha1_hmac_provider;
        let bytes = request();
        let message = StunMessage::parse(&bytes).unwrap();
        assert!(message.is_binding_request());
        assert_eq!(message.username(), Some("ours:theirs"));
        assert!(message.use_candidate());
        assert!(message.verify(PWD.as_bytes(), |k, p| hmac.sha1_hmac(k, p)));
    }

    #[test]
    fn priority_may_be_missing() {
        let mut writer = Writer::new(BINDING_REQUEST, ID);
        writer.attribute(USERNAME, b"ours:theirs");
        writer.integrity(&StunKey::new(PWD));
        let request = StunRequest::parse(&writer.bytes).unwrap();
        assert_eq!(request.priority(), None);
        assert!(request.verify(PWD));
    }

    #[test]
    fn what_ffmpeg_leaves_out_is_put_in_and_signed() {
        let hmac = str0m_aws_lc_rs::default_provider().sha1_hmac_provider;
        let bytes = write_ffmpeg_binding_request("ours:theirs", PWD, ID);
        assert!(StunMessage::parse(&bytes).is_err(), "or there is nothing to repair");
        let request = StunRequest::parse(&bytes).unwrap();
        let repaired = with_priority(&request, &StunKey::new(PWD)).unwrap();

        let message = StunMessage::parse(&repaired).unwrap();
        assert!(message.verify(PWD.as_bytes(), |k, p| hmac.sha1_hmac(k, p)));
        assert_eq!((message.prio(), message.use_candidate()), (Some(0x6eff_ffff), true));
        let again = StunRequest::parse(&repaired).unwrap();
        assert_eq!((again.local_ufrag(), again.remote_ufrag()), ("ours", "theirs"));
        assert_eq!((again.transaction_id(), again.priority()), (ID, Some(0x6eff_ffff)));
    }

    /// The lengths of what is written anew must fit their fields.
    #[test]
    fn a_request_of_any_length_is_repaired_or_left_alone() {
        for filler in [0, 1000, 1200, 1300, 60_000] {
            let mut writer = Writer::new(BINDING_REQUEST, ID);
            writer.attribute(USERNAME, b"ours:theirs");
            writer.attribute(0x8022, &vec![b'x'; filler]);
            writer.integrity(&StunKey::new(PWD));
            let request = StunRequest::parse(&writer.bytes).unwrap();
            assert_eq!(with_priority(&request, &StunKey::new(PWD)).is_some(), filler <= 1200, "{filler}");
        }
    }

    #[test]
    fn fingerprint_may_be_missing() {
        let bytes = without_fingerprint(request());
        assert!(StunRequest::parse(&bytes).unwrap().verify(PWD));
    }

    #[test]
    fn what_nobody_signed_is_ignored() {
        let mut writer = Writer::new(BINDING_REQUEST, ID);
        writer.attribute(USERNAME, b"ours:theirs");
        writer.integrity(&StunKey::new(PWD));
        writer.attribute(USE_CANDIDATE, &[]);
        writer.attribute(USERNAME, b"other:theirs");
        writer.fingerprint();
        let request = StunRequest::parse(&writer.bytes).unwrap();
        assert!(request.verify(PWD));
        assert!(!request.use_candidate());
        assert_eq!(request.local_ufrag(), "ours");
    }

    #[test]
    fn the_first_of_two_usernames_counts() {
        let mut writer = Writer::new(BINDING_REQUEST, ID);
        writer.attribute(USERNAME, b"first:x");
        writer.attribute(USERNAME, b"second:x");
        writer.integrity(&StunKey::new(PWD));
        assert_eq!(StunRequest::parse(&writer.bytes).unwrap().local_ufrag(), "first");
    }

    #[test]
    fn a_username_is_two_ufrags() {
        let too_long = format!("ours:{}", "x".repeat(USERNAME_BYTES_MAX - 4));
        for username in ["", ":", ":theirs", "no-colon", &too_long] {
            let bytes = write_binding_request(username, PWD, ID, false);
            assert_eq!(error(&bytes), StunError::Username, "{username:?}");
        }
        let longest = &too_long[..USERNAME_BYTES_MAX];
        assert!(StunRequest::parse(&write_binding_request(longest, PWD, ID, false)).is_ok());

        let mut writer = Writer::new(BINDING_REQUEST, ID);
        writer.attribute(USERNAME, b"ours:\xff\xfe");
        writer.integrity(&StunKey::new(PWD));
        assert_eq!(error(&writer.bytes), StunError::Username, "not UTF-8");
    }

    #[test]
    fn a_request_without_credentials_is_refused() {
        assert_eq!(error(&write_plain_binding_request(ID)), StunError::NoIntegrity);

        let mut writer = Writer::new(BINDING_REQUEST, ID);
        writer.attribute(USERNAME, b"ours:theirs");
        writer.fingerprint();
        assert_eq!(error(&writer.bytes), StunError::NoIntegrity);

        let mut writer = Writer::new(BINDING_REQUEST, ID);
        writer.integrity(&StunKey::new(PWD));
        assert_eq!(error(&writer.bytes), StunError::Username);
    }

    #[test]
    fn another_cookie_is_refused() {
        let mut bytes = request();
        bytes[4] ^= 1;
        assert_eq!(error(&bytes), StunError::Cookie);
    }

    #[test]
    fn a_response_is_not_a_request_and_a_request_not_a_response() {
        assert_eq!(error(&RFC5769_RESPONSE_V4), StunError::Type);
        assert_eq!(parse_mapped_address(&RFC5769_REQUEST, RFC5769_ID), None);
    }

    #[test]
    fn an_attribute_that_overruns_is_refused() {
        let mut bytes = without_fingerprint(request());
        // USERNAME comes first; its length now reaches beyond the message.
        bytes[HEADER_BYTES + 2..HEADER_BYTES + 4].copy_from_slice(&0xfffd_u16.to_be_bytes());
        assert_eq!(error(&bytes), StunError::Attribute);
    }

    #[test]
    fn an_attribute_of_the_wrong_size_is_refused() {
        let mut short_tag = Writer::new(BINDING_REQUEST, ID);
        short_tag.attribute(USERNAME, b"ours:theirs");
        short_tag.attribute(MESSAGE_INTEGRITY, &[0; 16]);
        assert_eq!(error(&short_tag.bytes), StunError::Attribute);

        let mut long_priority = Writer::new(BINDING_REQUEST, ID);
        long_priority.attribute(PRIORITY, &[0; 8]);
        assert_eq!(error(&long_priority.bytes), StunError::Attribute);
    }

    #[test]
    fn a_fingerprint_must_be_right_and_last() {
        let mut wrong = request();
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(error(&wrong), StunError::Fingerprint);

        let mut early = Writer::new(BINDING_REQUEST, ID);
        early.attribute(USERNAME, b"ours:theirs");
        early.fingerprint();
        early.integrity(&StunKey::new(PWD));
        assert_eq!(error(&early.bytes), StunError::Fingerprint);
    }

    #[test]
    fn a_datagram_longer_or_shorter_than_its_length_field_is_refused() {
        let mut longer = request();
        longer.extend([0; 4]);
        assert_eq!(error(&longer), StunError::Length);
        for n in 0..request().len() {
            assert_eq!(error(&request()[..n]), StunError::Length, "cut to {n}");
        }
    }

    #[test]
    fn a_mapped_address_makes_the_round_trip() {
        for mapped in ["203.0.113.9:1", "0.0.0.0:0", "[2001:db8::1]:65535", "255.255.255.255:8554"] {
            let response = write_binding_success(ID, addr(mapped));
            assert_eq!(parse_mapped_address(&response, ID), Some(addr(mapped)));
        }
    }

    #[test]
    fn an_old_server_answers_with_mapped_address() {
        let mut writer = Writer::new(BINDING_SUCCESS, ID);
        writer.attribute(MAPPED_ADDRESS, &[0, 1, 0x1f, 0x90, 192, 0, 2, 7]);
        assert_eq!(parse_mapped_address(&writer.bytes, ID), Some(addr("192.0.2.7:8080")));
    }

    #[test]
    fn an_address_of_the_wrong_size_is_none() {
        for value in
            [&[][..], &[0, 1, 0, 0], &[0, 1, 0, 0, 1, 2, 3], &[0, 2, 0, 0, 1, 2, 3, 4], &[0, 3, 0, 0, 1, 2, 3, 4]]
        {
            let mut writer = Writer::new(BINDING_SUCCESS, ID);
            writer.attribute(XOR_MAPPED_ADDRESS, value);
            assert_eq!(parse_mapped_address(&writer.bytes, ID), None, "{value:?}");
        }
    }

    /// Binding requests of the clients that the names say, as they came.
    const RECORDED: &str = include_str!("../../tests/data/stun-requests.hex");

    fn recorded() -> Vec<(&'static str, Vec<u8>)> {
        let bytes =
            |hex: &str| (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        RECORDED.lines().filter_map(|l| l.split_once(' ')).map(|(name, hex)| (name, bytes(hex))).collect()
    }

    #[test]
    fn the_requests_of_real_clients_are_read() {
        assert_eq!(recorded().len(), 9);
        for (name, bytes) in recorded() {
            let request = StunRequest::parse(&bytes).unwrap();
            assert_eq!(request.local_ufrag().len(), 16, "{name}: ours");
            assert!(request.remote_ufrag().len() >= 4 && request.priority().is_some(), "{name}");
            assert_eq!(request.use_candidate(), name.ends_with("-nominates"), "{name}");
            assert!(!request.verify(PWD), "{name}: its password was another");
        }
    }

    proptest! {
        #[test]
        fn harmed_requests_of_real_clients_are_read_without_panic(
            of in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte: u8, cut in 0usize..8,
        ) {
            let mut all = recorded();
            let (_, bytes) = &mut all[of.index(9)];
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(bytes.len() - cut);
            let _ = StunRequest::parse(bytes).map(|r| (r.verify(PWD), with_priority(&r, &StunKey::new(PWD))));
            let _ = parse_mapped_address(bytes, ID);
        }

        /// What a real client says, without its priority and under our password, is what str0m takes once it is repaired.
        #[test]
        fn requests_of_real_clients_are_repaired(of in any::<prop::sample::Index>(), leave_out in 0usize..8) {
            let hmac = str0m_aws_lc_rs::default_provider().sha1_hmac_provider;
            let (_, bytes) = &recorded()[of.index(9)];
            let signed = [PRIORITY, MESSAGE_INTEGRITY, FINGERPRINT];
            let mut writer = Writer::new(BINDING_REQUEST, ID);
            for (i, attribute) in Message::parse(bytes).unwrap().attributes().enumerate() {
                let Attribute { kind, value, .. } = attribute;
                if !signed.contains(&kind) && (i != leave_out || kind == USERNAME) {
                    writer.attribute(kind, value);
                }
            }
            writer.integrity(&StunKey::new(PWD));
            let repaired = with_priority(&StunRequest::parse(&writer.bytes).unwrap(), &StunKey::new(PWD)).unwrap();
            let message = StunMessage::parse(&repaired).unwrap();
            prop_assert!(message.verify(PWD.as_bytes(), |k, p| hmac.sha1_hmac(k, p)));
            prop_assert_eq!(message.prio(), Some(PEER_REFLEXIVE_PRIORITY));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = StunRequest::parse(&bytes).map(|r| r.verify(PWD));
            let _ = parse_mapped_address(&bytes, ID);
        }

        /// Attributes of any kind and length that are signed, as only whoever knows our password could send them.
        #[test]
        fn a_repaired_request_is_verified_and_has_a_priority(
            attributes in prop::collection::vec((0x8000_u16.., prop::collection::vec(any::<u8>(), 0..40)), 0..8),
        ) {
            let mut writer = Writer::new(BINDING_REQUEST, ID);
            writer.attribute(USERNAME, b"ours:theirs");
            for (kind, value) in attributes.iter().filter(|(kind, _)| *kind != FINGERPRINT) {
                writer.attribute(*kind, value);
            }
            writer.integrity(&StunKey::new(PWD));
            let request = StunRequest::parse(&writer.bytes).unwrap();
            let repaired = with_priority(&request, &StunKey::new(PWD)).unwrap();
            let request = StunRequest::parse(&repaired).unwrap();
            prop_assert!(request.verify(PWD));
            prop_assert_eq!(request.priority(), Some(PEER_REFLEXIVE_PRIORITY));
        }

        /// Random attributes behind a header that is in order, so that the walk is reached.
        #[test]
        fn any_attributes_are_read_without_panic(kind in 0u16..=0x0101, body: Vec<u8>) {
            let mut bytes = header(kind, 0, ID).to_vec();
            bytes.extend(&body[..body.len() / 4 * 4]);
            set_length(&mut bytes);
            let _ = StunRequest::parse(&bytes).map(|r| r.verify(PWD));
            let _ = parse_mapped_address(&bytes, ID);
        }

        /// Without FINGERPRINT, so that it is the HMAC which must notice.
        #[test]
        fn one_flipped_bit_is_noticed(bit in 0..(20 + 16 + 12 + 8 + 4 + 24) * 8_usize) {
            let mut bytes = without_fingerprint(request());
            prop_assert_eq!(bytes.len() * 8, (20 + 16 + 12 + 8 + 4 + 24) * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!StunRequest::parse(&bytes).is_ok_and(|r| r.verify(PWD)));
        }
    }
}
