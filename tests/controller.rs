//! The controller under virtual time: a test plays the clients and the shards.

#[path = "controller/events.rs"]
mod events;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use rand::SeedableRng;
use rand::rngs::StdRng;
use str0m::media::MediaKind;

use manycast::config::{Config, Flags};
use manycast::control::{Controller, Output, Part, Request, Response};
use manycast::id::{Generation, SessionId, ShardId};
use manycast::session::negotiate::PeerConfig;
use manycast::session::{CloseReason, IceRestart};
use manycast::shard::message::{Command, Event, Report, RequestId, TrackReport};
use manycast::shard::placement::Slot;
use manycast::srtp::dtls::{Certificate, crypto_provider};
use manycast::units::{Epoch, Instant};
use manycast::wire::codec::Format;
use manycast::wire::sdp::Offer;

const PUBLISH: &str = include_str!("data/offers/chromium-publish-vp8.sdp");
const VIEW: &str = include_str!("data/offers/chromium-view.sdp");
const FFMPEG: &str = include_str!("data/offers/ffmpeg-publish-h264.sdp");
const GST_VIEW: &str = include_str!("data/offers/gst-view-vp8.sdp");

const SDP: (&str, &str) = ("content-type", "application/sdp");
const FRAGMENT: (&str, &str) = ("content-type", "application/trickle-ice-sdpfrag");
const SHARDS: u16 = 2;

/// A controller with its shards and clients.
struct World {
    controller: Controller,
    now: Instant,
    requests: u64,
    /// Who the next requests come from.
    peer: IpAddr,
    commands: Vec<(ShardId, Command)>,
    answers: Vec<(RequestId, Response)>,
    parts: Vec<(RequestId, Part)>,
    slots: Vec<Arc<Slot>>,
}

#[expect(clippy::disallowed_methods, reason = "any epoch will do")]
fn peer_config() -> PeerConfig {
    PeerConfig {
        epoch: Epoch::new(std::time::Instant::now()),
        candidates: Arc::from([([127, 0, 0, 1], 8080).into()]),
        tcp_candidates: Arc::default(),
        crypto: crypto_provider(),
        certificate: Certificate::generate().expect("a certificate"),
    }
}

impl World {
    fn new(settings: &str) -> World {
        let config = Config::resolve(Flags::default(), Some(settings)).expect("settings");
        World {
            controller: Controller::new(config, peer_config(), SHARDS, StdRng::seed_from_u64(7)),
            now: Instant::ZERO,
            requests: 0,
            peer: [203, 0, 113, 1].into(),
            commands: Vec::new(),
            answers: Vec::new(),
            parts: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// Collects what the controller says. Slots that are announced first are remembered.
    fn drain(&mut self) {
        while let Some(output) = self.controller.poll_output() {
            match output {
                Output::Command(shard, command) => {
                    if let Command::Announce { slot, .. } = &command
                        && !self.slots.iter().any(|s| s.session == slot.session)
                    {
                        self.slots.push(slot.clone());
                    }
                    self.commands.push((shard, command));
                }
                Output::Stream(id, part) => self.parts.push((id, part)),
                Output::Respond(id, response) => self.answers.push((id, response)),
            }
        }
    }

    fn send(&mut self, method: Method, uri: &str, headers: &[(&str, &str)], body: &str) -> RequestId {
        self.requests += 1;
        let mut map = HeaderMap::new();
        map.insert("host", HeaderValue::from_static("sfu.example"));
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).expect("a name");
            map.insert(name, HeaderValue::from_str(value).expect("text"));
        }
        let request = Request {
            method,
            uri: uri.parse().expect("a path"),
            headers: map,
            body: Bytes::copy_from_slice(body.as_bytes()),
            peer: self.peer,
            local: ([127, 0, 0, 1], 8080).into(),
        };
        let id = RequestId(self.requests);
        self.controller.handle_request(self.now, id, request);
        self.drain();
        id
    }

    /// A request that is answered at once.
    fn ask(&mut self, method: Method, uri: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let id = self.send(method, uri, headers, body);
        self.answer(id).expect("an answer at once")
    }

    fn answer(&mut self, id: RequestId) -> Option<Response> {
        let at = self.answers.iter().position(|(known, _)| *known == id)?;
        Some(self.answers.remove(at).1)
    }

    fn post(&mut self, uri: &str, offer: &str) -> Response {
        self.ask(Method::POST, uri, &[SDP], offer)
    }

    fn event(&mut self, event: Event) {
        self.controller.handle_event(self.now, ShardId(0), event);
        self.drain();
    }

    fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        while self.controller.next_timeout() <= until {
            self.now = self.now.max(self.controller.next_timeout());
            self.controller.handle_timeout(self.now);
            self.drain();
        }
        self.now = until;
    }

    /// The session that was announced last.
    fn last(&self) -> Arc<Slot> {
        self.slots.last().expect("a session").clone()
    }

    /// Its client connects to shard 0.
    fn connect(&mut self, slot: &Slot) {
        slot.adopt(ShardId(0)).expect("waiting");
        self.event(Event::Connected { session: slot.session });
    }

    /// Its first packets arrive: Opus and VP8.
    fn activate(&mut self, slot: &Slot, generation: u64) {
        let (session, stream) = (slot.session, slot.stream.id);
        for (kind, format) in [(MediaKind::Audio, Format::OPUS), (MediaKind::Video, Format::VP8)] {
            self.event(Event::TrackStarted { session, stream, kind, format });
        }
        self.event(Event::PublisherActive { session, stream, generation: Generation(generation) });
    }

    /// A stream that is live, by a publisher of its own.
    fn live(&mut self, stream: &str) -> Arc<Slot> {
        self.live_at(stream).0
    }

    /// As [`Self::live`], with its URL.
    fn live_at(&mut self, stream: &str) -> (Arc<Slot>, String) {
        let created = self.post(&format!("/whip/{stream}"), &other(PUBLISH, self.requests));
        assert_eq!(created.status(), StatusCode::CREATED, "{created:?}");
        let slot = self.last();
        self.connect(&slot);
        self.activate(&slot, 1);
        (slot, path(&created))
    }

    fn streams(&mut self) -> serde_json::Value {
        let local = [("host", "localhost")];
        let peer = std::mem::replace(&mut self.peer, [127, 0, 0, 1].into());
        let listed = self.ask(Method::GET, "/api/streams", &local, "");
        self.peer = peer;
        serde_json::from_slice(listed.body()).expect("json")
    }

    fn closed(&mut self) -> Vec<(SessionId, CloseReason)> {
        let commands = std::mem::take(&mut self.commands);
        commands
            .into_iter()
            .filter_map(|(_, c)| match c {
                Command::Close { session, reason } => Some((session, reason)),
                _ => None,
            })
            .collect()
    }

    /// Ufrags that every shard was told to forget.
    fn forgotten(&mut self) -> Vec<String> {
        let forget = |shard: u16| {
            self.commands.iter().filter_map(move |(s, c)| match c {
                Command::Forget { ufrag } if *s == ShardId(shard) => Some(ufrag.clone()),
                _ => None,
            })
        };
        let first: Vec<String> = forget(0).collect();
        assert_eq!(first, forget(1).collect::<Vec<_>>(), "all shards are told the same");
        self.commands.clear();
        first
    }
}

/// The same offer by another client.
fn other(offer: &str, n: u64) -> String {
    let parsed = Offer::parse(offer).expect("recorded");
    offer.replace(&parsed.ice_ufrag, &format!("ufrag{n}"))
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |v| v.to_str().expect("text"))
}

fn path(response: &Response) -> String {
    header(response, "location").strip_prefix("http://sfu.example").expect("absolute").to_owned()
}

fn body(response: &Response) -> &str {
    std::str::from_utf8(response.body()).expect("text")
}

