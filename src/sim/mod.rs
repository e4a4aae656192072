//! A whole SFU under virtual time: the same shards as in a real node, a seeded network, str0m clients.
//!
//! [`World::run_for`] steps the earliest of deliveries and timers. One seed decides the network, the placement of
//! clients on shards and every random value of ours. Its seam is the datagram batch: `io` has tests of its own
//! against the real kernel.

pub mod client;
mod network;
pub mod oracle;
mod trace;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use str0m::config::CryptoProvider;

use crate::datagram::{Received, SendBatch, SocketId};
use crate::forward::table::Stream;
use crate::id::{Generation, SessionId, ShardId, StreamId};
use crate::session::negotiate::{self, PeerConfig, PublishRequest, WatchRequest};
use crate::shard::Shard;
use crate::shard::message::{Command, Event, PeerMessage};
use crate::shard::placement::Slot;
use crate::srtp::dtls::{self, Certificate};
use crate::units::{Epoch, Instant};
use crate::wire::classify::classify;
use crate::wire::sdp::{Offer, finish_answer};
use client::{Client, Source};

pub use network::Path;
pub use trace::Trace;

/// From one shard's push to the other's pop.
const PEER_DELAY: Duration = Duration::from_micros(20);

/// Names a client within its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub usize);

/// One node and its clients.
pub struct World {
    pub seed: u64,
    now: Instant,
    epoch: Epoch,
    rng: StdRng,
    crypto: Arc<CryptoProvider>,
    config: PeerConfig,
    shards: Vec<Shard>,
    clients: Vec<Endpoint>,
    by_addr: BTreeMap<SocketAddr, ClientId>,
    agenda: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    streams: BTreeMap<String, Arc<Stream>>,
    sessions: u64,
    generations: u64,
    pub events: Vec<(Instant, ShardId, Event)>,
    pub trace: Trace,
}

struct Endpoint {
    client: Client,
    path: Path,
    /// A dead client's process is gone: it sends and receives nothing.
    dead: bool,
}

struct Scheduled {
    at: Instant,
    /// Ties go in the order of scheduling.
    order: u64,
    what: What,
}

enum What {
    ToShard { shard: ShardId, from: SocketAddr, data: Vec<u8> },
    ToClient { client: ClientId, from: SocketAddr, data: Vec<u8> },
    Peer { shard: ShardId, message: PeerMessage },
    Command { shard: ShardId, command: Command },
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl World {
    pub fn new(seed: u64, shards: u16) -> World {
        #[expect(clippy::disallowed_methods, reason = "str0m wants std instants; only distances from this one matter")]
        let epoch = Epoch::new(std::time::Instant::now());
        // str0m draws its own randomness (transaction ids, SSRCs, first sequence numbers) from this thread's generator.
        fastrand::seed(seed);
        let crypto = dtls::simulated_crypto_provider();
        let config = PeerConfig {
            epoch,
            candidates: Arc::from([SocketAddr::from(([192, 0, 2, 1], 8080))]),
            crypto: crypto.clone(),
            certificate: Certificate::generate().expect("the cipher library can make a key"),
        };
        World {
            seed,
            now: Instant::ZERO,
            epoch,
            rng: StdRng::seed_from_u64(seed),
            crypto,
            config,
            shards: (0..shards).map(|i| Shard::new(ShardId(i))).collect(),
            clients: Vec::new(),
            by_addr: BTreeMap::new(),
            agenda: BinaryHeap::new(),
            scheduled: 0,
            streams: BTreeMap::new(),
            sessions: 0,
            generations: 0,
            events: Vec::new(),
            trace: Trace::default(),
        }
    }

    pub fn now(&self) -> Instant {
        self.now
    }

    pub fn client(&self, id: ClientId) -> &Client {
        &self.clients[id.0].client
    }

    pub fn path(&self, id: ClientId) -> Path {
        self.clients[id.0].path
    }

    /// Starts a publisher of the stream.
    pub fn publish(&mut self, stream: &str, source: Source, path: Path) -> ClientId {
        let addr = self.next_addr();
        let seed = self.rng.random();
        let (client, offer) = Client::publisher(self.now, self.epoch, addr, self.crypto.clone(), source, seed);
        self.generations += 1;
        let generation = Generation(self.generations);
        self.sign_up(client, path, stream, &offer, |world, stream, session, offer| {
            let request = PublishRequest { session, stream, generation, pli_interval: None, video_codecs: vec![] };
            negotiate::publish(world.now, &world.config, offer, request, &mut world.rng)
        })
    }

    /// Starts a viewer of the stream.
    pub fn watch(&mut self, stream: &str, path: Path) -> ClientId {
        let addr = self.next_addr();
        let (client, offer) = Client::viewer(self.now, self.epoch, addr, self.crypto.clone());
        self.sign_up(client, path, stream, &offer, |world, stream, session, offer| {
            let request = WatchRequest { session, stream, published: vec![] };
            negotiate::watch(world.now, &world.config, offer, request, &mut world.rng)
        })
    }

    /// The client says goodbye.
    pub fn leave(&mut self, id: ClientId) {
        let now = self.now;
        self.clients[id.0].client.close(now);
        self.send_from_client(id);
    }

    /// The client's process dies without a word.
    pub fn kill(&mut self, id: ClientId) {
        self.clients[id.0].dead = true;
    }

    /// The viewer's decoder asks for a keyframe.
    pub fn request_keyframe(&mut self, id: ClientId) {
        let now = self.now;
        self.clients[id.0].client.request_keyframe(now);
        self.send_from_client(id);
    }

    /// Sends a datagram of the caller's making to the node, as if from `from`.
    pub fn inject(&mut self, from: SocketAddr, data: Vec<u8>) {
        let shard = self.shard_of(from);
        self.schedule(self.now, What::ToShard { shard, from, data });
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `done`, `limit` at most; returns whether it was.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&World) -> bool) -> bool {
        let end = self.now + limit;
        while !done(self) {
            if !self.step(end) {
                self.now = end;
                return done(self);
            }
        }
        true
    }

