//! What viewers are told by event streams, and what they may choose of a stream's layers.

use manycast::id::Rid;
use manycast::shard::message::{LayerReport, Wish};

use super::*;

const JSON: (&str, &str) = ("content-type", "application/json");

fn layer(slot: &Slot, rid: &str, height: u16, bitrate: u64) -> LayerReport {
    LayerReport {
        stream: slot.stream.id,
        rid: rid.into(),
        active: bitrate > 0,
        bitrate,
        width: height / 9 * 16,
        height,
        spatial: 0,
        temporal: 2,
    }
}

fn three(slot: &Slot) -> Vec<LayerReport> {
    vec![layer(slot, "q", 180, 100_000), layer(slot, "f", 720, 1_500_000), layer(slot, "h", 360, 0)]
}

impl World {
    fn report_layers(&mut self, layers: Vec<LayerReport>) {
        let report = Report { layers, ..report(self.now, Vec::new()) };
        self.event(Event::Report(Box::new(report)));
    }

    /// A live stream and the URL of a viewer of it, which is not connected yet.
    fn watched(&mut self) -> (Arc<Slot>, Arc<Slot>, String) {
        let publisher = self.live("cam");
        let created = self.post("/whep/cam", VIEW);
        assert_eq!(created.status(), StatusCode::CREATED);
        (publisher, self.last(), path(&created))
    }

    fn make_events(&mut self, session: &str, wanted: &str) -> String {
        let made = self.ask(Method::POST, &format!("{session}/sse"), &[JSON], wanted);
        assert_eq!(made.status(), StatusCode::CREATED, "{}", body(&made));
        path(&made)
    }

    /// Opens an event stream; its answer has begun.
    fn open(&mut self, url: &str) -> RequestId {
        let id = self.send(Method::GET, url, &[], "");
        assert!(self.answer(id).is_none(), "the answer goes on");
        let Some(Part::Head(head)) = self.part(id) else { panic!("no head") };
        assert_eq!(head.status(), StatusCode::OK);
        for (name, value) in [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-store"),
            ("x-accel-buffering", "no"),
            ("access-control-allow-origin", "*"),
        ] {
            assert_eq!(header(&head, name), value);
        }
        assert!(matches!(self.part(id), Some(Part::Body(b)) if b == "retry: 2000\n\n"));
        self.controller.handle_taken(id);
        self.drain();
        id
    }

    fn part(&mut self, id: RequestId) -> Option<Part> {
        let at = self.parts.iter().position(|(known, _)| *known == id)?;
        Some(self.parts.remove(at).1)
    }

    /// What a reader that takes everything has heard since: `name data` of each event, `ping`, `end`, `cut`.
    fn hear(&mut self, id: RequestId) -> Vec<String> {
        let mut heard = Vec::new();
        while let Some(part) = self.part(id) {
            match part {
                Part::Head(_) => panic!("another head"),
                Part::Body(bytes) => {
                    let text = std::str::from_utf8(&bytes).expect("text");
                    heard.extend(text.strip_suffix("\n\n").expect("whole events").split("\n\n").map(event));
                    self.controller.handle_taken(id);
                    self.drain();
                }
                Part::End => heard.push("end".to_owned()),
                Part::Cut => heard.push("cut".to_owned()),
            }
        }
        heard
    }
}

fn event(text: &str) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    match lines[..] {
        [": ping"] => "ping".to_owned(),
        [event, id, data] => {
            assert!(id.strip_prefix("id: ").is_some_and(|id| id.parse::<u64>().is_ok()), "{text}");
            let name = event.strip_prefix("event: ").expect("a name");
            format!("{name} {}", data.strip_prefix("data: ").expect("data"))
        }
        _ => panic!("{text:?}"),
    }
}

