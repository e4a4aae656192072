//! The backend for hosts without io_uring: epoll, recvmmsg, sendmmsg, and an eventfd as doorbell.
//!
//! Sockets are read before anything waits, so a busy shard makes no epoll call at all. A doorbell that rang
//! meanwhile then ends the next wait at once, which costs one empty turn.

use std::io;
use std::mem;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use super::address::{self, NAME_BYTES_MAX, Name};
use super::egress::{self, Egress};
use super::gro;
use super::{Backend, BackendStats, Doorbell, FAILURES_IN_A_ROW_MAX, SendReport};
use crate::datagram::{RecvBatch, SendBatch, SocketId};
use crate::limits;

/// Messages per recvmmsg: more gains nothing (334 ns at 32, 352 ns at 64), and it is each socket's share per round.
const MESSAGES: usize = 32;

/// Distance of two receive buffers: a multiple of 64 kB would put the beginnings of all of them, and most datagrams need no
/// more, into the same few sets of the cache.
const STRIDE: usize = limits::MERGED_BYTES_MAX.next_multiple_of(4096) + limits::DATAGRAM_BYTES_MAX;

/// The epoll token of the doorbell; those of sockets are not told apart, all are read.
const BELL: u64 = u64::MAX;

pub(super) struct MmsgBackend {
    epoll: OwnedFd,
    sockets: Vec<UdpSocket>,
    failures_in_a_row: Vec<u32>,
    /// The socket that is read first; moves on every turn, so that no socket starves another.
    first: usize,
    bell: Doorbell,
    room: Room,
    egress: Egress,
    /// epoll_pwait2 (5.11) is there; else deadlines are rounded up to milliseconds.
    nanoseconds: bool,
    stats: BackendStats,
}

impl MmsgBackend {
    pub(super) fn new(sockets: Vec<UdpSocket>) -> io::Result<MmsgBackend> {
        // SAFETY: takes no pointers; the result is checked.
        let epoll = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: just opened, and nobody else knows it.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        for socket in &sockets {
            // An old kernel: datagrams come one by one.
            let _ = gro::enable(socket);
        }
        let bell = Doorbell::new(None)?;
        let bell_fd = bell.event().as_raw_fd();
        let watched = sockets.iter().map(|s| (s.as_raw_fd(), 0)).chain([(bell_fd, BELL)]);
        for (fd, token) in watched {
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
            // SAFETY: `event` lives for the call; both descriptors are open.
            check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
        }
        Ok(MmsgBackend {
            epoll,
            failures_in_a_row: vec![0; sockets.len()],
            sockets,
            first: 0,
            bell,
            room: Room::new(),
            egress: Egress::new(),
            nanoseconds: true,
            stats: BackendStats::default(),
        })
    }

    /// Reads all sockets in rounds until they are empty or the batch is full.
    fn read(&mut self, batch: &mut RecvBatch) -> io::Result<()> {
        let count = self.sockets.len();
        self.first = (self.first + 1) % count;
        let mut empty = 0;
        let mut index = self.first;
        while empty < count && batch.has_room() {
            // A read that did not fill its share has emptied the socket; asking again would cost a call to learn it.
            if self.read_one(index, batch)? < MESSAGES {
                empty += 1
            } else {
                empty = 0
            }
            index = (index + 1) % count;
        }
        Ok(())
    }

    /// One recvmmsg; returns how many messages it took off the socket.
    fn read_one(&mut self, index: usize, batch: &mut RecvBatch) -> io::Result<usize> {
        match self.room.recvmmsg(&self.sockets[index]) {
            Ok(count) => {
                self.failures_in_a_row[index] = 0;
                for i in 0..count {
                    match self.room.message(i) {
                        Err(TooLong(datagrams)) => self.stats.truncated += datagrams,
                        Ok(Message { remote: Some(remote), data, segment }) => {
                            batch.push(SocketId(index as u8), remote, data, segment);
                        }
                        Ok(Message { remote: None, .. }) => self.stats.receive_errors += 1,
                    }
                }
                Ok(count)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            Err(e) => {
                self.stats.receive_errors += 1;
                if e.raw_os_error().is_some_and(super::is_reported_by_icmp) {
                    return Ok(0);
                }
                self.failures_in_a_row[index] += 1;
                if self.failures_in_a_row[index] >= FAILURES_IN_A_ROW_MAX { Err(e) } else { Ok(0) }
            }
        }
    }

    /// Waits for a socket or the doorbell.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.stats.waits += 1;
        // Room for two: the doorbell and any socket. What is not reported this time is read anyway.
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 2];
        let ready = match self.epoll_wait(&mut events, timeout) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        if events[..ready].iter().any(|event| event.u64 == BELL) && self.bell.silence() {
            self.stats.doorbells += 1;
        }
        Ok(())
    }

    fn epoll_wait(&mut self, events: &mut [libc::epoll_event], timeout: Option<Duration>) -> io::Result<usize> {
        if self.nanoseconds {
            let timespec = timeout.map(|t| libc::timespec {
                tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: t.subsec_nanos().into(),
            });
            // SAFETY: `events` and `timespec` live for the call, and `events` has as many entries as are announced. By
            // number because glibc has the wrapper only since 2.35.
            let ready = unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    self.epoll.as_raw_fd(),
                    events.as_mut_ptr(),
                    events.len() as libc::c_int,
                    timespec.as_ref().map_or(ptr::null(), ptr::from_ref),
                    ptr::null::<libc::sigset_t>(),
                    0usize,
                )
            };
            match check(ready as libc::c_int) {
                // EPERM: a seccomp profile that is older than the call.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => self.nanoseconds = false,
                result => return result.map(|ready| ready as usize),
            }
        }
        // Up, not down: a wait that ends before the deadline would be repeated until it has passed.
        let millis = timeout.map_or(-1, |t| i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
        // SAFETY: as above.
        let ready = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), events.len() as libc::c_int, millis)
        };
        check(ready).map(|ready| ready as usize)
    }
}

