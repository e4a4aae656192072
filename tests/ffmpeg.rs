//! FFmpeg publishes by its own WHIP muxer, a browser watches. `scripts/test` brings FFmpeg into `target/interop`.

#![expect(clippy::disallowed_methods, reason = "real programs live in real time")]

mod common;

#[path = "common/browser.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod browser;

#[path = "common/ffmpeg.rs"]
mod ffmpeg;

use std::sync::Mutex;

use browser::{Browser, DemoPage, PATIENCE, wait_until};
use common::server::Server;
use ffmpeg::Ffmpeg;

/// 3 s.
const FRAMES: f64 = 90.0;

/// `flags`: of the muxer. Its offer says `setup:passive` unless they say otherwise.
fn check(flags: &[&str]) {
    // One at a time: an encoder and a browser for two cores.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(|failed| failed.into_inner());

    let server = Server::start(&[]);
    let mut ffmpeg = Ffmpeg::publish(&format!("{}/whip/live", server.url), 30, flags);
    server.wait_for_metric("manycast_media_received_total", "", |packets| packets > 100.0);

    let browser = Browser::start();
    let viewer = browser.open(&format!("{}/?stream=live#watch", server.url));
    viewer.start("watch");
    viewer.click("watch-unmute");
    viewer.wait_for_frames("watch", PATIENCE, 15.0);
    let before = viewer.stats("watch");
    viewer.wait_for_frames("watch", PATIENCE, FRAMES);
    let after = viewer.stats("watch");
    assert_eq!(after.codec("inbound-rtp", "video"), Some("video/H264"));
    assert_eq!(after.codec("inbound-rtp", "audio"), Some("audio/opus"));
    assert_eq!((after.video_in("packetsLost"), after.audio_in("packetsLost")), (0.0, 0.0), "{after:#?}");
    assert!(after.audio_in("totalAudioEnergy") > before.audio_in("totalAudioEnergy"), "{after:#?}");
    let lit = viewer.lit_share("watch-video");
    assert!(lit > 0.8, "the picture is dark: {lit}");

    ffmpeg.quit();
    let mut log = Vec::new();
    let mut says = |what: [&str; 2]| {
        wait_until(
            PATIENCE,
            || {
                log.extend(server.logs());
                log.iter().any(|l| what.iter().all(|w| l.contains(w))).then_some(())
            },
            || format!("nothing of {what:?}"),
        );
    };
    says(["DTLS connected", "role=\"publisher\" dtls=DTLS1_2 srtp=AES128_CM_SHA1_80"]);
    says(["publisher left", "reason=Deleted"]);
    assert_eq!(server.metric("manycast_packet_dropped_total", "stun_"), 0.0);
}

/// We are the DTLS client, as for every FFmpeg that is not told otherwise.
#[test]
fn a_browser_plays_what_ffmpeg_publishes_as_dtls_server() {
    check(&[]);
}

#[test]
fn a_browser_plays_what_ffmpeg_publishes_as_dtls_client() {
    check(&["-whip_flags", "dtls_active"]);
}
