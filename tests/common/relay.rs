//! A UDP relay between clients and a server that loses what it is told to, and carries it as late and as slowly as it is
//! told to: netem is not in every kernel.
//!
//! ```text
//! client ──> front ──> lane ──> one socket per client ──> server
//!                 <── lane <──                        <──
//! ```

#![expect(clippy::disallowed_methods, reason = "it carries real datagrams in real time")]

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use manycast::wire::classify::{Kind, classify};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// How soon its threads see that it is dropped.
const TICK: Duration = Duration::from_millis(100);

/// What waits for a narrow link to a client; the rest is dropped. 800 ms of 1 Mbit/s.
const QUEUE_BYTES: u64 = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// What passed by in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    pub datagrams: u64,
    pub lost: u64,
}

/// What it has seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub to_server: Passed,
    pub to_client: Passed,
    /// RTP on its way to clients, by SSRC.
    pub rtp: HashMap<u32, Passed>,
}

type Loses = Box<dyn FnMut(Way, &[u8]) -> bool + Send>;

/// Stops when dropped.
pub struct Relay {
    /// Where clients send, instead of to the server.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    front: Arc<UdpSocket>,
    state: Mutex<(Loses, Seen)>,
    /// To each client; 0: as much as comes.
    bits_per_second: AtomicU64,
    /// Either way, besides the time that the rate takes.
    delay_nanos: AtomicU64,
    stopped: AtomicBool,
}

impl Relay {
    /// Loses this share of the datagrams, either way.
    pub fn lossy(server: SocketAddr, share: f64, seed: u64) -> Relay {
        let mut rng = StdRng::seed_from_u64(seed);
        Relay::start(server, move |_, _| rng.random_bool(share))
    }

    /// Loses the datagrams for which `loses` is true.
    pub fn start(server: SocketAddr, loses: impl FnMut(Way, &[u8]) -> bool + Send + 'static) -> Relay {
        let front = Arc::new(socket());
        let addr = front.local_addr().expect("bound");
        let state = Mutex::new((Box::new(loses) as Loses, Seen::default()));
        let shared = Arc::new(Shared {
            server,
            front,
            state,
            bits_per_second: AtomicU64::new(0),
            delay_nanos: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let run = shared.clone();
        std::thread::spawn(move || run.carry_to_server());
        Relay { addr, shared }
    }

    /// From now on each client's link carries so much; what waits already goes as it would have.
    pub fn narrow(&self, bits_per_second: u64) {
        self.shared.bits_per_second.store(bits_per_second, Ordering::Relaxed);
    }

    /// From now on what passes takes so long, either way.
    pub fn delay(&self, one_way: Duration) {
        let nanos = u64::try_from(one_way.as_nanos()).expect("less than centuries");
        self.shared.delay_nanos.store(nanos, Ordering::Relaxed);
    }

    pub fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.shared.state().1)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }
}

/// One way between one client and the server.
struct Lane {
    queue: Sender<(Instant, Vec<u8>)>,
    /// When all that waits is carried.
    drained: Instant,
}

impl Lane {
    /// What it carries leaves from `socket`. Its thread ends with it.
    fn start(socket: Arc<UdpSocket>, to: SocketAddr) -> Lane {
        let (queue, waiting) = mpsc::channel();
        std::thread::spawn(move || drain(&waiting, &socket, to));
        Lane { queue, drained: Instant::now() }
    }

    /// When it will have carried a datagram that comes now; `None`: the queue is full.
    fn carried(&self, bits_per_second: u64, bytes: u64) -> Option<Instant> {
        let time_of = |bytes: u64| match bits_per_second {
            0 => Duration::ZERO,
            bps => Duration::from_nanos(bytes * 8_000_000_000 / bps),
        };
        let now = Instant::now();
        let carried = self.drained.max(now) + time_of(bytes);
        (carried - now <= time_of(QUEUE_BYTES) || bits_per_second == 0).then_some(carried)
    }
}

/// Sends each datagram when it is due.
fn drain(waiting: &Receiver<(Instant, Vec<u8>)>, socket: &UdpSocket, to: SocketAddr) {
    for (due, data) in waiting {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let _ = socket.send_to(&data, to);
    }
}

impl Shared {
    fn carry_to_server(self: Arc<Shared>) {
        let mut lanes: HashMap<SocketAddr, Lane> = HashMap::new();
        let mut buffer = [0; 2048];
        while !self.stopped.load(Ordering::Relaxed) {
            let Ok((bytes, client)) = self.front.recv_from(&mut buffer) else { continue };
            let lane = lanes.entry(client).or_insert_with(|| {
                let (back, run) = (Arc::new(socket()), self.clone());
                let of_thread = back.clone();
                std::thread::spawn(move || run.carry_to_client(&of_thread, client));
                Lane::start(back, self.server)
            });
            self.carry(Way::ToServer, lane, 0, &buffer[..bytes]);
        }
    }

    fn carry_to_client(self: Arc<Shared>, back: &UdpSocket, client: SocketAddr) {
        let mut lane = Lane::start(self.front.clone(), client);
        let mut buffer = [0; 2048];
        while !self.stopped.load(Ordering::Relaxed) {
            let Ok((bytes, _)) = back.recv_from(&mut buffer) else { continue };
            self.carry(Way::ToClient, &mut lane, self.bits_per_second.load(Ordering::Relaxed), &buffer[..bytes]);
        }
    }

    fn carry(&self, way: Way, lane: &mut Lane, bits_per_second: u64, data: &[u8]) {
        let carried = lane.carried(bits_per_second, data.len() as u64);
        if self.passes(way, data, carried.is_none())
            && let Some(carried) = carried
        {
            lane.drained = carried;
            let due = carried + Duration::from_nanos(self.delay_nanos.load(Ordering::Relaxed));
            // Its other end lives as long as this one.
            let _ = lane.queue.send((due, data.to_vec()));
        }
    }

    fn passes(&self, way: Way, data: &[u8], full: bool) -> bool {
        let (loses, seen) = &mut *self.state();
        let lost = loses(way, data) || full;
        let add = |passed: &mut Passed| {
            passed.datagrams += 1;
            passed.lost += u64::from(lost);
        };
        match way {
            Way::ToServer => add(&mut seen.to_server),
            Way::ToClient => add(&mut seen.to_client),
        }
        if let (Way::ToClient, Some(ssrc)) = (way, rtp_ssrc(data)) {
            add(seen.rtp.entry(ssrc).or_default());
        }
        !lost
    }

    fn state(&self) -> MutexGuard<'_, (Loses, Seen)> {
        self.state.lock().unwrap_or_else(|failed| failed.into_inner())
    }
}

/// SRTP leaves it in the clear.
pub fn rtp_ssrc(data: &[u8]) -> Option<u32> {
    let ssrc = data.get(8..12)?.try_into().ok()?;
    (classify(data) == Some(Kind::Rtp)).then_some(u32::from_be_bytes(ssrc))
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.set_read_timeout(Some(TICK)).expect("a socket");
    // A keyframe comes as one burst.
    socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20).expect("a buffer");
    socket
}
