//! A real browser behind a bad network: what is lost on a viewer's leg comes again as RTX, and nobody notices.

#![expect(clippy::disallowed_methods, reason = "real browsers live in real time")]

mod common;

#[path = "common/browser.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod browser;

use std::time::Duration;

use browser::{Browser, DemoPage, PATIENCE, Stats, wait_until};
use common::relay::Relay;
use common::server::Server;

const PLAYED: Duration = Duration::from_secs(60);

/// Of the datagrams either way, handshakes included.
const LOSS: f64 = 0.03;

#[test]
fn a_viewer_plays_a_minute_of_3_percent_loss_both_ways_without_a_keyframe_beyond_its_join() {
    let server = Server::start(&[]);
    let relay = Relay::lossy(server.udp(), LOSS, 1);
    let browser = Browser::start();
    let publisher = browser.open(&format!("{}/?size=640x360&stream=live#publish", server.url));
    publisher.click("publish-start");
    publisher.wait_for_state("publish", "live");

    let viewer = browser.open(&format!("{}/?stream=live#watch", server.url));
    viewer.send_through(relay.addr, server.udp());
    viewer.click("watch-start");
    viewer.wait_for_state("watch", "live");
    viewer.wait_for_frames("watch", PATIENCE, 30.0);
    let joined = viewer.stats("watch");
    let lost = || relay.seen(|seen| seen.rtp.get(&ssrc(&joined)).copied().unwrap_or_default());
    let lost_before = lost();
    std::thread::sleep(PLAYED);

    // What was lost last is still being repaired. Chromium's `packetsLost` counts what RTX has brought back, too, and
    // nothing from before its first packet.
    let to_repair = || (lost().lost - lost_before.lost) as f64;
    let repaired = || (resent(&viewer.stats("watch")) - resent(&joined) >= to_repair()).then_some(());
    let said = || format!("{:?}: {:#?}", lost(), viewer.stats("watch"));
    wait_until(PATIENCE, repaired, said);

    let played = viewer.stats("watch");
    let grown = |key| played.video_in(key) - joined.video_in(key);
    let asked = |stats: &Stats| stats.video_in("pliCount") + stats.video_in("firCount");
    let summary = || {
        let publisher = publisher.stats("publish");
        format!(
            "{:?}; decoded {}, dropped {}, freezes {}, NACKs {}, lost {}, resent {}; publisher's PLI {}; {:#?}",
            lost(),
            grown("framesDecoded"),
            grown("framesDropped"),
            grown("freezeCount"),
            grown("nackCount"),
            played.video_in("packetsLost"),
            resent(&played),
            publisher.video_out("pliCount"),
            relay.seen(|s| (s.to_server, s.to_client)),
        )
    };
    eprintln!("{}", summary());
    // 3 % of what a publisher sends at 10 packets/s at least.
    assert!(lost().lost >= 18, "the network was bad: {}", summary());
    assert_eq!(asked(&played), asked(&joined), "{}", summary());
    // Its keyframe may have lost its first packet, and the request its way.
    assert!(asked(&joined) <= 3.0, "{}", summary());
    assert!(grown("framesDecoded") > 10.0 * PLAYED.as_secs_f64(), "{}", summary());
    for kind in ["audio", "video"] {
        let report = played.0.iter().find(|s| s["type"] == "remote-outbound-rtp" && s["kind"] == kind);
        let packets = report.and_then(|r| r["packetsSent"].as_f64());
        assert!(packets.is_some_and(|p| p > 100.0), "{kind}: no sender report was taken: {report:#?}");
    }
    assert_eq!(server.metric("manycast_session_media_suppressed_total", ""), 0.0);
    assert_eq!(browser.console_errors(), [""; 0]);
}

/// Not there until there was one.
fn resent(stats: &Stats) -> f64 {
    let video = stats.0.iter().find(|s| s["type"] == "inbound-rtp" && s["kind"] == "video");
    video.and_then(|v| v["retransmittedPacketsReceived"].as_f64()).unwrap_or_default()
}

fn ssrc(stats: &Stats) -> u32 {
    stats.video_in("ssrc") as u32
}
