//! aiortc and libwebrtc publish and watch, each with each, while packets are lost on the viewer's leg.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::common::relay::{Passed, Relay, Way, rtp_ssrc};
use crate::common::server::Server;
use crate::peer::{Peer, node, python};

const PATIENCE: Duration = Duration::from_secs(30);

/// Of the video on its way to the viewer one in so many is lost, what is sent again never: aiortc asks once only.
const LOST_ONE_IN: u32 = 25;
/// 5 s.
const FRAMES: u64 = 150;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Aiortc,
    Wrtc,
}

impl Client {
    fn start(self, args: &[&str]) -> Peer {
        match self {
            Client::Aiortc => python("aiortc_peer", args),
            Client::Wrtc => node("wrtc_peer", args),
        }
    }

    /// What DTLS gives with it: libwebrtc offers nothing else, aiortc everything.
    fn profile(self) -> &'static str {
        match self {
            Client::Aiortc => "AEAD_AES_256_GCM",
            Client::Wrtc => "AES128_CM_SHA1_80",
        }
    }
}

/// What the answer's `ssrc-group:FID` says of the video.
fn video_and_rtx(answer: &str) -> (u32, u32) {
    let group = answer.lines().find_map(|l| l.strip_prefix("a=ssrc-group:FID ")).expect("RTX is negotiated");
    let mut ssrcs = group.split(' ').map(|s| s.trim().parse().expect("a number"));
    (ssrcs.next().expect("two"), ssrcs.next().expect("two"))
}

fn check(publishes: Client, watches: Client) {
    // One at a time: they are many processes for two cores.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(|failed| failed.into_inner());

    let server = Server::start(&[]);
    // 0: no SSRC that we use.
    let video = Arc::new(AtomicU32::new(0));
    let mut count = 0;
    let lossy = video.clone();
    let relay = Relay::start(server.udp(), move |way, data| {
        let hit = way == Way::ToClient && rtp_ssrc(data) == Some(lossy.load(Ordering::Relaxed));
        count += u32::from(hit);
        // The keyframe comes whole: a viewer that loses the very first packets does not know of them.
        hit && count > 30 && count.is_multiple_of(LOST_ONE_IN)
    });

    let mut publisher = publishes.start(&["publish", &format!("{}/whip/live", server.url)]);
    publisher.hear_until(PATIENCE, |said| said["state"] == "connected");
    server.wait_for_metric("manycast_media_received_total", "", |packets| packets > 100.0);

    let ports = [server.udp().port().to_string(), relay.addr.port().to_string()];
    let url = format!("{}/whep/live", server.url);
    let mut viewer = watches.start(&["watch", &url, &ports[0], &ports[1]]);
    let answer = viewer.hear_until(PATIENCE, |said| said["answer"].is_string());
    let (media, rtx) = video_and_rtx(answer["answer"].as_str().expect("text"));
    video.store(media, Ordering::Relaxed);

    let number = |said: &Value, key: &str| said[key].as_u64().unwrap_or_default();
    let passed = |ssrc| relay.seen(|s| s.rtp.get(&ssrc).copied().unwrap_or_default());
    let said = viewer.hear_until(PATIENCE, |said| number(said, "frames") > FRAMES && passed(media).lost > 3);
    let (sent, resent): (Passed, Passed) = (passed(media), passed(rtx));
    let asked = server.metric("manycast_keyframe_request_received_total", "");
    let all = format!("{publishes:?} to {watches:?}: {said:#} {sent:?} resent {resent:?} asked {asked}");
    eprintln!("{all}");

    assert!(number(&said, "bright") > FRAMES * 9 / 10, "the picture is what was published: {all}");
    assert!(number(&said, "loud") > 50, "so is the sound: {all}");
    assert_eq!(number(&said, "gaps"), 0, "each loss was made good: {all}");
    // The last may be under way.
    assert!(resent.datagrams + 1 >= sent.lost, "{all}");
    assert!(asked <= 1.0, "the join asks, and nobody after it: {all}");
    for kind in ["video", "audio"] {
        assert!(said["reports"][kind].as_f64().is_some_and(|n| n > 0.0), "{kind}: no sender report: {all}");
    }
    let log = server.logs();
    let profile = |role: &str, client: Client| {
        let connected = log.iter().find(|l| l.contains("DTLS connected") && l.contains(role));
        let connected = connected.unwrap_or_else(|| panic!("no {role} in {log:#?}"));
        assert!(connected.contains(client.profile()), "{connected}");
    };
    profile("role=\"viewer\"", watches);
    profile("role=\"publisher\"", publishes);
    assert_eq!(server.metric("manycast_session_media_suppressed_total", ""), 0.0);
}

#[test]
fn aiortc_watches_what_aiortc_publishes() {
    check(Client::Aiortc, Client::Aiortc);
}

#[test]
fn aiortc_watches_what_libwebrtc_publishes() {
    check(Client::Wrtc, Client::Aiortc);
}

#[test]
fn libwebrtc_watches_what_aiortc_publishes() {
    check(Client::Aiortc, Client::Wrtc);
}

#[test]
fn libwebrtc_watches_what_libwebrtc_publishes() {
    check(Client::Wrtc, Client::Wrtc);
}
