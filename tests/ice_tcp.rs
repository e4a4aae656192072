//! Where a network blocks UDP: real clients over TCP, and slow or hostile ones that must not matter to anybody else.

#![expect(clippy::disallowed_methods, reason = "real sockets and browsers live in real time")]

mod common;

#[path = "common/browser.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod browser;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use browser::{Browser, DemoPage, Page, Stats};
use common::server::{Server, agent};
use common::swarm::Swarm;
use manycast::io::Clock;
use manycast::limits;
use manycast::sim::client::{Client, Source};
use manycast::sim::oracle;
use manycast::srtp::dtls;
use manycast::wire::stun::write_binding_request;
use serde_json::json;
use str0m::media::MediaKind;

/// A bound on events, not a pace: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);
const EVENTS: &str = "manycast_backend_event_total";
const TURN: Duration = Duration::from_millis(5);

fn start(io: &str) -> Server {
    Server::start(&["--io", io, "--shards", "2", "--ice-tcp", "127.0.0.1:0"])
}

fn tcp_address(server: &Server) -> SocketAddr {
    let said = server.banner.iter().find_map(|l| l.strip_prefix("media ")?.trim().strip_prefix("TCP "));
    said.and_then(|l| l.split(',').next()?.parse().ok()).expect("a TCP address")
}

// ------------------------------------------------------------------------------------------ a real browser

/// Whatever the page sends to the server's UDP candidates goes into `hole`, where nobody answers, as a firewall would
/// have it.
fn block_udp(page: &Page, hole: &UdpSocket) {
    let script = "const [port] = arguments; \
        const { prototype } = RTCPeerConnection; \
        const set = prototype.setRemoteDescription; \
        prototype.setRemoteDescription = function ({ type, sdp }) { \
          const blocked = sdp.replace(/(a=candidate:\\S+ 1 udp \\d+ \\S+) \\d+/gi, `$1 ${port}`); \
          return set.call(this, { type, sdp: blocked }); \
        };";
    page.run(script, vec![json!(hole.local_addr().expect("bound").port())]);
}

/// `udp` or `tcp`, of the pair that is used.
fn transport(stats: &Stats) -> String {
    let by_id = |id: &serde_json::Value| stats.0.iter().find(|s| s["id"] == *id);
    let transport = stats.0.iter().find(|s| s["type"] == "transport").expect("a transport");
    let pair = by_id(&transport["selectedCandidatePairId"]).expect("a selected pair");
    by_id(&pair["remoteCandidateId"]).expect("a remote candidate")["protocol"].as_str().expect("a name").to_owned()
}

fn chromium_publishes_and_plays_where_udp_is_blocked(io: &str) {
    let server = start(io);
    let browser = Browser::start();
    let hole = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let publisher = browser.open(&format!("{}/?size=640x360&stream=live#publish", server.url));
    block_udp(&publisher, &hole);
    publisher.start("publish");
    let viewers = [true, false].map(|blocked| {
        let viewer = browser.open(&format!("{}/?stream=live#watch", server.url));
        if blocked {
            block_udp(&viewer, &hole);
        }
        viewer.start("watch");
        viewer
    });
    for viewer in &viewers {
        // Some seconds of 30 frames/s, as a busy machine plays them.
        viewer.wait_for_frames("watch", PATIENCE, 100.0);
    }
    hole.set_nonblocking(true).expect("a socket");
    assert!(hole.recv(&mut [0; 1500]).is_ok(), "nobody tried UDP");
    assert_eq!(transport(&publisher.stats("publish")), "tcp");
    assert_eq!(viewers.each_ref().map(|v| transport(&v.stats("watch"))), ["tcp", "udp"]);
    let audio = viewers[0].stats("watch").audio_in("packetsReceived");
    assert!(audio > 50.0, "{audio} packets of audio");
    let opened = server.wait_for_metric(EVENTS, "stream_opened", |n| n >= 2.0);
    publisher.click("publish-stop");
    // The other one may have kept its TCP connection beside UDP.
    viewers.iter().for_each(|viewer| viewer.click("watch-stop"));
    server.wait_for_metric(EVENTS, "stream_closed", |n| n >= opened);
    assert_eq!(server.metric(EVENTS, "stream_dropped"), 0.0);
    assert_eq!(browser.console_errors(), [""; 0]);
}

