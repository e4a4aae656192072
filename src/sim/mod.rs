//! A whole SFU under virtual time: the same shards and controller as in a real node, a seeded network, str0m clients.
//!
//! [`World::run_for`] steps the earliest of deliveries and timers. One seed decides the network, the placement of
//! clients on shards and every random value of ours. Its seam is the datagram batch: `io` has tests of its own
//! against the real kernel.

pub mod client;
mod network;
pub mod oracle;
mod play;
pub mod scenario;
mod trace;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::{HeaderMap, Method, Uri};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use str0m::config::CryptoProvider;

use crate::config::Config;
use crate::control::{Controller, Output, Request, Response};
use crate::datagram::{Received, SendBatch, SocketId};
use crate::id::ShardId;
use crate::limits;
use crate::session::negotiate::PeerConfig;
use crate::shard::message::{Command, Event, PeerMessage, RequestId};
use crate::shard::{Shard, ShardConfig};
use crate::srtp::dtls::{self, Certificate};
use crate::units::{Bitrate, Epoch, Instant};
use crate::wire::classify::{Kind, classify};
use client::{Client, Habits, Source};

pub use network::{Bottleneck, Path};
pub use play::{Finding, Outcome, alike, parting, play};
pub use trace::Trace;

/// From one thread's push to the other's pop.
const PEER_DELAY: Duration = Duration::from_micros(20);

/// Of every world: the wall clock is no part of the seed.
const UNIX_AT_START: Duration = Duration::from_secs(1_800_000_000);

/// Of every world too: str0m rounds what it measures to 2^-16 s of the wall clock, so that worlds which began at other fractions of
/// a second would round to other round trips, and their NACKs leave at other times. It began with a second.
#[expect(clippy::disallowed_methods, reason = "str0m wants std instants; only the fraction of a second matters")]
static EPOCH: LazyLock<Epoch> = LazyLock::new(|| {
    let (now, since_1970) = (std::time::Instant::now(), SystemTime::now().duration_since(SystemTime::UNIX_EPOCH));
    let fraction = since_1970.unwrap_or_default().subsec_nanos();
    Epoch::new(now + Duration::from_nanos(u64::from(1_000_000_000 - fraction)))
});

/// From one flush to the next.
const FLUSH_TIME: Duration = Duration::from_micros(200);

/// Fewer than the driver takes ([`limits::RECV_BATCH_DATAGRAMS`]), for the driver flushes in between when a batch is full.
const INPUTS_PER_ROUND: usize = 32;

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
    addr: SocketAddr,
    controller: Controller,
    requests: u64,
    responses: BTreeMap<u64, Response>,
    shards: Vec<Shard>,
    clients: Vec<Endpoint>,
    by_addr: BTreeMap<SocketAddr, ClientId>,
    /// Addresses that clients had before theirs changed.
    former: BTreeSet<SocketAddr>,
    sent: BTreeMap<SocketAddr, u64>,
    /// To whatever address.
    rtp_sent: u64,
    /// Datagrams to addresses that no client ever had.
    sent_to_strangers: u64,
    agenda: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    /// The batch of the last round, empty: its memory is worth keeping.
    spare: Option<SendBatch>,
    /// When clients want to be called, and who; an entry that is not its client's `armed` is stale.
    alarms: BinaryHeap<Reverse<(Instant, usize)>>,
    pub trace: Trace,
}

struct Endpoint {
    client: Client,
    path: Path,
    /// When its bottleneck's queue is empty.
    drained: Instant,
    habits: Habits,
    /// Where its datagrams seem to come from: a NAT may change it.
    outside: SocketAddr,
    /// Where they arrive.
    shard: ShardId,
    /// A dead client's process is gone: it sends and receives nothing.
    dead: bool,
    /// Its entry in `alarms`.
    armed: Instant,
    /// The session's URL, as the answer's Location gave it.
    location: String,
}

struct Scheduled {
    at: Instant,
    /// Ties go in the order of scheduling.
    order: u64,
    what: What,
}

