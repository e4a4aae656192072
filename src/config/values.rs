//! What the values of settings look like.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::PORT_DEFAULT;
use crate::limits;

/// A bearer token. Shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl FromStr for Secret {
    type Err = String;
    /// What fits into an `Authorization` header (RFC 6750 §2.1), up to 1024 characters.
    fn from_str(s: &str) -> Result<Secret, String> {
        let fits = !s.is_empty() && s.len() <= 1024 && s.bytes().all(|b| b.is_ascii_graphic());
        if fits { Ok(Secret(s.to_owned())) } else { Err("a token has 1 to 1024 visible ASCII characters".to_owned()) }
    }
}

/// `public` or `public=local`: with a local address, the public one stands in for that one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicIp {
    pub public: IpAddr,
    pub local: Option<IpAddr>,
}

impl FromStr for PublicIp {
    type Err = String;
    fn from_str(s: &str) -> Result<PublicIp, String> {
        let ip = |s: &str| s.trim().parse::<IpAddr>().map_err(|_| format!("{s:?} is not an IP address"));
        let (public, local) = match s.split_once('=') {
            Some((public, local)) => (ip(public)?, Some(ip(local)?)),
            None => (ip(s)?, None),
        };
        if local.is_some_and(|l| l.is_ipv4() != public.is_ipv4()) {
            return Err(format!("{s:?}: both addresses must be of the same family"));
        }
        Ok(PublicIp { public, local })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardCount {
    /// One per CPU that this process may use.
    Auto,
    Exactly(usize),
}

impl FromStr for ShardCount {
    type Err = String;
    fn from_str(s: &str) -> Result<ShardCount, String> {
        match (s, s.parse::<usize>()) {
            ("auto", _) => Ok(ShardCount::Auto),
            (_, Ok(n)) if (1..=limits::SHARDS_MAX).contains(&n) => Ok(ShardCount::Exactly(n)),
            _ => Err(format!("{s:?} is neither auto nor a number from 1 to at most {}", limits::SHARDS_MAX)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoBackend {
    /// The ring where it works, else `mmsg`.
    Auto,
    Uring,
    Mmsg,
}

impl FromStr for IoBackend {
    type Err = String;
    fn from_str(s: &str) -> Result<IoBackend, String> {
        match s {
            "auto" => Ok(IoBackend::Auto),
            "uring" => Ok(IoBackend::Uring),
            "mmsg" => Ok(IoBackend::Mmsg),
            _ => Err(format!("{s:?} is none of auto, uring, mmsg")),
        }
    }
}

/// The pages that browsers let read our answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOrigins {
    Any,
    /// Each as browsers write it: `https://example.net`.
    These(Vec<String>),
}

/// An address prefix: `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same_prefix(a.to_bits().into(), b.to_bits().into(), 32, self.bits),
            (IpAddr::V6(a), IpAddr::V6(b)) => same_prefix(a.to_bits(), b.to_bits(), 128, self.bits),
            _ => false,
        }
    }
}

fn same_prefix(a: u128, b: u128, width: u8, bits: u8) -> bool {
    // Shifting by the whole width would overflow: a prefix of 0 bits holds everything.
    (a ^ b).checked_shr(u32::from(width - bits)).unwrap_or(0) == 0
}

impl FromStr for Network {
    type Err = String;
    fn from_str(s: &str) -> Result<Network, String> {
        let wrong = || format!("{s:?} is not an address or a prefix like 10.0.0.0/8");
        let (address, bits) = match s.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (s, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|b| *b <= width).ok_or_else(wrong)?,
            None => width,
        };
        Ok(Network { address, bits })
    }
}

/// `IP:port`, `IP`, or `port`.
pub(super) fn http(value: &str) -> Result<SocketAddr, String> {
    let port = value.parse().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let ip = value.parse().map(|ip: IpAddr| SocketAddr::new(ip, PORT_DEFAULT));
    let socket = value.parse::<SocketAddr>();
    socket.or(ip).or(port).map_err(|_| format!("{value:?} is not an address like 127.0.0.1:8080 or [::1]:8080"))
}

/// `IP:port`, `IP`, or `port` for every interface of both families.
pub(super) fn udp(value: &str) -> Result<Vec<SocketAddr>, String> {
    if let Ok(port) = value.parse::<u16>() {
        let everywhere = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        return Ok(everywhere.map(|ip: IpAddr| SocketAddr::new(ip, port)).to_vec());
    }
    http(value).map(|address| vec![address])
}

/// `scheme://host[:port]`, as browsers write an origin. A slash at the end is taken off.
pub(super) fn origin(value: &str) -> Result<String, String> {
    let trimmed = value.strip_suffix('/').unwrap_or(value);
    let host = trimmed.strip_prefix("https://").or_else(|| trimmed.strip_prefix("http://"));
    let is_host = |host: &str| {
        !host.is_empty()
            && host.len() <= 255
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
    };
    match host.filter(|h| is_host(h)) {
        Some(_) => Ok(trimmed.to_ascii_lowercase()),
        None => Err(format!("{value:?} is not an origin like https://sfu.example.net (scheme and host, no path)")),
    }
}

pub(super) fn cors_origins(values: &[String]) -> Result<CorsOrigins, String> {
    if values.is_empty() || values.iter().any(|v| v == "*") {
        return Ok(CorsOrigins::Any);
    }
    values.iter().map(|v| origin(v)).collect::<Result<_, _>>().map(CorsOrigins::These)
}

pub(super) fn host_port(value: &str) -> Result<String, String> {
    let parts = value.rsplit_once(':').filter(|(host, port)| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic()) && port.parse::<u16>().is_ok_and(|p| p != 0)
    });
    parts.map(|_| value.to_owned()).ok_or_else(|| format!("{value:?} is not of the form host:port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_what_shares_its_prefix() {
        let check = |network: &str, ip: &str, expected| {
            let network: Network = network.parse().expect(network);
            assert_eq!(network.contains(ip.parse().expect(ip)), expected, "{network:?} {ip}");
        };
        check("10.0.0.0/8", "10.255.0.1", true);
        check("10.0.0.0/8", "11.0.0.1", false);
        check("10.0.0.0/8", "::ffff:10.0.0.1", true);
        check("127.0.0.1", "127.0.0.1", true);
        check("127.0.0.1", "127.0.0.2", false);
        check("0.0.0.0/0", "203.0.113.7", true);
        check("0.0.0.0/0", "2001:db8::1", false);
        check("2001:db8::/32", "2001:db8:1::1", true);
        check("::/0", "2001:db8::1", true);
    }

    #[test]
    fn addresses_may_be_short() {
        assert_eq!(http("9000").expect("port").to_string(), "127.0.0.1:9000");
        assert_eq!(http("0.0.0.0").expect("ip").to_string(), "0.0.0.0:8080");
        assert_eq!(http("[::1]:80").expect("both").to_string(), "[::1]:80");
        assert_eq!(udp("::1").expect("ip"), ["[::1]:8080".parse().expect("address")]);
        assert!(origin("ftp://example.net").is_err());
        assert_eq!(origin("https://Example.net:8443/"), Ok("https://example.net:8443".to_owned()));
    }
}
