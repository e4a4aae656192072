//! Firefox against a real server and against Chromium: the demo page is used in Debian's headless Firefox ESR.

#![expect(clippy::disallowed_methods, reason = "real browsers live in real time")]

mod bidi;

#[path = "../common/mod.rs"]
mod common;

#[path = "../common/browser.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod browser;

use bidi::Firefox;
use browser::{Browser, DemoPage, PATIENCE};
use common::server::Server;
use common::turn;

/// 3 s.
const FRAMES: f64 = 90.0;

/// Takes media at an address that is not loopback: Firefox has no candidate there, whatever its preferences say.
fn server() -> Server {
    let interfaces = if_addrs::get_if_addrs().expect("interfaces");
    let ip = interfaces.iter().map(|i| i.ip()).find(|ip| ip.is_ipv4() && !ip.is_loopback());
    let ip = ip.expect("an IPv4 address besides loopback, or Firefox cannot connect");
    Server::start(&["--udp", &format!("{ip}:0")])
}

fn publish_url(server: &Server) -> String {
    format!("{}/?stream=live&size=640x360#publish", server.url)
}

fn publish(page: &impl DemoPage) {
    page.start("publish");
}

fn watch_url(server: &Server) -> String {
    format!("{}/?stream=live#watch", server.url)
}

fn assert_plays(page: &impl DemoPage, codec: &str) {
    page.start("watch");
    page.click("watch-unmute");
    // The first second may stutter while encoder and jitter buffer settle.
    page.wait_for_frames("watch", PATIENCE, 30.0);
    let before = page.stats("watch");
    page.wait_for_frames("watch", PATIENCE, FRAMES);
    let after = page.stats("watch");
    assert_eq!(after.codec("inbound-rtp", "video"), Some(codec), "{after:#?}");
    assert_eq!(after.codec("inbound-rtp", "audio"), Some("audio/opus"), "{after:#?}");
    assert_eq!((after.video_in("packetsLost"), after.audio_in("packetsLost")), (0.0, 0.0), "{after:#?}");
    assert!(after.audio_in("totalAudioEnergy") > before.audio_in("totalAudioEnergy"), "{before:#?} {after:#?}");
}

#[test]
fn firefox_watches_what_firefox_publishes() {
    let _turn = turn();
    let server = server();
    let firefox = Firefox::start();
    let publisher = firefox.open(&publish_url(&server));
    publish(&publisher);
    assert_plays(&firefox.open(&watch_url(&server)), "video/VP8");
}

#[test]
fn chromium_watches_what_firefox_publishes() {
    let _turn = turn();
    let server = server();
    let (firefox, chromium) = (Firefox::start(), Browser::start());
    let publisher = firefox.open(&publish_url(&server));
    publish(&publisher);
    assert_plays(&chromium.open(&watch_url(&server)), "video/VP8");
}

#[test]
fn firefox_watches_what_chromium_publishes() {
    let _turn = turn();
    let server = server();
    let (firefox, chromium) = (Firefox::start(), Browser::start());
    let publisher = chromium.open(&publish_url(&server));
    publish(&publisher);
    assert_plays(&firefox.open(&watch_url(&server)), "video/VP8");
}
