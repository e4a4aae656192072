//! Clients that cannot be run here, emulated: offers written by hand, and str0m made to behave as they do.

use std::time::Duration;

use hyper::Method;
use manycast::metrics::DropReason;
use manycast::sim::client::{Client, Habits, Source};
use manycast::sim::{Path, World, oracle};
use manycast::wire::classify::{Kind, classify};
use manycast::wire::stun::{self, StunRequest};
use str0m::format::Codec;
use str0m::media::MediaKind;

const SECOND: Duration = Duration::from_secs(1);

struct Emulated {
    /// Below `data/offers/emulated`.
    name: &'static str,
    offer: &'static str,
    /// What the answer must say.
    answered: &'static [&'static str],
}

macro_rules! emulated {
    ($name:literal, $answered:expr) => {
        Emulated {
            name: $name,
            offer: include_str!(concat!("data/offers/emulated/", $name, ".sdp")),
            answered: &$answered,
        }
    };
}

const OPUS: &str = "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n";

/// FFmpeg 8.0's are as its recorded successor's but for what 8.1 corrected: `profile-level-id` has 7 digits, there is no
/// RTX and no feedback. Its group has two mids even where it has one m-line.
const PUBLISHERS: [Emulated; 7] = [
    emulated!(
        "ffmpeg8.0-publish",
        ["a=group:BUNDLE 0 1\r\n", "a=setup:active\r\n", OPUS, "m=video 9 UDP/TLS/RTP/SAVPF 106\r\n", "=42e01f\r\n"]
    ),
    emulated!("ffmpeg8.0-publish-audio", ["a=group:BUNDLE 0\r\n", "a=setup:active\r\n", OPUS]),
    emulated!(
        "ffmpeg8.0-publish-video",
        ["a=group:BUNDLE 1\r\n", "a=setup:active\r\n", "m=video 9 UDP/TLS/RTP/SAVPF 106\r\n"]
    ),
    emulated!("libdatachannel-publish", ["a=setup:passive\r\n", OPUS, "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n"]),
    emulated!("obs32-publish", ["a=setup:passive\r\n", OPUS, "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n"]),
    // Were one of its layers missing, it would give up.
    emulated!(
        "obs32-publish-simulcast",
        [
            "a=setup:passive\r\n",
            OPUS,
            "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n",
            "a=rid:0 recv\r\na=rid:1 recv\r\na=rid:2 recv\r\na=simulcast:recv 0;1;2\r\n"
        ]
    ),
    emulated!(
        "safari18-publish",
        ["a=setup:passive\r\n", OPUS, "m=video 9 UDP/TLS/RTP/SAVPF 96 97 98 99 100 101 102 103 104 105\r\n"]
    ),
];

const VIEWERS: [Emulated; 1] =
    [emulated!("safari18-view", ["a=setup:passive\r\n", OPUS, "a=rtpmap:102 VP8/90000\r\n"])];

#[test]
fn every_emulated_offer_is_answered_whole() {
    let mut world = World::new(1, 1);
    world.publish("live", Source::default(), Path::CLEAN);
    world.run_for(SECOND);
    let check = |world: &mut World, uri: &str, Emulated { name, offer, answered }: Emulated| {
        let response = world.request(Method::POST, uri, offer);
        let answer = std::str::from_utf8(response.body()).expect("text");
        assert_eq!(response.status().as_u16(), 201, "{name}: {answer}");
        for line in answered {
            assert!(answer.contains(line), "{name}: no {line:?} in\n{answer}");
        }
        assert!(!answer.contains(" 0 UDP/TLS"), "{name}: an m-line is refused\n{answer}");
    };
    for offer in PUBLISHERS {
        // A stream each: two of one client on one stream would be one session's offer repeated.
        check(&mut world, &format!("/whip/{}", offer.name), offer);
    }
    for offer in VIEWERS {
        check(&mut world, "/whep/live", offer);
    }
}

/// Always the DTLS server, and no more STUN once it is connected.
const FFMPEG: Habits =
    Habits { offer: |offer| offer.replace("a=setup:actpass", "a=setup:passive"), datagram: as_ffmpeg_8_0 };

fn as_ffmpeg_8_0(client: &Client, data: Vec<u8>) -> Option<Vec<u8>> {
    match classify(&data) {
        Some(Kind::Stun) if client.connected_at.is_some() => None,
        Some(Kind::Stun) => {
            let request = StunRequest::parse(&data).expect("an ICE-lite node is asked, never answered");
            let username = format!("{}:{}", request.local_ufrag(), request.remote_ufrag());
            let pwd = client.answer().lines().find_map(|l| l.strip_prefix("a=ice-pwd:")).expect("in every answer");
            Some(stun::write_ffmpeg_binding_request(&username, pwd, request.transaction_id()))
        }
        // It reads none and writes none.
        Some(Kind::Rtcp) => None,
        _ => Some(data),
    }
}

