//! What it costs to take datagrams from the kernel and send them on, per backend.
//!
//! Unit: CPU nanoseconds of the forwarding thread per datagram (CLOCK_THREAD_CPUTIME_ID; criterion's "time").
//! Input: 1200-byte datagrams in bursts of 64 that already wait in the socket, one burst per turn; each goes to one of
//! 10 loopback sockets, as a message of its own (`singles`) or 8 to a message with UDP_SEGMENT (`gso8`).
//!
//! Not measured: the sender of the bursts and with it the kernel's way in (about 450 ns per datagram, paid by whoever
//! takes the interrupt); wake-ups, which at low rates dominate everything; a network card. The destinations never read,
//! so their queues are full and the kernel drops there: that is part of every figure alike, and so is building the batch
//! (two copies of each datagram).
//!
//! `tokio-uring` runs 16 tasks that take 4 datagrams each, spawned per burst so that nothing is received before the
//! clock starts.

use std::hint::black_box;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use manycast::datagram::{RecvBatch, SendBatch, SocketId};
use manycast::io::sockets::open_group;
use manycast::io::{Backend, BackendKind, SendPath, open, probe_uring};

const BYTES: usize = 1200;
const BURST: usize = 64;
const TASKS: usize = 16;
const DESTINATIONS: usize = 10;
const SEGMENTS: usize = 8;

fn forward(c: &mut Criterion) {
    let world = World::new();
    let ring = probe_uring();
    if let Err(reason) = &ring {
        eprintln!("without io_uring: {reason}");
    }
    let kinds = [
        ("uring, SendMsg in the ring", BackendKind::Uring(SendPath::Ring)),
        ("uring, sendmmsg", BackendKind::Uring(SendPath::Mmsg)),
        ("mmsg", BackendKind::Mmsg),
    ];
    let works = |kind| kind == BackendKind::Mmsg || ring.is_ok();
    let mut group = c.benchmark_group("forward/singles");
    for (name, kind) in kinds.into_iter().filter(|(_, kind)| works(*kind)) {
        world.bench_backend(&mut group, name, kind, 1);
    }
    world.bench_plain(&mut group);
    if ring.is_ok() {
        world.bench_tokio_uring(&mut group);
    }
    group.finish();
    let mut group = c.benchmark_group("forward/gso8");
    for (name, kind) in kinds.into_iter().filter(|(_, kind)| works(*kind)) {
        world.bench_backend(&mut group, name, kind, SEGMENTS);
    }
    group.finish();
}

struct World {
    feeder: UdpSocket,
    /// Kept open so that datagrams are dropped at a full queue and not answered by ICMP.
    _sinks: Vec<UdpSocket>,
    destinations: Vec<SocketAddr>,
}

impl World {
    fn new() -> World {
        let sinks: Vec<_> = (0..DESTINATIONS).map(|_| loopback()).collect();
        let destinations: Vec<_> = sinks.iter().map(|sink| sink.local_addr().unwrap()).collect();
        let world = World { feeder: loopback(), _sinks: sinks, destinations };
        // Fill the queues, so that the first sample costs what the last one does.
        for i in 0..DESTINATIONS * 1000 {
            world.feeder.send_to(&[0; BYTES], world.destination(i)).unwrap();
        }
        world
    }

    fn destination(&self, index: usize) -> SocketAddr {
        self.destinations[index % DESTINATIONS]
    }

    fn feed(&self, target: SocketAddr) {
        for _ in 0..BURST {
            self.feeder.send_to(&[7; BYTES], target).unwrap();
        }
    }

