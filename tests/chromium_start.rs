//! How soon a real browser shows its first picture, whoever publishes: the figures are printed, bounds are generous.

#![expect(clippy::disallowed_methods, reason = "real browsers live in real time")]

mod common;

#[path = "common/browser.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod browser;

#[path = "common/ffmpeg.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod ffmpeg;

use std::time::Duration;

use browser::{Browser, DemoPage, PATIENCE, wait_until};
use common::server::Server;
use common::turn;
use ffmpeg::Ffmpeg;

/// Joins `live` by WHEP and writes into `window.joined`: ms from the answer's use to the first decoded frame, and, 2 s
/// later, how many frames were decoded and how many freezes there were.
const JOIN: &str = "
    window.joined = null;
    (async () => {
        const pc = window.pc = new RTCPeerConnection();
        pc.addTransceiver('video', { direction: 'recvonly' });
        pc.addTransceiver('audio', { direction: 'recvonly' });
        await pc.setLocalDescription(await pc.createOffer());
        const headers = { 'content-type': 'application/sdp' };
        const started = performance.now();
        const answer = await fetch('/whep/live', { method: 'POST', headers, body: pc.localDescription.sdp });
        await pc.setRemoteDescription({ type: 'answer', sdp: await answer.text() });
        const video = async () => {
            for (const s of (await pc.getStats()).values()) if (s.type === 'inbound-rtp' && s.kind === 'video') return s;
        };
        let first;
        do {
            await new Promise(done => setTimeout(done, 5));
            first = await video();
        } while (!first?.framesDecoded);
        const ms = performance.now() - started;
        await new Promise(done => setTimeout(done, 2000));
        const later = await video();
        pc.close();
        window.joined = [ms, later.framesDecoded, later.freezeCount, later.totalFreezesDuration];
    })().catch(e => { window.joined = [String(e)]; });
";

/// Joins so often, one after the other; ms to the first decoded frame, ascending.
fn joins(browser: &Browser, server: &Server, count: usize) -> Vec<f64> {
    let page = browser.open(&server.url);
    let mut times = Vec::new();
    for n in 0..count {
        page.run(JOIN, vec![]);
        let joined = wait_until(
            PATIENCE,
            || Some(page.run("return window.joined", vec![])).filter(|j| j.is_array()),
            || "no picture".into(),
        );
        let figure = |i: usize| joined[i].as_f64().unwrap_or_else(|| panic!("{joined}"));
        println!(
            "join {n}: {:.0} ms; 2 s later {} frames, {} freezes of {} s",
            figure(0),
            figure(1),
            figure(2),
            figure(3)
        );
        assert!(figure(1) > 20.0, "it plays on: {joined}");
        times.push(figure(0));
        // Not in step with anything.
        std::thread::sleep(Duration::from_millis(130 * n as u64 % 700));
    }
    times.sort_by(f64::total_cmp);
    println!("p50 {:.0} ms of {times:.0?}", times[count / 2]);
    times
}

#[test]
fn a_viewer_of_a_publisher_that_ignores_keyframe_requests_starts_at_once() {
    let _turn = turn();
    let server = Server::start(&["--shards", "2"]);
    // A keyframe every 10 s.
    let _ffmpeg = Ffmpeg::publish(&format!("{}/whip/live", server.url), 300, &[]);
    server.wait_for_metric("manycast_keyframe_received_total", "", |keyframes| keyframes > 0.0);
    let times = joins(&Browser::start(), &server, 9);
    // Without the past it would be 5 s.
    assert!(times[4] < 1500.0, "{times:?}");
}

#[test]
fn a_viewer_of_a_browser_starts_at_once() {
    let _turn = turn();
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    let publisher = browser.open(&format!("{}/?size=640x360&stream=live#publish", server.url));
    publisher.start("publish");
    let times = joins(&browser, &server, 9);
    assert!(times[4] < 1500.0, "{times:?}");
}
