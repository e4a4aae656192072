//! Many sockets in one thread: one UDP port per client of a load test, one epoll over all of them.
//!
//! A shard has a few sockets and reads them all each turn; here there are thousands, of which a few are ready. So epoll
//! names them, and each gets one recvmmsg per turn; what is left in a socket is reported again (level-triggered).

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::Doorbell;
use super::address::{self, NAME_BYTES_MAX, Name};
use crate::limits;

/// Datagrams per recvmmsg without GRO: three bursts of 10.
const DATAGRAMS: usize = 32;

/// With GRO each message may hold 64 kB, of which only what is filled is ever touched.
const GRO_MESSAGES: usize = 16;
const GRO_MESSAGE_BYTES: usize = 65_536;

/// Sockets that one wait reports. More are reported by the next.
const READY_MAX: usize = 256;

/// The epoll token of the doorbell.
const BELL: u64 = u64::MAX;

/// `cmsghdr` and an int, each rounded up to a word.
const CONTROL_BYTES: usize = 32;

/// How sockets are opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Takes segments that the kernel kept together (UDP_GRO): fewer messages for the same datagrams.
    pub gro: bool,
    /// Asked of the kernel for each socket, in its own count (2304 bytes for a datagram of 1200).
    pub receive_bytes: usize,
}

/// The sockets of one thread, by index.
pub struct Many {
    epoll: OwnedFd,
    sockets: Vec<UdpSocket>,
    locals: Vec<SocketAddr>,
    receive_bytes: usize,
    bell: Doorbell,
    room: Room,
    /// epoll_pwait2 (5.11) is there; else deadlines are rounded up to milliseconds.
    nanoseconds: bool,
    truncated: u64,
}

impl Many {
    /// Binds `count` sockets at `ip`, each at a free port of its own.
    ///
    /// # Errors
    /// When the system has no descriptors or ports left, or `ip` is not its own.
    pub fn bind(ip: IpAddr, count: usize, options: Options) -> io::Result<Many> {
        // SAFETY: takes no pointers; the result is checked.
        let epoll = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: just opened, and nobody else knows it.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        let bell = Doorbell::new(None)?;
        let mut many = Many {
            sockets: Vec::with_capacity(count),
            locals: Vec::with_capacity(count),
            receive_bytes: usize::MAX,
            room: Room::new(options.gro),
            nanoseconds: true,
            truncated: 0,
            epoll,
            bell,
        };
        many.watch(many.bell.event().as_raw_fd(), BELL)?;
        for index in 0..count {
            let address = SocketAddr::new(ip, 0);
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
            socket.bind(&address.into())?;
            socket.set_recv_buffer_size(options.receive_bytes)?;
            // What is read back is twice what was set (socket(7)).
            many.receive_bytes = many.receive_bytes.min(socket.recv_buffer_size()? / 2);
            if options.gro {
                turn_on_gro(&socket)?;
            }
            let socket = UdpSocket::from(socket);
            many.locals.push(socket.local_addr()?);
            many.watch(socket.as_raw_fd(), index as u64)?;
            many.sockets.push(socket);
        }
        Ok(many)
    }

    /// Where each socket is bound.
    pub fn locals(&self) -> &[SocketAddr] {
        &self.locals
    }

    /// The smallest receive buffer that the kernel granted.
    pub fn receive_bytes(&self) -> usize {
        self.receive_bytes
    }

    /// Datagrams that were too long to be received whole.
    pub fn truncated(&self) -> u64 {
        self.truncated
    }

    /// A handle by which any thread ends [`Many::wait`].
    pub fn doorbell(&self) -> Doorbell {
        self.bell.clone()
    }

