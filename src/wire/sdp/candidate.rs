//! A client's ICE candidates: which of them are kept, and in which spelling.

use std::net::IpAddr;

/// More than this is no multi-homed host. An ICE-lite agent sends no checks to them anyway; they only tell str0m what
/// it would learn from the client's own checks.
pub(super) const CANDIDATES_MAX: usize = 32;

const FOUNDATION_CHARS_MAX: usize = 32;

/// A candidate that str0m can use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// `candidate:…`, in str0m's spelling, without extension attributes.
    pub text: String,
    /// The ICE generation that it belongs to, where it is said.
    pub ufrag: Option<String>,
}

/// Reads the value of `a=candidate:`.
///
/// `None` for what we have no use for: TCP, RTCP's own component, host names (`.local`, RFC 8840 §4.1 has us ignore what we
/// do not resolve), addresses that nobody can be reached at. GStreamer writes `UDP` in capitals: that is repaired.
pub(super) fn parse(value: &str) -> Option<Candidate> {
    let mut words = value.split_ascii_whitespace();
    let foundation = words.next()?;
    let component = words.next()?;
    let transport = words.next()?;
    let priority: u32 = words.next()?.parse().ok()?;
    let address: IpAddr = words.next()?.parse().ok()?;
    let port: u16 = words.next()?.parse().ok()?;
    let typ = (words.next()? == "typ").then(|| words.next())??;

    let known = matches!(typ, "host" | "srflx" | "prflx" | "relay");
    let named = foundation.len() <= FOUNDATION_CHARS_MAX && foundation.bytes().all(is_ice_char);
    let reachable = !address.is_unspecified() && !address.is_multicast() && port != 0;
    if !known || !named || !reachable || component != "1" || !transport.eq_ignore_ascii_case("udp") {
        return None;
    }

    let (mut raddr, mut rport, mut ufrag) = (None, None, None);
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        match name {
            "raddr" => raddr = value.parse::<IpAddr>().ok(),
            "rport" => rport = value.parse::<u16>().ok(),
            "ufrag" => ufrag = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut text = format!("candidate:{foundation} 1 udp {priority} {address} {port} typ {typ}");
    if let (Some(raddr), Some(rport)) = (raddr, rport) {
        text.push_str(&format!(" raddr {raddr} rport {rport}"));
    }
    Some(Candidate { text, ufrag })
}

/// RFC 8839 §5.1 `ice-char`.
pub(super) fn is_ice_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/'
}

/// RFC 8839 §5.4: a ufrag has 4 to 256 characters, a password 22 to 256.
pub(super) fn are_credentials(ufrag: &str, pwd: &str) -> bool {
    (4..=256).contains(&ufrag.len())
        && (22..=256).contains(&pwd.len())
        && ufrag.bytes().chain(pwd.bytes()).all(is_ice_char)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reachable_udp_candidates_are_kept() {
        let check = |value, expected: Option<&str>| {
            assert_eq!(parse(value).map(|c| c.text).as_deref(), expected, "{value}");
        };
        check(
            "1 1 UDP 2015363327 127.0.0.1 46175 typ host",
            Some("candidate:1 1 udp 2015363327 127.0.0.1 46175 typ host"),
        );
        check(
            "2 1 udp 7 203.0.113.7 5 typ srflx raddr 10.0.0.1 rport 9 generation 0 ufrag abcd network-cost 50",
            Some("candidate:2 1 udp 7 203.0.113.7 5 typ srflx raddr 10.0.0.1 rport 9"),
        );
        check("1 1 udp 1 ::1 9 typ host", Some("candidate:1 1 udp 1 ::1 9 typ host"));
        check("1 1 tcp 1518280447 127.0.0.1 9 typ host tcptype active", None);
        check("1 2 udp 1 127.0.0.1 9 typ host", None);
        check("1 1 udp 1 0f3c.local 9 typ host", None);
        check("1 1 udp 1 0.0.0.0 9 typ host", None);
        check("1 1 udp 1 224.0.0.1 9 typ host", None);
        check("1 1 udp 1 127.0.0.1 0 typ host", None);
        check("1 1 udp 1 127.0.0.1 9 type host", None);
        check("1 1 udp", None);
        check("", None);
    }
}