    /// Cumulative figures of all shards.
    pub fn counters(&mut self) -> Vec<crate::metrics::Counters> {
        self.shards.iter_mut().map(|s| s.counters_mut().clone()).collect()
    }

    /// Sessions that live on shards.
    pub fn sessions(&self) -> usize {
        self.shards.iter().map(Shard::sessions).sum()
    }

    fn sign_up(
        &mut self,
        mut client: Client,
        path: Path,
        stream: &str,
        offer: &str,
        negotiate: impl FnOnce(
            &mut World,
            StreamId,
            SessionId,
            &Offer,
        ) -> Result<negotiate::Negotiated, negotiate::NegotiationError>,
    ) -> ClientId {
        let id = ClientId(self.clients.len());
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let count = self.streams.len() as u32;
        let stream = self
            .streams
            .entry(stream.to_owned())
            .or_insert_with(|| Arc::new(Stream::new(StreamId(count + 1), stream)))
            .clone();
        let offer = Offer::parse(offer).expect("a client's own offer");
        let negotiated = negotiate(self, stream.id, session, &offer).expect("an offer that can be answered");
        let answer = finish_answer(&negotiated.answer, &offer).expect("a whole answer");
        let slot = Arc::new(Slot::new(session, stream, negotiated.session));
        for shard in 0..self.shards.len() {
            let command = Command::Announce {
                ufrag: negotiated.local_ufrag.clone(),
                pwd: negotiated.local_pwd.clone(),
                slot: slot.clone(),
            };
            self.schedule(self.now, What::Command { shard: ShardId(shard as u16), command });
        }
        client.accept_answer(self.now, &answer).expect("the node's answer");
        self.by_addr.insert(client.addr(), id);
        self.clients.push(Endpoint { client, path, dead: false });
        self.send_from_client(id);
        id
    }

