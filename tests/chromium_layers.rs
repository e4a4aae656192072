//! A real browser's simulcast: three layers in, the right one out, and viewers that start at once.

#![expect(clippy::disallowed_methods, reason = "real browsers live in real time")]

mod common;

#[path = "common/browser.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod browser;

use browser::{Browser, DemoPage, PATIENCE, Page, wait_until};
use common::server::Server;

/// Publishes the fake camera in three layers: 320x180, 640x360, 1280x720.
const PUBLISH: &str = "
    (async () => {
        const video = { width: 1280, height: 720, frameRate: 30 };
        const stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
        const pc = window.pc = new RTCPeerConnection();
        const sendEncodings = [
            { rid: 'l', scaleResolutionDownBy: 4, maxBitrate: 150000 },
            { rid: 'm', scaleResolutionDownBy: 2, maxBitrate: 500000 },
            { rid: 'h', maxBitrate: 1500000 },
        ];
        pc.addTransceiver(stream.getVideoTracks()[0], { direction: 'sendonly', sendEncodings });
        await pc.setLocalDescription(await pc.createOffer());
        await new Promise(done => {
            pc.onicegatheringstatechange = () => pc.iceGatheringState === 'complete' && done();
            if (pc.iceGatheringState === 'complete') done();
        });
        const headers = { 'content-type': 'application/sdp' };
        const answer = await fetch('/whip/live', { method: 'POST', headers, body: pc.localDescription.sdp });
        await pc.setRemoteDescription({ type: 'answer', sdp: await answer.text() });
    })().catch(e => { window.failed = String(e); });
";

fn publish<'a>(browser: &'a Browser, server: &Server) -> Page<'a> {
    let page = browser.open(&server.url);
    page.run(PUBLISH, vec![]);
    page
}

fn watch<'a>(browser: &'a Browser, server: &Server) -> Page<'a> {
    let page = browser.open(&format!("{}/?stream=live#watch", server.url));
    page.click("watch-start");
    page.wait_for_state("watch", "live");
    page
}

fn wait_for_height(page: &Page, height: f64) {
    let seen = || page.stats("watch").video_in("frameHeight");
    wait_until(PATIENCE, || (seen() == height).then_some(()), || format!("{} lines, not {height}", seen()));
}

#[test]
fn the_highest_of_three_layers_is_shown() {
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    let publisher = publish(&browser, &server);
    wait_until(
        PATIENCE,
        || (server.metric("manycast_media_received_total", "") > 0.0).then_some(()),
        || format!("{:?}", publisher.run("return window.failed", vec![])),
    );
    let viewer = watch(&browser, &server);
    wait_for_height(&viewer, 720.0);
    viewer.wait_for_frames("watch", PATIENCE, 60.0);
    assert_eq!(viewer.stats("watch").video_in("packetsLost"), 0.0);
}
