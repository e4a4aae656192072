//! The io_uring backend: multishot receives into one provided-buffer ring, doorbells from ring to ring.
//!
//! ```text
//!  socket 0 ── RecvMsgMulti ┐                             ┌─ RECEIVE: copy out, recycle the buffer
//!  socket 1 ── RecvMsgMulti ┼─> completion queue ─ drain ─┼─ BELL (a peer's MSG_RING), EVENT (eventfd): nothing more
//!  eventfd  ── PollAdd multi┤                             ├─ SEND: result of one SendMsg; RUNG: a bell that failed
//!  TCP set  ── PollAdd multi┘                             └─ STREAMS: the epoll set of connections is asked
//! ```
//!
//! What the kernel may touch after a call returns: the buffers and the receive header, until every multishot has said
//! so by a completion without `F_MORE`. `Drop` cancels them, waits for that, and only then frees anything. Sends are
//! complete before `send` returns. `DEFER_TASKRUN` adds that completions, and copies into buffers, happen only within
//! `io_uring_enter` on this thread.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, Fixed, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::address::{self, NAME_BYTES_MAX};
use super::buffer_ring::{self, BufferRing};
use super::egress::{self, Egress, Messages};
use super::gro;
use super::tcp::{Connection, Streams};
use super::{Backend, BackendStats, Doorbell, FAILURES_IN_A_ROW_MAX, SendPath, SendReport};
use crate::datagram::{RecvBatch, SendBatch, SocketId};
use crate::limits;

/// Submissions between two system calls: a send batch (64), a doorbell per peer (at most 63) and re-arming. When it is
/// full it is submitted early.
const SUBMISSIONS: u32 = 128;

/// Completions that may wait: every buffer (64), a send batch (64) and a bell from each peer, several times over.
/// An overflow loses nothing (NODROP) but ends the multishots.
const COMPLETIONS: u32 = 1024;

const BUFFER_GROUP: u16 = 0;

/// Longer waits end early with nothing, which callers allow for: the kernel refuses seconds beyond an `i64`.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// How long `Drop` waits for cancelled receives. Cancelling takes microseconds; after this the memory is leaked.
const QUIESCE_TURN: Duration = Duration::from_millis(10);
const QUIESCE_TURNS: u32 = 100;

/// What a completion is about: the upper half of its user data; the lower half is an index.
mod token {
    /// Of a socket.
    pub(super) const RECEIVE: u32 = 1;
    /// A peer's MSG_RING. The same in every ring of the process.
    pub(super) const BELL: u32 = 2;
    pub(super) const EVENT: u32 = 3;
    /// Of a message.
    pub(super) const SEND: u32 = 4;
    /// Of a peer in `Intake::peers`; posted only when it failed.
    pub(super) const RUNG: u32 = 5;
    pub(super) const CANCEL: u32 = 6;
    pub(super) const STREAMS: u32 = 7;

    pub(super) const fn of(kind: u32, index: usize) -> u64 {
        (kind as u64) << 32 | index as u64
    }

    pub(super) const fn split(user_data: u64) -> (u32, usize) {
        ((user_data >> 32) as u32, user_data as u32 as usize)
    }
}

pub(super) struct UringBackend {
    // Declared, and so dropped, before the memory that the kernel works on.
    ring: IoUring,
    intake: Intake,
    /// From the first TCP connection on.
    streams: Option<Streams>,
    egress: Egress,
    path: SendPath,
    /// The ring failed with messages still queued that point into a batch which is gone: it must not be entered again.
    broken: bool,
    /// SINGLE_ISSUER: the ring belongs to the thread that made it.
    _thread: PhantomData<*const ()>,
}

/// Everything that a completion may change.
struct Intake {
    kernel: ManuallyDrop<KernelMemory>,
    sockets: Vec<SocketState>,
    bell: Doorbell,
    bell_armed: bool,
    streams_armed: bool,
    /// A TCP connection may be read or written.
    streams_ready: bool,
    /// Whom this ring has rung; an index here is the lower half of [`token::RUNG`].
    peers: Vec<Doorbell>,
    /// Completions that `send` met while it waited for its own. Bounded by the buffers and armed requests.
    stash: VecDeque<cqueue::Entry>,
    stats: BackendStats,
}

