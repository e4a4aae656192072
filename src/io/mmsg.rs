//! The backend for hosts without io_uring: epoll, recvmmsg, sendmmsg, and an eventfd as doorbell.
//!
//! Sockets are read before anything waits, so a busy shard makes no epoll call at all. A doorbell that rang
//! meanwhile then ends the next wait at once, which costs one empty turn.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::egress::{self, Egress};
use super::epoll::Epoll;
use super::gro;
use super::room::Room;
use super::tcp::{Connection, Streams};
use super::{Backend, BackendStats, Doorbell, FAILURES_IN_A_ROW_MAX, SendReport};
use crate::datagram::{RecvBatch, SendBatch, SocketId};
use crate::limits;

/// Messages per recvmmsg: more gains nothing (334 ns at 32, 352 ns at 64), and it is each socket's share per round.
const MESSAGES: usize = 32;

/// Distance of two receive buffers: a multiple of 64 kB would put the beginnings of all of them, and most datagrams need no
/// more, into the same few sets of the cache.
const STRIDE: usize = limits::MERGED_BYTES_MAX.next_multiple_of(4096) + limits::DATAGRAM_BYTES_MAX;

/// The epoll tokens of the doorbell and of the set of TCP connections; those of sockets are not told apart, all are read.
const BELL: u64 = u64::MAX;
const STREAMS: u64 = u64::MAX - 1;

pub(super) struct MmsgBackend {
    epoll: Epoll,
    sockets: Vec<UdpSocket>,
    failures_in_a_row: Vec<u32>,
    /// The socket that is read first; moves on every turn, so that no socket starves another.
    first: usize,
    bell: Doorbell,
    /// From the first connection on.
    streams: Option<Streams>,
    room: Room,
    egress: Egress,
    stats: BackendStats,
}

impl MmsgBackend {
    pub(super) fn new(sockets: Vec<UdpSocket>) -> io::Result<MmsgBackend> {
        let epoll = Epoll::new()?;
        for socket in &sockets {
            // An old kernel: datagrams come one by one.
            let _ = gro::enable(socket);
        }
        let bell = Doorbell::new(None)?;
        for socket in &sockets {
            epoll.watch(socket, 0)?;
        }
        epoll.watch(bell.event(), BELL)?;
        Ok(MmsgBackend {
            epoll,
            failures_in_a_row: vec![0; sockets.len()],
            sockets,
            first: 0,
            bell,
            streams: None,
            room: Room::new(MESSAGES, limits::MERGED_BYTES_MAX, STRIDE),
            egress: Egress::new(),
            stats: BackendStats::default(),
        })
    }

    /// Reads connections and all sockets, these in rounds, until they are empty or the batch is full.
    fn read(&mut self, batch: &mut RecvBatch) -> io::Result<()> {
        let streams_first = self.streams.as_mut().is_some_and(Streams::take_turn);
        if streams_first {
            self.read_streams(batch)?;
        }
        self.read_sockets(batch)?;
        if streams_first { Ok(()) } else { self.read_streams(batch) }
    }

    /// What is left of it ends the next wait.
    fn read_streams(&mut self, batch: &mut RecvBatch) -> io::Result<()> {
        match &mut self.streams {
            Some(streams) => streams.receive(batch, &mut self.stats).map(|_| ()),
            None => Ok(()),
        }
    }

    fn read_sockets(&mut self, batch: &mut RecvBatch) -> io::Result<()> {
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
                    let message = self.room.message(i);
                    let oversize = gro::oversize(message.data.len(), message.segment);
                    match message.remote {
                        _ if oversize > 0 || message.cut => self.stats.truncated += oversize.max(1),
                        Some(remote) => batch.push(SocketId(index as u8), remote, message.data, message.segment),
                        None => self.stats.receive_errors += 1,
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

    /// Waits for a socket, a connection or the doorbell.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.stats.waits += 1;
        // Room for the doorbell, the connections and any socket. What is not reported this time is read anyway.
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 3];
        let ready = self.epoll.wait(&mut events, timeout)?;
        if events[..ready].iter().any(|event| event.u64 == BELL) && self.bell.silence() {
            self.stats.doorbells += 1;
        }
        Ok(())
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
        let MmsgBackend { sockets, streams, egress, stats, .. } = self;
        egress.send(batch, sockets.len(), streams.as_mut(), stats, &mut |socket, messages| {
            egress::sendmmsg(&sockets[socket], messages)
        })
    }

    fn adopt(&mut self, connection: Connection) -> io::Result<()> {
        let streams = match &mut self.streams {
            Some(streams) => streams,
            none => {
                let streams = Streams::new()?;
                self.epoll.watch(streams.event(), STREAMS)?;
                none.insert(streams)
            }
        };
        streams.adopt(connection, &mut self.stats);
        Ok(())
    }

    fn release(&mut self, socket: SocketId, remote: SocketAddr) -> Option<Connection> {
        self.streams.as_mut()?.release(socket, remote, &mut self.stats)
    }

    fn doorbell(&self) -> Doorbell {
        self.bell.clone()
    }

    fn is_precise(&self) -> bool {
        self.epoll.is_precise()
    }

    fn ring(&mut self, peer: &Doorbell) {
        peer.ring();
    }

    /// They were heard at once.
    fn submit(&mut self) {}

    fn stats(&self) -> BackendStats {
        self.stats
    }
}
