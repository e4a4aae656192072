//! One shard and its clients in virtual time, without a network between them; what it does with the publisher's media is
//! timed, or counted.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use manycast::datagram::{Received, SendBatch, SocketId};
use manycast::forward::table::Stream;
use manycast::id::{Generation, SessionId, ShardId, StreamId};
use manycast::session::negotiate::{self, PeerConfig, PublishRequest, WatchRequest};
use manycast::shard::message::{Command, PeerMessage};
use manycast::shard::placement::Slot;
use manycast::shard::{Shard, ShardConfig};
use manycast::sim::client::{Client, Source};
use manycast::srtp::dtls::{self, Certificate};
use manycast::units::{Epoch, Instant};
use manycast::wire::classify::{Kind, classify};
use manycast::wire::sdp::Offer;
use rand::SeedableRng;
use rand::rngs::StdRng;

pub const SHARD: ShardId = ShardId(0);
pub const SOCKET: SocketId = SocketId(0);
pub const STREAM: StreamId = StreamId(1);
pub const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 8080);

/// One shard and its clients.
pub struct Room {
    pub now: Instant,
    epoch: Epoch,
    peers: PeerConfig,
    rng: StdRng,
    /// What the next client publishes or watches.
    pub stream: Arc<Stream>,
    pub shard: Shard,
    /// The publisher is the first.
    pub clients: Vec<Client>,
    by_addr: BTreeMap<SocketAddr, usize>,
    on_the_way: VecDeque<Datagram>,
    pub out: SendBatch,
    /// What is spent: nanoseconds, allocations.
    meter: fn() -> u64,
    pub spent: Spent,
    /// Media for viewers is thrown away: a thousand of them take longer to open it than the shard to seal it.
    pub deaf: bool,
    /// Keyframes that the shard has asked other shards for.
    pub asked: usize,
    /// The next viewer tells of arrivals (transport-cc).
    pub estimate: bool,
}

/// What the shard had to do with the publisher's media.
#[derive(Clone, Copy, Default)]
pub struct Spent {
    pub packets: u64,
    /// By the room's meter.
    pub amount: u64,
}

struct Datagram {
    client: usize,
    to_shard: bool,
    data: Vec<u8>,
}

impl Room {
    pub fn new(meter: fn() -> u64) -> Room {
        Room::with(meter, ShardConfig::default())
    }

    #[expect(clippy::disallowed_methods, reason = "str0m wants std instants; only distances from this one matter")]
    pub fn with(meter: fn() -> u64, config: ShardConfig) -> Room {
        fastrand::seed(1);
        let epoch = Epoch::new(std::time::Instant::now());
        Room {
            now: Instant::ZERO,
            epoch,
            peers: PeerConfig {
                epoch,
                candidates: Arc::from([SERVER]),
                tcp_candidates: Arc::default(),
                crypto: dtls::simulated_crypto_provider(),
                certificate: Certificate::generate().expect("the cipher library can make a key"),
            },
            rng: StdRng::seed_from_u64(1),
            stream: Arc::new(Stream::new(STREAM, "bench")),
            shard: Shard::new(SHARD, config),
            clients: Vec::new(),
            by_addr: BTreeMap::new(),
            on_the_way: VecDeque::new(),
            out: SendBatch::new(),
            meter,
            spent: Spent::default(),
            deaf: false,
            asked: 0,
            estimate: false,
        }
    }

    pub fn publish(&mut self, source: Source) {
        let crypto = self.peers.crypto.clone();
        let (client, offer) = Client::publisher(self.now, self.epoch, self.next_addr(), crypto, source, 1);
        let offer = Offer::parse(&offer).expect("a client's own offer");
        let request = PublishRequest {
            session: self.next_session(),
            stream: STREAM,
            generation: Generation(1),
            pli_interval: None,
            video_codecs: Vec::new(),
        };
        let negotiated = negotiate::publish(self.now, &self.peers, &offer, request, &mut self.rng);
        self.sign_up(client, negotiated.expect("an offer that can be answered"));
    }

    /// Returns our ufrag for the new viewer.
    pub fn watch(&mut self) -> String {
        let crypto = self.peers.crypto.clone();
        let (client, offer) = Client::viewer(self.now, self.epoch, self.next_addr(), crypto);
        let offer = Offer::parse(&offer).expect("a client's own offer");
        let request = WatchRequest {
            session: self.next_session(),
            stream: self.stream.id,
            published: Vec::new(),
            estimate: self.estimate,
        };
        let negotiated = negotiate::watch(self.now, &self.peers, &offer, request, &mut self.rng);
        self.sign_up(client, negotiated.expect("an offer that can be answered"))
    }