/// What the kernel reads and writes between our calls. Never moves: both are separate allocations.
struct KernelMemory {
    buffers: BufferRing,
    /// Tells the multishot receives how much room name and control take in a buffer.
    header: Box<libc::msghdr>,
}

struct SocketState {
    socket: UdpSocket,
    armed: bool,
    failures_in_a_row: u32,
}

impl UringBackend {
    pub(super) fn new(sockets: Vec<UdpSocket>, path: SendPath) -> io::Result<UringBackend> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            // Tells in shared memory whether there is deferred work, so that polling an idle ring costs no system call.
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        for socket in &sockets {
            // An old kernel: datagrams come one by one.
            let _ = gro::enable(socket);
        }
        let fds: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&fds)?;

        // SAFETY: the descriptor is open as long as `ring` lives, which is longer than this borrow.
        let ring_fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        let bell = Doorbell::new(Some(ring_fd.try_clone_to_owned()?))?;

        let buffers = BufferRing::new()?;
        // SAFETY: all zeroes is a valid msghdr: null pointers and zero lengths.
        let mut header: Box<libc::msghdr> = Box::new(unsafe { mem::zeroed() });
        header.msg_namelen = NAME_BYTES_MAX as u32;
        header.msg_controllen = gro::CONTROL_BYTES as _;
        // SAFETY: `buffers` holds COUNT entries at this address and lives in `KernelMemory`, which is only freed
        // after the ring has been unregistered (`Drop`).
        unsafe {
            ring.submitter().register_buf_ring_with_flags(buffers.address(), buffer_ring::COUNT, BUFFER_GROUP, 0)?;
        }

        let sockets =
            sockets.into_iter().map(|socket| SocketState { socket, armed: false, failures_in_a_row: 0 }).collect();
        let mut backend = UringBackend {
            ring,
            intake: Intake {
                kernel: ManuallyDrop::new(KernelMemory { buffers, header }),
                sockets,
                bell,
                bell_armed: false,
                streams_armed: false,
                streams_ready: false,
                peers: Vec::new(),
                stash: VecDeque::new(),
                stats: BackendStats::default(),
            },
            streams: None,
            egress: Egress::new(),
            path,
            broken: false,
            _thread: PhantomData,
        };
        backend.arm()?;
        backend.intake.stats.rearms = 0;
        backend.ring.submit()?;
        Ok(backend)
    }

    /// Queues a receive for every socket that has none, and the polls of the eventfd and of the TCP connections.
    fn arm(&mut self) -> io::Result<()> {
        let UringBackend { ring, intake, streams, .. } = self;
        for (index, state) in intake.sockets.iter_mut().enumerate().filter(|(_, state)| !state.armed) {
            let entry = opcode::RecvMsgMulti::new(Fixed(index as u32), &raw const *intake.kernel.header, BUFFER_GROUP)
                .build()
                .user_data(token::of(token::RECEIVE, index));
            // SAFETY: header and buffers live in `KernelMemory` until the last completion of this request.
            unsafe { push(ring, &entry)? };
            state.armed = true;
            intake.stats.rearms += 1;
        }
        if !intake.bell_armed {
            // What rang before would end the new poll at once, for nothing: the caller is awake.
            intake.bell.silence();
            let entry = opcode::PollAdd::new(Fd(intake.bell.event().as_raw_fd()), libc::POLLIN as u32)
                .multi(true)
                .build()
                .user_data(token::of(token::EVENT, 0));
            // SAFETY: no memory is passed; the eventfd stays open as long as `intake.bell`.
            unsafe { push(ring, &entry)? };
            intake.bell_armed = true;
        }
        if let Some(streams) = streams
            && !intake.streams_armed
        {
            let entry = opcode::PollAdd::new(Fd(streams.event().as_raw_fd()), libc::POLLIN as u32)
                .multi(true)
                .build()
                .user_data(token::of(token::STREAMS, 0));
            // SAFETY: no memory is passed; the epoll instance stays open as long as `streams`.
            unsafe { push(ring, &entry)? };
            intake.streams_armed = true;
        }
        Ok(())
    }

    /// Submits what is queued, runs deferred work and waits as told.
    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if timeout == Some(Duration::ZERO) {
            let submissions = self.ring.submission();
            if submissions.is_empty() && !submissions.taskrun() && !submissions.cq_overflow() {
                return Ok(());
            }
            drop(submissions);
            return forgive(self.ring.submit());
        }
        self.intake.stats.waits += 1;
        forgive(match timeout {
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let timespec = Timespec::from(timeout.min(WAIT_MAX));
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
        })
    }

    /// Takes completions until the batch is full.
    fn drain(&mut self, batch: &mut RecvBatch) -> io::Result<()> {
        let UringBackend { ring, intake, .. } = self;
        while batch.has_room()
            && let Some(completion) = intake.stash.pop_front()
        {
            intake.complete(&completion, batch)?;
        }
        let mut completions = ring.completion();
        while batch.has_room()
            && let Some(completion) = completions.next()
        {
            intake.complete(&completion, batch)?;
        }
        drop(completions);
        intake.kernel.buffers.publish();
        Ok(())
    }

    /// Sees to TCP connections that have said something. What is left of it makes no new completion, so it is remembered.
    fn receive_streams(&mut self, batch: &mut RecvBatch) -> io::Result<()> {
        if let Some(streams) = &mut self.streams
            && self.intake.streams_ready
        {
            self.intake.streams_ready = streams.receive(batch, &mut self.intake.stats)?;
        }
        Ok(())
    }

    /// Cancels everything and waits until the kernel has let go; false if it would not.
    fn quiesce(&mut self) -> bool {
        if self.broken {
            return false;
        }
        let cancel =
            opcode::AsyncCancel2::new(CancelBuilder::any().all()).build().user_data(token::of(token::CANCEL, 0));
        // SAFETY: no memory is passed.
        if unsafe { push(&mut self.ring, &cancel) }.is_err() {
            return false;
        }
        let timespec = Timespec::from(QUIESCE_TURN);
        let mut leftover = RecvBatch::new();
        for _ in 0..QUIESCE_TURNS {
            let args = SubmitArgs::new().timespec(&timespec);
            if forgive(self.ring.submitter().submit_with_args(1, &args)).is_err() {
                return false;
            }
            leftover.clear();
            // A socket that reports failures without end is what we are closing.
            let _ = self.drain(&mut leftover);
            let polls = self.intake.bell_armed || self.intake.streams_armed;
            let idle = !polls && self.intake.sockets.iter().all(|state| !state.armed);
            if idle && self.ring.submission().is_empty() {
                return true;
            }
        }
        false
    }
}

