//! The TCP connections of one shard (RFC 6544, RFC 4571), beside its UDP sockets: one epoll set that a backend watches like its
//! doorbell.
//!
//! TCP is for clients whose network blocks UDP, so it may cost more: each datagram is copied into its connection's queue.
//! A shard without connections pays one branch a turn.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use slab::Slab;
use socket2::{SockRef, TcpKeepalive};

use super::epoll::Epoll;
use super::framing::Deframer;
use super::stream_queue::StreamQueue;
use super::{BackendStats, SendReport};
use crate::datagram::{Outgoing, RecvBatch, SocketId, Unsent};
use crate::limits;

/// Bytes of one connection that are read before the next one gets its turn; 10 Mbit/s take 150 reads a second.
const READ_BYTES: usize = 4 * limits::DATAGRAM_BYTES_MAX;

/// Connections that one turn looks at; more are reported by the next.
const READY_MAX: usize = 64;

/// Pieces of one write.
const SLICES_MAX: usize = 64;

/// What the kernel may hold that it has not sent yet. What lies there can neither be dropped nor overtaken by audio.
const UNSENT_BYTES: u32 = 32 * 1024;

/// A peer that is gone is noticed by probes after so long, or by what it does not acknowledge.
const SILENCE: Duration = Duration::from_secs(15);

/// One accepted connection, whose first frame was good. Closed when dropped.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    socket: SocketId,
    remote: SocketAddr,
    input: Deframer,
    queue: StreamQueue,
    /// The kernel takes no more for now: it says when it does.
    blocked: bool,
    /// Counted among all of the node's for as long as it lives.
    _place: Arc<()>,
}

impl Connection {
    /// `socket` stands for the address where it was accepted. Everything that was read of it must have been whole frames.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn new(stream: TcpStream, socket: SocketId, remote: SocketAddr, place: Arc<()>) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let options = SockRef::from(&stream);
        options.set_tcp_notsent_lowat(UNSENT_BYTES)?;
        options
            .set_tcp_keepalive(&TcpKeepalive::new().with_time(SILENCE).with_interval(SILENCE / 3).with_retries(3))?;
        // Also for a window that stays shut.
        options.set_tcp_user_timeout(Some(limits::DEAD_TIMEOUT))?;
        let (input, queue) = (Deframer::default(), StreamQueue::new());
        Ok(Connection { stream, socket, remote, input, queue, blocked: false, _place: place })
    }

    pub fn socket(&self) -> SocketId {
        self.socket
    }

    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Writes what the kernel takes; never blocks.
    fn write(&mut self) -> io::Result<()> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slot, bytes) in slices.iter_mut().zip(self.queue.slices()) {
                *slot = IoSlice::new(bytes);
                count += 1;
            }
            match (&self.stream).write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.queue.wrote(bytes),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        self.blocked = false;
        Ok(())
    }
}

/// The connections of one shard.
pub(super) struct Streams {
    epoll: Epoll,
    /// The epoll token is the key.
    connections: Slab<Connection>,
    keys: FxHashMap<(SocketId, SocketAddr), usize>,
    /// Connections with something new to write.
    touched: Vec<usize>,
    buffer: Box<[u8; READ_BYTES]>,
}

impl Streams {
    pub fn new() -> io::Result<Streams> {
        Ok(Streams {
            epoll: Epoll::new()?,
            connections: Slab::new(),
            keys: FxHashMap::default(),
            touched: Vec::new(),
            buffer: Box::new([0; READ_BYTES]),
        })
    }

    /// Can be read while any connection can be read, or written again.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// A connection of the same 4-tuple is a former one of the same client, and is closed.
    pub fn adopt(&mut self, connection: Connection, stats: &mut BackendStats) {
        let name = (connection.socket, connection.remote);
        if let Some(former) = self.keys.get(&name) {
            self.close(*former, stats);
        }
        let key = self.connections.vacant_key();
        // Without its events it would wait for nothing: then it is better closed.
        if self.epoll.watch(&connection.stream, key as u64).is_ok() {
            self.connections.insert(connection);
            self.keys.insert(name, key);
            stats.streams_opened += 1;
            // Another shard may have left something in its queue.
            self.write(key, stats);
        }
    }

