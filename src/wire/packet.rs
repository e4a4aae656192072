//! One decrypted RTP packet on its way from a publisher to the viewers of every shard.

use std::sync::Arc;

use str0m::media::MediaKind;
use str0m::rtp::{ExtensionValues, Vp8Patch};

use super::codec::Format;
use super::vp8::Vp8Header;
use crate::id::{Generation, StreamId};
use crate::units::Instant;

/// A publisher's packet: decrypted, parsed once, shared by reference count between shards and viewers.
#[derive(Debug)]
pub struct MediaPacket {
    pub stream: StreamId,
    pub kind: MediaKind,
    pub generation: Generation,
    pub format: Format,
    /// The publisher's SSRC. With `generation` it names one numbering of `seq` and `timestamp`.
    pub ssrc: u32,
    /// Extended by the roll-over counter: never wraps.
    pub seq: u64,
    /// As on the wire, in the clock rate of the codec (48,000 Hz for Opus, 90,000 Hz for video).
    pub timestamp: u32,
    pub marker: bool,
    /// The first packet of a frame that a decoder can start on.
    pub starts_keyframe: bool,
    pub vp8: Option<Vp8Header>,
    /// Header extensions that pass from publisher to viewer; hop-by-hop ones are already taken out.
    pub extensions: ExtensionValues,
    /// When the datagram that carried it was received.
    pub arrival: Instant,
    /// RTP payload without header and padding.
    pub payload: Arc<[u8]>,
}

/// The same packet in the numbering that viewers see: continuous across publishers.
#[derive(Debug)]
pub struct CanonicalPacket<'a> {
    pub packet: &'a MediaPacket,
    /// Continuous from publisher to publisher; a packet lost upstream leaves its gap.
    pub seq: u64,
    /// Continuous from publisher to publisher, in the clock rate of the codec.
    pub timestamp: u32,
    /// PictureID and TL0PICIDX of a VP8 payload, where they differ from the publisher's.
    pub vp8_patch: Option<Vp8Patch>,
}