impl Intake {
    fn complete(&mut self, completion: &cqueue::Entry, batch: &mut RecvBatch) -> io::Result<()> {
        let (kind, index) = token::split(completion.user_data());
        let ended = !cqueue::more(completion.flags());
        match kind {
            token::RECEIVE => return self.received(index, completion, batch),
            token::BELL => self.stats.doorbells += 1,
            token::EVENT => {
                self.bell_armed &= !ended;
                self.stats.doorbells += u64::from(completion.result() > 0);
            }
            token::STREAMS => {
                self.streams_armed &= !ended;
                self.streams_ready = true;
            }
            token::RUNG => {
                // The peer's ring is gone, or it cannot take the message: its eventfd still wakes it.
                self.stats.bells_failed += 1;
                self.peers[index].ring();
            }
            token::CANCEL => {}
            _ => debug_assert!(false, "a completion of kind {kind}"),
        }
        Ok(())
    }

    fn received(&mut self, index: usize, completion: &cqueue::Entry, batch: &mut RecvBatch) -> io::Result<()> {
        let state = &mut self.sockets[index];
        if !cqueue::more(completion.flags()) {
            state.armed = false;
        }
        let Some(id) = cqueue::buffer_select(completion.flags()) else {
            return match -completion.result() {
                libc::ENOBUFS => {
                    self.stats.enobufs += 1;
                    Ok(())
                }
                libc::ECANCELED => Ok(()),
                errno if super::is_reported_by_icmp(errno) => {
                    self.stats.receive_errors += 1;
                    Ok(())
                }
                errno => {
                    self.stats.receive_errors += 1;
                    state.failed(io::Error::from_raw_os_error(errno))
                }
            };
        };
        state.failures_in_a_row = 0;
        let KernelMemory { buffers, header } = &mut *self.kernel;
        let len = usize::try_from(completion.result()).unwrap_or(0);
        match RecvMsgOut::parse(buffers.filled(id, len), header) {
            Ok(out) if out.is_payload_truncated() => self.stats.truncated += 1,
            Ok(out) => {
                let (data, segment) = (out.payload_data(), gro::segment(out.control_data()));
                match (gro::oversize(data.len(), segment), address::parse(out.name_data())) {
                    (0, Some(remote)) => batch.push(SocketId(index as u8), remote, data, segment),
                    (0, None) => self.stats.receive_errors += 1,
                    (datagrams, _) => self.stats.truncated += datagrams,
                }
            }
            Err(()) => self.stats.receive_errors += 1,
        }
        buffers.recycle(id);
        Ok(())
    }