#[test]
fn chromium_publishes_and_plays_where_udp_is_blocked_uring() {
    chromium_publishes_and_plays_where_udp_is_blocked("uring");
}

#[test]
fn chromium_publishes_and_plays_where_udp_is_blocked_mmsg() {
    chromium_publishes_and_plays_where_udp_is_blocked("mmsg");
}

// --------------------------------------------------------------------------------------- clients of our own

/// A str0m viewer whose datagrams travel over one TCP connection. It takes it for UDP between the same addresses.
struct TcpViewer {
    client: Client,
    clock: Clock,
    stream: TcpStream,
    server: SocketAddr,
    location: String,
    read: Vec<u8>,
    /// Some clients stop reading.
    reads: bool,
}

impl TcpViewer {
    fn watch(server: &Server) -> TcpViewer {
        let clock = Clock::new();
        let address = tcp_address(server);
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        // A small window, so that it does not take long to be slow.
        socket.set_recv_buffer_size(16 * 1024).expect("a buffer");
        socket.connect(&address.into()).expect("a connection");
        let stream = TcpStream::from(socket);
        let local = stream.local_addr().expect("bound");
        stream.set_nonblocking(true).expect("a socket");
        let epoch = clock.epoch();
        let (mut client, offer) = Client::viewer(clock.now(), epoch, local, dtls::crypto_provider());
        let request = agent().post(format!("{}/whep/live", server.url)).header("Content-Type", "application/sdp");
        let mut response = request.send(offer.as_bytes()).expect("an answer");
        let location = response.headers()["location"].to_str().expect("text").to_owned();
        let answer = response.body_mut().read_to_string().expect("a body");
        client.accept_answer(clock.now(), &over_tcp(&answer)).expect("the server's answer");
        TcpViewer { client, clock, stream, server: address, location, read: Vec::new(), reads: true }
    }