#[test]
fn a_viewer_chooses_among_the_layers_that_are_known() {
    let mut world = World::new("patch-rate = 1000");
    let (publisher, viewer, url) = world.watched();
    world.connect(&viewer);
    let url = format!("{url}/layer");
    let mut check = |json: &str, status: u16, expected: Option<Wish>| {
        world.report_layers(three(&publisher));
        world.commands.clear();
        let answered = world.ask(Method::POST, &url, &[JSON], json);
        assert_eq!(answered.status().as_u16(), status, "{json}: {}", body(&answered));
        let told = world.commands.first().map(|(shard, command)| match command {
            Command::SelectLayer { session, wish } if *session == viewer.session => (*shard, *wish),
            other => panic!("{other:?}"),
        });
        assert_eq!(told, expected.map(|choice| (ShardId(0), choice)), "{json}");
    };
    // The recorded offer has its video second.
    let auto = Wish::default();
    let rid = |rid: &str| Wish { rid: Rid::new(rid), ..Wish::default() };
    check("{}", 200, Some(auto));
    check(r#"{"mediaId":"1"}"#, 200, Some(auto));
    check(r#"{"mediaId":1,"rid":"f"}"#, 200, Some(rid("f")));
    check(r#"{"mediaId":"1","encodingId":"q"}"#, 200, Some(rid("q")));
    check(r#"{"rid":"h","else":[1]}"#, 200, Some(rid("h")));
    check(r#"{"rid":""}"#, 200, Some(auto));
    check(r#"{"rid":null}"#, 200, Some(auto));
    let capped = Wish { max_height: Some(400), max_width: Some(u16::MAX), ..Wish::default() };
    check(r#"{"maxHeight":400,"maxWidth":70000}"#, 200, Some(capped));
    let ids = Wish { rid: Rid::new("f"), max_spatial: Some(0), max_temporal: Some(1), ..Default::default() };
    check(r#"{"rid":"f","spatialLayerId":0,"temporalLayerId":1,"maxTemporalLayerId":2}"#, 200, Some(ids));
    let caps = Wish { max_spatial: Some(9), max_temporal: Some(255), ..Default::default() };
    check(r#"{"maxSpatialLayerId":9,"maxTemporalLayerId":300}"#, 200, Some(caps));
    for unknown in [
        r#"{"rid":"x"}"#,
        r#"{"spatialLayerId":1}"#,
        r#"{"temporalLayerId":3}"#,
        r#"{"mediaId":"0"}"#,
        r#"{"mediaId":"video"}"#,
        r#"{"mediaId":0}"#,
        r#"{"mediaId":[]}"#,
    ] {
        check(unknown, 422, None);
    }
    for broken in ["", "x", "null", "[]", r#"["0"]"#, r#"{"rid":1}"#, r#"{"maxHeight":-1}"#, r#"{"maxHeight":1.5}"#] {
        check(broken, 400, None);
    }
}

#[test]
fn a_stream_without_simulcast_has_a_temporal_cap_only() {
    let mut world = World::new("");
    let (publisher, viewer, url) = world.watched();
    world.connect(&viewer);
    let url = format!("{url}/layer");
    let ask = |world: &mut World, json: &str| world.ask(Method::POST, &url, &[JSON], json).status().as_u16();
    assert_eq!(ask(&mut world, r#"{"temporalLayerId":1}"#), 422, "nothing is known yet");
    world.report_layers(vec![layer(&publisher, "", 720, 1_500_000)]);
    assert_eq!(ask(&mut world, r#"{"temporalLayerId":1}"#), 200);
    assert_eq!(ask(&mut world, "{}"), 200);
    assert_eq!(ask(&mut world, r#"{"rid":"f"}"#), 422);
}

#[test]
fn who_watches_no_video_has_no_layers_to_choose_from() {
    let mut world = World::new("");
    let publisher = world.live("cam");
    world.report_layers(three(&publisher));
    let audio =
        VIEW.find("m=video").map(|video| VIEW[..video].replace("BUNDLE 0 1", "BUNDLE 0")).expect("comes second");
    let created = world.post("/whep/cam", &audio);
    assert_eq!(created.status(), StatusCode::CREATED, "{}", body(&created));
    let viewer = world.last();
    world.connect(&viewer);
    world.commands.clear();
    let url = format!("{}/layer", path(&created));
    assert_eq!(world.ask(Method::POST, &url, &[JSON], "{}").status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(world.commands.is_empty());
}

#[test]
fn viewers_of_a_simulcast_publisher_tell_of_arrivals_though_only_one_layer_comes_yet() {
    let mut world = World::new("");
    let counted = |world: &mut World, stream: &str| {
        let created = world.post(&format!("/whep/{stream}"), &other(VIEW, world.requests));
        assert_eq!(created.status(), StatusCode::CREATED, "{}", body(&created));
        body(&created).contains(" transport-cc")
    };
    world.live("plain");
    assert!(!counted(&mut world, "plain"));
    let simulcast = include_str!("../data/offers/chromium-publish-simulcast.sdp");
    assert_eq!(world.post("/whip/layered", simulcast).status(), StatusCode::CREATED);
    let publisher = world.last();
    world.connect(&publisher);
    world.activate(&publisher, 1);
    assert!(counted(&mut world, "layered"));
}

#[test]
fn layer_and_events_are_guarded_as_the_session_is() {
    let mut world = World::new("view-token = \"look\"\npatch-rate = 2");
    world.live("cam");
    let created = world.ask(Method::POST, "/whep/cam", &[SDP, ("authorization", "Bearer look")], VIEW);
    let url = path(&created);
    let resources = [("layer", "{}", 200), ("sse", "[]", 201)];
    for (resource, text, good) in resources {
        let mut ask = |url: &str, headers: &[(&str, &str)]| {
            let answered = world.ask(Method::POST, &format!("{url}/{resource}"), headers, text);
            assert_eq!(header(&answered, "access-control-allow-origin"), "*");
            let status = answered.status().as_u16();
            world.advance(Duration::from_secs(1));
            status
        };
        assert_eq!(ask(&url, &[JSON]), good, "the URL is a capability");
        assert_eq!(ask(&url, &[JSON, ("authorization", "Bearer look")]), good);
        assert_eq!(ask(&url, &[JSON, ("authorization", "Bearer else")]), 401);
        assert_eq!(ask(&url, &[SDP]), 415);
        assert_eq!(ask("/whep/cam/0123456789012345678901", &[JSON]), 404);
        assert_eq!(ask(&url.replace("cam", "else"), &[JSON]), 404);
        let codes = (0..3).map(|_| world.ask(Method::POST, &format!("{url}/layer"), &[JSON], "{}").status().as_u16());
        assert_eq!(codes.collect::<Vec<_>>(), [200, 200, 429]);
        world.advance(Duration::from_secs(1));
        let preflight = world.ask(Method::OPTIONS, &format!("{url}/{resource}"), &[], "");
        assert_eq!((header(&preflight, "accept-post"), header(&preflight, "link")), ("application/json", ""));
        assert_eq!(world.ask(Method::GET, &format!("{url}/{resource}"), &[], "").status().as_u16(), 405);
    }
    let publisher = world.ask(Method::POST, "/whip/cam/0123456789012345678901/layer", &[JSON], "{}");
    assert_eq!(publisher.status(), StatusCode::NOT_FOUND);
}

#[test]
fn a_choice_made_before_the_client_connects_reaches_its_shard_then() {
    let mut world = World::new("");
    let (publisher, viewer, url) = world.watched();
    world.report_layers(three(&publisher));
    world.commands.clear();
    for rid in ["q", "f"] {
        let json = format!(r#"{{"rid":"{rid}"}}"#);
        assert_eq!(world.ask(Method::POST, &format!("{url}/layer"), &[JSON], &json).status(), StatusCode::OK);
    }
    assert!(world.commands.is_empty(), "{:?}", world.commands);
    world.connect(&viewer);
    assert!(matches!(
        &world.commands[..],
        [(ShardId(0), Command::SelectLayer { session, wish: choice })]
            if *session == viewer.session && choice.rid == Rid::new("f")
    ));
}

#[test]
fn viewers_are_shown_the_way_to_events_and_layers_and_publishers_are_not() {
    let mut world = World::new("stun-server = \"stun.example.net:3478\"");
    let publisher = world.post("/whip/cam", PUBLISH);
    assert_eq!(publisher.headers().get_all("link").iter().count(), 1);
    let slot = world.last();
    world.connect(&slot);
    world.activate(&slot, 1);
    let created = world.post("/whep/cam", VIEW);
    let url = header(&created, "location");
    let links: Vec<&str> = created.headers().get_all("link").iter().map(|l| l.to_str().expect("text")).collect();
    let rel = "rel=\"urn:ietf:params:whep:ext:core";
    let expected = [
        "<stun:stun.example.net:3478>; rel=\"ice-server\"".to_owned(),
        format!("<{url}/sse>; {rel}:server-sent-events\"; events=\"active,inactive,layers,reconnect,viewercount\""),
        format!("<{url}/layer>; {rel}:layer\""),
    ];
    assert_eq!(links, expected);
}

#[test]
fn an_event_stream_is_made_for_known_events_and_twice_a_session() {
    let mut world = World::new("");
    let (.., url) = world.watched();
    let make = |world: &mut World, headers: &[(&str, &str)], text: &str| {
        let made = world.ask(Method::POST, &format!("{url}/sse"), headers, text);
        (made.status().as_u16(), header(&made, "location").to_owned())
    };
    for broken in ["x", "{}", "\"layers\"", "[1]", r#"["layers","vad"]"#, r#"["ping"]"#] {
        assert_eq!(make(&mut world, &[JSON], broken), (400, String::new()), "{broken}");
    }
    assert_eq!(make(&mut world, &[], "[]").0, 415);
    let first = make(&mut world, &[], "");
    let second = make(&mut world, &[JSON], r#"["layers"]"#);
    assert_eq!((first.0, second.0), (201, 201));
    assert_ne!(first.1, second.1);
    assert_eq!(make(&mut world, &[], "").0, 409);
    let first = first.1.strip_prefix("http://sfu.example").expect("absolute").to_owned();
    assert_eq!(world.ask(Method::HEAD, &first, &[], "").status(), StatusCode::OK);
    assert_eq!(world.ask(Method::POST, &first, &[], "").status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(world.ask(Method::DELETE, &first, &[], "").status(), StatusCode::OK);
    assert_eq!(world.ask(Method::GET, &first, &[], "").status(), StatusCode::NOT_FOUND);
    let third = make(&mut world, &[], "");
    assert_eq!(third.0, 201, "there is room again");
    assert!(!third.1.ends_with(&first), "and no name is used twice");
}

#[test]
fn a_reader_hears_how_things_are_and_what_changes() {
    let mut world = World::new("");
    let (publisher, viewer, url) = world.watched();
    world.connect(&viewer);
    world.report_layers(three(&publisher));
    let events = world.make_events(&url, "[]");
    world.advance(Duration::from_secs(60));
    let id = world.open(&events);
    let heard = world.hear(id);
    assert_eq!(heard[0], "active {}");
    let (name, data) = heard[1].split_once(' ').expect("data");
    let layers: serde_json::Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(name, "layers");
    let picture = |rid: &str, height: u32| {
        serde_json::json!({
            "rid": rid, "spatialLayerId": 0, "temporalLayerId": 2,
            "width": height / 9 * 16, "height": height, "heigth": height,
        })
    };
    let mut expected = [picture("f", 720), picture("h", 360), picture("q", 180)];
    expected[0]["bitrate"] = 1_500_000.into();
    expected[2]["bitrate"] = 100_000.into();
    assert_eq!(layers, serde_json::json!({ "1": expected }), "best first, and the resting one without bitrate");
    world.advance(Duration::ZERO);
    assert_eq!(world.hear(id), [r#"viewercount {"viewercount":1}"#]);

    // Bitrates every 5 s, whatever happens to them; a change of shape after 250 ms, with what came meanwhile.
    let mut layers = three(&publisher);
    layers[0].bitrate = 110_000;
    world.report_layers(layers.clone());
    world.advance(Duration::from_millis(4999));
    assert_eq!(world.hear(id), [""; 0]);
    world.advance(Duration::from_millis(1));
    assert!(world.hear(id)[0].contains("110000"));
    layers[2].active = true;
    world.report_layers(layers.clone());
    world.advance(Duration::from_millis(249));
    layers[2].height = 540;
    world.report_layers(layers.clone());
    assert_eq!(world.hear(id), [""; 0]);
    world.advance(Duration::from_millis(1));
    let heard = world.hear(id);
    assert!(heard.len() == 1 && heard[0].contains("540"), "{heard:?}");

    // Another publisher takes over without a gap; later the stream rests, and goes on.
    let _ = world.post("/whip/cam", FFMPEG);
    let second = world.last();
    world.connect(&second);
    world.activate(&second, 2);
    world.event(Event::Ended { session: publisher.session, reason: CloseReason::TakenOver });
    assert_eq!(world.hear(id), [""; 0], "it is live all the time");
    world.event(Event::Ended { session: second.session, reason: CloseReason::ClosedByPeer });
    assert_eq!(world.hear(id), ["inactive {}"]);
    let _ = world.post("/whip/cam", &other(PUBLISH, 77));
    let third = world.last();
    world.connect(&third);
    world.activate(&third, 3);
    assert_eq!(world.hear(id), ["active {}"]);
}

#[test]
fn a_stream_that_is_not_live_says_nothing_until_it_is() {
    let mut world = World::new("");
    let answered = world.ask(Method::POST, "/sdp?stream=cam", &[], VIEW);
    let viewer = world.last();
    world.connect(&viewer);
    let events = world.make_events(&path(&answered), r#"["active","inactive"]"#);
    let id = world.open(&events);
    assert_eq!(world.hear(id), [""; 0], "an inactive event must not come first");
    let (publisher, _) = world.live_at("cam");
    assert_eq!(world.hear(id), ["active {}"]);
    // The connection breaks, and the end of the stream happens meanwhile.
    world.controller.handle_gone(id);
    world.event(Event::Ended { session: publisher.session, reason: CloseReason::ClosedByPeer });
    let id = world.open(&events);
    assert_eq!(world.hear(id), ["inactive {}"]);
    let newer = world.open(&events);
    assert_eq!(world.hear(id), ["end"], "one reader at a time");
    assert_eq!(world.hear(newer), [""; 0]);
}

#[test]
fn viewers_are_counted_every_five_seconds_at_most() {
    let mut world = World::new("");
    let (_, viewer, url) = world.watched();
    world.connect(&viewer);
    let events = world.make_events(&url, r#"["viewercount"]"#);
    world.advance(Duration::from_secs(10));
    let id = world.open(&events);
    world.advance(Duration::ZERO);
    assert_eq!(world.hear(id), [r#"viewercount {"viewercount":1}"#]);
    for n in 0..5 {
        let _ = world.post("/whep/cam", &other(VIEW, n));
        let more = world.last();
        world.connect(&more);
        world.advance(Duration::from_millis(900));
    }
    assert_eq!(world.hear(id), [""; 0]);
    world.advance(Duration::from_millis(500));
    assert_eq!(world.hear(id), [r#"viewercount {"viewercount":6}"#]);
    world.advance(Duration::from_secs(4));
    let last = world.last();
    world.event(Event::Ended { session: last.session, reason: CloseReason::ClosedByPeer });
    assert_eq!(world.hear(id), [""; 0]);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.hear(id), [r#"viewercount {"viewercount":5}"#]);
}

#[test]
fn a_silent_stream_pings_and_ends_with_its_session() {
    let mut world = World::new("");
    let (_, viewer, url) = world.watched();
    world.connect(&viewer);
    let events = world.make_events(&url, r#"["inactive"]"#);
    let id = world.open(&events);
    assert_eq!(world.hear(id), [""; 0], "only what was asked for");
    world.advance(Duration::from_millis(14_999));
    assert_eq!(world.hear(id), [""; 0]);
    world.advance(Duration::from_millis(1));
    assert_eq!(world.hear(id), ["ping"]);
    world.advance(Duration::from_secs(15));
    assert_eq!(world.hear(id), ["ping"]);
    world.event(Event::Ended { session: viewer.session, reason: CloseReason::ClosedByPeer });
    assert_eq!(world.hear(id), ["end"]);
    assert_eq!(world.ask(Method::GET, &events, &[], "").status(), StatusCode::NOT_FOUND);
    world.controller.handle_gone(id);
    world.advance(Duration::from_secs(60));
    assert_eq!(world.hear(id), [""; 0]);
}

#[test]
fn whom_a_new_codec_ends_is_told_where_to_come_again() {
    let mut world = World::new("");
    let (_, viewer, url) = world.watched();
    world.connect(&viewer);
    let events = [r#"["reconnect"]"#, r#"["layers"]"#].map(|wanted| world.make_events(&url, wanted));
    let [told, untold] = events.map(|events| world.open(&events));
    world.event(Event::Ended { session: viewer.session, reason: CloseReason::CodecChanged });
    let endpoint = "http://sfu.example/whep/cam";
    assert_eq!(world.hear(told), [format!(r#"reconnect {{"url":"{endpoint}"}}"#), "end".to_owned()]);
    assert_eq!(world.hear(untold), ["end"]);
}

#[test]
fn a_slow_reader_gets_the_last_of_each_kind_and_then_nothing() {
    let mut world = World::new("");
    let (publisher, viewer, url) = world.watched();
    world.connect(&viewer);
    let events = world.make_events(&url, r#"["active","layers"]"#);
    let id = world.open(&events);
    // `active` is under way and stays there.
    assert!(matches!(world.part(id), Some(Part::Body(b)) if b.starts_with(b"event: active\n")));
    let mut layers = three(&publisher);
    for height in [540, 630, 720] {
        layers[2].height = height;
        world.report_layers(layers.clone());
        world.advance(Duration::from_millis(250));
    }
    assert!(world.part(id).is_none());
    world.controller.handle_taken(id);
    world.drain();
    let heard = world.hear(id);
    assert!(heard.len() == 1 && heard[0].matches("\"height\":720").count() == 2, "{heard:?}");

    world.advance(Duration::from_secs(5));
    let Some(Part::Body(_)) = world.part(id) else { panic!("no bitrates") };
    let mut waited = 0;
    let cut = loop {
        world.advance(Duration::from_secs(1));
        waited += 1;
        if let Some(part) = world.part(id) {
            break part;
        }
        assert!(waited < 120, "it waits forever");
    };
    assert!(matches!(cut, Part::Cut), "{cut:?}");
    // Layers every 5 s and pings every 15 s: the seventeenth.
    assert!((60..=70).contains(&waited), "{waited} s");
    world.advance(Duration::from_secs(60));
    assert!(world.part(id).is_none());
    world.controller.handle_gone(id);
    let again = world.open(&events);
    assert_eq!(world.hear(again)[0], "active {}", "it may come back");
}

#[test]
fn half_of_the_connections_are_left_for_requests() {
    let mut world = World::new("max-connections = 4\nmax-connections-per-ip = 100\npost-burst = 100");
    let (.., url) = world.watched();
    let streams: Vec<String> = (0..2).map(|_| world.make_events(&url, "[]")).collect();
    let ids: Vec<RequestId> = streams.iter().map(|events| world.open(events)).collect();
    let other_session = path(&world.post("/whep/cam", &other(VIEW, 1)));
    let third = world.make_events(&other_session, "[]");
    let refused = world.ask(Method::GET, &third, &[], "");
    assert_eq!((refused.status().as_u16(), header(&refused, "retry-after")), (503, "2"));
    world.controller.handle_gone(ids[0]);
    world.open(&third);

    let mut world = World::new("max-connections-per-ip = 2");
    let (.., url) = world.watched();
    let streams: Vec<String> = (0..2).map(|_| world.make_events(&url, "[]")).collect();
    world.open(&streams[0]);
    assert_eq!(world.ask(Method::GET, &streams[1], &[], "").status(), StatusCode::TOO_MANY_REQUESTS);
    world.peer = [203, 0, 113, 9].into();
    world.open(&streams[1]);
}