#[test]
fn ffmpeg_8_0_without_priority_and_without_a_sign_of_ice_publishes_on() {
    for (seed, shards) in [(1, 1), (2, 4)] {
        let mut world = World::new(seed, shards);
        let source = Source { keyframe_interval: 60, answers_pli: false, ..Source::default() };
        let publisher = world.publish_as("a", source, Path::CLEAN, FFMPEG);
        world.run_for(SECOND);
        assert!(world.client(publisher).connected_at.is_some(), "seed {seed}");
        let repaired: u64 = world.counters().iter().map(|c| c.stun_repaired).sum();
        assert!(repaired > 0, "seed {seed}: nothing was out of order");

        let viewer = world.watch("a", Path::CLEAN);
        // Longer than a silent session lives.
        world.run_for(60 * SECOND);
        let judged = oracle::judge(world.client(viewer).got(), MediaKind::Video);
        assert!(judged.faults.is_empty() && judged.missing == 0, "seed {seed}: {judged:?}");
        assert!(judged.packets > 7000, "seed {seed}: {judged:?}");
        let counters = world.counters();
        oracle::conservation(&counters, world.rtp_sent()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// By libdatachannel, H264 alone, and no RTX: what is asked for again comes again as it was. Encoders are told nothing: a
/// keyframe comes every 8 s.
const OBS: Habits = Habits { offer: as_obs_32, ..Habits::NONE };

fn as_obs_32(offer: &str) -> String {
    let (session, video) = offer.split_once("m=video").expect("video comes first");
    let (video, audio) = video.split_once("m=audio").expect("and then audio");
    let constrained_baseline = |l: &&str| l.contains("profile-level-id=42e01f") && l.contains("packetization-mode=1");
    let fmtp = video.lines().find(constrained_baseline).expect("str0m knows H264");
    let pt = fmtp.trim_start_matches("a=fmtp:").split(' ').next().expect("a payload type");
    let is_its_own = |line: &str| {
        let of = ["a=rtpmap:", "a=fmtp:", "a=rtcp-fb:"].iter().find_map(|name| line.strip_prefix(name));
        of.is_none_or(|rest| rest.split(' ').next() == Some(pt))
    };
    let is_unknown =
        |line: &str| ["transport-cc", "transport-wide-cc", "repaired-rtp"].iter().any(|w| line.contains(w));
    let lines = video.lines().skip(1).filter(|line| is_its_own(line) && !is_unknown(line));
    let video: String = lines.flat_map(|line| [line, "\r\n"]).collect();
    format!("{session}m=video 9 UDP/TLS/RTP/SAVPF {pt}\r\n{video}m=audio{audio}")
}

#[test]
fn obs_32_is_repaired_without_rtx_and_its_layer_0_is_the_highest() {
    for (seed, shards, layers) in [(1, 1, 1), (2, 4, 1), (3, 1, 3), (4, 4, 3)] {
        let mut world = World::new(seed, shards);
        let source = Source {
            codec: Codec::H264,
            layers,
            rids: ["2", "1", "0"],
            keyframe_interval: 240,
            answers_pli: false,
            resends_in_band: true,
            ..Source::default()
        };
        let publisher = world.publish_as("a", source, Path { loss: 0.02, ..Path::CLEAN }, OBS);
        let answer = world.client(publisher).answer();
        assert!(!answer.contains("rtx"), "seed {seed}: {answer}");
        world.run_for(SECOND);
        let viewer = world.watch("a", Path::CLEAN);
        world.run_for(60 * SECOND);
        let got = world.client(viewer).got();
        let judged = oracle::judge(got, MediaKind::Video);
        assert!(judged.faults.is_empty() && judged.starts_whole, "seed {seed}: {judged:?}");
        assert!(judged.packets > 6000 && judged.missing <= 2, "seed {seed}: {judged:?}");
        let last = got.iter().rfind(|g| g.kind == MediaKind::Video).expect("some");
        assert_eq!(last.stamp.layer + 1, layers, "seed {seed}");
        let counters = world.counters();
        oracle::conservation(&counters, world.rtp_sent()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// WebKit's libwebrtc probes by padding in the RTX stream while its camera is still opening (str0m#352): packets of an SSRC
/// that nothing tells what it is for.
#[test]
fn safari_that_probes_before_its_first_picture_is_forwarded_whole() {
    for (seed, shards, layers) in [(1, 1, 1), (2, 4, 1), (3, 1, 3), (4, 4, 3)] {
        let mut world = World::new(seed, shards);
        let source = Source { probes_first: true, audio: false, layers, ..Source::default() };
        world.publish("a", source, Path { delay: SECOND / 50, ..Path::CLEAN });
        world.run_for(SECOND / 2);
        let counters = world.counters();
        let probes: u64 = counters.iter().map(|c| c.drops.of(DropReason::RtpDiscarded)).sum();
        let media: u64 = counters.iter().map(|c| c.media_received).sum();
        assert!(probes > 10 && media == 0, "seed {seed}: {probes} probes, {media} packets of media");

        world.run_for(SECOND / 2);
        let viewer = world.watch("a", Path::CLEAN);
        world.run_for(20 * SECOND);
        let got = world.client(viewer).got();
        let judged = oracle::judge(got, MediaKind::Video);
        assert!(judged.faults.is_empty() && judged.starts_whole && judged.missing == 0, "seed {seed}: {judged:?}");
        let counters = world.counters();
        oracle::conservation(&counters, world.rtp_sent()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}