#[test]
fn a_publisher_is_answered_and_expected_by_every_shard() {
    let mut world = World::new("");
    let created = world.post("/whip/cam", PUBLISH);
    assert_eq!(created.status(), StatusCode::CREATED, "{created:?}");
    let token = path(&created).strip_prefix("/whip/cam/").expect("below the endpoint").to_owned();
    assert_eq!(token.len(), 22);
    assert_eq!(header(&created, "content-type"), "application/sdp");
    assert!(header(&created, "etag").starts_with('"'));
    assert_eq!(header(&created, "access-control-allow-origin"), "*");
    let answer = body(&created);
    for line in ["a=recvonly\r\n", "a=ice-lite\r\n", "a=setup:passive\r\n", "a=end-of-candidates\r\n", "stereo=1"] {
        assert!(answer.contains(line), "{line:?} not in\n{answer}");
    }
    assert!(answer.len() < 8192);
    let ufrags: Vec<_> = world
        .commands
        .iter()
        .map(|(shard, c)| match c {
            Command::Announce { ufrag, .. } => (*shard, ufrag.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ufrags.len(), usize::from(SHARDS));
    assert!(ufrags.iter().all(|(_, u)| answer.contains(&format!("a=ice-ufrag:{u}\r\n"))));
}

#[test]
fn every_recorded_offer_is_answered_whole() {
    let offers = [
        (include_str!("data/offers/aiortc-publish.sdp"), "whip"),
        (include_str!("data/offers/aiortc-view.sdp"), "whep"),
        (include_str!("data/offers/chromium-publish-simulcast.sdp"), "whip"),
        (PUBLISH, "whip"),
        (VIEW, "whep"),
        (FFMPEG, "whip"),
        (include_str!("data/offers/firefox153-publish.sdp"), "whip"),
        (include_str!("data/offers/firefox153-publish-simulcast.sdp"), "whip"),
        (include_str!("data/offers/firefox153-view.sdp"), "whep"),
        (include_str!("data/offers/gst-publish-vp8.sdp"), "whip"),
        (GST_VIEW, "whep"),
    ];
    for (offer, endpoint) in offers {
        let mut world = World::new("");
        world.live("cam");
        let created = world.post(&format!("/{endpoint}/cam"), offer);
        assert_eq!(created.status(), StatusCode::CREATED, "{offer}\n{}", body(&created));
        let answer = body(&created);
        assert!(answer.len() < 8192, "{} bytes", answer.len());
        let count = |what: &str| answer.matches(what).count();
        assert_eq!((count("m="), count("m=audio 9 ") + count("m=video 9 ")), (2, 2), "{answer}");
        let streams: std::collections::BTreeSet<&str> =
            answer.lines().filter_map(|l| l.strip_prefix("a=msid:")?.split(' ').next()).collect();
        assert!(streams.len() <= 1, "{answer}");
        let cnames: std::collections::BTreeSet<&str> =
            answer.lines().filter_map(|l| l.strip_prefix("a=ssrc:")?.split_once(" cname:").map(|(_, c)| c)).collect();
        assert!(cnames.len() <= 1, "{answer}");
        let setup = if offer == FFMPEG { "a=setup:active\r\n" } else { "a=setup:passive\r\n" };
        assert!(answer.contains(setup), "{answer}");
    }
}

#[test]
fn the_same_offer_within_ten_seconds_is_the_same_session() {
    let mut world = World::new("");
    let first = world.post("/whip/cam", PUBLISH);
    world.advance(Duration::from_secs(9));
    let again = world.post("/whip/cam", PUBLISH);
    assert_eq!((first.status(), body(&first), path(&first)), (again.status(), body(&again), path(&again)));
    assert_eq!(header(&first, "etag"), header(&again, "etag"));
    assert_ne!(path(&world.post("/whip/other", PUBLISH)), path(&first));
    world.advance(Duration::from_secs(2));
    assert_ne!(path(&world.post("/whip/cam", PUBLISH)), path(&first));
}

#[test]
fn a_viewer_needs_a_publisher_that_sends() {
    let mut world = World::new("");
    let refused = |world: &mut World| {
        let response = world.post("/whep/cam", VIEW);
        assert_eq!((response.status(), header(&response, "retry-after")), (StatusCode::CONFLICT, "2"));
    };
    refused(&mut world);
    let _ = world.post("/whip/cam", PUBLISH);
    refused(&mut world);
    let publisher = world.last();
    world.connect(&publisher);
    refused(&mut world);
    world.activate(&publisher, 1);
    assert_eq!(world.post("/whep/cam", VIEW).status(), StatusCode::CREATED);
    world.event(Event::Ended { session: publisher.session, reason: CloseReason::ClosedByPeer });
    world.advance(Duration::from_secs(11));
    refused(&mut world);
}

#[test]
fn a_later_publisher_replaces_the_earlier_one_with_its_first_media() {
    let mut world = World::new("");
    let first = world.live("cam");
    let _ = world.post("/whip/cam", FFMPEG);
    let second = world.last();
    assert_eq!(first.stream.id, second.stream.id);
    assert_eq!(world.closed(), []);
    world.connect(&second);
    assert_eq!(world.closed(), [], "DTLS alone replaces nobody");
    world.activate(&second, 2);
    assert_eq!(world.closed(), [(first.session, CloseReason::TakenOver)]);
    world.event(Event::Ended { session: first.session, reason: CloseReason::TakenOver });
    assert_eq!(world.post("/whep/cam", VIEW).status(), StatusCode::CREATED, "the stream is live all the time");
    // A straggler that was overtaken.
    let _ = world.post("/whip/cam", &other(PUBLISH, 99));
    let third = world.last();
    world.connect(&third);
    world.event(Event::PublisherActive { session: third.session, stream: third.stream.id, generation: Generation(1) });
    assert_eq!(world.closed(), [(third.session, CloseReason::TakenOver)]);
}

#[test]
fn a_client_that_never_comes_is_forgotten_after_forty_seconds() {
    let mut world = World::new("");
    let created = world.post("/whip/cam", PUBLISH);
    let slot = world.last();
    world.commands.clear();
    world.advance(Duration::from_secs(39));
    assert!(slot.with_waiting(|_| ()).is_some());
    world.advance(Duration::from_secs(1));
    assert!(slot.with_waiting(|_| ()).is_none());
    assert_eq!(world.forgotten().len(), 1);
    assert_eq!(world.ask(Method::DELETE, &path(&created), &[], "").status(), StatusCode::OK);
    // One that was adopted but did not finish DTLS is its shard's to close.
    let _ = world.post("/whip/cam", PUBLISH);
    let slot = world.last();
    slot.adopt(ShardId(1)).expect("waiting");
    world.advance(Duration::from_secs(40));
    assert_eq!(world.closed(), [(slot.session, CloseReason::NeverConnected)]);
}

#[test]
fn viewers_wait_thirty_seconds_for_the_next_publisher() {
    let mut world = World::new("");
    let publisher = world.live("cam");
    let _ = world.post("/whep/cam", VIEW);
    let viewer = world.last();
    world.connect(&viewer);
    world.event(Event::Ended { session: publisher.session, reason: CloseReason::Dead });
    world.advance(Duration::from_secs(29));
    assert_eq!(world.closed(), []);
    let _ = world.post("/whip/cam", &other(PUBLISH, 50));
    let back = world.last();
    assert_eq!(back.stream.id, viewer.stream.id, "the stream is still the same");
    world.connect(&back);
    world.activate(&back, 2);
    world.advance(Duration::from_secs(30));
    assert_eq!(world.closed(), []);
    world.event(Event::Ended { session: back.session, reason: CloseReason::Dead });
    world.advance(Duration::from_secs(30));
    assert_eq!(world.closed(), [(viewer.session, CloseReason::NoPublisher)]);
    world.event(Event::Ended { session: viewer.session, reason: CloseReason::NoPublisher });
    assert_eq!(world.streams()["streams"], serde_json::json!([]), "nothing is left");
}

#[test]
fn a_legacy_viewer_waits_a_minute_for_the_first_publisher() {
    let mut world = World::new("");
    let answered = world.ask(Method::POST, "/sdp", &[], VIEW);
    assert_eq!(answered.status(), StatusCode::OK, "{}", body(&answered));
    let viewer = world.last();
    world.connect(&viewer);
    world.advance(Duration::from_secs(59));
    assert_eq!(world.closed(), []);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.closed(), [(viewer.session, CloseReason::NoPublisher)]);
}

#[test]
fn delete_ends_a_session_and_may_be_repeated_for_a_minute() {
    let mut world = World::new("");
    let created = world.post("/whip/cam", PUBLISH);
    let url = path(&created);
    world.commands.clear();
    assert_eq!(world.ask(Method::DELETE, &url, &[("if-match", "\"x\"")], "").status(), StatusCode::OK);
    assert_eq!(world.forgotten().len(), 1);
    assert_eq!(world.ask(Method::DELETE, &url, &[], "").status(), StatusCode::OK);
    assert_eq!(world.ask(Method::PATCH, &url, &[FRAGMENT], "a=x").status(), StatusCode::NOT_FOUND);
    world.advance(Duration::from_secs(61));
    assert_eq!(world.ask(Method::DELETE, &url, &[], "").status(), StatusCode::NOT_FOUND);

    let (publisher, url) = world.live_at("cam");
    world.commands.clear();
    assert_eq!(world.ask(Method::DELETE, &url, &[], "").status(), StatusCode::OK);
    assert_eq!(world.closed(), [(publisher.session, CloseReason::Deleted)]);
    assert_eq!(world.ask(Method::DELETE, &url, &[], "").status(), StatusCode::OK, "while it closes");
    assert_eq!(world.ask(Method::GET, &url, &[], "").status(), StatusCode::NOT_FOUND);
    world.advance(Duration::from_secs(5));
    assert_eq!(world.streams()["streams"], serde_json::json!([]), "a shard that says nothing is not waited for");
}

#[test]
fn candidates_trickle_to_wherever_the_session_is() {
    let mut world = World::new("");
    let created = world.post("/whip/cam", PUBLISH);
    let (url, etag) = (path(&created), header(&created, "etag").to_owned());
    let fragment =
        |n: u32| format!("m=audio 9 UDP/TLS/RTP/SAVPF 0\na=mid:0\na=candidate:{n} 1 udp 7 127.0.0.1 {n} typ host\n");
    let patch = |world: &mut World, headers: &[(&str, &str)], text: &str| {
        let mut all = vec![FRAGMENT];
        all.extend_from_slice(headers);
        let response = world.ask(Method::PATCH, &url, &all, text);
        assert_eq!(header(&response, "access-control-allow-origin"), "*");
        (response.status().as_u16(), header(&response, "etag").to_owned())
    };
    assert_eq!(patch(&mut world, &[("if-match", &etag)], &fragment(1)), (204, String::new()));
    assert_eq!(patch(&mut world, &[("if-match", "*")], &fragment(2)).0, 204);
    assert_eq!(patch(&mut world, &[], &fragment(3)).0, 204, "medooze sends no If-Match");
    assert_eq!(patch(&mut world, &[("if-match", "\"other\"")], &fragment(4)), (412, etag.clone()));
    assert_eq!(patch(&mut world, &[], "nonsense").0, 400);
    assert_eq!(patch(&mut world, &[("content-type", "application/sdp")], &fragment(1)).0, 415);
    let slot = world.last();
    world.connect(&slot);
    world.commands.clear();
    assert_eq!(patch(&mut world, &[], &fragment(5)).0, 204);
    assert!(matches!(
        &world.commands[..],
        [(ShardId(0), Command::AddCandidates { candidates, .. })] if candidates[0].ends_with("127.0.0.1 5 typ host")
    ));
    world.commands.clear();
    for _ in 0..10 {
        let many: String = (100..110).map(fragment).collect();
        patch(&mut world, &[], &many);
    }
    let all = world.commands.iter().map(|(_, c)| match c {
        Command::AddCandidates { candidates, .. } => candidates.len(),
        _ => 0,
    });
    assert_eq!(all.sum::<usize>(), 32 - 4, "a session takes 32 in all");
}

#[test]
fn ice_restarts_before_and_after_adoption() {
    let mut world = World::new("");
    let created = world.post("/whip/cam", PUBLISH);
    let (url, first_etag) = (path(&created), header(&created, "etag").to_owned());
    let slot = world.last();
    let fragment = |ufrag: &str| format!("a=ice-ufrag:{ufrag}\r\na=ice-pwd:0123456789012345678901\r\na=mid:0\r\n");
    world.commands.clear();

    let restarted = world.ask(Method::PATCH, &url, &[FRAGMENT, ("if-match", &first_etag)], &fragment("next"));
    assert_eq!(restarted.status(), StatusCode::OK, "{}", body(&restarted));
    assert_eq!(header(&restarted, "content-type"), "application/trickle-ice-sdpfrag");
    let second_etag = header(&restarted, "etag").to_owned();
    assert_ne!(second_etag, first_etag);
    let announced: Vec<String> = world
        .commands
        .iter()
        .filter_map(|(_, c)| match c {
            Command::Announce { ufrag, pwd, .. } => Some(format!("a=ice-ufrag:{ufrag}\r\na=ice-pwd:{pwd}\r\n")),
            _ => None,
        })
        .collect();
    assert_eq!(announced.len(), 2);
    assert!(body(&restarted).contains(&announced[0]) && !body(&created).contains(&announced[0]));
    assert!(!body(&restarted).contains(" ufrag "), "candidates must not name the old generation");

    // The answer got lost: the same again.
    let again = world.ask(Method::PATCH, &url, &[FRAGMENT, ("if-match", &first_etag)], &fragment("next"));
    assert_eq!((again.status(), body(&again)), (StatusCode::OK, body(&restarted)));
    let stale = world.ask(Method::PATCH, &url, &[FRAGMENT, ("if-match", &first_etag)], &fragment("third"));
    assert_eq!((stale.status(), header(&stale, "etag")), (StatusCode::PRECONDITION_FAILED, second_etag.as_str()));
    let straggler = world.ask(Method::PATCH, &url, &[FRAGMENT], &fragment("CgqI"));
    assert_eq!(straggler.status(), StatusCode::NO_CONTENT, "candidates from before the restart");

    // Both ufrags are good for 30 s.
    world.connect(&slot);
    world.commands.clear();
    world.advance(Duration::from_secs(29));
    assert_eq!(world.forgotten(), [""; 0]);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.forgotten().len(), 1);

    // Now a shard has it.
    let id = world.send(Method::PATCH, &url, &[FRAGMENT, ("if-match", "*")], &fragment("third"));
    assert!(world.answer(id).is_none());
    assert!(matches!(&world.commands[..], [(ShardId(0), Command::RestartIce { .. })]));
    let busy = world.ask(Method::PATCH, &url, &[FRAGMENT], &fragment("fourth"));
    assert_eq!(busy.status(), StatusCode::SERVICE_UNAVAILABLE);
    let result = Ok(IceRestart { ufrag: "ours".into(), pwd: "secret".into() });
    world.event(Event::IceRestarted { session: slot.session, request: id, result });
    let answer = world.answer(id).expect("answered");
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(body(&answer).contains("a=ice-ufrag:ours\r\na=ice-pwd:secret\r\n"));

    let id = world.send(Method::PATCH, &url, &[FRAGMENT], &fragment("fifth"));
    world.event(Event::IceRestarted { session: slot.session, request: id, result: Err("no".into()) });
    assert_eq!(world.answer(id).expect("answered").status(), StatusCode::UNPROCESSABLE_ENTITY);
    let id = world.send(Method::PATCH, &url, &[FRAGMENT], &fragment("sixth"));
    world.advance(Duration::from_secs(5));
    assert_eq!(world.answer(id).expect("answered").status(), StatusCode::SERVICE_UNAVAILABLE);
    let id = world.send(Method::PATCH, &url, &[FRAGMENT], &fragment("seventh"));
    world.event(Event::Ended { session: slot.session, reason: CloseReason::ClosedByPeer });
    assert_eq!(world.answer(id).expect("answered").status(), StatusCode::NOT_FOUND);
}