    /// Waits for a socket, the doorbell or the timeout, and puts the indices of sockets that can be read into `ready`.
    ///
    /// # Errors
    /// When epoll itself fails.
    pub fn wait(&mut self, timeout: Duration, ready: &mut Vec<usize>) -> io::Result<()> {
        ready.clear();
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; READY_MAX];
        let count = match self.epoll_wait(&mut events, timeout) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        for event in &events[..count] {
            match event.u64 {
                BELL => {
                    self.bell.silence();
                }
                index => ready.push(index as usize),
            }
        }
        Ok(())
    }

    /// One recvmmsg on a socket. `handle` gets each datagram with its sender and may write into it. Returns how many
    /// there were. An error of the socket, as an ICMP message makes one, counts as nothing received.
    pub fn receive(&mut self, socket: usize, mut handle: impl FnMut(SocketAddr, &mut [u8])) -> usize {
        let Ok(messages) = self.room.recvmmsg(&self.sockets[socket]) else { return 0 };
        let mut datagrams = 0;
        for index in 0..messages {
            let Some((from, segment_bytes, data)) = self.room.message(index) else {
                self.truncated += 1;
                continue;
            };
            for datagram in data.chunks_mut(segment_bytes.max(1)) {
                datagrams += 1;
                handle(from, datagram);
            }
        }
        datagrams
    }

    /// Sends one datagram; never blocks.
    ///
    /// # Errors
    /// What the kernel has against it.
    pub fn send(&self, socket: usize, to: SocketAddr, data: &[u8]) -> io::Result<()> {
        self.sockets[socket].send_to(data, to).map(|_| ())
    }

    fn watch(&self, fd: libc::c_int, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: `event` lives for the call; the caller passes an open descriptor.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) }).map(|_| ())
    }

    fn epoll_wait(&mut self, events: &mut [libc::epoll_event], timeout: Duration) -> io::Result<usize> {
        if self.nanoseconds {
            let timespec = libc::timespec {
                tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: timeout.subsec_nanos().into(),
            };
            // SAFETY: `events` and `timespec` live for the call, and `events` has as many entries as are announced. By
            // number because glibc has the wrapper only since 2.35.
            let ready = unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    self.epoll.as_raw_fd(),
                    events.as_mut_ptr(),
                    events.len() as libc::c_int,
                    &raw const timespec,
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
        let millis = i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        // SAFETY: as above.
        let ready = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), events.len() as libc::c_int, millis)
        };
        check(ready).map(|ready| ready as usize)
    }
}

