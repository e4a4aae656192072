//! The TCP connections of one shard (RFC 6544, RFC 4571), beside its UDP sockets: one epoll set that a backend watches like its
//! doorbell.
//!
//! TCP is for clients whose network blocks UDP, so it may cost more: each datagram is copied into its connection's queue.
//! A shard without connections pays a branch a turn.

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
    /// `socket` stands for the address where it was accepted. What was read of it before must have been whole frames.
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
    /// Whether it was their turn to be read before sockets.
    first: bool,
}

impl Streams {
    pub fn new() -> io::Result<Streams> {
        Ok(Streams {
            epoll: Epoll::new()?,
            connections: Slab::new(),
            keys: FxHashMap::default(),
            touched: Vec::new(),
            buffer: Box::new([0; READ_BYTES]),
            first: false,
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

    /// Whether connections are read before sockets this turn: every other, so that neither fills all batches alone.
    pub fn take_turn(&mut self) -> bool {
        self.first = !self.first;
        self.first
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
            if flags & libc::EPOLLOUT as u32 != 0 && self.connections.contains(key) {
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::tests::{Got, PATIENCE, V4, backend, check, receive};
    use super::super::{Backend, SendReport};
    use super::*;
    use crate::datagram::{Class, Label, SendBatch};

    fn socket() -> SocketId {
        SocketId::stream(3).unwrap()
    }

    /// A client, and our end of its connection.
    fn pair() -> (TcpStream, Connection) {
        let listener = TcpListener::bind(V4).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let (stream, remote) = listener.accept().unwrap();
        (client, Connection::new(stream, socket(), remote, Arc::default()).unwrap())
    }

    fn adopted(backend: &mut dyn Backend) -> (TcpStream, SocketAddr) {
        let (client, connection) = pair();
        let remote = connection.remote();
        backend.adopt(connection).unwrap();
        (client, remote)
    }

    fn send(backend: &mut dyn Backend, to: SocketAddr, data: &[u8], segment: Option<u16>, label: Label) -> SendReport {
        let mut batch = SendBatch::new();
        batch.room(data.len())[..data.len()].copy_from_slice(data);
        batch.commit(socket(), to, data.len(), segment, label);
        let report = backend.send(&mut batch);
        assert!(batch.is_empty());
        report
    }

    #[test]
    fn frames_come_and_go_like_datagrams() {
        check(|kind| {
            let (mut backend, _) = backend(kind, &[V4]);
            let (mut client, remote) = adopted(backend.as_mut());
            // One frame and a half, then the rest.
            client.write_all(&[0, 2, 1, 2, 0]).unwrap();
            let got = |data: &[u8]| Got { socket: socket(), remote, data: data.to_vec() };
            assert_eq!(receive(backend.as_mut(), 1), [got(&[1, 2])], "{kind:?}");
            client.write_all(&[1, 3, 0, 1, 4]).unwrap();
            assert_eq!(receive(backend.as_mut(), 2), [got(&[3]), got(&[4])], "{kind:?}");

            let report = send(backend.as_mut(), remote, &[5, 5, 6, 6, 7], Some(2), Label::default());
            assert_eq!((report.messages, report.datagrams, report.bytes), (1, 3, 5), "{kind:?}");
            let mut read = [0; 11];
            client.read_exact(&mut read).unwrap();
            assert_eq!(read, [0, 2, 5, 5, 0, 2, 6, 6, 0, 1, 7], "{kind:?}");
        });
    }

    #[test]
    fn more_than_one_read_is_not_slept_over() {
        check(|kind| {
            let (mut backend, _) = backend(kind, &[V4]);
            let clients: Vec<_> = (0..3).map(|_| adopted(backend.as_mut())).collect();
            let frame = [&[0x03, 0xe8][..], &[9; 1000]].concat();
            // All of it is there before the backend looks: reads without a whole frame (null packets), then some with.
            let frames = 2 * READ_BYTES / frame.len();
            for (client, _) in &clients {
                (&mut &*client).write_all(&[0; 2 * READ_BYTES]).unwrap();
                (&mut &*client).write_all(&frame.repeat(frames)).unwrap();
            }
            let got = receive(backend.as_mut(), 3 * frames);
            for (_, remote) in clients {
                assert_eq!(got.iter().filter(|g| g.remote == remote).count(), frames, "{kind:?}");
            }
        });
    }

    #[test]
    fn a_full_connection_drops_video_and_tells_whose_and_delays_nobody() {
        check(|kind| {
            let (mut backend, _) = backend(kind, &[V4]);
            let (_slow, slow) = adopted(backend.as_mut());
            let (mut quick, other) = adopted(backend.as_mut());
            let label = Label { class: Class::Video, owner: Some(7) };
            let mut dropped = 0;
            // Each is a frame of its own.
            for timestamp in 0..20_000u32 {
                let packet = [&[0x80; 4][..], &timestamp.to_be_bytes(), &[0; 1200]].concat();
                let report = send(backend.as_mut(), slow, &packet, None, label);
                dropped += report.would_block;
                assert_eq!(report.datagrams + report.would_block, 1);
            }
            assert!(dropped > 1000, "{kind:?}: {dropped}");
            assert_eq!(backend.stats().stream_dropped, [dropped, 0, 0], "{kind:?}");
            let mut batch = SendBatch::new();
            batch.room(1220)[..1220].fill(1);
            batch.commit(socket(), slow, 1220, None, label);
            let _ = backend.send(&mut batch);
            assert_eq!(batch.unsent(), [Unsent { owner: 7, datagrams: 1 }], "{kind:?}");
            // There is room for control.
            assert_eq!(send(backend.as_mut(), slow, &[1; 100], None, Label::default()).datagrams, 1);
            assert_eq!(send(backend.as_mut(), other, b"hello", None, Label::default()).datagrams, 1);
            let mut read = [0; 7];
            quick.read_exact(&mut read).unwrap();
            assert_eq!(&read[2..], b"hello", "{kind:?}");
        });
    }

    #[test]
    fn what_waited_is_written_when_the_client_reads_on() {
        check(|kind| {
            let (mut backend, _) = backend(kind, &[V4]);
            let (client, remote) = adopted(backend.as_mut());
            let mut sent = 0;
            while send(backend.as_mut(), remote, &[1; 1000], None, Label::default()).would_block == 0 {
                sent += 1;
            }
            let reader = std::thread::spawn(move || {
                let mut read = vec![0; sent * 1002];
                (&client).read_exact(&mut read).map(|()| read)
            });
            // The backend only waits; nothing more is sent.
            while !reader.is_finished() {
                backend.receive(Some(Duration::from_millis(10)), &mut RecvBatch::new()).unwrap();
            }
            let read = reader.join().unwrap().unwrap();
            assert!(read.chunks(1002).all(|f| f[..3] == [0x03, 0xe8, 1]), "{kind:?}");
        });
    }

    #[test]
    fn a_connection_ends_with_its_client_or_its_framing_or_moves() {
        check(|kind| {
            let (mut first, _) = backend(kind, &[V4]);
            let closed = |backend: &mut dyn Backend, expected| {
                for _ in 0..500 {
                    if backend.stats().streams_closed == expected {
                        return;
                    }
                    backend.receive(Some(Duration::from_millis(10)), &mut RecvBatch::new()).unwrap();
                }
                panic!("{kind:?}: {:?}", backend.stats());
            };
            let (client, remote) = adopted(first.as_mut());
            drop(client);
            closed(first.as_mut(), 1);
            assert_eq!(send(first.as_mut(), remote, b"late", None, Label::default()).errors, 1);

            let (mut client, _) = adopted(first.as_mut());
            client.write_all(&[0xff, 0xff]).unwrap();
            closed(first.as_mut(), 2);
            assert_eq!(client.read(&mut [0]).unwrap(), 0, "{kind:?}");

            let (mut second, _) = backend(kind, &[V4]);
            let (mut client, remote) = adopted(first.as_mut());
            // Half a frame before, half after.
            client.write_all(&[0, 1, 1, 0, 2, 3]).unwrap();
            assert_eq!(receive(first.as_mut(), 1).len(), 1);
            second.adopt(first.release(socket(), remote).unwrap()).unwrap();
            assert!(first.release(socket(), remote).is_none());
            client.write_all(&[4]).unwrap();
            assert_eq!(receive(second.as_mut(), 1), [Got { socket: socket(), remote, data: vec![3, 4] }], "{kind:?}");
        });
    }
}
