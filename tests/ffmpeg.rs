//! FFmpeg publishes by its own WHIP muxer, a browser watches. `scripts/test` brings FFmpeg into `target/interop`.

#![expect(clippy::disallowed_methods, reason = "real programs live in real time")]

mod common;

#[path = "common/browser.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod browser;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use browser::{Browser, DemoPage, PATIENCE, wait_until};
use common::server::Server;

/// 3 s.
const FRAMES: f64 = 90.0;

/// Ended when dropped.
struct Ffmpeg(Child);

impl Ffmpeg {
    /// A moving test card as H264 without B-frames, and 440 Hz as Opus: all that the muxer takes.
    fn publish(url: &str, more: &[&str]) -> Ffmpeg {
        let picture = ["-re", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=30"];
        let sound = ["-re", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000"];
        let h264 = "-c:v libx264 -preset ultrafast -tune zerolatency -profile:v baseline -pix_fmt yuv420p -g 30 -bf 0";
        let child = Command::new(program())
            .args(["-hide_banner", "-nostats", "-loglevel", "warning"])
            .args(picture)
            .args(sound)
            .args(h264.split(' '))
            .args(["-c:a", "libopus", "-ac", "2"])
            .args(more)
            .args(["-f", "whip", url])
            .stdin(Stdio::piped())
            .spawn();
        Ffmpeg(child.expect("FFmpeg starts"))
    }

    /// As a person ends it who presses q: it then deletes its session.
    fn quit(&mut self) {
        use std::io::Write;
        self.0.stdin.as_mut().expect("piped").write_all(b"q").expect("it runs");
    }
}

impl Drop for Ffmpeg {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The one that the Python package `imageio-ffmpeg` carries: Debian's has no WHIP.
fn program() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("target/interop/python/imageio_ffmpeg/binaries");
    let files = std::fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok);
    let found =
        files.map(|f| f.path()).find(|f| f.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"ffmpeg-")));
    found.unwrap_or_else(|| panic!("no FFmpeg in {}: run scripts/test ffmpeg", folder.display()))
}

/// `flags`: of the muxer. Its offer says `setup:passive` unless they say otherwise.
fn check(flags: &[&str]) {
    // One at a time: an encoder and a browser for two cores.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(|failed| failed.into_inner());

    let server = Server::start(&[]);
    let mut ffmpeg = Ffmpeg::publish(&format!("{}/whip/live", server.url), flags);
    server.wait_for_metric("manycast_media_received_total", "", |packets| packets > 100.0);

    let browser = Browser::start();
    let viewer = browser.open(&format!("{}/?stream=live#watch", server.url));
    viewer.click("watch-start");
    viewer.wait_for_state("watch", "live");
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
