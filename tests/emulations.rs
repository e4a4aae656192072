//! Clients that cannot be run here, emulated: offers written by hand, and str0m made to behave as they do.

use std::time::Duration;

use hyper::Method;
use manycast::sim::client::{Client, Habits, Source};
use manycast::sim::{Path, World, oracle};
use manycast::wire::classify::{Kind, classify};
use manycast::wire::stun::{self, StunRequest};
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
    emulated!("obs32-publish-simulcast", ["a=setup:passive\r\n", OPUS, "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n"]),
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