/// Lets the process open `wanted` files, as far as its hard limit goes, and returns how many it may open then.
///
/// # Errors
/// When the system does not tell or change its limits.
pub fn raise_file_limit(wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives for the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    if limit.rlim_cur < wanted {
        limit.rlim_cur = wanted.min(limit.rlim_max);
        // SAFETY: `limit` lives for the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    }
    Ok(limit.rlim_cur)
}

fn turn_on_gro(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` lives for the call and its size is what is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_GRO,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    check(result).map(|_| ())
}

/// A control message's memory, aligned as `cmsghdr` is.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Where one recvmmsg puts its messages. The headers point into the other boxes, which never move.
struct Room {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    names: Box<[Name]>,
    controls: Box<[Control]>,
    data: Box<[u8]>,
    message_bytes: usize,
    gro: bool,
}

// SAFETY: its pointers lead into its own boxes, which move with it, and each recvmmsg sets them anew before they are used.
unsafe impl Send for Room {}

impl Room {
    fn new(gro: bool) -> Room {
        let (messages, message_bytes) =
            if gro { (GRO_MESSAGES, GRO_MESSAGE_BYTES) } else { (DATAGRAMS, limits::DATAGRAM_BYTES_MAX) };
        // SAFETY: for both types all zeroes is a valid value: null pointers, zero lengths and flags.
        let (header, iovec) = unsafe { mem::zeroed::<(libc::mmsghdr, libc::iovec)>() };
        Room {
            headers: vec![header; messages].into(),
            iovecs: vec![iovec; messages].into(),
            names: vec![Name::ZERO; messages].into(),
            controls: vec![Control([0; CONTROL_BYTES]); messages].into(),
            data: vec![0; messages * message_bytes].into(),
            message_bytes,
            gro,
        }
    }

    fn recvmmsg(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        for (i, data) in self.data.chunks_exact_mut(self.message_bytes).enumerate() {
            self.iovecs[i] = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = NAME_BYTES_MAX as u32;
            header.msg_iov = &raw mut self.iovecs[i];
            header.msg_iovlen = 1;
            if self.gro {
                header.msg_control = (&raw mut self.controls[i]).cast();
                header.msg_controllen = CONTROL_BYTES as _;
            }
        }
        // SAFETY: every header points at a name, an iovec, a control buffer and through the iovec a part of `data`, all
        // of `self`, which is borrowed exclusively for the call; the kernel is done with them when it returns.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as u32,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        check(count).map(|count| count as usize)
    }

    /// Message `index` of the last call: its sender, how long each datagram in it is, and all of them. `None` if cut.
    fn message(&mut self, index: usize) -> Option<(SocketAddr, usize, &mut [u8])> {
        let header = &self.headers[index];
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let bytes = (header.msg_len as usize).min(self.message_bytes);
        let segment_bytes = if self.gro { self.segment_bytes(index) } else { None }.unwrap_or(bytes);
        let name = &self.names[index].0[..(header.msg_hdr.msg_namelen as usize).min(NAME_BYTES_MAX)];
        let from = address::parse(name)?;
        let start = index * self.message_bytes;
        Some((from, segment_bytes, &mut self.data[start..start + bytes]))
    }

    /// What the UDP_GRO control message says; there is none when the message is one datagram.
    fn segment_bytes(&self, index: usize) -> Option<usize> {
        let header = &self.headers[index].msg_hdr;
        // SAFETY: `header` points at our control buffer, of which the kernel filled `msg_controllen` bytes.
        let message = unsafe { libc::CMSG_FIRSTHDR(header) };
        // SAFETY: either null or within the control buffer, which is aligned for it.
        let control = unsafe { message.as_ref() }?;
        if (control.cmsg_level, control.cmsg_type) != (libc::SOL_UDP, libc::UDP_GRO) {
            return None;
        }
        // SAFETY: UDP_GRO's value is an int, within the control buffer.
        let bytes = unsafe { libc::CMSG_DATA(message).cast::<libc::c_int>().read_unaligned() };
        usize::try_from(bytes).ok().filter(|bytes| *bytes > 0)
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Every datagram arrives at its own socket, whole and once.
    fn check_many(gro: bool) {
        let options = Options { gro, receive_bytes: 1 << 16 };
        let mut many = Many::bind(LOOPBACK, 3, options).unwrap();
        let to = many.locals().to_vec();
        for round in 0..5u8 {
            many.send(0, to[1], &[round; 100]).unwrap();
            many.send(1, to[2], &vec![round; 1200]).unwrap();
        }
        let (mut got, mut ready) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            many.wait(Duration::from_millis(20), &mut ready).unwrap();
            for socket in ready.clone() {
                many.receive(socket, |from, data| got.push((socket, from, data.len(), data[0])));
            }
            if got.len() == 10 {
                break;
            }
        }
        got.sort();
        let expected = (0..5u8).map(|r| (1, to[0], 100, r)).chain((0..5u8).map(|r| (2, to[1], 1200, r)));
        assert_eq!(got, expected.collect::<Vec<_>>());
    }

    #[test]
    fn datagrams_arrive_at_their_sockets() {
        check_many(false);
    }

    #[test]
    fn datagrams_arrive_at_their_sockets_with_gro() {
        check_many(true);
    }

    #[test]
    fn the_doorbell_ends_a_wait() {
        let mut many = Many::bind(LOOPBACK, 1, Options { gro: false, receive_bytes: 1 << 16 }).unwrap();
        many.doorbell().ring();
        let mut ready = vec![7];
        many.wait(Duration::from_secs(20), &mut ready).unwrap();
        assert!(ready.is_empty());
    }
}
