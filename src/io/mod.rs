//! Packets in and out of one shard: two backends behind one trait, the sockets they own, and which of the two to take.
//!
//! `uring` and `mmsg` cost the same within a few percent (design notes; `benches/io.rs` measures it again), so a
//! host that forbids io_uring is not a degraded one. Neither knows RTP, shards or time: a batch comes in, a batch
//! goes out, and a doorbell ends a wait. TCP connections, for clients whose network blocks UDP, look like one more socket.
//!
//! ```text
//!  sockets::open_group ──> one Vec<UdpSocket> per shard ──(shard's own thread)──> open(kind, sockets) ──> Backend
//!  select(IoChoice) ─────> BackendKind, and why not the ring ─────────────────────┘
//! ```
#![expect(unsafe_code, reason = "system calls that no safe crate covers: io_uring, recvmmsg, sendmmsg, epoll")]

mod address;
mod buffer_ring;
mod clock;
mod doorbell;
mod egress;
mod epoll;
mod framing;
mod gro;
pub mod many;
mod mmsg;
mod probe;
mod room;
mod routes;
pub mod sockets;
mod stream_queue;
mod tcp;
mod uring;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

pub use clock::Clock;
pub use doorbell::Doorbell;
pub use probe::{ProbeError, probe_uring};
pub use tcp::Connection;

use crate::datagram::{Class, RecvBatch, SendBatch, SocketId};

/// The sockets and the waiting of one shard. Made, used and dropped on the shard's thread.
pub trait Backend {
    /// "uring" or "mmsg".
    fn name(&self) -> &'static str;

    /// Waits until a datagram, a doorbell or the timeout comes, whichever is first, and fills `batch`, which the
    /// caller has cleared, with what is there. `Duration::ZERO` does not wait, `None` has no deadline. It may
    /// return early with an empty batch (doorbell, signal); it never waits while datagrams are there.
    ///
    /// Datagrams longer than [`DATAGRAM_BYTES_MAX`](crate::limits::DATAGRAM_BYTES_MAX) are dropped and counted.
    ///
    /// # Errors
    /// Only when the backend or one of its sockets is beyond repair; errors of single datagrams are counted.
    fn receive(&mut self, timeout: Option<Duration>, batch: &mut RecvBatch) -> io::Result<()>;

    /// Sends what is in `batch`; never blocks. Messages of one socket and class keep their order.
    ///
    /// When a socket is full, the rest of its video is dropped and the rest is tried twice. What then still waits (at most
    /// [`KEPT_MESSAGES_MAX`](crate::limits::KEPT_MESSAGES_MAX), control before audio) stays in the batch, to be offered
    /// ahead of the next one; offered for the second time in vain it is dropped. Otherwise the batch is empty afterwards;
    /// [`SendBatch::unsent`] tells whose datagrams were dropped.
    fn send(&mut self, batch: &mut SendBatch) -> SendReport;

    /// Takes a TCP connection: from now on its frames come and go like datagrams of its socket and remote. What its queue
    /// does not take is dropped at once, video first.
    ///
    /// # Errors
    /// There are no descriptors left; the connection is closed.
    fn adopt(&mut self, connection: Connection) -> io::Result<()>;

    /// Gives a TCP connection back, to be closed or adopted elsewhere; `None` when there is none.
    fn release(&mut self, socket: SocketId, remote: SocketAddr) -> Option<Connection>;

    /// A handle by which any thread ends the wait of [`receive`](Backend::receive).
    fn doorbell(&self) -> Doorbell;

    /// Whether the timeout of [`receive`](Backend::receive) is kept to the microsecond; else it ends up to 1 ms late.
    fn is_precise(&self) -> bool;

    /// Rings a peer's doorbell in the way that is cheapest from this backend: a ring posts straight into a ring, once
    /// [`submit`](Backend::submit) or `receive` is called.
    fn ring(&mut self, peer: &Doorbell);

    /// Makes the doorbells that were rung heard now.
    fn submit(&mut self);

    /// Cumulative counters since the backend was opened.
    fn stats(&self) -> BackendStats;
}

/// What became of one batch. `datagrams + would_block + errors + kept` is what the batch held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct SendReport {
    /// Messages (system call entries) that the kernel took.
    pub messages: u64,
    /// Datagrams in those messages.
    pub datagrams: u64,
    /// Payload bytes in those messages.
    pub bytes: u64,
    /// Datagrams dropped because the socket's send buffer was full.
    pub would_block: u64,
    /// Datagrams dropped for any other reason.
    pub errors: u64,
    /// Datagrams that stay in the batch for another try.
    pub kept: u64,
}