#[test]
fn a_legacy_offer_does_what_it_can_and_what_is_needed() {
    let mut world = World::new("max-unestablished-per-ip = 100");
    let both = PUBLISH.replace("a=sendonly", "a=sendrecv");
    let role = |world: &mut World, offer: &str, uri: &str| {
        let before = world.slots.len();
        let answered = world.ask(Method::POST, uri, &[], offer);
        assert_eq!(answered.status(), StatusCode::OK, "{}", body(&answered));
        assert_eq!(world.slots.len(), before + 1);
        assert_eq!(header(&answered, "x-session").len(), 22);
        path(&answered)[1..5].to_owned()
    };
    assert_eq!(role(&mut world, VIEW, "/sdp"), "whep");
    assert_eq!(role(&mut world, &both, "/sdp"), "whip");
    let publisher = world.last();
    assert_eq!(role(&mut world, &other(&both, 1), "/"), "whep", "one is on its way");
    world.connect(&publisher);
    world.activate(&publisher, 1);
    world.advance(Duration::from_millis(1900));
    assert_eq!(role(&mut world, &other(&both, 2), "/sdp"), "whep");
    world.advance(Duration::from_millis(200));
    assert_eq!(role(&mut world, &other(&both, 3), "/sdp"), "whip", "silent for 2 s");
    let track = TrackReport {
        stream: publisher.stream.id,
        kind: MediaKind::Video,
        format: Format::VP8,
        packets: 1,
        bytes: 1,
        last_packet: world.now,
    };
    world.event(Event::Report(Box::new(report(world.now, vec![track]))));
    assert_eq!(role(&mut world, &other(&both, 4), "/sdp"), "whep", "it sends again");
    assert_eq!(role(&mut world, &other(PUBLISH, 5), "/sdp"), "whip", "sendonly takes over");
    assert_eq!(role(&mut world, &other(&both, 6), "/sdp?role=publish"), "whip");
    assert_eq!(role(&mut world, &other(&both, 7), "/sdp?role=view&stream=else"), "whep");
    let wrong = world.ask(Method::POST, "/sdp?role=publish", &[], VIEW);
    assert_eq!(wrong.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(header(&wrong, "content-type"), "text/plain; charset=utf-8");
    assert_eq!(body(&wrong).lines().count(), 1);
    let h264 = world.ask(Method::POST, "/sdp?stream=h264", &[], FFMPEG);
    assert_eq!(h264.status(), StatusCode::UNPROCESSABLE_ENTITY, "publishers of this endpoint send VP8");
}

fn report(at: Instant, tracks: Vec<TrackReport>) -> Report {
    let figures = manycast::metrics::ShardFigures {
        shard: ShardId(0),
        counters: Default::default(),
        publishers: 1,
        viewers: 0,
        backend: Vec::new(),
    };
    Report { at, figures, tracks, layers: Vec::new() }
}

#[test]
fn streams_are_listed_with_what_they_carry() {
    let mut world = World::new("view-token = \"look\"");
    let publisher = world.live("cam");
    let mut track = TrackReport {
        stream: publisher.stream.id,
        kind: MediaKind::Video,
        format: Format::VP8,
        packets: 10,
        bytes: 1_000,
        last_packet: world.now,
    };
    world.event(Event::Report(Box::new(report(world.now, vec![track]))));
    world.advance(Duration::from_secs(1));
    track.bytes += 125_000;
    track.last_packet = world.now;
    world.event(Event::Report(Box::new(report(world.now, vec![track]))));
    let listed = world.ask(Method::GET, "/api/streams", &[("authorization", "Bearer look")], "");
    let json: serde_json::Value = serde_json::from_slice(listed.body()).expect("json");
    let stream = &json["streams"][0];
    assert_eq!((stream["name"].as_str(), stream["live"].as_bool()), (Some("cam"), Some(true)));
    assert_eq!(stream["tracks"][1]["codec"].as_str(), Some("VP8"));
    assert_eq!(stream["tracks"][1]["bitrate_bps"].as_u64(), Some(1_000_000));
    let metrics = world.ask(Method::GET, "/metrics", &[("authorization", "Bearer look")], "");
    assert!(body(&metrics).contains("manycast_stream_active 1"), "{}", body(&metrics));
    assert_eq!(world.ask(Method::GET, "/metrics", &[], "").status(), StatusCode::UNAUTHORIZED);
}

#[test]
fn tokens_open_their_own_door_only() {
    let mut world = World::new("publish-token = \"in\"\nview-token = \"out\"");
    let mut post = |uri: &str, offer: &str, authorization: Option<&str>| {
        let mut headers = vec![SDP];
        headers.extend(authorization.map(|a| ("authorization", a)));
        let response = world.ask(Method::POST, uri, &headers, offer);
        (response.status().as_u16(), header(&response, "www-authenticate").to_owned())
    };
    let missing = (401, "Bearer realm=\"sfu\"".to_owned());
    let invalid = (401, "Bearer realm=\"sfu\", error=\"invalid_token\"".to_owned());
    assert_eq!(post("/whip/cam", PUBLISH, None), missing);
    assert_eq!(post("/whip/cam", PUBLISH, Some("Bearer out")), invalid);
    assert_eq!(post("/whip/cam", PUBLISH, Some("Bearer inn")), invalid);
    assert_eq!(post("/whip/cam", PUBLISH, Some("Basic aW4=")), missing);
    assert_eq!(post("/whip/cam", PUBLISH, Some("bearer in")).0, 201);
    assert_eq!(post("/whip/cam", &other(PUBLISH, 1), Some("in")).0, 201, "Eyevinn's player sends the bare token");
    assert_eq!(post("/whep/cam", VIEW, Some("Bearer in")), invalid);
    assert_eq!(post("/whep/cam", VIEW, Some("Bearer out")).0, 409);
    assert_eq!(post("/sdp", &other(PUBLISH, 2), None), missing);
    assert_eq!(post("/sdp?token=in", &other(PUBLISH, 2), None).0, 200);

    let created = world.ask(Method::POST, "/whip/cam", &[SDP, ("authorization", "Bearer in")], &other(PUBLISH, 3));
    let url = path(&created);
    let delete =
        |world: &mut World, headers: &[(&str, &str)]| world.ask(Method::DELETE, &url, headers, "").status().as_u16();
    assert_eq!(delete(&mut world, &[("authorization", "Bearer out")]), 401);
    assert_eq!(delete(&mut world, &[]), 200, "the URL is a capability");
}

#[test]
fn one_address_may_only_ask_so_much() {
    let mut world =
        World::new("post-burst = 4\npost-rate = 1\nmax-unestablished-per-ip = 3\npatch-rate = 2\nprobe-rate = 2");
    let post = |world: &mut World, n: u64| {
        let response = world.post("/whip/cam", &other(PUBLISH, n));
        (response.status().as_u16(), header(&response, "retry-after").to_owned())
    };
    for n in 0..3 {
        assert_eq!(post(&mut world, n).0, 201);
    }
    assert_eq!(post(&mut world, 3), (429, "5".to_owned()), "three are not connected yet");
    assert_eq!(post(&mut world, 4), (429, "1".to_owned()), "and the burst is over");
    world.peer = [203, 0, 113, 2].into();
    assert_eq!(post(&mut world, 5).0, 201, "another address");
    world.peer = [203, 0, 113, 1].into();
    let slot = world.slots[0].clone();
    world.connect(&slot);
    world.advance(Duration::from_secs(1));
    let created = world.post("/whip/cam", &other(PUBLISH, 6));
    assert_eq!(created.status(), StatusCode::CREATED);

    let codes = |world: &mut World, method: Method, uri: &str| -> Vec<u16> {
        (0..3).map(|_| world.ask(method.clone(), uri, &[FRAGMENT], "a=end-of-candidates").status().as_u16()).collect()
    };
    assert_eq!(codes(&mut world, Method::PATCH, &path(&created)), [204, 204, 429]);
    assert_eq!(codes(&mut world, Method::DELETE, "/whip/cam/unknown"), [404, 404, 429]);

    // This machine's user is not limited, a proxy's clients are.
    world.peer = [127, 0, 0, 1].into();
    for n in 10..20 {
        assert_eq!(post(&mut world, n).0, 201);
    }
    let mut world = World::new("post-burst = 2\npost-rate = 1\ntrusted-proxy = \"10.0.0.0/8\"");
    world.peer = [127, 0, 0, 1].into();
    assert_eq!((0..3).map(|n| post(&mut world, n).0).collect::<Vec<_>>(), [201, 201, 429]);
}

#[test]
fn all_together_may_only_ask_so_much() {
    let mut world = World::new("max-unestablished = 2");
    let codes: Vec<u16> = (0..3)
        .map(|n| {
            world.peer = [203, 0, 113, n].into();
            world.post("/whip/cam", &other(PUBLISH, n.into())).status().as_u16()
        })
        .collect();
    assert_eq!(codes, [201, 201, 503]);
    world.advance(Duration::from_secs(40));
    assert_eq!(world.post("/whip/cam", PUBLISH).status(), StatusCode::CREATED);
    world.controller.set_stalled(true);
    let refused = world.post("/whip/cam", &other(PUBLISH, 9));
    assert_eq!((refused.status().as_u16(), header(&refused, "retry-after")), (503, "2"));
}

#[test]
fn stopping_ends_every_session() {
    let mut world = World::new("");
    world.live("cam");
    let _ = world.post("/whep/cam", VIEW);
    let waiting = world.last();
    world.commands.clear();
    world.controller.stop(world.now);
    world.drain();
    assert!(waiting.with_waiting(|_| ()).is_none());
    let stops = world.commands.iter().filter(|(_, c)| matches!(c, Command::Stop)).count();
    assert_eq!(stops, usize::from(SHARDS));
    assert_eq!(world.post("/whip/cam", &other(PUBLISH, 8)).status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!world.controller.is_stopped());
    for shard in 0..SHARDS {
        world.controller.handle_event(world.now, ShardId(shard), Event::Stopped);
    }
    assert!(world.controller.is_stopped());
}

#[test]
fn codecs_that_do_not_meet_are_told_apart_from_bad_requests() {
    let mut world = World::new("");
    let publisher = world.live("cam");
    world.event(Event::TrackStarted {
        session: publisher.session,
        stream: publisher.stream.id,
        kind: MediaKind::Video,
        format: Format::parse(manycast::wire::codec::Codec::H264, "profile-level-id=42e01f;packetization-mode=1")
            .expect("a format"),
    });
    let refused = world.post("/whep/cam", GST_VIEW);
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let problem: serde_json::Value = serde_json::from_slice(refused.body()).expect("problem+json");
    assert_eq!(problem["type"].as_str(), Some("/problems/no-common-codec"));
    assert_eq!(world.post("/whep/cam", VIEW).status(), StatusCode::CREATED);
}

/// A recorded offer with lines dropped, doubled and moved, and letters changed.
fn mutated() -> impl proptest::strategy::Strategy<Value = (bool, String)> {
    use proptest::prelude::*;
    let edit = (0usize..400, 0usize..5, any::<char>(), 0usize..60);
    (any::<bool>(), proptest::collection::vec(edit, 1..5)).prop_map(|(publish, edits)| {
        let mut lines: Vec<String> = if publish { PUBLISH } else { VIEW }.lines().map(str::to_owned).collect();
        for (at, what, letter, column) in edits {
            let at = at % lines.len();
            match what {
                0 if lines.len() > 1 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[at].clone()),
                2 => {
                    let line = lines.remove(at);
                    lines.insert(column.min(lines.len()), line);
                }
                3 => lines[at].push(char::from(b'0' + (column % 10) as u8)),
                _ => {
                    let edited = lines[at].chars().enumerate().map(|(i, c)| if i == column { letter } else { c });
                    lines[at] = edited.collect();
                }
            }
        }
        (publish, lines.join("\r\n"))
    })
}

