//! GStreamer's webrtcbin, of Debian's 1.22, publishes and watches: with its own RSA certificate, and with an ECDSA one.

#![expect(clippy::disallowed_methods, reason = "real programs live in real time")]

mod common;

#[path = "common/browser.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod browser;

#[path = "interop/peer.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod peer;

use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use browser::{Browser, DemoPage, PATIENCE};
use common::server::Server;
use common::turn;
use manycast::srtp::dtls::Certificate;
use peer::Peer;
use serde_json::{Value, json};

/// 3 s.
const FRAMES: u64 = 90;

/// Which certificate a webrtcbin shows.
enum Shows {
    ItsOwn,
    Ecdsa,
}

fn webrtcbin(role: &str, url: &str, shows: Shows) -> Peer {
    // Debian's own, for which apt has GStreamer.
    let mut python = Command::new("/usr/bin/python3");
    match shows {
        Shows::ItsOwn => peer::start(&mut python, "webrtcbin_peer", "py", &[role, url]),
        Shows::Ecdsa => {
            let certificate = Certificate::generate().expect("the cipher library can make a key");
            let arguments = [role, url, &certificate.fingerprint(), &pem(&certificate)];
            peer::start(&mut python, "webrtcbin_peer", "py", &arguments)
        }
    }
}

/// Certificate and key.
fn pem(certificate: &Certificate) -> String {
    let block = |label: &str, der: &[u8]| {
        let lines: Vec<String> =
            STANDARD.encode(der).as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    };
    let der = certificate.to_str0m();
    block("CERTIFICATE", &der.certificate) + &block("PRIVATE KEY", &der.private_key)
}

fn publish(server: &Server, shows: Shows) -> Peer {
    let mut publisher = webrtcbin("publish", &format!("{}/whip/live", server.url), shows);
    publisher.hear_until(PATIENCE, |said| said["state"] == "connected");
    server.wait_for_metric("manycast_media_received_total", "", |packets| packets > 100.0);
    publisher
}

#[test]
fn gstreamer_watches_what_gstreamer_publishes() {
    let _turn = turn();
    let server = Server::start(&[]);
    let _publisher = publish(&server, Shows::ItsOwn);
    let mut viewer = webrtcbin("watch", &format!("{}/whep/live", server.url), Shows::ItsOwn);
    let number = |said: &Value, key: &str| said[key].as_u64().unwrap_or_default();
    let said = viewer.hear_until(PATIENCE, |said| number(said, "frames") > FRAMES && number(said, "loud") > 100);
    assert!(number(&said, "bright") > FRAMES * 9 / 10, "the picture is what was published: {said:#}");
    assert_eq!(said["lost"], json!([0, 0]), "{said:#}");
    let log = server.logs();
    for role in ["publisher", "viewer"] {
        let connected = format!("role=\"{role}\" dtls=DTLS1_2 srtp=AES128_CM_SHA1_80");
        assert!(log.iter().any(|l| l.contains("DTLS connected") && l.contains(&connected)), "{log:#?}");
    }
}

#[test]
fn chromium_watches_what_gstreamer_publishes() {
    let _turn = turn();
    let server = Server::start(&[]);
    let _publisher = publish(&server, Shows::Ecdsa);
    let browser = Browser::start();
    let viewer = browser.open(&format!("{}/?stream=live#watch", server.url));
    viewer.start("watch");
    viewer.click("watch-unmute");
    viewer.wait_for_frames("watch", PATIENCE, 15.0);
    let before = viewer.stats("watch");
    viewer.wait_for_frames("watch", PATIENCE, FRAMES as f64);
    let after = viewer.stats("watch");
    assert_eq!(after.codec("inbound-rtp", "video"), Some("video/VP8"));
    assert_eq!((after.video_in("packetsLost"), after.audio_in("packetsLost")), (0.0, 0.0), "{after:#?}");
    assert!(after.audio_in("totalAudioEnergy") > before.audio_in("totalAudioEnergy"), "{after:#?}");
}