/// What a backend has counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendStats {
    /// System calls that could wait.
    pub waits: u64,
    /// Wake-ups by a doorbell, of either kind.
    pub doorbells: u64,
    /// Datagrams dropped because they were longer than `limits::DATAGRAM_BYTES_MAX`.
    pub truncated: u64,
    /// Failed receives other than an empty buffer ring.
    pub receive_errors: u64,
    /// Ring only: multishot receives that were armed again after they had ended.
    pub rearms: u64,
    /// Ring only: multishot receives that ended because all buffers were taken. Nothing is lost by it.
    pub enobufs: u64,
    /// Ring only: doorbells that could not be posted into the peer's ring and went by eventfd.
    pub bells_failed: u64,
    /// Datagrams dropped because a send buffer was full, by [`Class`].
    pub full_dropped: [u64; Class::ALL.len()],
    /// Datagrams that a full send buffer put off for one flush.
    pub full_kept: u64,
    /// Datagrams dropped for other send errors.
    pub send_errors: u64,
    /// Messages of several segments that the kernel refused and that went out as single datagrams instead.
    pub gso_refused: u64,
    /// TCP connections that were taken, and that ended or went to another shard.
    pub streams_opened: u64,
    pub streams_closed: u64,
    /// Datagrams that the queue of a TCP connection did not take or dropped again, by [`Class`].
    pub stream_dropped: [u64; Class::ALL.len()],
}

/// How the ring backend sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendPath {
    /// One `SendMsg` per message in the ring.
    Ring,
    /// One `sendmmsg` per batch, beside the ring. `benches/io.rs` sees no difference to `Ring` beyond its noise (−2 to
    /// +1 %), the design's own, quieter measurement 3 to 12 % for this one.
    #[default]
    Mmsg,
}

/// What the settings ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// The ring where it works, else mmsg.
    #[default]
    Auto,
    /// The ring, or an error.
    Uring,
    Mmsg,
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    Uring(SendPath),
    Mmsg,
}

/// The outcome of [`select`].
#[derive(Debug)]
pub struct Selection {
    pub kind: BackendKind,
    /// Why [`IoChoice::Auto`] did not take the ring; for the start-up log.
    pub fallback: Option<ProbeError>,
}

/// Decides once per process; all shards then open the same kind.
///
/// # Errors
/// The ring was demanded and does not work here.
pub fn select(choice: IoChoice) -> Result<Selection, ProbeError> {
    let ring = BackendKind::Uring(SendPath::default());
    match choice {
        IoChoice::Mmsg => Ok(Selection { kind: BackendKind::Mmsg, fallback: None }),
        IoChoice::Uring => probe_uring().map(|()| Selection { kind: ring, fallback: None }),
        IoChoice::Auto => Ok(match probe_uring() {
            Ok(()) => Selection { kind: ring, fallback: None },
            Err(reason) => Selection { kind: BackendKind::Mmsg, fallback: Some(reason) },
        }),
    }
}

/// Opens a backend over the non-blocking `sockets` of one shard; the index in `sockets` is the
/// [`SocketId`]. Must be called on the thread that will use the backend.
///
/// # Errors
/// The kernel refused the ring, an eventfd or an epoll instance.
///
/// # Panics
/// Without a socket, or with more than a `SocketId` can name.
pub fn open(kind: BackendKind, sockets: Vec<UdpSocket>) -> io::Result<Box<dyn Backend>> {
    assert!((1..=128).contains(&sockets.len()), "a shard has between 1 and 128 UDP sockets");
    Ok(match kind {
        BackendKind::Uring(path) => Box::new(uring::UringBackend::new(sockets, path)?),
        BackendKind::Mmsg => Box::new(mmsg::MmsgBackend::new(sockets)?),
    })
}

/// A socket that fails so often in a row, without a datagram in between, will not recover: the driver is told
/// instead of spinning. One failure costs about 1 µs, so a thousand stay within a millisecond.
const FAILURES_IN_A_ROW_MAX: u32 = 1000;

/// Errors of former sends that an ICMP message reports to whoever calls next. They say nothing about the socket, and a
/// stranger can provoke any number of them.
fn is_reported_by_icmp(errno: i32) -> bool {
    matches!(errno, libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH)
}
