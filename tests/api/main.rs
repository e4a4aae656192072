//! The HTTP interface as clients meet it: a real server on a loopback port, shards played by the test.

#![expect(clippy::disallowed_methods, reason = "real servers run in real time")]

mod client;
mod endpoints;
mod events;
mod framing;
mod server;

use client::Reply;

const PUBLISH: &str = include_str!("../data/offers/chromium-publish-vp8.sdp");
const VIEW: &str = include_str!("../data/offers/chromium-view.sdp");

/// What every answer carries, errors included, or a page sees "network error" instead.
fn has_cors(reply: &Reply) {
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"), "{reply:?}");
    let exposed = reply.header("access-control-expose-headers").unwrap_or_default();
    for name in ["Location", "ETag", "Link", "Accept-Post", "Accept-Patch", "Retry-After", "WWW-Authenticate"] {
        assert!(exposed.contains(name), "{name} not in {exposed:?}");
    }
    assert_eq!(reply.header("access-control-allow-credentials"), None);
}

/// The same offer by another client: offers of one client are retries of each other.
fn offer(text: &str, client: u64) -> String {
    let ufrag = text.lines().find_map(|l| l.strip_prefix("a=ice-ufrag:")).expect("a ufrag").trim();
    text.replace(&format!("a=ice-ufrag:{ufrag}"), &format!("a=ice-ufrag:client{client}"))
}

/// Tries until there is something; what the server does meanwhile takes a moment.
fn until<T>(mut f: impl FnMut() -> Option<T>) -> T {
    for _ in 0..400 {
        if let Some(found) = f() {
            return found;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("it never happened");
}