    /// Lets go of a connection, which may go to another shard.
    pub fn release(&mut self, socket: SocketId, remote: SocketAddr, stats: &mut BackendStats) -> Option<Connection> {
        let key = self.keys.remove(&(socket, remote))?;
        stats.streams_closed += 1;
        let mut connection = self.connections.remove(key);
        self.epoll.unwatch(&connection.stream);
        connection.blocked = false;
        Some(connection)
    }

    /// Reads what has come and writes what has been waiting. True: there may be more already.
    pub fn receive(&mut self, batch: &mut RecvBatch, stats: &mut BackendStats) -> io::Result<bool> {
        if self.connections.is_empty() {
            return Ok(false);
        }
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; READY_MAX];
        let ready = self.epoll.wait(&mut events, Some(Duration::ZERO))?;
        let mut more = ready == events.len();
        for event in &events[..ready] {
            let (flags, key) = (event.events, event.u64 as usize);
            if flags & libc::EPOLLOUT as u32 != 0 {
                self.write(key, stats);
            }
            if flags & !(libc::EPOLLOUT as u32) != 0 && self.connections.contains(key) {
                more |= !batch.has_room() || self.read(key, batch, stats);
            }
        }
        Ok(more)
    }

    /// One read of a connection; returns whether there may be more.
    fn read(&mut self, key: usize, batch: &mut RecvBatch, stats: &mut BackendStats) -> bool {
        let Connection { stream, socket, remote, input, .. } = &mut self.connections[key];
        match stream.read(&mut self.buffer[..]) {
            Ok(bytes @ 1..) => {
                let read = input.push(&self.buffer[..bytes], |frame| batch.push(*socket, *remote, frame, None));
                if read.is_ok() {
                    return bytes == READ_BYTES;
                }
                stats.truncated += 1;
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return false,
            Ok(0) | Err(_) => {}
        }
        self.close(key, stats);
        false
    }

    /// Queues a message for its connection, each segment a frame.
    pub fn queue(
        &mut self,
        message: &Outgoing<'_>,
        report: &mut SendReport,
        stats: &mut BackendStats,
        unsent: &mut Vec<Unsent>,
    ) {
        let Outgoing { socket, remote, data, segment, label, .. } = *message;
        let datagrams = data.chunks(segment.map_or(usize::MAX, usize::from).max(1));
        let Some(&key) = self.keys.get(&(socket, remote)) else {
            report.errors += datagrams.count() as u64;
            return;
        };
        let queue = &mut self.connections[key].queue;
        let (mut accepted, mut refused) = (0, 0);
        for datagram in datagrams {
            if queue.push(label.class, datagram) {
                accepted += 1;
                report.bytes += datagram.len() as u64;
            } else {
                refused += 1;
            }
        }
        report.messages += u64::from(accepted > 0);
        report.datagrams += accepted;
        report.would_block += u64::from(refused);
        for (all, dropped) in stats.stream_dropped.iter_mut().zip(queue.take_dropped()) {
            *all += dropped;
        }
        if let Some(owner) = label.owner
            && refused > 0
        {
            unsent.push(Unsent { owner, datagrams: refused });
        }
        if self.touched.last() != Some(&key) {
            self.touched.push(key);
        }
    }

    /// Writes what [`Self::queue`] has queued, as far as the kernel takes it.
    pub fn flush(&mut self, stats: &mut BackendStats) {
        while let Some(key) = self.touched.pop() {
            if self.connections.get(key).is_some_and(|c| !c.blocked) {
                self.write(key, stats);
            }
        }
    }

    fn write(&mut self, key: usize, stats: &mut BackendStats) {
        let connection = &mut self.connections[key];
        let was_blocked = connection.blocked;
        let written = connection.write().and_then(|()| match connection.blocked {
            blocked if blocked == was_blocked => Ok(()),
            blocked => self.epoll.rewatch(&connection.stream, key as u64, blocked),
        });
        if written.is_err() {
            self.close(key, stats);
        }
    }

    fn close(&mut self, key: usize, stats: &mut BackendStats) {
        let connection = self.connections.remove(key);
        self.keys.remove(&(connection.socket, connection.remote));
        stats.streams_closed += 1;
    }
}
