//! Batches of packet memory without system calls: what `io` fills and sends, and what a shard reads and writes.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::ops::Range;

use crate::limits;
use crate::units::Instant;

/// Which of a shard's sockets: an index into the list of local addresses that all shards share. The upper half of the ids
/// stands for addresses where TCP connections are accepted (RFC 6544), one connection per remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u8);

impl SocketId {
    const STREAM: u8 = 0x80;

    /// TCP addresses that have an id.
    pub const STREAMS_MAX: usize = 128;

    /// The id of the TCP address with this index, counted by itself; `None` beyond the 128th.
    pub fn stream(index: usize) -> Option<SocketId> {
        let index = u8::try_from(index).ok().filter(|i| i & SocketId::STREAM == 0)?;
        Some(SocketId(index | SocketId::STREAM))
    }

    /// The index of a TCP address; `None` for a UDP socket.
    pub fn stream_index(self) -> Option<usize> {
        self.is_stream().then_some(usize::from(self.0 & !SocketId::STREAM))
    }

    pub fn is_stream(self) -> bool {
        self.0 & SocketId::STREAM != 0
    }
}

/// What a message is, in the order in which a full socket drops: video is repaired by NACKs, audio is heard, and without
/// control (RTCP, STUN, DTLS) a session ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Video,
    Audio,
    #[default]
    Control,
}

impl Class {
    pub const ALL: [Class; 3] = [Class::Video, Class::Audio, Class::Control];
}

/// What a message is and whose: nobody's control message by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Label {
    pub class: Class,
    /// Whom to tell when it is dropped; the writer's key, meaningless here.
    pub owner: Option<u32>,
}

/// One received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    pub socket: SocketId,
    pub remote: SocketAddr,
    pub data: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    socket: SocketId,
    remote: SocketAddr,
    start: u32,
    len: u32,
    /// Size of each datagram in `len` bytes (UDP GRO on receive, UDP_SEGMENT on send); the last may be shorter.
    segment: Option<u16>,
    /// On send only.
    label: Label,
    again: bool,
}

/// Datagrams received in one turn, in one arena that is reused from turn to turn.
#[derive(Debug)]
pub struct RecvBatch {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    /// In all entries.
    datagrams: usize,
    /// When the datagrams were taken from the kernel; set by the driver.
    pub at: Instant,
}

/// Messages to send, in one arena that is reused from flush to flush.
#[derive(Debug)]
pub struct SendBatch {
    /// Initialised once; `used` bytes of it are messages.
    arena: Vec<u8>,
    used: usize,
    entries: Vec<Entry>,
    unsent: Vec<Unsent>,
}

/// Datagrams of one owner that a full socket did not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsent {
    pub owner: u32,
    pub datagrams: u32,
}

/// One message to send: one datagram, or several of `segment` bytes each in one buffer (the last may be shorter).
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub socket: SocketId,
    pub remote: SocketAddr,
    pub data: &'a [u8],
    pub segment: Option<u16>,
    pub label: Label,
    /// It is offered for the second time: a full socket refused it once.
    pub again: bool,
}

/// Bytes of a message that are to stay in the batch.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Index of the message.
    pub source: usize,
    /// In its data.
    pub bytes: Range<usize>,
    pub segment: Option<u16>,
}

impl RecvBatch {
    pub fn new() -> RecvBatch {
        RecvBatch {
            arena: Vec::with_capacity(limits::RECV_BATCH_BYTES),
            entries: Vec::with_capacity(limits::RECV_BATCH_DATAGRAMS),
            datagrams: 0,
            at: Instant::ZERO,
        }
    }

    pub fn clear(&mut self) {
        self.arena.clear();
        self.entries.clear();
        self.datagrams = 0;
    }

    /// Whether one more message of any size still fits without growing the arena.
    pub fn has_room(&self) -> bool {
        self.datagrams < limits::RECV_BATCH_DATAGRAMS
            && self.arena.len() + limits::MERGED_BYTES_MAX <= limits::RECV_BATCH_BYTES
    }

    /// Copies one received message in; `segment` is the UDP GRO size when it holds several datagrams.
    pub fn push(&mut self, socket: SocketId, remote: SocketAddr, data: &[u8], segment: Option<u16>) {
        // Batches are bounded far below 4 GiB by `limits`.
        let (start, len) = (self.arena.len() as u32, data.len() as u32);
        self.entries.push(Entry { socket, remote, start, len, segment, label: Label::default(), again: false });
        self.datagrams += segment.map_or(1, |bytes| data.len().div_ceil(usize::from(bytes).max(1)).max(1));
        self.arena.extend_from_slice(data);
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every datagram in the order of its arrival, coalesced ones taken apart.
    pub fn iter(&self) -> impl Iterator<Item = Received<'_>> {
        self.entries.iter().flat_map(|e| {
            let data = &self.arena[e.start as usize..(e.start + e.len) as usize];
            let size = e.segment.map_or(data.len(), usize::from).max(1);
            // An empty datagram is one too: it must be counted, so it must come out.
            let empty = data.is_empty().then_some(data);
            empty.into_iter().chain(data.chunks(size)).map(|data| Received { socket: e.socket, remote: e.remote, data })
        })
    }
}

impl Default for RecvBatch {
    fn default() -> Self {
        RecvBatch::new()
    }
}

impl SendBatch {
    pub fn new() -> SendBatch {
        SendBatch {
            arena: vec![0; limits::SEND_BATCH_BYTES + limits::DATAGRAM_BYTES_MAX],
            used: 0,
            entries: Vec::with_capacity(limits::SEND_BATCH_MESSAGES),
            unsent: Vec::with_capacity(limits::SEND_BATCH_MESSAGES),
        }
    }

