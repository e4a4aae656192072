//! What it costs to take datagrams from the kernel and send them on, per backend. Prints one Markdown table.
//!
//! Unit: CPU nanoseconds of the working thread per datagram (CLOCK_THREAD_CPUTIME_ID), median and range of rounds in which
//! every cell has its turn, so that a machine whose mood changes treats all alike.
//! Input: 1200-byte datagrams that already wait in the socket, one burst per turn. *Receive* takes a burst that was sent
//! one by one, or ten to a message with UDP_SEGMENT, and looks at each datagram. *Forward* takes 64 that were sent one by
//! one and sends each burst on to 10 loopback sockets in turn, as messages of 1 to 16 segments.
//!
//! Not measured: the sender of the bursts and with it the kernel's way in (about 450 ns per datagram, paid by whoever
//! takes the interrupt); wake-ups, which at low rates dominate everything; a network card, which segments in hardware and
//! merges only what it finds side by side; sealing. The destinations never read, so their queues are full and the kernel
//! drops there: that is part of every figure of *forward* alike, and so is building the batch (two copies of each
//! datagram).
//!
//! `tokio-uring` runs 16 tasks that take 4 datagrams each, spawned per burst so that nothing is received before the
//! clock starts.

use std::cell::RefCell;
use std::hint::black_box;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::time::Duration;

use manycast::datagram::{Label, RecvBatch, SendBatch, SocketId};
use manycast::io::sockets::open_group;
use manycast::io::{Backend, BackendKind, SendPath, open, probe_uring};

const BYTES: usize = 1200;
const BURST: usize = 64;
const TASKS: usize = 16;
const DESTINATIONS: usize = 10;
const SEGMENTS: [usize; 5] = [1, 2, 4, 8, 16];
/// Segments to a message of the publisher, and messages to a burst.
const ARRIVING: (usize, usize) = (10, 6);
/// The first one warms up and is thrown away.
const ROUNDS: usize = 26;
/// Some 50 ms per cell and round.
const BURSTS: usize = 300;

/// One cell of the table: works through so many bursts and returns the nanoseconds per datagram.
type Cell<'a> = Box<dyn FnMut() -> f64 + 'a>;

fn main() {
    // Cargo passes `--bench`, and a filter that would make no sense for one table.
    let world = World::new();
    let ring = probe_uring();
    if let Err(reason) = &ring {
        println!("without io_uring: {reason}");
    }
    let kinds = [
        ("uring, sendmmsg", BackendKind::Uring(SendPath::Mmsg)),
        ("uring, SendMsg in the ring", BackendKind::Uring(SendPath::Ring)),
        ("mmsg", BackendKind::Mmsg),
    ];
    let mut rows: Vec<(&str, Vec<Option<Cell>>)> = Vec::new();
    for (name, kind) in kinds.into_iter().filter(|(_, kind)| *kind == BackendKind::Mmsg || ring.is_ok()) {
        let (backend, target) = backend(kind);
        let backend = Rc::new(RefCell::new(backend));
        let mut cells = vec![
            Some(world.receive(backend.clone(), target, false)),
            Some(world.receive(backend.clone(), target, true)),
        ];
        cells.extend(SEGMENTS.map(|segments| Some(world.forward(backend.clone(), target, segments))));
        rows.push((name, cells));
    }
    rows.push(("recvfrom and sendto", vec![None, None, Some(world.forward_plainly())]));
    if ring.is_ok() {
        rows.push(("tokio-uring, 16 tasks", vec![None, None, Some(world.forward_by_tokio_uring())]));
    }
    print(&measure(rows));
}

/// The samples of each cell.
type Row<'a> = (&'a str, Vec<Vec<f64>>);

fn measure<'a>(mut rows: Vec<(&'a str, Vec<Option<Cell>>)>) -> Vec<Row<'a>> {
    let mut samples: Vec<Row> = rows.iter().map(|(name, cells)| (*name, vec![Vec::new(); cells.len()])).collect();
    for round in 0..ROUNDS {
        for (row, (_, cells)) in rows.iter_mut().enumerate() {
            for (column, cell) in cells.iter_mut().enumerate() {
                let Some(cell) = cell else { continue };
                let sample = cell();
                if round > 0 {
                    samples[row].1[column].push(sample);
                }
            }
        }
    }
    samples
}

fn print(rows: &[Row]) {
    let (segments, _) = ARRIVING;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!(
        "\nCPU ns per datagram of {BYTES} bytes, median (range) of {} rounds, Linux {}\n",
        ROUNDS - 1,
        release.trim()
    );
    print!("| backend | receive singles | receive, sent as {segments} segments |");
    SEGMENTS.iter().for_each(|s| print!(" forward, {s} to a message |"));
    println!("\n|---|{}", "---:|".repeat(2 + SEGMENTS.len()));
    for (name, cells) in rows {
        print!("| {name} |");
        for column in 0..2 + SEGMENTS.len() {
            match cells.get(column) {
                Some(samples) if !samples.is_empty() => {
                    let mut sorted = samples.clone();
                    sorted.sort_by(f64::total_cmp);
                    let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
                    print!(" {:.0} ({least:.0}–{most:.0}) |", sorted[sorted.len() / 2]);
                }
                _ => print!(" |"),
            }
        }
        println!();
    }
}