    fn sign_up(&mut self, mut client: Client, negotiated: negotiate::Negotiated) -> String {
        client.accept_answer(self.now, &negotiated.answer).expect("the shard's answer");
        let announce = Command::Announce {
            ufrag: negotiated.local_ufrag.clone(),
            pwd: negotiated.local_pwd,
            slot: Arc::new(Slot::new(self.next_session(), self.stream.clone(), negotiated.session)),
        };
        self.shard.handle_command(self.now, announce, &mut self.out);
        self.by_addr.insert(client.addr(), self.clients.len());
        self.clients.push(client);
        negotiated.local_ufrag
    }

    fn next_addr(&self) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], 5000 + self.clients.len() as u16))
    }

    fn next_session(&self) -> SessionId {
        SessionId(self.clients.len() as u64 + 1)
    }

    /// A publisher with frames of 10 packets, and so many viewers that play it.
    pub fn playing(meter: fn() -> u64, viewers: u64, deaf: bool) -> Room {
        let mut room = Room { deaf, ..Room::new(meter) };
        room.publish(Source { packets_per_frame: 10, audio: false, ..Source::default() });
        for _ in 0..viewers {
            room.watch();
        }
        room.run_until(|room| room.clients.iter().all(|c| c.connected_at.is_some()));
        // Long enough for the keyframe that all of them wait for, and for everything that is kept to be full.
        let playing = room.now + Duration::from_secs(3);
        room.run_until(|room| room.now >= playing);
        room
    }

    /// What the shard spends on so many packets of the publisher's.
    pub fn spend(&mut self, packets: u64) -> Spent {
        let before = self.spent;
        self.run_until(|room| room.spent.packets >= before.packets + packets);
        Spent { packets: self.spent.packets - before.packets, amount: self.spent.amount - before.amount }
    }

    pub fn run_until(&mut self, done: impl Fn(&Room) -> bool) {
        while !done(self) {
            self.step();
        }
    }

    /// Does what falls due next, and everything that follows from it.
    pub fn step(&mut self) {
        let due = |client: &Client| client.next_timeout();
        let (client, at) = self.clients.iter().map(due).enumerate().min_by_key(|(_, at)| *at).expect("clients");
        self.now = self.now.max(at.min(self.shard.next_timeout()));
        if at <= self.now {
            self.clients[client].handle_timeout(self.now);
            self.collect(client);
        } else {
            self.shard.handle_timeout(self.now, &mut self.out);
            self.finish_round();
        }
        self.exchange();
    }

    /// Takes what the shard has to say, and brings everything that is on its way where it belongs.
    pub fn exchange(&mut self) {
        self.finish_round();
        while let Some(datagram) = self.on_the_way.pop_front() {
            self.deliver(datagram);
        }
    }

    fn deliver(&mut self, datagram: Datagram) {
        let Datagram { client, to_shard, data } = datagram;
        if to_shard {
            let remote = self.clients[client].addr();
            let before = (self.meter)();
            self.shard.handle_datagram(self.now, Received { socket: SOCKET, remote, data: &data }, &mut self.out);
            let mut spent = (self.meter)() - before;
            spent += self.finish_round();
            if client == 0 && classify(&data) == Some(Kind::Rtp) {
                self.spent.packets += 1;
                self.spent.amount += spent;
            }
        } else {
            self.clients[client].handle_datagram(self.now, SERVER, &data);
            self.collect(client);
        }
    }

    /// Takes everything that the shard has to say, and returns what it spent on writing it.
    fn finish_round(&mut self) -> u64 {
        let mut spent = 0;
        loop {
            let before = (self.meter)();
            let more = self.shard.poll_transmit(self.now, &mut self.out);
            spent += (self.meter)() - before;
            self.send();
            if !more {
                break;
            }
        }
        self.shard.handle_flushed(self.now);
        // To itself: requests for keyframes.
        while let Some((_, message)) = self.shard.poll_peer() {
            self.asked += usize::from(matches!(message, PeerMessage::KeyframeRequest { .. }));
            self.shard.handle_peer(self.now, message, &mut self.out);
        }
        while self.shard.poll_event().is_some() {}
        spent
    }

    /// Puts what the shard has written on its way.
    fn send(&mut self) {
        for message in self.out.iter() {
            if self.deaf && classify(message.data) == Some(Kind::Rtp) {
                continue;
            }
            let client = self.by_addr[&message.remote];
            for data in message.data.chunks(message.segment.map_or(usize::MAX, usize::from)) {
                self.on_the_way.push_back(Datagram { client, to_shard: false, data: data.to_vec() });
            }
        }
        self.out.clear();
    }

    pub fn collect(&mut self, client: usize) {
        while let Some((_, data)) = self.clients[client].poll_transmit() {
            self.on_the_way.push_back(Datagram { client, to_shard: true, data });
        }
    }
}