#[test]
fn damaged_offers_are_answered_whole_or_refused() {
    use proptest::test_runner::{Config, TestRunner};
    let mut world = World::new("max-unestablished = 1000000\nmax-unestablished-per-ip = 1000000");
    world.peer = [127, 0, 0, 1].into();
    world.live("cam");
    let world = std::cell::RefCell::new(world);
    let cases = std::env::var("CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(200);
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
        .run(&mutated(), |(publish, text)| {
            let mut world = world.borrow_mut();
            // Else the undamaged credentials would find the session of the case before.
            world.now += manycast::limits::POST_RETRY_WINDOW;
            let response = world.post(if publish { "/whip/cam" } else { "/whep/cam" }, &text);
            let status = response.status().as_u16();
            proptest::prop_assert!(matches!(status, 201 | 400 | 422), "{} {}", status, body(&response));
            let inconsistent = body(&response).contains("unusable-offer");
            proptest::prop_assert!(!inconsistent, "str0m refused what the sanitiser let through:\n{}", text);
            Ok(())
        })
        .expect("every case");
}

#[test]
fn two_payload_types_for_one_format_are_answered_with_the_first() {
    let mode_1 = "packetization-mode=1;profile-level-id";
    for (from, to, kept, left_out) in [
        ("a=fmtp:41 level-asymmetry-allowed=1;", "a=x:", 104, 41),
        ("a=fmtp:100 profile-id=2", "a=fmtp:100 profile-id=0", 98, 100),
        ("packetization-mode=0;profile-level-id=42e01f", &format!("{mode_1}=42e01f"), 108, 114),
        ("packetization-mode=0;profile-level-id=42e01f", &format!("{mode_1}=42c01f"), 108, 114),
    ] {
        assert!(VIEW.contains(from), "{from}");
        let mut world = World::new("");
        world.live("cam");
        let response = world.post("/whep/cam", &VIEW.replace(from, to));
        let answer = body(&response);
        assert_eq!(response.status(), StatusCode::CREATED, "{to}: {answer}");
        let takes = |pt: u8| answer.contains(&format!("a=rtpmap:{pt} "));
        assert!(takes(kept) && !takes(left_out), "{to}: {answer}");
    }
}

#[test]
fn a_new_certificate_is_for_new_sessions() {
    let mut world = World::new("");
    let fingerprint = |answer: &Response| {
        let sdp = std::str::from_utf8(answer.body()).expect("text");
        sdp.lines().find_map(|l| l.strip_prefix("a=fingerprint:")).expect("a fingerprint").to_owned()
    };
    let first = world.post("/whip/a", &other(PUBLISH, 1));
    let certificate = Certificate::generate().expect("a certificate");
    world.controller.set_certificate(certificate.clone());
    let repeated = world.post("/whip/a", &other(PUBLISH, 1));
    let second = world.post("/whip/b", &other(PUBLISH, 2));
    assert_eq!(fingerprint(&repeated), fingerprint(&first), "the same session, so the same answer");
    assert_ne!(fingerprint(&second), fingerprint(&first));
    assert_eq!(fingerprint(&second), format!("sha-256 {}", certificate.fingerprint()));
}
