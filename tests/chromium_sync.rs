//! Lip sync, as a real browser judges it.

#![expect(clippy::disallowed_methods, reason = "real browsers live in real time")]

mod common;

#[path = "common/browser.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod browser;

use std::time::Duration;

use browser::{Browser, DemoPage, PATIENCE, Page, wait_until};
use common::server::Server;
use common::turn;

/// Sound that is earlier or later than its picture is noticed (ITU-R BT.1359). Chromium leaves 30 ms as they are.
const EARLY_MAX_MS: f64 = 45.0;
const LATE_MAX_MS: f64 = 125.0;
/// On loopback picture and sound need about the same time in their jitter buffers. The browser knows only what our sender
/// reports say: were they wrong, the one would wait for the other, and by their timestamps all would be well.
const APART_MAX_MS: f64 = 80.0;
/// Of one look, which takes 3 s.
const SAMPLES: usize = 15;
const SAMPLE_TIME: Duration = Duration::from_millis(200);

/// One medium in `getStats()`.
struct Played {
    /// ms.
    playout_timestamp: f64,
    /// Of all samples or frames together, s, and how many they were.
    jitter_buffer_delay: f64,
    emitted: f64,
}

/// Picture and sound; `None` until sender reports of both have come.
fn played(viewer: &Page) -> Option<[Played; 2]> {
    let stats = viewer.stats("watch");
    let of = |media| {
        let record = stats.record("inbound-rtp", media)?;
        let number = |key: &str| record[key].as_f64();
        Some(Played {
            playout_timestamp: number("estimatedPlayoutTimestamp")?,
            jitter_buffer_delay: number("jitterBufferDelay")?,
            emitted: number("jitterBufferEmittedCount")?,
        })
    };
    Some([of("video")?, of("audio")?])
}

/// By how much the sound is late, ms, the median; and how long picture and sound wait, ms.
fn look(viewer: &Page) -> (f64, [f64; 2]) {
    let sample = |_| {
        std::thread::sleep(SAMPLE_TIME);
        wait_until(PATIENCE, || played(viewer), || "no sender reports".into())
    };
    let samples: Vec<_> = (0..SAMPLES).map(sample).collect();
    let late = |[video, audio]: &[Played; 2]| video.playout_timestamp - audio.playout_timestamp;
    let mut skews: Vec<f64> = samples.iter().map(late).collect();
    skews.sort_by(f64::total_cmp);
    let (first, last) = (&samples[0], &samples[SAMPLES - 1]);
    let waits = [0, 1].map(|i| {
        let delay = last[i].jitter_buffer_delay - first[i].jitter_buffer_delay;
        1000.0 * delay / (last[i].emitted - first[i].emitted)
    });
    (skews[SAMPLES / 2], waits)
}

/// Looks so often at most until they are together.
#[track_caller]
fn assert_together(viewer: &Page, when: &str, looks: usize) {
    let mut seen = Vec::new();
    while seen.len() < looks {
        let (skew, waits) = look(viewer);
        println!("{when}: the sound is {skew:.0} ms late; picture and sound wait {waits:.0?} ms");
        if (-EARLY_MAX_MS..=LATE_MAX_MS).contains(&skew) && (waits[0] - waits[1]).abs() <= APART_MAX_MS {
            return;
        }
        seen.push((skew, waits));
    }
    panic!("{when}: {seen:.0?} ms");
}

fn open<'a>(browser: &'a Browser, server: &Server, query: &str, side: &str) -> Page<'a> {
    let page = browser.open(&format!("{}/?stream=live&{query}#{side}", server.url));
    // Or the page would hold back what it plays when packets are lost.
    page.run("delete RTCRtpReceiver.prototype.jitterBufferTarget", vec![]);
    page.start(side);
    page
}

#[test]
fn sound_and_picture_stay_together_when_another_publisher_takes_over() {
    let _turn = turn();
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    let first = open(&browser, &server, "size=640x360", "publish");
    let viewer = open(&browser, &server, "", "watch");
    assert_together(&viewer, "first publisher", 8);
    // Another process: its timestamps and its clock begin elsewhere.
    let other = Browser::start();
    open(&other, &server, "size=640x360", "publish");
    first.wait_for_state("publish", "failed");
    viewer.wait_for_frames("watch", PATIENCE, 10.0);
    assert_together(&viewer, "second publisher", 4);
}

#[test]
fn sound_and_picture_stay_together_when_the_layer_changes() {
    let _turn = turn();
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    open(&browser, &server, "simulcast=1", "publish");
    let viewer = open(&browser, &server, "", "watch");
    let height = || viewer.stats("watch").video_in("frameHeight");
    for (rid, lines, looks) in [("h", 720.0, 8), ("l", 180.0, 2), ("h", 720.0, 2)] {
        let is_offered = || viewer.options("watch-quality").iter().any(|(value, _)| value == rid).then_some(());
        wait_until(PATIENCE, is_offered, || format!("no layer {rid}"));
        viewer.choose("watch-quality", rid);
        wait_until(PATIENCE, || (height() == lines).then_some(()), || format!("{} lines, not {lines}", height()));
        assert_together(&viewer, rid, looks);
    }
}