    fn bench_backend(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        kind: BackendKind,
        per_message: usize,
    ) {
        let mut sockets = open_group(&["127.0.0.1:0".parse().unwrap()], 1).unwrap();
        let mut backend = open(kind, sockets.shards.remove(0)).unwrap();
        let target = sockets.locals[0];
        let mut forwarder = Forwarder::new(per_message);
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                per_datagram(iterations, || {
                    self.feed(target);
                    let start = thread_cpu();
                    forwarder.turn(&mut *backend, self);
                    thread_cpu() - start
                })
            })
        });
    }

    fn bench_plain(&self, group: &mut BenchmarkGroup<'_, WallTime>) {
        let socket = loopback();
        let target = socket.local_addr().unwrap();
        let mut data = [0; 2048];
        group.bench_function("recvfrom and sendto", |b| {
            b.iter_custom(|iterations| {
                per_datagram(iterations, || {
                    self.feed(target);
                    let start = thread_cpu();
                    for i in 0..BURST {
                        let (len, remote) = socket.recv_from(&mut data).unwrap();
                        black_box(remote);
                        socket.send_to(&data[..len], self.destination(i)).unwrap();
                    }
                    thread_cpu() - start
                })
            })
        });
    }

    fn bench_tokio_uring(&self, group: &mut BenchmarkGroup<'_, WallTime>) {
        group.bench_function("tokio-uring, 16 tasks", |b| {
            b.iter_custom(|iterations| {
                let socket = loopback();
                let target = socket.local_addr().unwrap();
                tokio_uring::start(async {
                    let socket = Rc::new(tokio_uring::net::UdpSocket::from_std(socket));
                    let bursts = iterations.div_ceil(BURST as u64);
                    let mut total = Duration::ZERO;
                    for _ in 0..bursts {
                        self.feed(target);
                        let start = thread_cpu();
                        let tasks: Vec<_> = (0..TASKS)
                            .map(|task| tokio_uring::spawn(some(socket.clone(), self.destination(task))))
                            .collect();
                        for task in tasks {
                            task.await.unwrap();
                        }
                        total += thread_cpu() - start;
                    }
                    scale(total, iterations, bursts)
                })
            })
        });
    }
}

/// One task's share of a burst.
async fn some(socket: Rc<tokio_uring::net::UdpSocket>, destination: SocketAddr) {
    // Receives into its whole capacity, sends what it holds.
    let mut data = Vec::with_capacity(2048);
    for _ in 0..BURST / TASKS {
        let (result, received) = socket.recv_from(data).await;
        assert_eq!(result.unwrap().0, BYTES);
        let (result, sent) = socket.send_to(received, destination).await;
        assert_eq!(result.unwrap(), BYTES);
        data = sent;
    }
}

/// What a driver does with a batch, without a shard in between.
struct Forwarder {
    received: RecvBatch,
    sending: SendBatch,
    message: Vec<u8>,
    per_message: usize,
}

impl Forwarder {
    fn new(per_message: usize) -> Forwarder {
        Forwarder { received: RecvBatch::new(), sending: SendBatch::new(), message: Vec::new(), per_message }
    }

    /// Forwards one burst.
    fn turn(&mut self, backend: &mut dyn Backend, world: &World) {
        let mut forwarded = 0;
        let mut messages = 0;
        while forwarded < BURST {
            self.received.clear();
            backend.receive(Some(Duration::from_secs(1)), &mut self.received).unwrap();
            for datagram in self.received.iter() {
                forwarded += 1;
                if self.per_message == 1 {
                    self.sending.push(SocketId(0), world.destination(forwarded), datagram.data, None);
                } else {
                    self.message.extend_from_slice(datagram.data);
                    if self.message.len() == self.per_message * BYTES {
                        messages += 1;
                        let segment = Some(BYTES as u16);
                        self.sending.push(SocketId(0), world.destination(messages), &self.message, segment);
                        self.message.clear();
                    }
                }
                if self.sending.is_full() {
                    flush(backend, &mut self.sending);
                }
            }
            flush(backend, &mut self.sending);
        }
    }
}

fn flush(backend: &mut dyn Backend, batch: &mut SendBatch) {
    if !batch.is_empty() {
        let report = backend.send(batch);
        assert_eq!(report.would_block + report.errors, 0);
        batch.clear();
    }
}

/// Runs as many bursts as `iterations` datagrams need; the time that the datagrams took.
fn per_datagram(iterations: u64, mut burst: impl FnMut() -> Duration) -> Duration {
    let bursts = iterations.div_ceil(BURST as u64);
    let total = (0..bursts).map(|_| burst()).sum();
    scale(total, iterations, bursts)
}

fn scale(total: Duration, iterations: u64, bursts: u64) -> Duration {
    total.mul_f64(iterations as f64 / (bursts * BURST as u64) as f64)
}

fn loopback() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` lives for the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = forward
}
criterion_main!(benches);
