//! AV1 and VP9 in scalability layers, between pages of a real browser, with and without dependency descriptors, and on a link
//! that narrows.

#![expect(clippy::disallowed_methods, reason = "real browsers live in real time")]

mod common;

#[path = "common/browser.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod browser;

use std::time::{Duration, Instant};

use browser::{Browser, DemoPage, PATIENCE, Page, Stats, wait_until};
use common::relay::Relay;
use common::server::Server;
use serde_json::{Value, json};

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
        window.resource = answer.headers.get('location');
        window.answer = await answer.text();
        // A busy machine looks like a thin link, over which spatial layers are not sent.
        const sdp = window.answer.replace(/(a=fmtp:\\d+ )(?!apt)/g, '$1x-google-min-bitrate=1500;');
        await pc.setRemoteDescription({ type: 'answer', sdp });
    })().catch(e => { window.failed = String(e); });
";

/// The fake camera as `ENCODINGS` say.
const PUBLISH: &str = "async pc => {
    const video = { width: 640, height: 360, frameRate: 30 };
    const stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    const sendEncodings = ENCODINGS;
    const sender = pc.addTransceiver(stream.getVideoTracks()[0], { direction: 'sendonly', sendEncodings });
    const { codecs } = RTCRtpSender.getCapabilities('video');
    sender.setCodecPreferences(codecs.filter(c => c.mimeType === 'CODEC'));
    return '/whip/live';
}";

const AV1: &str = "video/AV1";
const VP9: &str = "video/VP9";

/// 320x180 and 640x360, which depend on each other in key pictures only; Chromium makes no smaller ones of it.
const SPATIAL: &str = "[{ scalabilityMode: 'L2T3_KEY' }]";
const TEMPORAL: &str = "[{ scalabilityMode: 'L1T3' }]";
const SIMULCAST: &str = "[
    { rid: 'l', scaleResolutionDownBy: 2, scalabilityMode: 'L1T2' },
    { rid: 'h', scalabilityMode: 'L1T2' },
]";

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
    negotiate_on(&page, prepare);
    page
}

fn negotiate_on(page: &Page, prepare: &str) {
    page.run(&NEGOTIATE.replace("PREPARE", prepare), vec![]);
}

/// Until its media has come.
fn publish<'a>(browser: &'a Browser, server: &Server, codec: &str, encodings: &str) -> Page<'a> {
    let before = server.metric("manycast_media_received_total", "");
    let page = negotiate(browser, server, &PUBLISH.replace("ENCODINGS", encodings).replace("CODEC", codec));
    wait_until(
        PATIENCE,
        || (server.metric("manycast_media_received_total", "") > before).then_some(()),
        || format!("the publisher sends nothing: {:?}", page.run("return window.failed", vec![])),
    );
    page
}

/// With dependency descriptors or without.
fn watch<'a>(browser: &'a Browser, server: &Server, wanted: bool) -> Page<'a> {
    negotiate(browser, server, &WATCH.replace("WANTED", &wanted.to_string()))
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
    publish(&browser, &server, AV1, TEMPORAL);
    let viewers = [true, false].map(|wanted| watch(&browser, &server, wanted));
    viewers.iter().for_each(|v| wait_for_frames(v, 60.0));
    let accepted = viewers.each_ref().map(|v| v.run("return window.answer.includes('dependency-descriptor')", vec![]));
    assert_eq!(accepted, [Value::Bool(true), Value::Bool(false)]);
    // It takes the stream over; its numbers begin anywhere.
    publish(&browser, &server, AV1, TEMPORAL);
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

#[test]
fn a_viewer_with_descriptors_goes_from_layer_to_layer() {
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    publish(&browser, &server, AV1, SIMULCAST);
    let viewer = watch(&browser, &server, true);
    wait_for_frames(&viewer, 10.0);
    for (rid, height) in [("l", 180.0), ("h", 360.0), ("l", 180.0)] {
        wish(&viewer, json!({ "rid": rid }));
        wait_for_height(&viewer, height);
        wait_for_frames(&viewer, 30.0);
    }
    assert_plays(&viewer, AV1);
}

fn wish(viewer: &Page, wish: Value) {
    let head = "method: 'POST', headers: { 'content-type': 'application/json' }";
    let select = format!(
        "return fetch(window.resource + '/layer', {{ {head}, body: JSON.stringify({wish}) }}).then(r => r.status)"
    );
    // Shards report once a second what there is.
    wait_until(PATIENCE, || (viewer.run(&select, vec![]) == 200).then_some(()), || format!("no layer for {wish}"));
}

fn wait_for_height(viewer: &Page, height: f64) {
    let seen = || stats(viewer).video_in("frameHeight");
    wait_until(
        PATIENCE,
        || (seen() == height).then_some(()),
        || format!("{} lines, not {height}: {:?}", seen(), viewer.run("return window.failed", vec![])),
    );
}

