//! What one viewer's join costs the server, sans-IO and without HTTP: µs of wall clock on one core.
//!
//! - `answer`: from the offer's text to the answer's, as control does it: read, negotiated, written. The recorded offer of a
//!   Chromium viewer (17 video formats), and the one that `manycast load` makes.
//! - `connect`: from the first STUN request to the keys in the viewer's media plane: ICE, DTLS 1.2, no packet of media. A
//!   str0m client plays the other end; only the server's calls are timed.
//! - `goodbye`: DTLS close_notify, and the session dropped.
//!
//! Not measured: HTTP, sockets, the shard's gate and its timers, log lines.
//!
//! `join --count <answer|load|connect> <n>` does so many and ends, for
//! `valgrind --tool=callgrind --toggle-collect='*server_*'`, which then counts the server's instructions only.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use manycast::datagram::{SendBatch, SocketId};
use manycast::id::{SessionId, StreamId};
use manycast::session::negotiate::{self, Negotiated, PeerConfig, WatchRequest};
use manycast::session::{CloseReason, Output, Session};
use manycast::sim::client::Client;
use manycast::srtp::dtls::{self, Certificate};
use manycast::units::{Epoch, Instant};
use manycast::wire::codec::Format;
use manycast::wire::sdp::Offer;
use rand::SeedableRng;
use rand::rngs::StdRng;

const CHROMIUM_VIEW: &str = include_str!("../tests/data/offers/chromium-view.sdp");

/// Flights of ICE and DTLS; a handshake without loss needs half of them.
const ROUNDS_MAX: usize = 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut server = Server::new();
    if let [flag, what, times] = &arguments[..]
        && flag == "--count"
    {
        let times: usize = times.parse().expect("a number");
        return (0..times).for_each(|_| server.count(what));
    }
    let mut criterion = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    let load = server.client().1;
    for (name, offer) in [("answer/chromium", CHROMIUM_VIEW), ("answer/load", load.as_str())] {
        criterion.bench_function(name, |b| b.iter(|| black_box(server_answers(&mut server, black_box(offer)))));
    }
    for (name, goodbye) in [("connect", false), ("goodbye", true)] {
        criterion.bench_function(name, |b| {
            b.iter_custom(|times| (0..times).map(|_| server.join().taken(goodbye)).sum());
        });
    }
    criterion.final_summary();
}

/// What a node has before anyone joins.
struct Server {
    config: PeerConfig,
    rng: StdRng,
    now: Instant,
}

/// Time that the server's calls took.
struct Join {
    connect: Duration,
    goodbye: Duration,
}

impl Join {
    fn taken(&self, goodbye: bool) -> Duration {
        if goodbye { self.goodbye } else { self.connect }
    }
}

impl Server {
    fn new() -> Server {
        let config = PeerConfig {
            epoch: Epoch::new(clock()),
            candidates: Arc::from([SocketAddr::from(([192, 0, 2, 1], 8080))]),
            tcp_candidates: Arc::default(),
            crypto: dtls::crypto_provider(),
            certificate: Certificate::generate().expect("the operating system has randomness"),
        };
        let server = Server { config, rng: StdRng::seed_from_u64(1), now: Instant::ZERO };
        // The process's one DTLS configuration is made with its first session.
        drop(server.client());
        server
    }

    fn count(&mut self, what: &str) {
        match what {
            "answer" => drop(server_answers(self, CHROMIUM_VIEW)),
            "load" => {
                let offer = self.client().1;
                drop(server_answers(self, &offer));
            }
            "connect" => drop(self.join()),
            other => panic!("{other}: not one of answer, load, connect"),
        }
    }

    /// A client as `manycast load` makes them, and its offer.
    fn client(&self) -> (Client, String) {
        let addr = SocketAddr::from(([192, 0, 2, 7], 5000));
        Client::viewer(self.now, self.config.epoch, addr, self.config.crypto.clone())
    }

    fn join(&mut self) -> Join {
        let (mut client, offer) = self.client();
        let negotiated = server_answers(self, &offer);
        client.accept_answer(self.now, &negotiated.answer).expect("our answer is taken");

        let mut session = negotiated.session;
        let mut out = SendBatch::new();
        let mut connect = Duration::ZERO;
        for _ in 0..ROUNDS_MAX {
            self.now += Duration::from_millis(1);
            if session.next_timeout() <= self.now {
                connect += timed(|| server_wakes(&mut session, self.now, &mut out));
            }
            if client.next_timeout() <= self.now {
                client.handle_timeout(self.now);
            }
            while let Some((_, data)) = client.poll_transmit() {
                connect += timed(|| server_receives(&mut session, self.now, client.addr(), &data, &mut out));
            }
            self.deliver(&mut out, &mut client);
            if session.is_live() && client.connected_at.is_some() {
                break;
            }
        }
        assert!(session.is_live(), "no connection after {ROUNDS_MAX} rounds");
        let goodbye = timed(|| server_ends(session, self.now, &mut out));
        Join { connect, goodbye }
    }

    fn deliver(&self, out: &mut SendBatch, client: &mut Client) {
        out.iter().for_each(|o| client.handle_datagram(self.now, self.config.candidates[0], o.data));
        out.clear();
    }
}

#[inline(never)]
fn server_answers(server: &mut Server, offer: &str) -> Negotiated {
    let offer = Offer::parse(offer).expect("a good offer");
    let request = WatchRequest {
        session: SessionId(1),
        stream: StreamId(1),
        published: vec![Format::OPUS, Format::VP8],
        estimate: false,
    };
    let negotiated = negotiate::watch(server.now, &server.config, &offer, request, &mut server.rng);
    negotiated.expect("codecs in common")
}

#[inline(never)]
fn server_receives(session: &mut Session, now: Instant, from: SocketAddr, data: &[u8], out: &mut SendBatch) {
    session.handle_datagram(now, SocketId(0), from, data, true);
    drain(session, now, out);
}

#[inline(never)]
fn server_wakes(session: &mut Session, now: Instant, out: &mut SendBatch) {
    session.handle_timeout(now);
    drain(session, now, out);
}

#[inline(never)]
fn server_ends(mut session: Box<Session>, now: Instant, out: &mut SendBatch) {
    session.close(now, CloseReason::Deleted);
    drain(&mut session, now, out);
}

fn drain(session: &mut Session, now: Instant, out: &mut SendBatch) {
    while let Some(output) = session.poll_output(now, out) {
        if let Output::Connected(egress) = output {
            black_box(egress);
        }
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = clock();
    work();
    clock() - start
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn clock() -> std::time::Instant {
    std::time::Instant::now()
}
