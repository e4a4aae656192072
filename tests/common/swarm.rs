//! Many str0m clients in one thread, each on a UDP socket of its own.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use manycast::datagram::{RecvBatch, SendBatch, SocketId};
use manycast::io::Clock;
use manycast::io::{self, Backend, BackendKind};
use manycast::sim::client::{Client, Source};
use manycast::srtp::dtls;
use manycast::units::{Epoch, Instant};
use str0m::config::CryptoProvider;

use super::server::agent;

/// Half a second of 2.5 Mbit/s, in the kernel's own count: 2304 bytes for a datagram of 1200.
const RECEIVE_BUFFER_BYTES: usize = 512 * 1024;

/// One client's place in its swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member(pub usize);

/// Clients and the sockets they use.
pub struct Swarm {
    clock: Clock,
    crypto: Arc<CryptoProvider>,
    backend: Box<dyn Backend>,
    /// Bound, waiting for their clients.
    addrs: Vec<std::net::SocketAddr>,
    members: Vec<Client>,
    /// A dead client sends and receives nothing.
    dead: Vec<bool>,
    received: RecvBatch,
    out: SendBatch,
    /// Where the last datagram went, and what the members have sent, when somebody wants to know.
    pub server: Option<std::net::SocketAddr>,
    pub recording: Option<Vec<(Member, Vec<u8>)>>,
    /// What the next client presents.
    pub token: Option<String>,
}

/// A session as the server's answer names it.
pub struct Joined {
    pub member: Member,
    /// Absolute.
    pub location: String,
    pub answer: String,
}

impl Swarm {
    /// Room for `clients`, 256 at most.
    pub fn new(clients: usize) -> Swarm {
        let sockets: Vec<UdpSocket> = (0..clients)
            .map(|_| {
                let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
                socket.set_nonblocking(true).expect("a socket");
                // The clients share one thread: it may be away for some time.
                socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER_BYTES).expect("a buffer");
                socket
            })
            .collect();
        let addrs = sockets.iter().map(|s| s.local_addr().expect("bound")).collect();
        Swarm {
            clock: Clock::new(),
            crypto: dtls::crypto_provider(),
            backend: io::open(BackendKind::Mmsg, sockets).expect("an epoll instance"),
            addrs,
            members: Vec::new(),
            dead: Vec::new(),
            received: RecvBatch::new(),
            out: SendBatch::new(),
            server: None,
            recording: None,
            token: None,
        }
    }

    pub fn client(&self, member: Member) -> &Client {
        &self.members[member.0]
    }

    pub fn client_mut(&mut self, member: Member) -> &mut Client {
        &mut self.members[member.0]
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    fn epoch(&self) -> Epoch {
        self.clock.epoch()
    }

    /// A publisher by WHIP.
    pub fn publish(&mut self, url: &str, source: Source) -> Joined {
        let addr = self.addrs[self.members.len()];
        let seed = u64::from(addr.port());
        let (client, offer) = Client::publisher(self.now(), self.epoch(), addr, self.crypto.clone(), source, seed);
        self.join(client, &offer, url)
    }

    /// A viewer by WHEP.
    pub fn watch(&mut self, url: &str) -> Joined {
        let addr = self.addrs[self.members.len()];
        let (client, offer) = Client::viewer(self.now(), self.epoch(), addr, self.crypto.clone());
        self.join(client, &offer, url)
    }

    fn join(&mut self, mut client: Client, offer: &str, url: &str) -> Joined {
        let mut request = agent().post(url).header("Content-Type", "application/sdp");
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let mut response = request.send(offer.as_bytes()).expect("an answer");
        let body = response.body_mut().read_to_string().expect("a body");
        assert_eq!(response.status().as_u16(), 201, "{url}: {body}");
        let location = response.headers()["location"].to_str().expect("text").to_owned();
        client.accept_answer(self.now(), &body).expect("the server's answer");
        self.members.push(client);
        self.dead.push(false);
        let member = Member(self.members.len() - 1);
        self.send_from(member);
        Joined { member, location, answer: body }
    }

    /// No more datagrams either way, as when a process is killed.
    pub fn kill(&mut self, member: Member) {
        self.dead[member.0] = true;
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            self.step(end);
        }
    }

    /// Returns whether it came true within `limit`.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Swarm) -> bool) -> bool {
        let end = self.now() + limit;
        while !done(self) {
            if self.now() >= end {
                return false;
            }
            self.step(end);
        }
        true
    }

    fn step(&mut self, end: Instant) {
        let due = self.members.iter().zip(&self.dead).filter(|(_, dead)| !**dead).map(|(c, _)| c.next_timeout());
        let next = due.min().unwrap_or(end).min(end);
        let wait = next.since(self.now()).min(Duration::from_millis(5));
        self.received.clear();
        self.backend.receive(Some(wait), &mut self.received).expect("the sockets live");
        let now = self.now();
        let mut touched = Vec::new();
        for datagram in self.received.iter() {
            let index = usize::from(datagram.socket.0);
            if index < self.members.len() && !self.dead[index] {
                self.members[index].handle_datagram(now, datagram.remote, datagram.data);
                touched.push(Member(index));
            }
        }
        for (index, client) in self.members.iter_mut().enumerate() {
            if !self.dead[index] && client.next_timeout() <= now {
                client.handle_timeout(now);
                touched.push(Member(index));
            }
        }
        for member in touched {
            self.send_from(member);
        }
    }

    /// Sends a datagram of the caller's making from a member's own socket.
    pub fn inject(&mut self, member: Member, data: &[u8]) {
        let to = self.server.expect("a member has talked to the server");
        self.out.push(SocketId(member.0 as u8), to, data, None);
        let _ = self.backend.send(&mut self.out);
        self.out.clear();
    }

    /// Sends what a client has to say.
    pub fn send_from(&mut self, member: Member) {
        while let Some((to, data)) = self.members[member.0].poll_transmit() {
            self.server = Some(to);
            if let Some(recording) = &mut self.recording {
                recording.push((member, data.clone()));
            }
            self.out.push(SocketId(member.0 as u8), to, &data, None);
            if self.out.is_full() {
                let _ = self.backend.send(&mut self.out);
                self.out.clear();
            }
        }
        let _ = self.backend.send(&mut self.out);
        self.out.clear();
    }
}