enum What {
    ToShard {
        shard: ShardId,
        input: Input,
    },
    /// Datagrams that arrive together, one behind the other: of `segment` bytes each, the last may be shorter.
    ToClient {
        client: ClientId,
        from: SocketAddr,
        data: Vec<u8>,
        segment: usize,
    },
    Command {
        shard: ShardId,
        command: Command,
    },
    Event {
        shard: ShardId,
        event: Event,
    },
    /// A shard that has more to send goes on.
    Turn {
        shard: ShardId,
    },
}

/// What a shard takes many of in one round.
enum Input {
    Datagram { from: SocketAddr, data: Vec<u8> },
    Peer(PeerMessage),
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
        let epoch = *EPOCH;
        // str0m draws its own randomness (transaction ids, SSRCs, first sequence numbers) from this thread's generator.
        fastrand::seed(seed);
        let crypto = dtls::simulated_crypto_provider();
        let addr = SocketAddr::from(([192, 0, 2, 1], 8080));
        let mut rng = StdRng::seed_from_u64(seed);
        let peer = PeerConfig {
            epoch,
            candidates: Arc::from([addr]),
            tcp_candidates: Arc::default(),
            crypto: crypto.clone(),
            certificate: Certificate::generate().expect("the cipher library can make a key"),
        };
        let config = ShardConfig { unix_at_start: UNIX_AT_START, ..ShardConfig::default() };
        World {
            seed,
            now: Instant::ZERO,
            epoch,
            crypto,
            addr,
            controller: Controller::new(Config::defaults(), peer, shards, StdRng::seed_from_u64(rng.random())),
            rng,
            requests: 0,
            responses: BTreeMap::new(),
            shards: (0..shards).map(|i| Shard::new(ShardId(i), config)).collect(),
            clients: Vec::new(),
            by_addr: BTreeMap::new(),
            former: BTreeSet::new(),
            sent: BTreeMap::new(),
            rtp_sent: 0,
            sent_to_strangers: 0,
            agenda: BinaryHeap::new(),
            scheduled: 0,
            spare: None,
            alarms: BinaryHeap::new(),
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

    /// The client's network changes.
    pub fn set_path(&mut self, id: ClientId, path: Path) {
        self.clients[id.0].path = path;
    }

    /// Starts a publisher of the stream by WHIP.
    pub fn publish(&mut self, stream: &str, source: Source, path: Path) -> ClientId {
        self.publish_as(stream, source, path, Habits::NONE)
    }

    /// As [`Self::publish`], by a client with habits of its own.
    pub fn publish_as(&mut self, stream: &str, source: Source, path: Path, habits: Habits) -> ClientId {
        self.try_publish(stream, source, path, habits).unwrap_or_else(|refused| panic!("seed {}: {refused}", self.seed))
    }

    /// # Errors
    /// The status and its explanation, when the node refuses.
    pub fn try_publish(
        &mut self,
        stream: &str,
        source: Source,
        path: Path,
        habits: Habits,
    ) -> Result<ClientId, String> {
        let (addr, seed) = (self.next_addr(), self.rng.random());
        let (client, offer) = Client::publisher(self.now, self.epoch, addr, self.crypto.clone(), source, seed);
        self.sign_up(client, path, habits, &format!("/whip/{stream}"), &offer)
    }

    /// Starts a viewer of the stream by WHEP; the stream must be live.
    pub fn watch(&mut self, stream: &str, path: Path) -> ClientId {
        self.watch_as(stream, path, Habits::NONE)
    }

    /// As [`Self::watch`], by a client with habits of its own.
    pub fn watch_as(&mut self, stream: &str, path: Path, habits: Habits) -> ClientId {
        self.try_watch(stream, path, habits).unwrap_or_else(|refused| panic!("seed {}: {refused}", self.seed))
    }

    /// # Errors
    /// The status and its explanation, when the node refuses.
    pub fn try_watch(&mut self, stream: &str, path: Path, habits: Habits) -> Result<ClientId, String> {
        let (client, offer) = Client::viewer(self.now, self.epoch, self.next_addr(), self.crypto.clone());
        self.sign_up(client, path, habits, &format!("/whep/{stream}"), &offer)
    }

    /// As [`Self::watch`], but the offer names another certificate than the client's own.
    pub fn watch_as_impostor(&mut self, stream: &str, path: Path) -> ClientId {
        self.watch_as(stream, path, IMPOSTOR)
    }

    /// As [`Self::publish`], but the offer names another certificate than the client's own.
    pub fn publish_as_impostor(&mut self, stream: &str, source: Source, path: Path) -> ClientId {
        self.publish_as(stream, source, path, IMPOSTOR)
    }

    /// A day has passed: new sessions show a new certificate.
    pub fn rotate_certificate(&mut self) {
        self.controller.set_certificate(Certificate::generate().expect("the cipher library can make a key"));
    }

    /// DELETE on the session's URL; returns the status.
    pub fn delete(&mut self, id: ClientId) -> u16 {
        let location = self.clients[id.0].location.clone();
        self.request(Method::DELETE, &location, "").status().as_u16()
    }

    /// POST on the viewer's layer URL; returns the status.
    pub fn choose_layer(&mut self, id: ClientId, json: &str) -> u16 {
        let uri = format!("{}/layer", self.clients[id.0].location);
        self.send_request(Method::POST, &uri, "application/json", json);
        self.responses.remove(&self.requests).expect("answered at once").status().as_u16()
    }

    /// One HTTP exchange, without network time.
    ///
    /// # Panics
    /// When the controller leaves the request open: it waits for a shard.
    pub fn request(&mut self, method: Method, uri: &str, body: &str) -> Response {
        self.send_request(method, uri, "application/sdp", body);
        self.responses.remove(&self.requests).expect("answered at once")
    }

    fn send_request(&mut self, method: Method, uri: &str, content_type: &str, body: &str) {
        self.requests += 1;
        let mut headers = HeaderMap::new();
        headers.insert("content-type", content_type.parse().expect("a header"));
        headers.insert("host", "sfu.example".parse().expect("a header"));
        let request = Request {
            method,
            uri: uri.parse::<Uri>().expect("a URI"),
            headers,
            body: Bytes::copy_from_slice(body.as_bytes()),
            peer: [127, 0, 0, 1].into(),
            local: self.addr,
        };
        self.controller.handle_request(self.now, RequestId(self.requests), request);
        self.take_orders();
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

    /// The client's NAT gives it another address, which the kernel may hash to another shard.
    pub fn rebind(&mut self, id: ClientId) {
        let endpoint = &mut self.clients[id.0];
        self.by_addr.remove(&endpoint.outside);
        self.former.insert(endpoint.outside);
        endpoint.outside.set_port(endpoint.outside.port() + 1000);
        let outside = endpoint.outside;
        self.by_addr.insert(outside, id);
        self.clients[id.0].shard = self.shard_of(outside);
    }

    /// The shard on which the client's datagrams arrive.
    pub fn arrives_at(&self, id: ClientId) -> ShardId {
        self.clients[id.0].shard
    }

    /// The viewer's decoder asks for a keyframe.
    pub fn request_keyframe(&mut self, id: ClientId) {
        let now = self.now;
        self.clients[id.0].client.request_keyframe(now);
        self.send_from_client(id);
    }

    /// The viewer says what its path carries.
    pub fn request_remb(&mut self, id: ClientId, bitrate: Bitrate) {
        let now = self.now;
        self.clients[id.0].client.request_remb(now, bitrate);
        self.send_from_client(id);
    }

    /// Sends a datagram of the caller's making to the node, as if from `from`.
    pub fn inject(&mut self, from: SocketAddr, data: Vec<u8>) {
        let shard = self.shard_of(from);
        self.schedule(self.now, What::ToShard { shard, input: Input::Datagram { from, data } });
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

    /// Datagrams that the node has sent to an address.
    pub fn sent_to(&self, addr: SocketAddr) -> u64 {
        self.sent.get(&addr).copied().unwrap_or_default()
    }

    /// Cumulative figures of all shards.
    pub fn counters(&mut self) -> Vec<crate::metrics::Counters> {
        self.shards.iter_mut().map(|s| s.counters_mut().clone()).collect()
    }

    /// RTP packets that all shards have sent.
    pub fn rtp_sent(&self) -> u64 {
        self.rtp_sent
    }

    /// Sessions that live on shards.
    pub fn sessions(&self) -> usize {
        self.shards.iter().map(Shard::sessions).sum()
    }

    /// What the shards hold beyond what an idle one does.
    ///
    /// # Errors
    /// Names what is left and on which shard.
    pub fn nothing_is_left(&self) -> Result<(), String> {
        for shard in &self.shards {
            for (what, count) in shard.holdings() {
                if count > 0 {
                    return Err(format!("shard {} still has {count} {what}", shard.id().index()));
                }
            }
        }
        Ok(())
    }

    /// What the shards hold, however many datagrams have come: so much for each client there ever was, and queues.
    ///
    /// # Errors
    /// Names what is too much and on which shard.
    pub fn nothing_piles_up(&self) -> Result<(), String> {
        let clients = self.clients.len();
        for shard in &self.shards {
            for (what, count) in shard.holdings() {
                let bound = match what {
                    // A shard hands over in each round.
                    "messages that wait" => 0,
                    "resends" => limits::RESEND_QUEUE_PACKETS + 1,
                    "4-tuples" => (limits::REMOTES_PER_SESSION_MAX + 1) * clients,
                    // Two while ICE restarts; a start that waits, and a replay.
                    "ufrags" | "starts" => 2 * clients,
                    _ => clients,
                };
                if count > bound {
                    return Err(format!("shard {} has {count} {what}, {bound} are allowed", shard.id().index()));
                }
            }
        }
        Ok(())
    }

    /// Datagrams that the node has sent to addresses that no client ever had.
    pub fn sent_to_strangers(&self) -> u64 {
        self.sent_to_strangers
    }

    /// The viewer asks for a layer, by its index; returns the status.
    pub fn wish(&mut self, id: ClientId, layer: u8) -> u16 {
        let location = format!("{}/layer", self.clients[id.0].location);
        let body = format!(r#"{{"encodingId":"{}"}}"#, client::RIDS[usize::from(layer)]);
        self.send_request(Method::POST, &location, "application/json", &body);
        self.responses.remove(&self.requests).expect("answered at once").status().as_u16()
    }

    /// The client restarts ICE by PATCH.
    pub fn restart_ice(&mut self, id: ClientId) {
        self.try_restart_ice(id).unwrap_or_else(|refused| panic!("seed {}: {refused}", self.seed));
    }

    /// # Errors
    /// The status and its explanation, when the node refuses.
    pub fn try_restart_ice(&mut self, id: ClientId) -> Result<(), String> {
        let endpoint = &mut self.clients[id.0];
        let (location, fragment) = (endpoint.location.clone(), endpoint.client.restart_ice());
        // Until it is answered the client does nothing.
        self.arm(id);
        self.send_request(Method::PATCH, &location, "application/trickle-ice-sdpfrag", &fragment);
        // The shard is asked.
        self.run_for(10 * PEER_DELAY);
        let response = self.responses.remove(&self.requests).expect("answered by now");
        let body = std::str::from_utf8(response.body()).expect("text");
        if response.status().as_u16() != 200 {
            return Err(format!("{location}: {} {body}", response.status()));
        }
        self.clients[id.0].client.accept_restart(self.now, body).expect("the node's credentials");
        self.send_from_client(id);
        Ok(())
    }

    fn sign_up(
        &mut self,
        mut client: Client,
        path: Path,
        habits: Habits,
        uri: &str,
        offer: &str,
    ) -> Result<ClientId, String> {
        let id = ClientId(self.clients.len());
        let response = self.request(Method::POST, uri, &(habits.offer)(offer));
        let answer = std::str::from_utf8(response.body()).expect("text");
        if response.status().as_u16() != 201 {
            return Err(format!("{uri}: {} {answer}", response.status()));
        }
        client.accept_answer(self.now, answer).expect("the node's answer");
        let location = response.headers()["location"].to_str().expect("text").to_owned();
        let outside = client.addr();
        self.by_addr.insert(outside, id);
        self.clients.push(Endpoint {
            client,
            path,
            drained: Instant::ZERO,
            habits,
            outside,
            shard: self.shard_of(outside),
            dead: false,
            armed: Instant::FAR_FUTURE,
            location,
        });
        self.send_from_client(id);
        Ok(id)
    }

    /// What the controller wants done.
    fn take_orders(&mut self) {
        while let Some(output) = self.controller.poll_output() {
            match output {
                Output::Command(shard, command) => {
                    self.schedule(self.now + PEER_DELAY, What::Command { shard, command });
                }
                // No simulated client listens to events.
                Output::Stream(..) => {}
                Output::Respond(id, response) => {
                    self.trace.record(self.now, "response", u64::from(response.status().as_u16()), 0);
                    self.responses.insert(id.0, response);
                }
            }
        }
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
        let client = self.next_alarm();
        let control = self.controller.next_timeout();
        let next = agenda.min(shard).min(control).min(client).max(self.now);
        if next > end {
            return false;
        }
        self.now = next;
        if agenda <= next {
            if let Some(Reverse(scheduled)) = self.agenda.pop() {
                self.happen(scheduled.what);
            }
        } else if control <= next {
            self.controller.handle_timeout(next);
            self.take_orders();
        } else if let Some(at) = self.shards.iter().position(|s| s.next_timeout() <= next) {
            self.round(at, |shard, out| shard.handle_timeout(next, out));
        } else if let Some(Reverse((_, at))) = self.alarms.pop() {
            self.clients[at].armed = Instant::FAR_FUTURE;
            self.clients[at].client.handle_timeout(next);
            self.send_from_client(ClientId(at));
        }
        true
    }

    /// When the first client wants to be called; its entry is on top then.
    fn next_alarm(&mut self) -> Instant {
        while let Some(Reverse((at, client))) = self.alarms.peek() {
            let endpoint = &self.clients[*client];
            if !endpoint.dead && endpoint.armed == *at {
                return *at;
            }
            self.alarms.pop();
        }
        Instant::FAR_FUTURE
    }

    fn happen(&mut self, what: What) {
        let now = self.now;
        match what {
            What::ToShard { shard, input } => {
                let mut inputs = vec![input];
                while inputs.len() < INPUTS_PER_ROUND
                    && let Some(input) = self.next_input(shard)
                {
                    inputs.push(input);
                }
                self.round(shard.index(), |shard, out| {
                    for input in inputs {
                        match input {
                            Input::Datagram { from, data } => {
                                let received = Received { socket: SocketId(0), remote: from, data: &data };
                                shard.handle_datagram(now, received, out);
                            }
                            Input::Peer(message) => shard.handle_peer(now, message, out),
                        }
                    }
                });
            }
            What::Command { shard, command } => {
                self.round(shard.index(), |shard, out| shard.handle_command(now, command, out));
            }
            What::Turn { shard } => self.round(shard.index(), |_, _| {}),
            What::Event { shard, event } => {
                self.controller.handle_event(now, shard, event);
                self.take_orders();
            }
            What::ToClient { client, from, data, segment } => {
                let endpoint = &mut self.clients[client.0];
                if !endpoint.dead {
                    endpoint.client.handle_datagrams(now, from, data.chunks(segment));
                    self.send_from_client(client);
                }
            }
        }
    }

    /// What else has come for the shard by now, if it is what happens next.
    fn next_input(&mut self, to: ShardId) -> Option<Input> {
        let Reverse(next) = self.agenda.peek()?;
        if next.at > self.now || !matches!(next.what, What::ToShard { shard, .. } if shard == to) {
            return None;
        }
        match self.agenda.pop()?.0.what {
            What::ToShard { input, .. } => Some(input),
            _ => unreachable!("it was looked at"),
        }
    }

    /// What the driver does in each round: the shard takes its input, then flush, hand over, report.
    fn round(&mut self, at: usize, input: impl FnOnce(&mut Shard, &mut SendBatch)) {
        let now = self.now;
        let mut out = self.spare.take().unwrap_or_default();
        input(&mut self.shards[at], &mut out);
        let more = self.shards[at].poll_transmit(now, &mut out);
        self.flush(&out);
        out.clear();
        self.spare = Some(out);
        if more {
            self.schedule(now + FLUSH_TIME, What::Turn { shard: ShardId(at as u16) });
        }
        self.shards[at].handle_flushed(now);
        while let Some((shard, message)) = self.shards[at].poll_peer() {
            self.schedule(now + PEER_DELAY, What::ToShard { shard, input: Input::Peer(message) });
        }
        while let Some(event) = self.shards[at].poll_event() {
            if !matches!(event, Event::Report(_)) {
                self.trace.record(now, name_of(&event), at as u64, 0);
            }
            self.schedule(now + PEER_DELAY, What::Event { shard: ShardId(at as u16), event });
        }
    }

    fn flush(&mut self, out: &SendBatch) {
        let from = self.addr;
        for message in out.iter() {
            *self.sent.entry(message.remote).or_default() += 1;
            let segment = message.segment.map_or(message.data.len(), usize::from).max(1);
            self.rtp_sent +=
                message.data.chunks(segment).filter(|data| classify(data) == Some(Kind::Rtp)).count() as u64;
            let Some(&client) = self.by_addr.get(&message.remote) else {
                self.sent_to_strangers += u64::from(!self.former.contains(&message.remote));
                continue;
            };
            let path = self.clients[client.0].path;
            let mut trains: Vec<(Instant, Vec<u8>)> = Vec::new();
            for data in message.data.chunks(segment) {
                self.record_datagram("out", data, client);
                let drained = &mut self.clients[client.0].drained;
                let waits = path.bottleneck.map_or(Some(Duration::ZERO), |b| b.pass(self.now, data, drained));
                let Some(waits) = waits else { continue };
                for delay in path.deliver(&mut self.rng) {
                    let at = self.now + waits + delay;
                    match trains.last_mut() {
                        Some((then, train)) if *then == at && train.len().is_multiple_of(segment) => {
                            train.extend_from_slice(data);
                        }
                        _ => trains.push((at, data.to_vec())),
                    }
                }
            }
            for (at, data) in trains {
                self.schedule(at, What::ToClient { client, from, data, segment });
            }
        }
    }

    fn send_from_client(&mut self, id: ClientId) {
        let Endpoint { outside: from, shard, .. } = self.clients[id.0];
        while let Some((_, data)) = self.clients[id.0].client.poll_transmit() {
            let Endpoint { client, path, habits, .. } = &self.clients[id.0];
            let mut path = *path;
            let Some(data) = (habits.datagram)(client, data) else { continue };
            if client.begins_keyframe(&data) {
                path.jitter = path.overtaking();
            }
            self.record_datagram("in", &data, id);
            for delay in path.deliver(&mut self.rng) {
                let input = Input::Datagram { from, data: data.clone() };
                self.schedule(self.now + delay, What::ToShard { shard, input });
            }
        }
        self.arm(id);
    }

    /// Whatever was done to a client may have moved its deadline.
    fn arm(&mut self, id: ClientId) {
        let endpoint = &mut self.clients[id.0];
        let at = endpoint.client.next_timeout();
        if at != endpoint.armed {
            endpoint.armed = at;
            if at != Instant::FAR_FUTURE {
                self.alarms.push(Reverse((at, id.0)));
            }
        }
    }

    fn record_datagram(&mut self, way: &str, data: &[u8], client: ClientId) {
        let kind = classify(data).map_or(9, |k| k as u64);
        self.trace.record(self.now, way, client.0 as u64, kind);
    }
}

/// Whoever has taken another's offer has another certificate than it names.
const IMPOSTOR: Habits = Habits { offer: with_other_fingerprint, ..Habits::NONE };

/// Of the right form: one digit differs.
fn with_other_fingerprint(offer: &str) -> String {
    let prefix = "a=fingerprint:sha-256 ";
    let at = offer.find(prefix).expect("a fingerprint") + prefix.len();
    let digit = if offer[at..].starts_with('A') { "B" } else { "A" };
    let right = offer[at..].lines().next().expect("its line");
    offer.replace(right, &format!("{digit}{}", &right[1..]))
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
