//! What a datagram on the shared port is, told from its first bytes (RFC 7983 §7, RFC 5761 §4).

/// The protocols that share one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Stun,
    Dtls,
    /// RTP or SRTP.
    Rtp,
    /// RTCP or SRTCP.
    Rtcp,
}

/// The header of every STUN message (RFC 8489 §5).
const STUN_BYTES_MIN: usize = 20;

/// A DTLS 1.2 record header (RFC 6347 §4.1). A DTLS 1.3 ciphertext has a shorter header, but never fewer bytes in all:
/// 2 of header, at least 1 of content type and 16 of tag (RFC 9147 §4).
const DTLS_BYTES_MIN: usize = 13;

/// The fixed RTP header (RFC 3550 §5.1).
const RTP_BYTES_MIN: usize = 12;

/// An RTCP header and the sender's SSRC (RFC 3550 §6.4); SRTCP only adds to it.
const RTCP_BYTES_MIN: usize = 8;

/// Tells the protocol of a datagram, or `None` when it is none of ours or too short to be what it claims.
///
/// ```text
///               +----------------+
///               |        [0..3] -+--> STUN
///               |      [16..19] -+--> ZRTP             None
///   datagram -->|      [20..63] -+--> DTLS
///               |      [64..79] -+--> TURN channel     None
///               |    [128..191] -+--> RTP or RTCP, by the second byte
///               +----------------+        (RFC 7983 §7)
/// ```
///
/// RTP's second byte is marker and payload type, RTCP's is the packet type 192..=223. Payload types 64..=95 are
/// never negotiated on a multiplexed port, so the byte alone decides (RFC 5761 §4).
pub fn classify(datagram: &[u8]) -> Option<Kind> {
    let (kind, bytes_min) = match *datagram {
        [0..=3, ..] => (Kind::Stun, STUN_BYTES_MIN),
        [20..=63, ..] => (Kind::Dtls, DTLS_BYTES_MIN),
        [128..=191, 192..=223, ..] => (Kind::Rtcp, RTCP_BYTES_MIN),
        [128..=191, ..] => (Kind::Rtp, RTP_BYTES_MIN),
        _ => return None,
    };
    (datagram.len() >= bytes_min).then_some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(first: u8, second: u8, bytes: usize, expected: Option<Kind>) {
        let mut datagram = vec![0; bytes];
        for (byte, value) in datagram.iter_mut().zip([first, second]) {
            *byte = value;
        }
        assert_eq!(classify(&datagram), expected, "first {first}, second {second}, {bytes} bytes");
    }

    #[test]
    fn the_first_byte_tells_the_protocol() {
        for first in 0..=255 {
            let expected = match first {
                0..=3 => Some(Kind::Stun),
                20..=63 => Some(Kind::Dtls),
                128..=191 => Some(Kind::Rtp),
                _ => None,
            };
            check(first, 96, 100, expected);
        }
    }

    #[test]
    fn the_second_byte_parts_rtcp_from_rtp() {
        for second in 0..=255 {
            let expected = if (192..=223).contains(&second) { Kind::Rtcp } else { Kind::Rtp };
            check(0x80, second, 100, Some(expected));
        }
    }

    #[test]
    fn a_datagram_shorter_than_its_header_is_nothing() {
        check(0, 1, 20, Some(Kind::Stun));
        check(0, 1, 19, None);
        check(22, 254, 13, Some(Kind::Dtls));
        check(22, 254, 12, None);
        check(0x80, 111, 12, Some(Kind::Rtp));
        check(0x80, 111, 11, None);
        check(0x80, 200, 8, Some(Kind::Rtcp));
        check(0x80, 200, 7, None);
        check(0x80, 0, 1, None);
        check(0, 0, 0, None);
    }
}