    fn step(&mut self) {
        while self.reads {
            let mut buffer = [0; 65_536];
            match self.stream.read(&mut buffer) {
                Ok(0) => panic!("the server has closed"),
                Ok(bytes) => self.read.extend_from_slice(&buffer[..bytes]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("{e}"),
            }
        }
        let mut rest = &self.read[..];
        while let Some((frame, after)) = split_frame(rest) {
            self.client.handle_datagram(self.clock.now(), self.server, frame);
            rest = after;
        }
        self.read = rest.to_vec();
        if self.client.next_timeout() <= self.clock.now() {
            self.client.handle_timeout(self.clock.now());
        }
        while let Some((to, datagram)) = self.client.poll_transmit() {
            assert_eq!(to, self.server);
            self.stream.write_all(&framed(&datagram)).expect("the server reads");
        }
    }

    fn frames(&self) -> usize {
        self.client.got().iter().filter(|g| g.kind == MediaKind::Video && g.marker).count()
    }
}

/// The server's answer with nothing but its TCP candidate, which is called UDP.
fn over_tcp(answer: &str) -> String {
    let lines = answer.lines().filter(|l| !l.starts_with("a=candidate:") || l.contains(" tcp "));
    lines.flat_map(|l| [l.replace(" tcp ", " udp ").replace(" tcptype passive", ""), "\r\n".into()]).collect()
}

fn framed(datagram: &[u8]) -> Vec<u8> {
    [&(datagram.len() as u16).to_be_bytes()[..], datagram].concat()
}

fn split_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// Runs all clients until `done`.
fn run_until(swarm: &mut Swarm, viewer: &mut TcpViewer, mut done: impl FnMut(&Swarm, &TcpViewer) -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !done(swarm, viewer) {
        if Instant::now() > end {
            return false;
        }
        viewer.step();
        swarm.run_for(TURN);
    }
    true
}

fn a_viewer_that_stops_reading_costs_nobody_else_a_packet(io: &str) {
    let server = start(io);
    let mut swarm = Swarm::new(2);
    // 5 Mbit/s: a queue is full within half a second.
    let source = Source { packets_per_frame: 20, ..Source::default() };
    let publisher = swarm.publish(&format!("{}/whip/live", server.url), source).member;
    assert!(swarm.run_until(PATIENCE, |s| s.client(publisher).video_packets_sent() > 100));
    let steady = swarm.watch(&format!("{}/whep/live", server.url)).member;
    let mut slow = TcpViewer::watch(&server);
    let logs = || server.logs();
    assert!(run_until(&mut swarm, &mut slow, |_, slow| slow.frames() > 30), "{io}: {:#?}", logs());
    let judged = oracle::judge(slow.client.got(), MediaKind::Video);
    assert_eq!((judged.missing, judged.starts_whole), (0, true), "{io}: {judged:#?}");
    assert!(judged.faults.is_empty(), "{io}: {judged:#?}");

    slow.reads = false;
    let dropped = || server.metric(EVENTS, "stream_dropped_video");
    assert!(run_until(&mut swarm, &mut slow, |_, _| dropped() > 500.0), "{io}: {:#?}", logs());
    for kind in [MediaKind::Audio, MediaKind::Video] {
        let judged = oracle::judge(swarm.client(steady).got(), kind);
        assert!(judged.faults.is_empty(), "{io} {kind}: {judged:#?}");
        assert_eq!((judged.missing, judged.duplicates), (0, 0), "{io} {kind}: {judged:#?}");
    }
    assert_eq!(server.metric(EVENTS, "stream_dropped_control"), 0.0, "{io}");
    assert_eq!(server.metric(EVENTS, "full_dropped"), 0.0, "{io}: the UDP socket");

    // It reads on: what comes next is played again.
    slow.reads = true;
    let newest = swarm.client(steady).got().last().expect("media").stamp.frame;
    let caught_up = |_: &Swarm, slow: &TcpViewer| {
        slow.client.got().iter().any(|g| g.kind == MediaKind::Video && g.marker && g.stamp.frame > newest + 60)
    };
    assert!(run_until(&mut swarm, &mut slow, caught_up), "{io}: {:#?}", logs());

    // With its session the connection ends, though the client would have kept it.
    agent().delete(&slow.location).call().expect("an answer");
    slow.stream.set_nonblocking(false).expect("a socket");
    slow.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    while slow.stream.read(&mut [0; 65_536]).expect("the end, in time") > 0 {}
}

#[test]
fn a_viewer_that_stops_reading_costs_nobody_else_a_packet_uring() {
    a_viewer_that_stops_reading_costs_nobody_else_a_packet("uring");
}

#[test]
fn a_viewer_that_stops_reading_costs_nobody_else_a_packet_mmsg() {
    a_viewer_that_stops_reading_costs_nobody_else_a_packet("mmsg");
}

/// Waits for the server to close; whatever it says before is too much.
fn is_closed_in_silence(mut stream: TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    match stream.read(&mut [0; 100]) {
        Ok(bytes) => bytes == 0,
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_stranger_is_turned_away() {
    let server = start("auto");
    let address = tcp_address(&server);
    let connect = || TcpStream::connect(address).expect("a connection");
    let says = |bytes: &[u8]| {
        let mut stream = connect();
        stream.write_all(bytes).expect("the server listens");
        stream
    };
    let request = write_binding_request("nobody:me", "a password of some length", [9; 12], true);
    for (what, bytes) in [
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("nothing", vec![0, 0]),
        ("noise", framed(&[7; 100])),
        ("a frame of more than 2 KiB", vec![0x08, 0x01]),
        ("STUN for nobody", framed(&request)),
        ("half a frame, and no more", framed(&request)[..40].to_vec()),
    ] {
        assert!(is_closed_in_silence(says(&bytes)), "{what}");
    }
    // So many wait at a time.
    let mut waiting: Vec<TcpStream> = (0..limits::UNADOPTED_STREAMS_PER_IP_MAX).map(|_| connect()).collect();
    let began = Instant::now();
    assert!(is_closed_in_silence(connect()), "one too many");
    assert!(began.elapsed() < limits::FIRST_FRAME_TIMEOUT / 2, "it was not closed at once");
    // And not for ever.
    assert!(is_closed_in_silence(waiting.pop().expect("one of them")));
    assert_eq!(server.metric(EVENTS, "stream_opened"), 0.0);
}

#[test]
fn without_the_setting_nothing_is_offered() {
    let server = Server::start(&[]);
    let mut swarm = Swarm::new(1);
    let answer = swarm.publish(&format!("{}/whip/live", server.url), Source::default()).answer;
    assert!(answer.contains(" udp ") && !answer.contains(" tcp "), "{answer}");
    assert!(!server.banner.iter().any(|l| l.contains("TCP")), "{:#?}", server.banner);
}
