//! Where to open sockets, and which candidates to offer for them.

use std::net::{IpAddr, SocketAddr};

use crate::config::PublicIp;

/// One UDP socket per shard here, or one TCP listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub bind: SocketAddr,
    /// The address that clients are told; differs from `bind` behind a 1:1 NAT. Its port is `bind`'s.
    pub candidate: IpAddr,
}

/// What decides about addresses.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// `--udp` or `--ice-tcp`; unspecified addresses stand for all interfaces of their family.
    pub binds: &'a [SocketAddr],
    /// `--public-ip`, and what STUN has found.
    pub public: &'a [PublicIp],
    /// Whether HTTP listens on loopback: then this machine's own browser is who comes.
    pub http_on_loopback: bool,
}

/// Sockets in the order of the candidates: IPv4 first, since FFmpeg takes the first; loopback before the rest when
/// HTTP is there.
pub fn plan(wanted: Wanted, interfaces: &[IpAddr]) -> Vec<Address> {
    let mut addresses: Vec<Address> = Vec::new();
    let add = |addresses: &mut Vec<Address>, bind: SocketAddr, candidate: IpAddr| {
        if !addresses.iter().any(|a| a.bind == bind) {
            addresses.push(Address { bind, candidate });
        }
    };
    for bind in wanted.binds {
        if !bind.ip().is_unspecified() {
            add(&mut addresses, *bind, public_of(bind.ip(), true, wanted.public).unwrap_or(bind.ip()));
            continue;
        }
        let mut first = true;
        for ip in interfaces.iter().filter(|ip| ip.is_ipv4() == bind.is_ipv4() && is_routable(ip)) {
            let public = public_of(*ip, first, wanted.public);
            first = false;
            // With a public address set, private ones are not told: clients outside could only waste checks on them.
            let mapped = wanted.public.iter().any(|p| p.public.is_ipv4() == ip.is_ipv4());
            if public.is_some() || !mapped {
                add(&mut addresses, SocketAddr::new(*ip, bind.port()), public.unwrap_or(*ip));
            }
        }
    }
    let nothing_else = addresses.is_empty();
    if wanted.http_on_loopback || nothing_else {
        for bind in wanted.binds.iter().filter(|b| b.ip().is_unspecified()) {
            for ip in interfaces.iter().filter(|ip| ip.is_ipv4() == bind.is_ipv4() && ip.is_loopback()) {
                add(&mut addresses, SocketAddr::new(*ip, bind.port()), *ip);
            }
        }
    }
    addresses.sort_by_key(|a| (a.bind.is_ipv6(), a.bind.ip().is_loopback() != wanted.http_on_loopback));
    addresses
}

/// The public address of a local one. One that names no local address is for the first of its family.
fn public_of(local: IpAddr, first: bool, public: &[PublicIp]) -> Option<IpAddr> {
    let named = public.iter().find(|p| p.local == Some(local));
    let unnamed = || public.iter().find(|p| first && p.local.is_none() && p.public.is_ipv4() == local.is_ipv4());
    named.or_else(unnamed).map(|p| p.public)
}

/// Link-local addresses need a scope that candidates cannot carry.
fn is_routable(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERFACES: [&str; 6] = ["::1", "127.0.0.1", "10.0.0.5", "fe80::1", "2001:db8::5", "192.168.1.2"];

    fn check(udp: &[&str], public: &[(&str, Option<&str>)], http_on_loopback: bool, expected: &[(&str, &str)]) {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        let udp: Vec<SocketAddr> = udp.iter().map(|s| s.parse().unwrap()).collect();
        let public: Vec<PublicIp> = public.iter().map(|(p, l)| PublicIp { public: ip(p), local: l.map(ip) }).collect();
        let interfaces: Vec<IpAddr> = INTERFACES.iter().map(|s| ip(s)).collect();
        let wanted = Wanted { binds: &udp, public: &public, http_on_loopback };
        let got: Vec<(String, String)> =
            plan(wanted, &interfaces).iter().map(|a| (a.bind.to_string(), a.candidate.to_string())).collect();
        let expected: Vec<(String, String)> = expected.iter().map(|(b, c)| (b.to_string(), c.to_string())).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn by_default_every_interface_is_offered_and_loopback_where_http_is() {
        let all = ["0.0.0.0:8080", "[::]:8080"];
        let outside =
            [("10.0.0.5:8080", "10.0.0.5"), ("192.168.1.2:8080", "192.168.1.2"), ("[2001:db8::5]:8080", "2001:db8::5")];
        check(&all, &[], false, &outside);
        check(
            &all,
            &[],
            true,
            &[
                ("127.0.0.1:8080", "127.0.0.1"),
                ("10.0.0.5:8080", "10.0.0.5"),
                ("192.168.1.2:8080", "192.168.1.2"),
                ("[::1]:8080", "::1"),
                ("[2001:db8::5]:8080", "2001:db8::5"),
            ],
        );
    }

    #[test]
    fn a_public_address_takes_the_place_of_private_ones_of_its_family() {
        let all = ["0.0.0.0:1", "[::]:1"];
        let v6 = ("[2001:db8::5]:1", "2001:db8::5");
        check(&all, &[("203.0.113.1", None)], false, &[("10.0.0.5:1", "203.0.113.1"), v6]);
        check(&all, &[("203.0.113.1", Some("192.168.1.2"))], false, &[("192.168.1.2:1", "203.0.113.1"), v6]);
    }

    #[test]
    fn an_address_that_is_named_is_taken_as_it_is() {
        check(&["127.0.0.1:9"], &[], false, &[("127.0.0.1:9", "127.0.0.1")]);
        check(&["10.0.0.5:9"], &[("203.0.113.1", None)], true, &[("10.0.0.5:9", "203.0.113.1")]);
    }

    #[test]
    fn loopback_is_offered_when_there_is_nothing_else() {
        let wanted = Wanted { binds: &["0.0.0.0:1".parse().unwrap()], public: &[], http_on_loopback: false };
        let got = plan(wanted, &["127.0.0.1".parse().unwrap()]);
        assert_eq!(got.len(), 1);
    }
}