struct World {
    feeder: UdpSocket,
    /// Sends bursts as segments.
    publisher: RefCell<Box<dyn Backend>>,
    /// Kept open so that datagrams are dropped at a full queue and not answered by ICMP.
    _sinks: Vec<UdpSocket>,
    destinations: Vec<SocketAddr>,
}

impl World {
    fn new() -> World {
        let sinks: Vec<_> = (0..DESTINATIONS).map(|_| loopback()).collect();
        let destinations: Vec<_> = sinks.iter().map(|sink| sink.local_addr().unwrap()).collect();
        let publisher = RefCell::new(backend(BackendKind::Mmsg).0);
        let world = World { feeder: loopback(), publisher, _sinks: sinks, destinations };
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

    /// Returns how many datagrams there are.
    fn feed_segments(&self, target: SocketAddr) -> usize {
        let (segments, messages) = ARRIVING;
        let mut batch = SendBatch::new();
        for _ in 0..messages {
            batch.push(SocketId(0), target, &vec![7; segments * BYTES], Some(BYTES as u16));
        }
        flush(&mut **self.publisher.borrow_mut(), &mut batch);
        segments * messages
    }

    fn receive(&self, backend: Rc<RefCell<Box<dyn Backend>>>, target: SocketAddr, as_segments: bool) -> Cell<'_> {
        let mut received = RecvBatch::new();
        Box::new(move || {
            per_datagram(|| {
                let count = if as_segments {
                    self.feed_segments(target)
                } else {
                    self.feed(target);
                    BURST
                };
                let backend = &mut **backend.borrow_mut();
                let start = thread_cpu();
                let mut missing = count;
                while missing > 0 {
                    received.clear();
                    backend.receive(Some(Duration::from_secs(1)), &mut received).unwrap();
                    for datagram in received.iter() {
                        black_box(datagram.data[BYTES - 1]);
                        missing -= 1;
                    }
                }
                (thread_cpu() - start, count)
            })
        })
    }

    fn forward(&self, backend: Rc<RefCell<Box<dyn Backend>>>, target: SocketAddr, segments: usize) -> Cell<'_> {
        let mut forwarder = Forwarder { received: RecvBatch::new(), sending: SendBatch::new(), segments };
        Box::new(move || {
            per_datagram(|| {
                self.feed(target);
                let backend = &mut **backend.borrow_mut();
                let start = thread_cpu();
                forwarder.turn(backend, self);
                (thread_cpu() - start, BURST)
            })
        })
    }

    fn forward_plainly(&self) -> Cell<'_> {
        let socket = loopback();
        let target = socket.local_addr().unwrap();
        let mut data = [0; 2048];
        Box::new(move || {
            per_datagram(|| {
                self.feed(target);
                let start = thread_cpu();
                for i in 0..BURST {
                    let (len, remote) = socket.recv_from(&mut data).unwrap();
                    black_box(remote);
                    socket.send_to(&data[..len], self.destination(i)).unwrap();
                }
                (thread_cpu() - start, BURST)
            })
        })
    }

    fn forward_by_tokio_uring(&self) -> Cell<'_> {
        Box::new(|| {
            let socket = loopback();
            let target = socket.local_addr().unwrap();
            tokio_uring::start(async {
                let socket = Rc::new(tokio_uring::net::UdpSocket::from_std(socket));
                let mut total = Duration::ZERO;
                for _ in 0..BURSTS {
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
                total.as_nanos() as f64 / (BURSTS * BURST) as f64
            })
        })
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
    segments: usize,
}

impl Forwarder {
    /// Forwards one burst.
    fn turn(&mut self, backend: &mut dyn Backend, world: &World) {
        let whole = self.segments * BYTES;
        let segment = (self.segments > 1).then_some(BYTES as u16);
        let (mut forwarded, mut messages, mut filled) = (0, 0, 0);
        while forwarded < BURST {
            self.received.clear();
            backend.receive(Some(Duration::from_secs(1)), &mut self.received).unwrap();
            for datagram in self.received.iter() {
                forwarded += 1;
                self.sending.room(whole)[filled..filled + BYTES].copy_from_slice(datagram.data);
                filled += BYTES;
                if filled == whole {
                    self.sending.commit(SocketId(0), world.destination(messages), whole, segment, Label::default());
                    (messages, filled) = (messages + 1, 0);
                    if self.sending.is_full() {
                        flush(backend, &mut self.sending);
                    }
                }
            }
        }
        flush(backend, &mut self.sending);
    }
}

fn flush(backend: &mut dyn Backend, batch: &mut SendBatch) {
    if !batch.is_empty() {
        let report = backend.send(batch);
        assert_eq!(report.would_block + report.errors + report.kept, 0);
    }
}

fn per_datagram(mut burst: impl FnMut() -> (Duration, usize)) -> f64 {
    let (mut total, mut datagrams) = (Duration::ZERO, 0);
    for _ in 0..BURSTS {
        let (time, count) = burst();
        total += time;
        datagrams += count;
    }
    total.as_nanos() as f64 / datagrams as f64
}

fn backend(kind: BackendKind) -> (Box<dyn Backend>, SocketAddr) {
    let mut sockets = open_group(&["127.0.0.1:0".parse().unwrap()], 1).unwrap();
    (open(kind, sockets.shards.remove(0)).unwrap(), sockets.locals[0])
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