    fn next_addr(&self) -> SocketAddr {
        let n = self.clients.len() as u16;
        SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 5000 + n))
    }

    /// The kernel's hash of the 4-tuple.
    fn shard_of(&self, from: SocketAddr) -> ShardId {
        let mut rng = StdRng::seed_from_u64(self.seed ^ u64::from(from.port()) << 32 ^ ip_bits(from));
        ShardId(rng.random_range(0..self.shards.len()) as u16)
    }

    fn schedule(&mut self, at: Instant, what: What) {
        self.scheduled += 1;
        self.agenda.push(Reverse(Scheduled { at, order: self.scheduled, what }));
    }

    /// Does the earliest thing that happens before `end`; false when there is none.
    fn step(&mut self, end: Instant) -> bool {
        let agenda = self.agenda.peek().map_or(Instant::FAR_FUTURE, |Reverse(s)| s.at);
        let shard = self.shards.iter().map(Shard::next_timeout).min().unwrap_or(Instant::FAR_FUTURE);
        let client = self.clients.iter().filter(|e| !e.dead).map(|e| e.client.next_timeout()).min();
        let next = agenda.min(shard).min(client.unwrap_or(Instant::FAR_FUTURE)).max(self.now);
        if next > end {
            return false;
        }
        self.now = next;
        if agenda <= next {
            if let Some(Reverse(scheduled)) = self.agenda.pop() {
                self.happen(scheduled.what);
            }
        } else if let Some(at) = self.shards.iter().position(|s| s.next_timeout() <= next) {
            let mut out = SendBatch::new();
            self.shards[at].handle_timeout(next, &mut out);
            self.finish_round(at, out);
        } else if let Some(at) = self.clients.iter().position(|e| !e.dead && e.client.next_timeout() <= next) {
            self.clients[at].client.handle_timeout(next);
            self.send_from_client(ClientId(at));
        }
        true
    }

    fn happen(&mut self, what: What) {
        let now = self.now;
        let mut out = SendBatch::new();
        match what {
            What::ToShard { shard, from, data } => {
                let received = Received { socket: SocketId(0), remote: from, data: &data };
                self.shards[shard.index()].handle_datagram(now, received, &mut out);
                self.finish_round(shard.index(), out);
            }
            What::Peer { shard, message } => {
                self.shards[shard.index()].handle_peer(now, message, &mut out);
                self.finish_round(shard.index(), out);
            }
            What::Command { shard, command } => {
                self.shards[shard.index()].handle_command(now, command, &mut out);
                self.finish_round(shard.index(), out);
            }
            What::ToClient { client, from, data } => {
                let endpoint = &mut self.clients[client.0];
                if !endpoint.dead {
                    endpoint.client.handle_datagram(now, from, &data);
                    self.send_from_client(client);
                }
            }
        }
    }

    /// What the driver does after each round: flush, hand over, report.
    fn finish_round(&mut self, at: usize, mut out: SendBatch) {
        let now = self.now;
        loop {
            let more = self.shards[at].poll_transmit(now, &mut out);
            self.flush(&out);
            out.clear();
            if !more {
                break;
            }
        }
        self.shards[at].handle_flushed(now);
        while let Some((shard, message)) = self.shards[at].poll_peer() {
            self.schedule(now + PEER_DELAY, What::Peer { shard, message });
        }
        while let Some(event) = self.shards[at].poll_event() {
            if !matches!(event, Event::Report(_)) {
                self.trace.record(now, name_of(&event), at as u64, 0);
            }
            self.events.push((now, ShardId(at as u16), event));
        }
    }

    fn flush(&mut self, out: &SendBatch) {
        let from = self.config.candidates[0];
        for message in out.iter() {
            let Some(&client) = self.by_addr.get(&message.remote) else { continue };
            self.record_datagram("out", message.data, client);
            let path = self.clients[client.0].path;
            for delay in path.deliver(&mut self.rng) {
                let data = message.data.to_vec();
                self.schedule(self.now + delay, What::ToClient { client, from, data });
            }
        }
    }

    fn send_from_client(&mut self, id: ClientId) {
        let from = self.clients[id.0].client.addr();
        let path = self.clients[id.0].path;
        let shard = self.shard_of(from);
        while let Some((_, data)) = self.clients[id.0].client.poll_transmit() {
            self.record_datagram("in", &data, id);
            for delay in path.deliver(&mut self.rng) {
                self.schedule(self.now + delay, What::ToShard { shard, from, data: data.clone() });
            }
        }
    }

    fn record_datagram(&mut self, way: &str, data: &[u8], client: ClientId) {
        let kind = classify(data).map_or(9, |k| k as u64);
        self.trace.record(self.now, way, client.0 as u64, kind);
    }
}

fn ip_bits(addr: SocketAddr) -> u64 {
    match addr.ip() {
        std::net::IpAddr::V4(ip) => u64::from(ip.to_bits()),
        std::net::IpAddr::V6(ip) => ip.to_bits() as u64,
    }
}

fn name_of(event: &Event) -> &'static str {
    match event {
        Event::Connected { .. } => "connected",
        Event::PublisherActive { .. } => "publisher active",
        Event::TrackStarted { .. } => "track started",
        Event::IceRestarted { .. } => "ice restarted",
        Event::Ended { .. } => "ended",
        Event::Report(_) => "report",
        Event::Stopped => "stopped",
    }
}
