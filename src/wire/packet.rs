//! One decrypted RTP packet on its way from a publisher to the viewers of every shard.

use std::ops::Range;
use std::sync::Arc;

use str0m::media::MediaKind;

use super::codec::Format;
use super::dependency::Dependency;
use super::descriptor::{Descriptor, Rewrite};
use crate::id::{Generation, StreamId};
use crate::units::Instant;

/// A publisher's packet: decrypted, parsed once, shared by reference count between shards and viewers.
#[derive(Clone, Debug)]
pub struct MediaPacket {
    pub stream: StreamId,
    pub kind: MediaKind,
    /// Index of the simulcast layer among the publisher's; 0 without simulcast.
    pub layer: u8,
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
    pub descriptor: Descriptor,
    /// AV1's dependency descriptor, where it was sent and could be read.
    pub dependency: Option<Dependency>,
    /// Header extensions that pass from publisher to viewer.
    pub extensions: EndToEnd,
    /// When the datagram that carried it was received.
    pub arrival: Instant,
    /// When it was captured, on this node's clock and never later than `arrival`: by the publisher's sender reports, or
    /// `arrival` where there are none yet. Audio and video of one publisher stand on the same line.
    pub captured: Instant,
    /// RTP payload without header and padding.
    pub payload: Arc<[u8]>,
}

impl MediaPacket {
    pub fn dependency_bytes(&self) -> usize {
        self.dependency.as_ref().map_or(0, |d| d.bytes.len())
    }
}

/// Header extensions that are said from end to end; each hop's own (mid, rid, transport-cc, send times) are not here.
/// Values as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndToEnd {
    /// RFC 6464.
    pub audio_level: Option<u8>,
    /// 3GPP TS 26.114: coordination of video orientation.
    pub video_orientation: Option<u8>,
    /// abs-capture-time, short form: NTP 32.32 of the capture in the publisher's clock.
    pub abs_capture_time: Option<u64>,
}

impl EndToEnd {
    /// Which of them are there, one bit each: packets with the same ones have headers of one length.
    pub fn shape(&self) -> u8 {
        u8::from(self.audio_level.is_some())
            | u8::from(self.video_orientation.is_some()) << 1
            | u8::from(self.abs_capture_time.is_some()) << 2
    }
}

/// The same packet in the numbering that viewers see: continuous across publishers.
#[derive(Clone, Debug)]
pub struct CanonicalPacket {
    pub packet: Arc<MediaPacket>,
    /// Continuous from publisher to publisher; a packet lost upstream leaves its gap.
    pub seq: u64,
    /// Continuous from publisher to publisher, in the clock rate of the codec.
    pub timestamp: u32,
    pub marker: bool,
    /// What makes the codec's own numbers continuous too; nothing for the first publisher's.
    pub rewrite: Rewrite,
}

impl AsRef<MediaPacket> for CanonicalPacket {
    fn as_ref(&self) -> &MediaPacket {
        &self.packet
    }
}

/// What of a track a viewer sees: one of its simulcast layers, with all that is in it or only up to some scalability layer.
/// Packets of one rendition are numbered without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rendition {
    /// Index of the simulcast layer.
    pub layer: u8,
    /// Highest spatial and temporal ids; 255: all.
    pub spatial_max: u8,
    pub temporal_max: u8,
}

impl Rendition {
    /// Whether the packet is in it; `None`: it belongs to another layer altogether.
    pub fn takes(&self, packet: &MediaPacket) -> Option<bool> {
        let layer = packet.descriptor.layer;
        let within = layer.spatial <= self.spatial_max && layer.temporal <= self.temporal_max;
        (packet.layer == self.layer).then_some(within)
    }

    /// The marker ends a picture (RFC 9628 §4.1), which without the spatial layers above ends sooner.
    pub fn marker(&self, packet: &MediaPacket) -> bool {
        let layer = packet.descriptor.layer;
        packet.marker || (layer.ends_frame && layer.spatial == self.spatial_max)
    }

