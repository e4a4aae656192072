//! What control, shards and their peers say to each other.

use std::net::SocketAddr;
use std::sync::Arc;

use str0m::media::MediaKind;

use super::placement::Slot;
use crate::datagram::SocketId;
use crate::forward::select::RUNGS_MAX;
pub use crate::forward::select::Wish;
use crate::id::{Generation, SessionId, ShardId, StreamId};
use crate::metrics::ShardFigures;
pub use crate::session::{CloseReason, IceRestart};
use crate::units::Instant;
use crate::wire::codec::Format;
use crate::wire::packet::MediaPacket;

/// Layers that one stream is reported with.
pub const LAYERS_REPORTED_MAX: usize = RUNGS_MAX;

/// Which HTTP exchange waits for an answer from a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// From control to a shard. Reliable, in order.
#[derive(Debug)]
pub enum Command {
    /// To every shard, before the answer leaves: STUN for `ufrag` belongs to `slot`. Also after an ICE restart.
    Announce { ufrag: String, pwd: String, slot: Arc<Slot> },
    /// To every shard: nobody answers to this ufrag any more.
    Forget { ufrag: String },
    /// To the owner: close with DTLS close_notify. Answered by [`Event::Ended`].
    Close { session: SessionId, reason: CloseReason },
    /// To the owner: trickled candidates, as the values of `a=candidate`.
    AddCandidates { session: SessionId, candidates: Vec<String> },
    /// To the owner. Answered by [`Event::IceRestarted`].
    RestartIce { session: SessionId, request: RequestId, ufrag: String, pwd: String, candidates: Vec<String> },
    /// To the owner: what a viewer wants to be sent of its stream's video. Sent once the viewer is connected.
    SelectLayer { session: SessionId, wish: Wish },
    /// Close every session, then say [`Event::Stopped`].
    Stop,
}

/// From a shard to control. Reliable, in order.
#[derive(Debug)]
pub enum Event {
    /// ICE, DTLS and SRTP are up.
    Connected {
        session: SessionId,
    },
    /// A publisher's first authenticated RTP: it is the one that viewers see from now on.
    PublisherActive {
        session: SessionId,
        stream: StreamId,
        generation: Generation,
    },
    /// A publisher's track sent its first packet, or changed its format.
    TrackStarted {
        session: SessionId,
        stream: StreamId,
        kind: MediaKind,
        format: Format,
    },
    IceRestarted {
        session: SessionId,
        request: RequestId,
        result: Result<IceRestart, String>,
    },
    /// The session is gone; its slot and ufrags may be forgotten.
    Ended {
        session: SessionId,
        reason: CloseReason,
    },
    /// Once a second: cumulative figures.
    Report(Box<Report>),
    Stopped,
}

/// What one shard has to report, once a second.
#[derive(Clone, Debug)]
pub struct Report {
    pub at: Instant,
    pub figures: ShardFigures,
    /// Of publishers that viewers see now.
    pub tracks: Vec<TrackReport>,
    /// Of publishers that viewers see now: at most [`LAYERS_REPORTED_MAX`] of each stream's video.
    pub layers: Vec<LayerReport>,
}

/// One publisher's track on a shard. Cumulative since the session began.
#[derive(Clone, Copy, Debug)]
pub struct TrackReport {
    pub stream: StreamId,
    pub kind: MediaKind,
    pub format: Format,
    pub packets: u64,
    pub bytes: u64,
    /// When its last packet came.
    pub last_packet: Instant,
}

/// One layer of a publisher's video, or one of its spatial layers with those below, as it was in the last second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerReport {
    pub stream: StreamId,
    /// Empty without simulcast.
    pub rid: Box<str>,
    /// Packets of it come.
    pub active: bool,
    /// Bit/s.
    pub bitrate: u64,
    /// Pixels; 0 when unknown.
    pub width: u16,
    pub height: u16,
    /// Its id, 0 where there is but one.
    pub spatial: u8,
    /// Highest temporal layer id seen.
    pub temporal: u8,
}

/// From shard to shard. Lossy: bounded, dropped and counted when the queue is full.
#[derive(Debug)]
pub enum PeerMessage {
    /// A publisher's packet for the viewers of the receiving shard.
    Media(Arc<MediaPacket>),
    /// A datagram of a session that the receiving shard owns.
    Datagram(Box<ForeignDatagram>),
    /// A viewer needs a keyframe of a layer whose publisher lives on the receiving shard.
    KeyframeRequest { stream: StreamId, layer: u8 },
    /// Shard `from` has its first viewer of a layer whose publisher lives on the receiving shard.
    PastRequest { stream: StreamId, layer: u8, from: ShardId },
    /// The answer: what the publisher has sent of it since its last keyframe; `whole`: all of that.
    Past { stream: StreamId, packets: Box<[Arc<MediaPacket>]>, whole: bool },
}

/// A datagram that the kernel delivered to another shard than its session's.
#[derive(Debug)]
pub struct ForeignDatagram {
    pub socket: SocketId,
    pub remote: SocketAddr,
    pub data: Box<[u8]>,
}
