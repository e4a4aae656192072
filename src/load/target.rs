//! Which URLs a run talks to: a manycast server's, or templates of any other's.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

/// Stands for the stream's name in templates and tokens.
const PLACE: &str = "{stream}";

/// What is wrong with an URL, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct TargetError(pub String);

/// One stream's two URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoints {
    pub publish: String,
    pub watch: String,
    pub token: Option<String>,
}

/// The server under test.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub streams: Vec<Endpoints>,
    /// Bodies are base64 of JSON, as `POST /sdp` takes them.
    pub legacy: bool,
    /// `host:port` of the first URL.
    authority: String,
}

impl Target {
    /// `/whip/NAME` and `/whep/NAME`, or `/sdp`, below `server`.
    pub fn manycast(
        server: &str,
        legacy: bool,
        token: Option<String>,
        names: Vec<String>,
    ) -> Result<Target, TargetError> {
        let base = server.trim_end_matches('/');
        let (publish, watch) = match legacy {
            true => {
                let base = base.strip_suffix("/sdp").unwrap_or(base);
                (format!("{base}/sdp?stream={PLACE}&role=publish"), format!("{base}/sdp?stream={PLACE}&role=view"))
            }
            false => {
                if split(base)?.1 != "/" {
                    let hint = "give http://HOST:PORT, or --whip-url and --whep-url for other paths";
                    return Err(TargetError(format!("{server}: {hint}")));
                }
                (format!("{base}/whip/{PLACE}"), format!("{base}/whep/{PLACE}"))
            }
        };
        Ok(Target { legacy, ..Target::templates(&publish, &watch, token, names)? })
    }

    /// Any server's: `{stream}` stands for the name.
    pub fn templates(
        publish: &str,
        watch: &str,
        token: Option<String>,
        names: Vec<String>,
    ) -> Result<Target, TargetError> {
        let authority = split(publish)?.0;
        split(watch)?;
        let told_apart = |text: &str| text.contains(PLACE);
        if names.len() > 1 && !told_apart(publish) && !token.as_deref().is_some_and(told_apart) {
            return Err(TargetError(format!("{publish}: several streams need {PLACE} in the URLs or the token")));
        }
        let streams = names.iter().map(|name| Endpoints {
            publish: publish.replace(PLACE, name),
            watch: watch.replace(PLACE, name),
            token: token.as_ref().map(|t| t.replace(PLACE, name)),
        });
        Ok(Target { streams: streams.collect(), legacy: false, authority })
    }

    /// The address of this machine that the server will see.
    pub fn local_ip(&self) -> Result<IpAddr, TargetError> {
        let failed = |why: String| TargetError(format!("http://{}: {why}", self.authority));
        let remote = match self.authority.to_socket_addrs() {
            Ok(mut addresses) => addresses.next().ok_or_else(|| failed("no such host".to_owned()))?,
            Err(error) => return Err(failed(format!("no such host ({error})"))),
        };
        let any: SocketAddr = match remote {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0; 8], 0).into(),
        };
        // Connecting a UDP socket sends nothing: it only asks for the route.
        let route = UdpSocket::bind(any).and_then(|s| s.connect(remote).and_then(|()| s.local_addr()));
        route.map(|local| local.ip()).map_err(|e| failed(format!("no route ({e})")))
    }
}

/// `host:port` and path of an URL.
fn split(url: &str) -> Result<(String, &str), TargetError> {
    let wrong = |why: &str| TargetError(format!("{url}: {why}"));
    if url.starts_with("https:") {
        return Err(wrong("https is not spoken here: name the server's http port, behind its TLS proxy"));
    }
    let rest = url.strip_prefix("http://").ok_or_else(|| wrong("expected http://HOST:PORT"))?;
    let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    if authority.is_empty() || authority.contains(PLACE) {
        return Err(wrong("expected http://HOST:PORT"));
    }
    // A colon behind the last bracket: IPv6 addresses have them inside.
    let has_port = authority.rsplit(']').next().is_some_and(|end| end.contains(':'));
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    Ok((authority, if path.is_empty() { "/" } else { path }))
}

/// What a `Location` means that came in answer to `url` (RFC 3986 §5.2, without dot segments).
pub(super) fn resolve(url: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_owned();
    }
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if let Some(other) = location.strip_prefix("//") {
        return format!("http://{other}");
    }
    if location.starts_with('/') {
        return format!("http://{authority}{location}");
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let folder = path.rfind('/').map_or("/", |at| &path[..=at]);
    format!("http://{authority}{folder}{location}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (1..=count).map(|n| format!("s{n}")).collect()
    }

    #[test]
    fn a_manycast_server_needs_no_paths() {
        let target = Target::manycast("http://h:8080/", false, None, names(2)).unwrap();
        assert_eq!(target.streams[1].publish, "http://h:8080/whip/s2");
        assert_eq!(target.streams[1].watch, "http://h:8080/whep/s2");
        let target = Target::manycast("http://h:8080/sdp", true, None, names(1)).unwrap();
        assert_eq!(target.streams[0].watch, "http://h:8080/sdp?stream=s1&role=view");
    }

    #[test]
    fn other_servers_are_told_by_templates() {
        let one = "http://h/api/whip";
        let target = Target::templates(one, "http://h/api/whep", Some("{stream}".into()), names(2)).unwrap();
        assert_eq!(target.streams[1].token.as_deref(), Some("s2"));
        assert_eq!(target.authority, "h:80");
        assert!(Target::templates(one, one, None, names(2)).unwrap_err().to_string().contains("several streams"));
    }

    #[test]
    fn a_wrong_url_is_named() {
        for (url, expected) in [
            ("https://h", "https is not spoken here"),
            ("h:8080", "expected http://HOST:PORT"),
            ("http:///x", "expected http://HOST:PORT"),
            ("http://h/whip/a", "--whip-url"),
        ] {
            let error = Target::manycast(url, false, None, names(1)).unwrap_err().to_string();
            assert!(error.starts_with(url) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn locations_are_resolved() {
        let check = |location, expected| assert_eq!(resolve("http://h:1/a/whip?x=/y", location), expected);
        check("http://other/s", "http://other/s");
        check("/a/whip/1", "http://h:1/a/whip/1");
        check("whip/1", "http://h:1/a/whip/1");
        check("//other/s", "http://other/s");
    }
}