    /// The packet as its viewers get it: where it describes decode targets that are not in here, these are not active.
    pub fn describe(&self, packet: &Arc<MediaPacket>) -> Arc<MediaPacket> {
        let is_whole = (self.spatial_max, self.temporal_max) == (u8::MAX, u8::MAX);
        match packet.dependency.as_ref().filter(|_| !is_whole) {
            None => packet.clone(),
            Some(dependency) => {
                let dependency = Some(dependency.limited(self.spatial_max, self.temporal_max));
                Arc::new(MediaPacket { dependency, ..MediaPacket::clone(packet) })
            }
        }
    }

    /// Whether its viewers can go on with `lower` from the end of any picture on: it is the same without some scalability layers.
    pub fn descends_to(&self, lower: &Rendition) -> bool {
        let within = lower.spatial_max <= self.spatial_max && lower.temporal_max <= self.temporal_max;
        lower.layer == self.layer && within && lower != self
    }

    /// Whether nothing but temporal layers tells the two apart.
    pub fn is_beside(&self, other: &Rendition) -> bool {
        (self.layer, self.spatial_max) == (other.layer, other.spatial_max)
    }
}

impl Default for Rendition {
    fn default() -> Self {
        Rendition { layer: 0, spatial_max: u8::MAX, temporal_max: u8::MAX }
    }
}

/// Packets that leave as one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub packets: Range<usize>,
    /// All but the last are padded to this; the last one only when it is alone in being the largest. Bytes.
    pub payload_bytes: usize,
}

impl Run {
    /// Payload and padding of the packet at `index`, which has `bytes` of payload.
    pub fn padded_bytes(&self, index: usize, bytes: usize) -> usize {
        if index + 1 == self.packets.end { bytes } else { self.payload_bytes }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A packet of VP8 video that came at the beginning of time.
    pub(crate) fn video(seq: u64, timestamp: u32, starts_keyframe: bool, bytes: usize) -> MediaPacket {
        MediaPacket {
            stream: StreamId(1),
            kind: MediaKind::Video,
            layer: 0,
            generation: Generation(1),
            format: Format::VP8,
            ssrc: 1,
            seq,
            timestamp,
            marker: false,
            starts_keyframe,
            descriptor: Descriptor::default(),
            dependency: None,
            extensions: EndToEnd::default(),
            arrival: Instant::ZERO,
            captured: Instant::ZERO,
            payload: Arc::from(vec![0; bytes]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::video;
    use super::*;
    use crate::wire::descriptor::LayerInfo;

    #[test]
    fn a_rendition_ends_its_pictures_with_its_highest_spatial_layer() {
        let rendition = Rendition { layer: 0, spatial_max: 1, temporal_max: 1 };
        let check = |spatial, temporal, ends_frame, expected| {
            let mut packet = video(1, 0, false, 100);
            packet.descriptor.layer = LayerInfo { spatial, temporal, ends_frame, ..LayerInfo::default() };
            assert_eq!((rendition.takes(&packet), rendition.marker(&packet)), expected);
        };
        check(0, 1, true, (Some(true), false));
        check(1, 1, false, (Some(true), false));
        check(1, 1, true, (Some(true), true));
        check(0, 2, true, (Some(false), false));
        check(2, 0, true, (Some(false), false));
    }

    #[test]
    fn only_a_rendition_with_fewer_scalability_layers_is_gone_down_to() {
        let of = |layer, spatial_max, temporal_max| Rendition { layer, spatial_max, temporal_max };
        let from = of(1, 2, 2);
        assert!([of(1, 1, 2), of(1, 2, 0), of(1, 0, 1)].iter().all(|lower| from.descends_to(lower)));
        let others = [from, of(1, 255, 2), of(0, 0, 2), of(1, 0, 255), of(1, 255, 1)];
        assert!(!others.iter().any(|other| from.descends_to(other)));
    }
}
