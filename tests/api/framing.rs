//! What HTTP itself can do wrong: sizes, deadlines, too many at once. A healthy client is served meanwhile.
#![expect(clippy::disallowed_methods, reason = "these tests are about deadlines of real time")]

use std::io::Write;
use std::time::{Duration, Instant};

use manycast::shard::message::{Command, Event};

use crate::client::{self, raw, raw_closed};
use crate::server::Server;
use crate::{PUBLISH, has_cors, offer, until};

fn healthy(server: &Server) {
    let reply = server.ask("GET", "/healthz", &[], "");
    assert_eq!((reply.status, reply.body.as_str()), (200, "ok\n"));
}

#[test]
fn bodies_have_a_size() {
    let server = Server::start("");
    let sdp = ("Content-Type", "application/sdp");
    for (path, fits, too_long) in [
        ("/whip/cam", 64 * 1024, 64 * 1024 + 1),
        ("/whep/cam", 64 * 1024, 1024 * 1024),
        ("/sdp", 96 * 1024, 96 * 1024 + 1),
        ("/healthz", 4 * 1024, 5 * 1024),
        ("/whep/cam/0123456789012345678901/layer", 4 * 1024, 4 * 1024 + 1),
        ("/whep/cam/0123456789012345678901/sse", 4 * 1024, 4 * 1024 + 1),
        ("/whep/cam/0123456789012345678901/sse/1", 4 * 1024, 4 * 1024 + 1),
    ] {
        assert_ne!(server.ask("POST", path, &[sdp], &"x".repeat(fits)).status, 413, "{path}");
        let refused = server.ask("POST", path, &[sdp], &"x".repeat(too_long));
        assert_eq!(refused.status, 413, "{path}");
        has_cors(&refused);
    }
    // Not even begun.
    let head = "POST /whip/cam HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n";
    assert_eq!(raw(server.address, head.as_bytes()).expect("an answer").status, 413);
    healthy(&server);
}

#[test]
fn chunked_bodies_are_read_and_counted() {
    let server = Server::start("");
    let head = "POST /whip/cam HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/sdp\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let (a, b) = PUBLISH.split_at(1000);
    let reply = raw(server.address, format!("{head}{}{}0\r\n\r\n", chunk(a), chunk(b)).as_bytes()).expect("an answer");
    assert_eq!(reply.status, 201, "{reply:?}");
    let endless = format!("{head}{}", chunk(&"x".repeat(10_000)).repeat(10)) + "0\r\n\r\n";
    assert_eq!(raw(server.address, endless.as_bytes()).expect("an answer").status, 413);
    let broken = raw_closed(server.address, format!("{head}zz\r\n").as_bytes());
    assert!(broken.is_none_or(|r| r.status == 400));
    healthy(&server);
}

#[test]
fn slow_clients_are_let_go() {
    let server = Server::start("header-timeout = 0.3\nbody-timeout = 0.3");
    let start = Instant::now();
    let late =
        raw(server.address, b"POST /whip/cam HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc").expect("an answer");
    assert_eq!((late.status, late.header("connection")), (408, Some("close")));
    has_cors(&late);
    assert!(raw(server.address, b"POST /whip/cam HTTP/1.1\r\nHos").is_none_or(|r| r.status == 408));
    let mut idle = client::connect(server.address);
    assert!(client::read(&mut idle).is_none_or(|r| r.status == 408));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    healthy(&server);
}

#[test]
fn heads_have_a_size() {
    let server = Server::start("");
    let status = |head: String| raw(server.address, head.as_bytes()).map(|r| r.status);
    let long =
        |n: usize| format!("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-A: {}\r\n\r\n", "a".repeat(n));
    assert_eq!(status(long(8_000)), Some(200));
    assert_eq!(status(long(20_000)), Some(431));
    let many =
        |n: usize| format!("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}\r\n", "X-A: b\r\n".repeat(n));
    assert_eq!(status(many(50)), Some(200));
    assert_eq!(status(many(70)), Some(431));
    assert_eq!(status(format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(3_000))), Some(414));
    for garbage in [
        "\r\n\r\n",
        "GET\r\n\r\n",
        "\x16\x03\x01\x02\x00",
        "GET / HTTP/9.9\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ] {
        let reply = raw_closed(server.address, garbage.as_bytes());
        assert!(reply.is_none_or(|r| (400..600).contains(&r.status)), "{garbage:?}");
    }
    healthy(&server);
}

#[test]
fn connections_are_counted() {
    let server = Server::start("max-connections = 4");
    let held: Vec<_> = (0..4).map(|_| client::connect(server.address)).collect();
    let refused = until(|| {
        Some(raw(server.address, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
            .filter(|r| r.as_ref().is_none_or(|r| r.status == 503))
    });
    assert!(refused.is_none_or(|r| r.header("access-control-allow-origin") == Some("*")));
    drop(held);
    until(|| {
        raw(server.address, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .filter(|r| r.status == 200)
    });

    // Loopback counts when a proxy that is elsewhere is trusted.
    let server = Server::start("max-connections-per-ip = 2\ntrusted-proxy = \"192.0.2.1\"");
    let held: Vec<_> = (0..2).map(|_| client::connect(server.address)).collect();
    until(|| {
        Some(raw(server.address, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
            .filter(|r| r.as_ref().is_none_or(|r| r.status == 503))
    });
    drop(held);
}

#[test]
fn offers_are_counted_for_loopback_when_a_proxy_is_trusted() {
    let server = Server::start("post-burst = 2\npost-rate = 0.1\ntrusted-proxy = \"192.0.2.1\"");
    let codes: Vec<u16> = (0..3).map(|n| server.post("/whip/cam", &offer(PUBLISH, n)).status).collect();
    assert_eq!(codes, [201, 201, 429]);
    let refused = server.post("/whip/cam", &offer(PUBLISH, 9));
    assert!(refused.header("retry-after").is_some_and(|r| r.parse::<u32>().is_ok()), "{refused:?}");
    has_cors(&refused);
    healthy(&server);
}

#[test]
fn one_connection_carries_many_requests() {
    let server = Server::start("");
    let mut stream = client::connect(server.address);
    for _ in 0..3 {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").expect("open");
    }
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("open");
    let mut all = String::new();
    std::io::Read::read_to_string(&mut stream, &mut all).expect("text");
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 4, "{all}");
}

#[test]
fn stopping_tells_the_shards_and_ends_at_once() {
    let mut server = Server::start("");
    let idle = client::connect(server.address);
    server.live("cam");
    let start = Instant::now();
    server.stop();
    while !matches!(server.command(), Command::Stop) {}
    server.event(Event::Stopped);
    server.join();
    assert!(start.elapsed() < Duration::from_millis(600), "{:?}", start.elapsed());
    drop(idle);

    // A shard that says nothing is not waited for long.
    let mut server = Server::start("");
    let start = Instant::now();
    server.stop();
    server.join();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
