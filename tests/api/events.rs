//! Event streams over real connections: what is written when, and what becomes of readers that go, stay or do not read.

use std::sync::Arc;

use manycast::session::CloseReason;
use manycast::shard::message::{Command, Event, LayerReport};
use manycast::shard::placement::Slot;

use crate::client::{Follow, follow};
use crate::server::{SHARD, Server};
use crate::{VIEW, has_cors, offer, until};

fn layer(publisher: &Slot, rid: &str, height: u16) -> LayerReport {
    LayerReport {
        stream: publisher.stream.id,
        rid: rid.into(),
        active: true,
        bitrate: 1_000,
        width: 320,
        height,
        spatial: 0,
        temporal: 0,
    }
}

/// A viewer who is connected, and its session's path.
fn viewer(server: &Server, client: u64) -> (Arc<Slot>, String) {
    let created = server.post("/whep/cam", &offer(VIEW, client));
    assert_eq!(created.status, 201, "{created:?}");
    let slot = server.announced();
    slot.adopt(SHARD).expect("waiting");
    server.event(Event::Connected { session: slot.session });
    (slot, created.location())
}

fn make(server: &Server, session: &str, wanted: &str) -> String {
    let made = server.ask("POST", &format!("{session}/sse"), &[("Content-Type", "application/json")], wanted);
    assert_eq!(made.status, 201, "{made:?}");
    made.location()
}

/// Opens an event stream that there is room for, and reads what comes before all events.
fn open(server: &Server, path: &str) -> Follow {
    let mut events = follow(server.address, path).expect("a head");
    assert_eq!(events.head.status, 200, "{:?}", events.head);
    assert_eq!(next(&mut events), "retry: 2000");
    events
}

fn next(events: &mut Follow) -> String {
    events.event().expect("the connection holds").expect("the body goes on")
}

/// Whether there was room to open one more; it is given back at once.
fn has_room(server: &Server, path: &str) -> Option<()> {
    follow(server.address, path).filter(|f| f.head.status == 200).map(drop)
}

#[test]
fn events_come_as_they_happen_for_longer_than_a_head_may_take() {
    let server = Server::start("header-timeout = 0.3");
    let publisher = server.live("cam");
    server.report(vec![layer(&publisher, "h", 720)]);
    let (slot, session) = viewer(&server, 1);
    let path = make(&server, &session, r#"["active","inactive","layers"]"#);
    let mut events = open(&server, &path);
    has_cors(&events.head);
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store"),
        ("x-accel-buffering", "no"),
        ("transfer-encoding", "chunked"),
    ] {
        assert_eq!(events.head.header(name), Some(value), "{name}");
    }
    assert_eq!(next(&mut events), "event: active\nid: 1\ndata: {}");
    let layers = next(&mut events);
    assert!(layers.starts_with("event: layers\nid: 2\ndata: {\"1\":[{") && layers.ends_with("}]}"), "{layers}");
    assert!(layers.contains("\"rid\":\"h\"") && layers.contains("\"height\":720"), "{layers}");

    server.report(vec![layer(&publisher, "h", 360)]);
    assert!(next(&mut events).contains("\"height\":360"), "a change is told");
    let answered = server.ask("POST", &format!("{session}/layer"), &[("Content-Type", "application/json")], "{}");
    assert_eq!(answered.status, 200, "{answered:?}");
    while !matches!(server.command(), Command::SelectLayer { session, .. } if session == slot.session) {}
    server.end(&publisher);
    while !next(&mut events).starts_with("event: inactive\n") {}

    // Nothing is left to say but that it lives.
    while next(&mut events) != ": ping" {}
    server.end(&slot);
    assert_eq!(events.event().expect("no reset"), None, "it ends with its session");
}

#[test]
fn a_reader_that_has_gone_makes_room() {
    // Half of the connections.
    let server = Server::start("max-connections = 3");
    server.live("cam");
    let (_, session) = viewer(&server, 1);
    let paths = [make(&server, &session, ""), make(&server, &session, "")];
    let third = server.ask("POST", &format!("{session}/sse"), &[], "");
    assert_eq!(third.status, 409, "{third:?}");
    has_cors(&third);
    let first = open(&server, &paths[0]);
    let refused = server.ask("GET", &paths[1], &[], "");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some());
    has_cors(&refused);
    drop(first);
    until(|| has_room(&server, &paths[1]));
}

#[test]
fn readers_of_one_address_are_counted() {
    let server = Server::start("max-connections-per-ip = 3\ntrusted-proxy = \"192.0.2.1\"");
    server.live("cam");
    let (_, session) = viewer(&server, 1);
    let paths = [make(&server, &session, ""), make(&server, &session, "")];
    let first = open(&server, &paths[0]);
    let refused = server.ask("GET", &paths[1], &[], "");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("5")), "{refused:?}");
    has_cors(&refused);
    drop(first);
    until(|| has_room(&server, &paths[1]));
}

#[test]
fn a_reader_that_reads_nothing_is_cut_off_and_others_hear_on() {
    let server = Server::start("max-connections = 6");
    let publisher = server.live("cam");
    let (_, session) = viewer(&server, 1);
    let (_, others) = viewer(&server, 2);
    let mut slow = open(&server, &make(&server, &session, r#"["layers"]"#));
    let mut quick = open(&server, &make(&server, &others, r#"["layers"]"#));
    let third = open(&server, &make(&server, &session, r#"["inactive"]"#));
    let fourth = make(&server, &others, "");
    assert_eq!(server.ask("GET", &fourth, &[], "").status, 503);
    // No event is as long, but the kernel's buffers have to be filled.
    let long = "l".repeat(4_000_000);
    let mut height = 0;
    until(|| {
        height += 1;
        server.report(vec![layer(&publisher, &long, height)]);
        assert!(next(&mut quick).contains(&long));
        has_room(&server, &fourth)
    });
    let end = loop {
        match slow.event() {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert!(end.is_err(), "it is cut off, not ended: a browser comes again");
    drop(third);
}

#[test]
fn stopping_ends_event_streams() {
    let mut server = Server::start("");
    server.live("cam");
    let (slot, session) = viewer(&server, 1);
    let mut events = open(&server, &make(&server, &session, r#"["inactive"]"#));
    server.stop();
    while !matches!(server.command(), Command::Stop) {}
    server.event(Event::Ended { session: slot.session, reason: CloseReason::Stopping });
    server.event(Event::Stopped);
    assert_eq!(events.event().expect("no reset"), None);
    server.join();
}
