//! Who the client is and what it calls us, with or without a proxy between.

use std::net::IpAddr;

use hyper::header::{FORWARDED, HOST, HeaderMap, HeaderName, ORIGIN};

use super::exchange::Request;
use crate::config::Network;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The client's address: the nearest one in the chain that is no proxy of ours. Only such proxies are believed.
pub(super) fn client_ip(request: &Request, proxies: &[Network]) -> IpAddr {
    let trusted = |ip: IpAddr| proxies.iter().any(|n| n.contains(ip));
    let mut client = request.peer.to_canonical();
    if !trusted(client) {
        return client;
    }
    for hop in forwarded_for(&request.headers).into_iter().rev() {
        // An unreadable hop ("unknown", an obfuscated name) hides whatever is behind it.
        let Some(ip) = hop else { break };
        client = ip.to_canonical();
        if !trusted(client) {
            break;
        }
    }
    client
}

/// Whether the request comes from this machine's user: not through a proxy, and not from a page of another origin or
/// under a foreign host name (DNS rebinding), which a browser on this machine would carry just as well.
pub(super) fn is_local(request: &Request, client: IpAddr) -> bool {
    let proxied = [FORWARDED, X_FORWARDED_FOR].iter().any(|name| request.headers.contains_key(name));
    let host = request.header(HOST).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
    let host_is_loopback = name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|ip| ip.is_loopback());
    let foreign = request.headers.get(ORIGIN).is_some_and(|o| o.as_bytes() != format!("http://{host}").as_bytes());
    client.is_loopback() && request.peer.to_canonical().is_loopback() && !proxied && host_is_loopback && !foreign
}

/// `scheme://host[:port]` for absolute URLs, from what the request was sent to.
pub(super) fn public_origin(request: &Request, configured: Option<&str>, proxies: &[Network]) -> String {
    if let Some(origin) = configured {
        return origin.to_owned();
    }
    let peer = request.peer.to_canonical();
    let proxied = proxies.iter().any(|n| n.contains(peer));
    let forwarded = |parameter: &str, header: HeaderName| {
        let value = forwarded_parameter(&request.headers, parameter).or_else(|| first(request.header(header)?));
        value.filter(|_| proxied)
    };
    let scheme = forwarded("proto", X_FORWARDED_PROTO).filter(|s| s == "https").map_or("http", |_| "https");
    let host = forwarded("host", X_FORWARDED_HOST).or_else(|| request.header(HOST).map(str::to_owned));
    match host.filter(|h| is_host(h)) {
        Some(host) => format!("{scheme}://{host}"),
        None => format!("{scheme}://{}", request.local),
    }
}

/// Letters that a host and port are made of: the text goes into a header.
fn is_host(host: &str) -> bool {
    (1..=255).contains(&host.len())
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']'))
}

/// The chain of clients and proxies, the nearest last; `None` for what is no address.
fn forwarded_for(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let all = |name: HeaderName| headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    let standard: Vec<Option<IpAddr>> = all(FORWARDED)
        .flat_map(|v| v.split(','))
        .map(|element| parameter(element, "for").as_deref().and_then(address))
        .collect();
    if !standard.is_empty() {
        return standard;
    }
    all(X_FORWARDED_FOR).flat_map(|v| v.split(',')).map(address).collect()
}

/// An address with or without port and brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|t| t.split(']').next()).unwrap_or(text);
    bare.parse().ok().or_else(|| bare.rsplit_once(':')?.0.parse().ok())
}

/// `for`, `proto` or `host` of the first `Forwarded` element (RFC 7239): what the client itself connected to.
fn forwarded_parameter(headers: &HeaderMap, name: &str) -> Option<String> {
    parameter(headers.get(FORWARDED)?.to_str().ok()?.split(',').next()?, name)
}

fn parameter(element: &str, name: &str) -> Option<String> {
    element.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn first(list: &str) -> Option<String> {
    list.split(',').next().map(|v| v.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use hyper::header::HeaderValue;

    fn request(peer: &str, headers: &[(&'static str, &str)]) -> Request {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).expect("text"));
        }
        Request {
            method: hyper::Method::GET,
            uri: "/".parse().expect("path"),
            headers: map,
            body: Bytes::new(),
            peer: peer.parse().expect("address"),
            local: ([127, 0, 0, 1], 8080).into(),
        }
    }

    #[test]
    fn only_trusted_proxies_tell_who_the_client_is() {
        let proxies: Vec<Network> = vec!["10.0.0.0/8".parse().expect("prefix")];
        let check = |peer: &str, headers: &[(&'static str, &str)], expected: &str| {
            assert_eq!(client_ip(&request(peer, headers), &proxies).to_string(), expected, "{peer} {headers:?}");
        };
        check("203.0.113.1", &[("x-forwarded-for", "1.2.3.4")], "203.0.113.1");
        check("10.0.0.1", &[("x-forwarded-for", "1.2.3.4")], "1.2.3.4");
        check("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, 1.2.3.4, 10.0.0.9")], "1.2.3.4");
        check("10.0.0.1", &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.2.3.4:99")], "1.2.3.4");
        check("10.0.0.1", &[("forwarded", "for=\"[2001:db8::1]:80\";proto=https")], "2001:db8::1");
        check("10.0.0.1", &[("forwarded", "for=unknown")], "10.0.0.1");
        check("::ffff:10.0.0.1", &[("x-forwarded-for", "1.2.3.4")], "1.2.3.4");
        check("10.0.0.1", &[], "10.0.0.1");
    }

    #[test]
    fn urls_are_what_the_client_can_reach() {
        let proxies: Vec<Network> = vec!["10.0.0.0/8".parse().expect("prefix")];
        let check = |peer: &str, headers: &[(&'static str, &str)], expected: &str| {
            assert_eq!(public_origin(&request(peer, headers), None, &proxies), expected, "{peer} {headers:?}");
        };
        let proxied = [("host", "in:1"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "out.example")];
        check("10.0.0.1", &proxied, "https://out.example");
        check("1.2.3.4", &proxied, "http://in:1");
        check("10.0.0.1", &[("forwarded", "host=out.example;proto=https")], "https://out.example");
        check("1.2.3.4", &[("host", "[::1]:8080")], "http://[::1]:8080");
        check("1.2.3.4", &[("host", "evil/ path")], "http://127.0.0.1:8080");
        check("1.2.3.4", &[], "http://127.0.0.1:8080");
        let configured = public_origin(&request("1.2.3.4", &proxied), Some("https://sfu.example"), &proxies);
        assert_eq!(configured, "https://sfu.example");
    }

    #[test]
    fn local_means_this_machine_and_no_other_page() {
        let check = |peer: &str, headers: &[(&'static str, &str)], expected| {
            let request = request(peer, headers);
            assert_eq!(is_local(&request, client_ip(&request, &[])), expected, "{peer} {headers:?}");
        };
        check("127.0.0.1", &[("host", "localhost:8080")], true);
        check("::1", &[("host", "[::1]:8080")], true);
        check("127.0.0.1", &[("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1:8080")], true);
        check("127.0.0.1", &[("host", "127.0.0.1:8080"), ("origin", "https://evil.example")], false);
        check("127.0.0.1", &[("host", "rebound.example:8080")], false);
        check("127.0.0.1", &[("host", "localhost"), ("x-forwarded-for", "1.2.3.4")], false);
        check("10.0.0.1", &[("host", "localhost")], false);
    }
}