#[track_caller]
fn assert_plays(viewer: &Page, codec: &str) {
    let stats = stats(viewer);
    assert_eq!(stats.codec("inbound-rtp", "video"), Some(codec));
    assert_eq!(stats.video_in("packetsLost"), 0.0);
}

/// From spatial layer to spatial layer, with one key picture for each way up and none for a way down.
fn goes_up_and_down(codec: &str) {
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    let publisher = publish(&browser, &server, codec, SPATIAL);
    let viewer = watch(&browser, &server, true);
    wait_for_frames(&viewer, 10.0);
    wait_for_height(&viewer, 360.0);
    // Chromium 148 counts no key pictures of these codecs when it decodes them.
    let keyframes = || stats(&publisher).video_out("keyFramesEncoded");
    assert!(keyframes() > 0.0, "they are counted");
    for (max_spatial, height, is_up) in [(0, 180.0, false), (1, 360.0, true), (0, 180.0, false)] {
        let before = keyframes();
        wish(&viewer, json!({ "maxSpatialLayerId": max_spatial }));
        wait_for_height(&viewer, height);
        wait_for_frames(&viewer, 30.0);
        assert_eq!(keyframes() > before, is_up, "{codec}, to {max_spatial}: {} key pictures", keyframes() - before);
    }
    assert_plays(&viewer, codec);
}

#[test]
fn a_viewer_of_vp9_goes_up_and_down_its_spatial_layers() {
    goes_up_and_down(VP9);
}

#[test]
fn a_viewer_of_av1_goes_up_and_down_its_spatial_layers() {
    goes_up_and_down(AV1);
}

#[test]
fn temporal_layers_of_av1_are_left_out_for_who_reads_descriptors() {
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    publish(&browser, &server, AV1, TEMPORAL);
    let viewers = [true, false].map(|wanted| watch(&browser, &server, wanted));
    for viewer in &viewers {
        wait_for_frames(viewer, 30.0);
        wish(viewer, json!({ "maxTemporalLayerId": 0 }));
    }
    let [slow, whole] = &viewers;
    // The publisher sends 30 frames a second, of which every fourth is in the base layer.
    let rates = || viewers.each_ref().map(|v| stats(v).video_in("framesPerSecond"));
    wait_until(PATIENCE, || (2.0 * rates()[0] < rates()[1]).then_some(()), || format!("{:?}", rates()));
    [slow, whole].into_iter().for_each(|v| wait_for_frames(v, 20.0));
    for viewer in &viewers {
        assert_eq!(stats(viewer).video_in("packetsLost"), 0.0);
    }
}

/// The estimate has to grow, and an up-switch to wait after the down-switch (`session::bwe`); a busy machine takes longer.
const LINK_PATIENCE: Duration = Duration::from_secs(90);

/// Bits of video a second, over some seconds.
fn bitrate(viewer: &Page) -> f64 {
    let received = || stats(viewer).video_in("bytesReceived") + stats(viewer).video_in("headerBytesReceived");
    let (from, before) = (Instant::now(), received());
    wait_until(PATIENCE, || (from.elapsed() >= Duration::from_secs(4)).then_some(()), String::new);
    8.0 * (received() - before) / from.elapsed().as_secs_f64()
}

#[test]
fn a_link_that_narrows_and_widens_brings_the_spatial_layers_that_fit() {
    let server = Server::start(&["--shards", "2"]);
    let relay = Relay::start(server.udp(), |_, _| false);
    let browser = Browser::start();
    publish(&browser, &server, VP9, SPATIAL);
    let viewer = browser.open(&server.url);
    viewer.send_through(relay.addr, server.udp());
    negotiate_on(&viewer, &WATCH.replace("WANTED", "false"));
    let wait_for_width = |width: f64| {
        let (from, seen) = (Instant::now(), || stats(&viewer).video_in("frameWidth"));
        wait_until(LINK_PATIENCE, || (seen() == width).then_some(()), || format!("{} wide, not {width}", seen()));
        from.elapsed()
    };
    wait_for_width(640.0);
    let whole = bitrate(&viewer);
    wish(&viewer, json!({ "maxSpatialLayerId": 0 }));
    wait_for_width(320.0);
    let lower = bitrate(&viewer);
    wish(&viewer, json!({}));
    wait_for_width(640.0);
    let frozen = || stats(&viewer).video_in("freezeCount");
    let before = frozen();
    relay.narrow((whole + lower) as u64 / 2);
    let down = wait_for_width(320.0);
    wait_for_frames(&viewer, 60.0);
    relay.narrow(0);
    let up = wait_for_width(640.0);
    wait_for_frames(&viewer, 60.0);
    let freezes = frozen() - before;
    eprintln!("{lower:.0} of {whole:.0} bit/s; down {down:?}, up {up:?}, {freezes} freezes");
    // The link's queue may hold a keyframe for a second.
    assert!(freezes <= 4.0, "{freezes} freezes");
}