    pub fn clear(&mut self) {
        self.used = 0;
        self.entries.clear();
        self.unsent.clear();
    }

    /// True when it is time to flush: 64 messages, or as many bytes as stay in the L2 cache.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= limits::SEND_BATCH_MESSAGES || self.used >= limits::SEND_BATCH_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Copies one control message in that is nobody's. `segment` as in [`Outgoing`].
    pub fn push(&mut self, socket: SocketId, remote: SocketAddr, data: &[u8], segment: Option<u16>) {
        self.room(data.len())[..data.len()].copy_from_slice(data);
        self.commit(socket, remote, data.len(), segment, Label::default());
    }

    /// Memory for a message of at most `bytes`, to be written in place and then [committed](Self::commit). Its content is
    /// what a former message left there.
    pub fn room(&mut self, bytes: usize) -> &mut [u8] {
        let end = self.used + bytes;
        if self.arena.len() < end {
            self.arena.resize(end, 0);
        }
        &mut self.arena[self.used..end]
    }

    /// Makes the first `bytes` of what [`Self::room`] gave a message.
    pub fn commit(&mut self, socket: SocketId, remote: SocketAddr, bytes: usize, segment: Option<u16>, label: Label) {
        // Batches are bounded far below 4 GiB by `limits`.
        let (start, len) = (self.used as u32, bytes as u32);
        self.entries.push(Entry { socket, remote, start, len, segment, label, again: false });
        self.used += bytes;
    }

    /// Ends a flush: `kept` stays, ahead of what is written next and control first; everything else goes. `unsent` is
    /// exchanged for the list of the flush before.
    pub fn settle(&mut self, kept: &mut [Kept], unsent: &mut Vec<Unsent>) {
        std::mem::swap(&mut self.unsent, unsent);
        // Bytes move down only, so those in front go first.
        kept.sort_unstable_by_key(|k| (self.entries[k.source].start, k.bytes.start));
        let count = self.entries.len();
        self.used = 0;
        for k in kept.iter() {
            let source = self.entries[k.source];
            let from = source.start as usize + k.bytes.start;
            self.arena.copy_within(from..from + k.bytes.len(), self.used);
            let (start, len) = (self.used as u32, k.bytes.len() as u32);
            self.entries.push(Entry { start, len, segment: k.segment, again: true, ..source });
            self.used += k.bytes.len();
        }
        self.entries.drain(..count);
        self.entries.sort_unstable_by_key(|e| (Reverse(e.label.class), e.start));
    }

    /// Whose datagrams the last flush dropped because a socket was full. An owner may come several times.
    pub fn unsent(&self) -> &[Unsent] {
        &self.unsent
    }

    pub fn get(&self, index: usize) -> Outgoing<'_> {
        let e = &self.entries[index];
        let data = &self.arena[e.start as usize..(e.start + e.len) as usize];
        Outgoing { socket: e.socket, remote: e.remote, data, segment: e.segment, label: e.label, again: e.again }
    }

    pub fn iter(&self) -> impl Iterator<Item = Outgoing<'_>> {
        (0..self.entries.len()).map(|i| self.get(i))
    }
}

impl Default for SendBatch {
    fn default() -> Self {
        SendBatch::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: SocketId = SocketId(0);

    fn remote() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 9))
    }

    #[test]
    fn coalesced_datagrams_come_out_one_by_one() {
        let mut batch = RecvBatch::new();
        batch.push(S, remote(), &[1, 1, 2, 2, 3], Some(2));
        batch.push(S, remote(), &[], None);
        batch.push(S, remote(), &[9], None);
        let got: Vec<&[u8]> = batch.iter().map(|r| r.data).collect();
        assert_eq!(got, [&[1u8, 1][..], &[2, 2], &[3], &[], &[9]]);
    }

    #[test]
    fn streams_have_ids_of_their_own() {
        let first = SocketId::stream(0).expect("the first");
        assert!(first.is_stream() && !SocketId(127).is_stream());
        assert_eq!(SocketId::stream(127).and_then(SocketId::stream_index), Some(127));
        assert_eq!((SocketId::stream(128), SocketId(5).stream_index()), (None, None));
    }

    #[test]
    fn a_send_batch_is_full_by_messages_or_by_bytes() {
        let mut batch = SendBatch::new();
        for _ in 0..limits::SEND_BATCH_MESSAGES {
            assert!(!batch.is_full());
            batch.push(S, remote(), b"x", None);
        }
        assert!(batch.is_full());
        batch.clear();
        batch.push(S, remote(), &vec![0; limits::SEND_BATCH_BYTES], Some(1200));
        assert!(batch.is_full());
        assert_eq!(batch.get(0).segment, Some(1200));
    }

    #[test]
    fn what_is_kept_moves_to_the_front_with_control_first() {
        let mut batch = SendBatch::new();
        for (class, data) in [(Class::Video, "video"), (Class::Audio, "audio"), (Class::Control, "control")] {
            batch.room(data.len())[..data.len()].copy_from_slice(data.as_bytes());
            batch.commit(S, remote(), data.len(), Some(3), Label { class, owner: Some(class as u32) });
        }
        let mut unsent = vec![Unsent { owner: 0, datagrams: 2 }];
        let kept = |source, bytes| Kept { source, bytes, segment: None };
        batch.settle(&mut [kept(2, 0..7), kept(1, 3..5)], &mut unsent);
        batch.push(S, remote(), b"next", None);
        let got: Vec<_> = batch.iter().map(|m| (m.data, m.label.owner, m.again)).collect();
        assert_eq!(got, [(&b"control"[..], Some(2), true), (b"io", Some(1), true), (b"next", None, false)]);
        assert_eq!((batch.unsent(), unsent), (&[Unsent { owner: 0, datagrams: 2 }][..], vec![]));
    }
}