    /// The index of a peer that this ring knows, or gets to know; `None` when there are too many.
    fn peer(&mut self, peer: &Doorbell) -> Option<usize> {
        if let Some(index) = self.peers.iter().position(|known| known.is(peer)) {
            return Some(index);
        }
        (self.peers.len() < limits::SHARDS_MAX).then(|| {
            self.peers.push(peer.clone());
            self.peers.len() - 1
        })
    }
}

impl SocketState {
    fn failed(&mut self, error: io::Error) -> io::Result<()> {
        self.failures_in_a_row += 1;
        if self.failures_in_a_row >= FAILURES_IN_A_ROW_MAX { Err(error) } else { Ok(()) }
    }
}

impl Backend for UringBackend {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn receive(&mut self, timeout: Option<Duration>, batch: &mut RecvBatch) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the ring failed while it was sending"));
        }
        self.arm()?;
        // Completions that did not fit into the last batch, or that `send` met, must not wait for new ones.
        let mut waiting = !self.intake.stash.is_empty() || !self.ring.completion().is_empty();
        let streams_first = self.streams.as_mut().is_some_and(Streams::take_turn);
        if streams_first {
            self.receive_streams(batch)?;
        }
        waiting |= self.intake.streams_ready || !batch.is_empty();
        self.enter(if waiting { Some(Duration::ZERO) } else { timeout })?;
        self.drain(batch)?;
        if streams_first { Ok(()) } else { self.receive_streams(batch) }
    }

    fn send(&mut self, batch: &mut SendBatch) -> SendReport {
        let UringBackend { ring, intake, streams, egress, path, broken, .. } = self;
        let Intake { sockets, stash, stats, .. } = intake;
        let count = sockets.len();
        egress.send(batch, count, streams.as_mut(), stats, &mut |socket, messages| match path {
            SendPath::Mmsg => egress::sendmmsg(&sockets[socket].socket, messages),
            SendPath::Ring if *broken => fail(messages, libc::EBADFD),
            SendPath::Ring => {
                if let Err(error) = send_in_ring(ring, socket, messages, stash) {
                    *broken = true;
                    fail(messages, error.raw_os_error().unwrap_or(libc::EIO));
                }
            }
        })
    }

    fn adopt(&mut self, connection: Connection) -> io::Result<()> {
        let streams = match &mut self.streams {
            Some(streams) => streams,
            none => none.insert(Streams::new()?),
        };
        streams.adopt(connection, &mut self.intake.stats);
        Ok(())
    }

    fn release(&mut self, socket: SocketId, remote: SocketAddr) -> Option<Connection> {
        self.streams.as_mut()?.release(socket, remote, &mut self.intake.stats)
    }

    fn doorbell(&self) -> Doorbell {
        self.intake.bell.clone()
    }

    fn is_precise(&self) -> bool {
        true
    }

    fn ring(&mut self, peer: &Doorbell) {
        let Some(ring_fd) = peer.ring_fd() else { return peer.ring() };
        let Some(index) = self.intake.peer(peer) else { return peer.ring() };
        let entry = opcode::MsgRingData::new(Fd(ring_fd.as_raw_fd()), 0, token::of(token::BELL, 0), None)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(token::of(token::RUNG, index));
        // SAFETY: no memory is passed; the descriptor stays open because `peers` keeps a copy of the doorbell.
        if self.broken || unsafe { push(&mut self.ring, &entry) }.is_err() {
            peer.ring();
        }
    }

    fn submit(&mut self) {
        // A ring that fails here says so again in `receive`, which can report it.
        if !self.broken && !self.ring.submission().is_empty() {
            let _ = self.ring.submit();
        }
    }

    fn stats(&self) -> BackendStats {
        self.intake.stats
    }
}

