//! AV1 in temporal layers between two real browsers, with and without its dependency descriptors.

#![expect(clippy::disallowed_methods, reason = "real browsers live in real time")]

mod common;

#[path = "common/browser.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod browser;

use browser::{Browser, DemoPage, PATIENCE, Page, Stats, wait_until};
use common::server::Server;
use serde_json::Value;

/// Offers what `prepare` has made of `pc`, and takes the answer.
const NEGOTIATE: &str = "
    (async () => {
        const pc = window.pc = new RTCPeerConnection();
        const path = await (PREPARE)(pc);
        await pc.setLocalDescription(await pc.createOffer());
        await new Promise(done => {
            pc.onicegatheringstatechange = () => pc.iceGatheringState === 'complete' && done();
            if (pc.iceGatheringState === 'complete') done();
        });
        const headers = { 'content-type': 'application/sdp' };
        const answer = await fetch(path, { method: 'POST', headers, body: pc.localDescription.sdp });
        window.answer = await answer.text();
        await pc.setRemoteDescription({ type: 'answer', sdp: window.answer });
    })().catch(e => { window.failed = String(e); });
";

/// The fake camera in three temporal layers.
const PUBLISH: &str = "async pc => {
    const video = { width: 320, height: 180, frameRate: 30 };
    const stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    const sendEncodings = [{ scalabilityMode: 'L1T3' }];
    const sender = pc.addTransceiver(stream.getVideoTracks()[0], { direction: 'sendonly', sendEncodings });
    const { codecs } = RTCRtpSender.getCapabilities('video');
    sender.setCodecPreferences(codecs.filter(c => c.mimeType === 'video/AV1'));
    return '/whip/live';
}";

const WATCH: &str = "async pc => {
    const receiver = pc.addTransceiver('video', { direction: 'recvonly' });
    const extensions = receiver.getHeaderExtensionsToNegotiate();
    const descriptor = extensions.find(e => e.uri.includes('dependency-descriptor'));
    descriptor.direction = WANTED ? 'sendrecv' : 'stopped';
    receiver.setHeaderExtensionsToNegotiate(extensions);
    return '/whep/live';
}";

fn negotiate<'a>(browser: &'a Browser, server: &Server, prepare: &str) -> Page<'a> {
    let page = browser.open(&server.url);
    page.run(&NEGOTIATE.replace("PREPARE", prepare), vec![]);
    page
}

fn stats(page: &Page) -> Stats {
    let script = "return (async () => [...(await window.pc.getStats()).values()])()";
    let Value::Array(records) = page.run(script, vec![]) else { panic!("no statistics") };
    Stats(records)
}

fn wait_for_frames(page: &Page, frames: f64) {
    let decoded = || stats(page).video_in("framesDecoded");
    let before = decoded();
    let enough = || (decoded() >= before + frames).then_some(());
    wait_until(PATIENCE, enough, || {
        format!("{} after {before}: {:?}", decoded(), page.run("return window.failed", vec![]))
    });
}

#[test]
fn descriptors_reach_who_wants_them_and_go_on_across_publishers() {
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    negotiate(&browser, &server, PUBLISH);
    wait_until(
        PATIENCE,
        || (server.metric("manycast_media_received_total", "") > 0.0).then_some(()),
        || "the publisher sends nothing".into(),
    );
    let viewers = ["true", "false"].map(|wanted| negotiate(&browser, &server, &WATCH.replace("WANTED", wanted)));
    viewers.iter().for_each(|v| wait_for_frames(v, 60.0));
    let accepted = viewers.each_ref().map(|v| v.run("return window.answer.includes('dependency-descriptor')", vec![]));
    assert_eq!(accepted, [Value::Bool(true), Value::Bool(false)]);
    // It takes the stream over; its numbers begin anywhere.
    negotiate(&browser, &server, PUBLISH);
    viewers.iter().for_each(|v| wait_for_frames(v, 120.0));
    let [with, without] = viewers.each_ref().map(stats);
    for stats in [&with, &without] {
        assert_eq!(stats.codec("inbound-rtp", "video"), Some("video/AV1"));
        assert_eq!(stats.video_in("packetsLost"), 0.0);
    }
    // Three bytes and the element's head at least, for each packet.
    let header_bytes = |s: &Stats| s.video_in("headerBytesReceived") / s.video_in("packetsReceived");
    assert!(header_bytes(&with) >= header_bytes(&without) + 3.0, "{} {}", header_bytes(&with), header_bytes(&without));
}
