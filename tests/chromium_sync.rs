//! Lip sync, as a real browser judges it.

#![expect(clippy::disallowed_methods, reason = "real browsers live in real time")]

mod common;

#[path = "common/browser.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod browser;

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use browser::{Browser, DemoPage, PATIENCE, Page, wait_until};
use common::server::Server;

/// One test at a time: a browser that starves another tells nothing about us.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|failed| failed.into_inner())
}

/// How far apart sound and picture may play. Chromium itself leaves 30 ms as they are.
const SKEW_MAX_MS: f64 = 45.0;
/// On loopback neither need wait longer in its jitter buffer. The browser knows only what our sender reports say: were they
/// wrong, the one would wait for the other, and by their timestamps all would be well.
const WAIT_MAX_MS: f64 = 120.0;
const SAMPLES: usize = 15;
const SAMPLE_TIME: Duration = Duration::from_millis(200);

/// One side's `getStats()`.
struct Played {
    /// What plays now was captured then, ms.
    captured: f64,
    /// In the jitter buffer, s, all frames or samples together, and how many they were.
    waited: f64,
    emitted: f64,
}

/// Picture and sound; `None` until sender reports of both have come.
fn played(viewer: &Page) -> Option<[Played; 2]> {
    let stats = viewer.stats("watch");
    let of = |media| {
        let record = stats.record("inbound-rtp", media)?;
        let number = |key: &str| record[key].as_f64();
        Some(Played {
            captured: number("estimatedPlayoutTimestamp")?,
            waited: number("jitterBufferDelay")?,
            emitted: number("jitterBufferEmittedCount")?,
        })
    };
    Some([of("video")?, of("audio")?])
}

/// For 3 s: by how much the sound is late, ms, the median; and how long picture and sound wait, ms.
fn look(viewer: &Page) -> Option<(f64, [f64; 2])> {
    let first = played(viewer)?;
    let mut last = played(viewer)?;
    let mut skews = Vec::new();
    for _ in 0..SAMPLES {
        std::thread::sleep(SAMPLE_TIME);
        last = played(viewer)?;
        skews.push(last[0].captured - last[1].captured);
    }
    skews.sort_by(f64::total_cmp);
    let wait = |i: usize| 1000.0 * (last[i].waited - first[i].waited) / (last[i].emitted - first[i].emitted);
    Some((skews[SAMPLES / 2], [wait(0), wait(1)]))
}

#[track_caller]
fn assert_together(viewer: &Page, when: &str) {
    let last = Cell::new(None);
    let together = || {
        last.set(look(viewer));
        let (skew, waits) = last.get()?;
        println!("{when}: the sound is {skew:.0} ms late; picture and sound wait {waits:.0?} ms");
        (skew.abs() <= SKEW_MAX_MS && waits.iter().all(|wait| *wait <= WAIT_MAX_MS)).then_some(())
    };
    wait_until(PATIENCE, together, || format!("{when}: skew and waits are {:?} ms", last.get()));
}

fn open<'a>(browser: &'a Browser, server: &Server, query: &str, side: &str) -> Page<'a> {
    let page = browser.open(&format!("{}/?stream=live&{query}#{side}", server.url));
    page.start(side);
    page
}

#[test]
fn sound_and_picture_stay_together_when_another_publisher_takes_over() {
    let _turn = turn();
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    open(&browser, &server, "size=640x360", "publish");
    let viewer = open(&browser, &server, "", "watch");
    assert_together(&viewer, "first publisher");
    // Later by seconds, from other clocks' zero.
    let second = Browser::start();
    open(&second, &server, "size=640x360", "publish");
    viewer.wait_for_frames("watch", PATIENCE, 10.0);
    assert_together(&viewer, "second publisher");
}

#[test]
fn sound_and_picture_stay_together_when_the_layer_changes() {
    let _turn = turn();
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    open(&browser, &server, "simulcast=1", "publish");
    let viewer = open(&browser, &server, "", "watch");
    let height = || viewer.stats("watch").video_in("frameHeight");
    for (rid, lines) in [("h", 720.0), ("l", 180.0), ("h", 720.0)] {
        wait_until(PATIENCE, || viewer.offers("watch-quality", rid).then_some(()), || format!("no layer {rid}"));
        viewer.choose("watch-quality", rid);
        wait_until(PATIENCE, || (height() == lines).then_some(()), || format!("{} lines, not {lines}", height()));
        assert_together(&viewer, rid);
    }
}