impl Drop for UringBackend {
    /// A socket stays in its REUSEPORT group, and keeps taking datagrams, for as long as a multishot or the ring's
    /// file table holds it; a doorbell that someone still has keeps the ring itself alive. So everything is
    /// cancelled and unregistered here, and the sockets close when the fields drop.
    fn drop(&mut self) {
        let quiet = self.quiesce();
        let submitter = self.ring.submitter();
        let unregistered = submitter.unregister_buf_ring(BUFFER_GROUP).is_ok();
        let _ = submitter.unregister_files();
        if quiet && unregistered {
            // SAFETY: dropped once, here. No request is in flight and the kernel does not know the buffers any more.
            unsafe { ManuallyDrop::drop(&mut self.intake.kernel) }
        }
        // Otherwise up to 4 MB leak: better than a kernel that writes into memory that has a new owner.
    }
}

/// Sends the list in the ring, one `SendMsg` each, and returns when all of them have completed. Other completions
/// that come first are put into `stash`.
///
/// # Errors
/// The ring failed with requests still queued or in flight; it must never be entered again.
fn send_in_ring(
    ring: &mut IoUring,
    socket: usize,
    messages: &mut Messages,
    stash: &mut VecDeque<cqueue::Entry>,
) -> io::Result<()> {
    for i in 0..messages.len() {
        // Without MSG_DONTWAIT a full send buffer parks the request for milliseconds; with it the request fails
        // with EAGAIN, and every request completes while it is submitted.
        let entry = opcode::SendMsg::new(Fixed(socket as u32), messages.header(i))
            .flags(libc::MSG_DONTWAIT as u32)
            .build()
            .user_data(token::of(token::SEND, i));
        // SAFETY: header, name, iovec and control lie in `messages`, the payload in the batch; both are borrowed until
        // this function returns, which is after the last completion. If it fails, `broken` keeps the ring from being
        // entered again, and a queued request that is never submitted is never read.
        unsafe { push(ring, &entry)? };
    }
    let queued = ring.submission().len() as u32;
    // SAFETY: no argument is passed. Without GETEVENTS, so that no receives are run here.
    forgive(unsafe { ring.submitter().enter::<libc::sigset_t>(queued, 0, 0, None) })?;
    let mut missing = messages.len();
    loop {
        for completion in ring.completion() {
            match token::split(completion.user_data()) {
                (token::SEND, i) => {
                    messages.set_result(i, completion.result());
                    missing -= 1;
                }
                _ => stash.push_back(completion),
            }
        }
        if missing == 0 {
            return Ok(());
        }
        forgive(ring.submit_and_wait(1))?;
    }
}

fn fail(messages: &mut Messages, errno: i32) {
    for i in 0..messages.len() {
        messages.set_result(i, -errno);
    }
}

/// Queues an entry; submits first when the queue is full.
///
/// # Safety
/// What the entry points at stays valid until its last completion.
unsafe fn push(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    if ring.submission().is_full() {
        forgive(ring.submit())?;
    }
    // SAFETY: the caller's promise.
    unsafe { ring.submission().push(entry) }.map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))
}

/// Results of `io_uring_enter` that only mean "look at the completions now": the time is up, a signal came, or
/// completions must be taken before more can be submitted.
fn forgive(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(e) => match e.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
            _ => Err(e),
        },
    }
}
