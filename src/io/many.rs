//! Many sockets in one thread: one UDP port per client of a load test, one epoll over all of them.
//!
//! A shard has a few sockets and reads them all each turn; here there are thousands, of which a few are ready. So epoll
//! names them, and each gets one recvmmsg per turn; what is left in a socket is reported again (level-triggered).

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::Doorbell;
use super::epoll::{Epoll, check};
use super::gro;
use super::room::{Message, Room};
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
    epoll: Epoll,
    sockets: Vec<UdpSocket>,
    locals: Vec<SocketAddr>,
    receive_bytes: usize,
    bell: Doorbell,
    room: Room,
    truncated: u64,
}

impl Many {
    /// Binds `count` sockets at `ip`, each at a free port of its own.
    ///
    /// # Errors
    /// When the system has no descriptors or ports left, or `ip` is not its own.
    pub fn bind(ip: IpAddr, count: usize, options: Options) -> io::Result<Many> {
        let bell = Doorbell::new(None)?;
        let (messages, message_bytes) =
            if options.gro { (GRO_MESSAGES, GRO_MESSAGE_BYTES) } else { (DATAGRAMS, limits::DATAGRAM_BYTES_MAX) };
        let mut many = Many {
            sockets: Vec::with_capacity(count),
            locals: Vec::with_capacity(count),
            receive_bytes: usize::MAX,
            room: Room::new(messages, message_bytes, message_bytes),
            truncated: 0,
            epoll: Epoll::new()?,
            bell,
        };
        many.epoll.watch(many.bell.event(), BELL)?;
        for index in 0..count {
            let address = SocketAddr::new(ip, 0);
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
            socket.bind(&address.into())?;
            socket.set_recv_buffer_size(options.receive_bytes)?;
            // What is read back is twice what was set (socket(7)).
            many.receive_bytes = many.receive_bytes.min(socket.recv_buffer_size()? / 2);
            let socket = UdpSocket::from(socket);
            if options.gro {
                gro::enable(&socket)?;
            }
            many.locals.push(socket.local_addr()?);
            many.epoll.watch(&socket, index as u64)?;
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
        let count = self.epoll.wait(&mut events, Some(timeout))?;
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
            let Message { remote, data, segment, cut } = self.room.message(index);
            let Some(from) = remote.filter(|_| !cut) else {
                self.truncated += 1;
                continue;
            };
            let segment_bytes = segment.map_or(data.len(), usize::from);
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