impl Backend for MmsgBackend {
    fn name(&self) -> &'static str {
        "mmsg"
    }

    fn receive(&mut self, timeout: Option<Duration>, batch: &mut RecvBatch) -> io::Result<()> {
        self.read(batch)?;
        if !batch.is_empty() || timeout == Some(Duration::ZERO) {
            return Ok(());
        }
        self.wait(timeout)?;
        self.read(batch)
    }

    fn send(&mut self, batch: &mut SendBatch) -> SendReport {
        let MmsgBackend { sockets, egress, stats, .. } = self;
        egress.send(batch, sockets.len(), stats, &mut |socket, messages| egress::sendmmsg(&sockets[socket], messages))
    }

    fn doorbell(&self) -> Doorbell {
        self.bell.clone()
    }

    fn ring(&mut self, peer: &Doorbell) {
        peer.ring();
    }

    fn stats(&self) -> BackendStats {
        self.stats
    }
}

/// Where one recvmmsg puts its datagrams. The headers point into the other boxes, which never move.
struct Room {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    names: Box<[Name]>,
    controls: Box<[gro::Control]>,
    /// Mostly never touched, and so never in memory.
    data: Box<[[u8; STRIDE]]>,
}

/// One entry of the last recvmmsg.
struct Message<'a> {
    /// `None`: of a family that we do not know.
    remote: Option<SocketAddr>,
    data: &'a [u8],
    /// The size of each datagram in `data` when there are several.
    segment: Option<u16>,
}

/// So many datagrams were longer than we take.
struct TooLong(u64);

impl Room {
    fn new() -> Room {
        // SAFETY: for both types all zeroes is a valid value: null pointers, zero lengths and flags.
        let (header, iovec) = unsafe { mem::zeroed::<(libc::mmsghdr, libc::iovec)>() };
        Room {
            headers: vec![header; MESSAGES].into(),
            iovecs: vec![iovec; MESSAGES].into(),
            names: vec![Name::ZERO; MESSAGES].into(),
            controls: vec![gro::Control([0; gro::CONTROL_BYTES]); MESSAGES].into(),
            data: vec![[0; STRIDE]; MESSAGES].into(),
        }
    }

    fn recvmmsg(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        for i in 0..MESSAGES {
            let data = self.data[i].as_mut_ptr().cast();
            self.iovecs[i] = libc::iovec { iov_base: data, iov_len: limits::MERGED_BYTES_MAX };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = NAME_BYTES_MAX as u32;
            header.msg_iov = &raw mut self.iovecs[i];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[i]).cast();
            header.msg_controllen = gro::CONTROL_BYTES as _;
        }
        // SAFETY: every header points at a name, a control buffer, an iovec and through it a buffer of `self`, all as
        // long as is said, and `self` is borrowed exclusively for the call; the kernel is done with all of them when it returns.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                MESSAGES as u32,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        check(count).map(|count| count as usize)
    }

    fn message(&self, index: usize) -> Result<Message<'_>, TooLong> {
        let header = &self.headers[index];
        let data = &self.data[index][..header.msg_len as usize];
        // Nothing was written: what is there is an older message's.
        let control = if header.msg_hdr.msg_controllen == 0 { &[][..] } else { &self.controls[index].0 };
        let segment = gro::segment(control);
        let oversize = gro::oversize(data.len(), segment);
        if oversize > 0 || header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return Err(TooLong(oversize.max(1)));
        }
        let name = &self.names[index].0[..(header.msg_hdr.msg_namelen as usize).min(NAME_BYTES_MAX)];
        Ok(Message { remote: address::parse(name), data, segment })
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
