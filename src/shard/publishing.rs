//! A publisher's side of a shard: its packets to all shards that have viewers, its layers as they are measured, and what is
//! asked of its encoder.

use std::sync::Arc;
use std::time::Duration;

use str0m::media::MediaKind;
use tracing::info;

use super::Shard;
use super::message::{Event, LayerReport, PeerMessage, TrackReport};
use crate::datagram::SendBatch;
use crate::forward::gop::Gop;
use crate::forward::keyframes::KeyframeRequests;
use crate::forward::pacer::Meter;
use crate::forward::select::{Layer, Ranking, Rung, Spatial};
use crate::forward::table::Stream;
use crate::id::{Generation, Rid, ShardId, StreamId};
use crate::limits::LAYERS_MAX;
use crate::metrics::DropReason;
use crate::session::{CloseReason, Session, TrackStarted};
use crate::units::Instant;
use crate::wire::codec::Codec;
use crate::wire::descriptor::{SPATIAL_LAYERS_MAX, Sizes};
use crate::wire::packet::MediaPacket;

/// How often layers are measured.
const MEASURE_INTERVAL: Duration = Duration::from_millis(100);

/// A layer that has sent nothing for so long is not there; a slow one (Chromium repeats a still screen once a second) has
/// [`PICTURES_MISSED`] pictures' time, but no more than [`SILENT_MAX`].
const SILENT: Duration = Duration::from_secs(1);
const PICTURES_MISSED: u32 = 3;
const SILENT_MAX: Duration = Duration::from_secs(5);

/// A publisher's side of an entry.
#[derive(Default)]
pub(super) struct Publishing {
    /// Viewers see it.
    pub active: bool,
    generation: Generation,
    layers: [PublishedLayer; LAYERS_MAX],
    pub tracks: [Option<TrackReport>; 2],
    next_measure: Option<Instant>,
}

/// One layer of the video.
#[derive(Default)]
struct PublishedLayer {
    keyframes: KeyframeRequests,
    /// For shards whose first viewer comes between two keyframes.
    gop: Gop<Arc<MediaPacket>>,
    /// Its spatial layers; the first one is all there is without such.
    spatials: [PublishedSpatial; SPATIAL_LAYERS_MAX],
    sizes: Sizes,
    rid: Rid,
    /// Highest ids of scalability layers seen.
    spatial: u8,
    temporal: u8,
    /// It is AV1, where dependency descriptors say what is left out.
    described: bool,
    /// As all shards know it.
    shown_active: bool,
}

#[derive(Default)]
struct PublishedSpatial {
    meter: Meter,
    last_packet: Option<Instant>,
    /// Of its newest picture: the SSRC says whose timestamps they are.
    newest: (u32, u32),
    /// From the last packet before that picture to its first.
    interval: Duration,
}

/// Of a publisher that viewers see, for control.
pub(super) fn layer_reports(stream: &Stream) -> Vec<LayerReport> {
    let layers = stream.layers();
    let report = |rung: &Rung| {
        let Layer { rid, temporal, .. } = layers[usize::from(rung.layer)];
        LayerReport {
            stream: stream.id,
            rid: rid.as_str().into(),
            active: rung.active,
            bitrate: rung.bitrate,
            width: rung.width,
            height: rung.height,
            spatial: rung.spatial,
            temporal,
        }
    };
    Ranking::of(&layers, true).rungs().iter().map(report).collect()
}

impl PublishedSpatial {
    fn is_active(&self, now: Instant) -> bool {
        let silent = (PICTURES_MISSED * self.interval).clamp(SILENT, SILENT_MAX);
        self.last_packet.is_some_and(|at| now.since(at) < silent)
    }

    fn handle_packet(&mut self, now: Instant, packet: &MediaPacket) {
        self.meter.count(now, packet.payload.len());
        // Padding is no sign of life: a layer that is not sent may be padded on.
        if packet.payload.is_empty() {
            return;
        }
        let last = self.last_packet.replace(now);
        let (ssrc, timestamp) = self.newest;
        if packet.ssrc != ssrc || packet.timestamp.wrapping_sub(timestamp).cast_signed() > 0 {
            self.newest = (packet.ssrc, packet.timestamp);
            self.interval = last.map_or(Duration::ZERO, |last| now.since(last));
        }
    }
}

impl PublishedLayer {
    fn is_active(&self, now: Instant) -> bool {
        self.spatials.iter().any(|s| s.is_active(now))
    }

    fn figures(&mut self, now: Instant) -> Layer {
        let active = self.is_active(now);
        let mut bitrate = 0;
        let mut spatials = [Spatial::default(); SPATIAL_LAYERS_MAX];
        for ((shown, of), (width, height)) in spatials.iter_mut().zip(&mut self.spatials).zip(self.sizes) {
            bitrate += of.meter.bitrate(now);
            *shown = Spatial { active: of.is_active(now), bitrate, width, height };
        }
        let (width, height) = self.sizes.into_iter().rfind(|size| *size != (0, 0)).unwrap_or_default();
        let PublishedLayer { rid, spatial, temporal, described, .. } = *self;
        Layer { active, bitrate, width, height, rid, spatial, temporal, described, spatials }
    }
}

impl Publishing {
    pub fn new(session: &Session) -> Publishing {
        let mut publishing = Publishing::default();
        for (layer, rid) in publishing.layers.iter_mut().zip(session.rids()) {
            layer.rid = rid;
        }
        publishing
    }

    fn handle_video(&mut self, now: Instant, packet: &Arc<MediaPacket>, stream: &Stream) {
        let layer = &mut self.layers[usize::from(packet.layer)];
        let scalability = packet.descriptor.layer;
        layer.spatials[usize::from(scalability.spatial)].handle_packet(now, packet);
        layer.described = packet.format.codec == Codec::Av1;
        layer.spatial = layer.spatial.max(scalability.spatial);
        layer.temporal = layer.temporal.max(scalability.temporal);
        if packet.starts_keyframe {
            layer.keyframes.handle_keyframe(now);
            layer.sizes = scalability.sizes.unwrap_or(layer.sizes);
        }
        layer.gop.insert(packet.clone());
        if packet.starts_keyframe || !layer.shown_active {
            self.show_layer(now, packet.layer, stream);
        }
        self.next_measure.get_or_insert(now + MEASURE_INTERVAL);
    }

    /// Tells all shards what there is to choose from.
    fn show_layer(&mut self, now: Instant, index: u8, stream: &Stream) {
        let layer = &mut self.layers[usize::from(index)];
        layer.shown_active = layer.is_active(now);
        stream.set_layer(index, layer.figures(now));
        stream.set_deaf(self.is_deaf());
    }

    /// A layer that sends nothing answers nothing: that says nothing of the encoder.
    fn is_deaf(&self) -> bool {
        self.layers.iter().any(|l| l.shown_active && l.keyframes.is_deaf())
    }

    /// Somebody may have taken over, whose layers they are now.
    fn is_shown(&self, stream: &Stream) -> bool {
        self.active && stream.active() == self.generation
    }

    fn measure(&mut self, now: Instant, stream: &Stream) {
        if !self.is_shown(stream) {
            self.next_measure = None;
        }
        if self.next_measure.is_none_or(|at| now < at) {
            return;
        }
        for index in 0..self.layers.len() {
            self.show_layer(now, index as u8, stream);
        }
        // A publisher that falls silent is not measured any more; its next packet starts it again.
        let sends = self.layers.iter().any(|l| l.shown_active);
        self.next_measure = sends.then_some(now + MEASURE_INTERVAL);
    }

    pub fn next_timeout(&self) -> Instant {
        let keyframes = self.layers.iter().map(|l| l.keyframes.next_timeout()).min();
        let measure = self.next_measure.filter(|_| self.active);
        keyframes.into_iter().chain(measure).min().unwrap_or(Instant::FAR_FUTURE)
    }
}

impl Shard {
    pub(super) fn handle_track(&mut self, now: Instant, key: usize, track: TrackStarted) {
        let entry = &mut self.sessions[key];
        let stream = entry.session.stream;
        if let Some(publishing) = &mut entry.publishing {
            publishing.tracks[track.kind as usize] = Some(TrackReport {
                stream,
                kind: track.kind,
                format: track.format,
                packets: 0,
                bytes: 0,
                last_packet: now,
            });
        }
        let event = Event::TrackStarted { session: entry.session.id, stream, kind: track.kind, format: track.format };
        self.events.push_back(event);
    }

    /// A publisher's packet: once to each shard that has viewers of its kind.
    pub(super) fn handle_media(&mut self, now: Instant, key: usize, packet: &Arc<MediaPacket>, out: &mut SendBatch) {
        self.counters.media_received += 1;
        self.counters.media_received_bytes += packet.payload.len() as u64;
        if !self.is_active(now, key, packet.generation) {
            return self.counters.drops.count(DropReason::Stale);
        }
        let entry = &mut self.sessions[key];
        if let Some(publishing) = &mut entry.publishing {
            if packet.kind == MediaKind::Video {
                self.counters.keyframes_received += u64::from(packet.starts_keyframe);
                publishing.handle_video(now, packet, &entry.slot.stream);
            }
            if let Some(track) = &mut publishing.tracks[packet.kind as usize] {
                track.packets += 1;
                track.bytes += packet.payload.len() as u64;
                track.last_packet = now;
            }
        }
        let mut interest = entry.slot.stream.interest(packet.kind, packet.layer);
        let mine = 1u64 << self.id.index();
        if interest & mine != 0 {
            self.forward_here(now, packet, out);
            interest &= !mine;
        }
        while interest != 0 {
            let shard = ShardId(interest.trailing_zeros() as u16);
            interest &= interest - 1;
            self.counters.peer_packets_sent += 1;
            self.peers.push_back((shard, PeerMessage::Media(packet.clone())));
        }
    }

    /// Whether viewers see this publisher. Its first authenticated RTP makes it so, unless a later one has come first.
    fn is_active(&mut self, now: Instant, key: usize, generation: Generation) -> bool {
        let entry = &mut self.sessions[key];
        let Some(publishing) = &mut entry.publishing else { return false };
        let stream = &entry.slot.stream;
        let current = stream.active();
        if current == generation {
            return true;
        }
        if current > generation || !stream.activate(generation, self.id) {
            // Somebody took over: this one is told goodbye. The drain that brought us here goes on and sees to it.
            entry.session.close(now, CloseReason::TakenOver);
            return false;
        }
        publishing.active = true;
        publishing.generation = generation;
        self.publishers.insert(stream.id, key);
        info!(session = %entry.session.id, stream = %stream.id, shard = %self.id, "publisher live");
        let event = Event::PublisherActive { session: entry.session.id, stream: stream.id, generation };
        self.events.push_back(event);
        true
    }

    /// A viewer somewhere needs a keyframe of a publisher on this shard.
    pub(super) fn request_keyframe_here(&mut self, now: Instant, stream: StreamId, layer: u8, out: &mut SendBatch) {
        let Some(&key) = self.publishers.get(&stream) else { return };
        let Some(entry) = self.sessions.get_mut(key) else { return };
        let Some(publishing) = &mut entry.publishing else { return };
        let layer = &mut publishing.layers[usize::from(layer)];
        if !layer.is_active(now) {
            return; // It begins with a keyframe by itself.
        }
        layer.keyframes.handle_request(now);
        self.poll_publishing(now, key);
        self.drain(now, key, out);
    }

    /// Sends a publisher the requests that are due, and measures its layers.
    pub(super) fn poll_publishing(&mut self, now: Instant, key: usize) {
        let Some(entry) = self.sessions.get_mut(key) else { return };
        let Some(publishing) = &mut entry.publishing else { return };
        for (index, layer) in publishing.layers.iter_mut().enumerate() {
            if layer.keyframes.poll(now) && entry.session.request_keyframe(index as u8) {
                self.counters.keyframe_requests_sent += 1;
            }
        }
        publishing.measure(now, &entry.slot.stream);
    }

    /// A shard has its first viewer of a layer: it is given what came since the last keyframe, and what came last where that
    /// is all there is, for it may be of a keyframe that is under way.
    pub(super) fn send_past(&mut self, stream: StreamId, layer: u8, to: ShardId) {
        let Some(&key) = self.publishers.get(&stream) else { return };
        let Some(publishing) = self.sessions.get(key).and_then(|e| e.publishing.as_ref()) else { return };
        let gop = &publishing.layers[usize::from(layer)].gop;
        let mut packets: Vec<_> = gop.packets().iter().chain(gop.early()).cloned().collect();
        // They may have overtaken each other on their way here.
        packets.sort_by_key(|p| p.seq);
        self.peers.push_back((to, PeerMessage::Past { stream, packets: packets.into(), whole: gop.is_whole() }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::testing::video;

    #[test]
    fn padding_does_not_keep_a_layer_active() {
        let (mut publishing, stream) = (Publishing::default(), Stream::new(StreamId(1), "live"));
        let mut is_active_at = |millis: u64, packet: MediaPacket| {
            let now = Instant::from_nanos(millis * 1_000_000);
            publishing.handle_video(now, &Arc::new(packet), &stream);
            publishing.layers[0].is_active(now)
        };
        assert!(is_active_at(0, video(1, 0, true, 100)));
        assert!(is_active_at(900, video(2, 0, false, 0)));
        assert!(!is_active_at(1100, video(3, 0, false, 0)));
        assert!(is_active_at(1200, video(4, 3000, false, 100)));
    }

    /// Chromium sends a screen on which nothing moves once a second.
    #[test]
    fn a_layer_of_few_pictures_is_not_gone_between_two() {
        let at = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        let (mut publishing, stream) = (Publishing::default(), Stream::new(StreamId(1), "live"));
        let mut seq = 0;
        let mut send = |ssrc: u32, millis: u64, timestamp: u32| {
            seq += 1;
            let packet = MediaPacket { ssrc, ..video(seq, timestamp, seq == 1, 100) };
            publishing.handle_video(at(millis), &Arc::new(packet), &stream);
            let layer = &publishing.layers[0];
            (millis..).step_by(100).take(100).take_while(|m| layer.is_active(at(*m))).last().expect("active") - millis
        };
        assert_eq!(send(1, 0, 0), 900);
        assert_eq!(send(1, 33, 3000), 900);
        assert_eq!(send(1, 1040, 93_000), 3000, "it was gone for a moment");
        assert_eq!(send(1, 2050, 183_000), 3000);
        assert_eq!(send(1, 2060, 183_000), 3000, "of the same picture");
        assert_eq!(send(1, 2070, 93_000), 3000, "a late one");
        assert_eq!(send(1, 12_070, 1_083_000), 4900, "it had been paused");
        assert_eq!(send(1, 12_100, 1_086_000), 900, "moving again");
        assert_eq!(send(1, 14_000, 1_257_000), 4900);
        assert_eq!(send(1, 14_033, 7), 4900, "older than what came before");
        assert_eq!(send(2, 14_066, 7), 900, "of another SSRC, all is new");
    }

    #[test]
    fn spatial_layers_are_reported_one_by_one_and_others_whole() {
        let stream = Stream::new(StreamId(1), "live");
        let rid = |name| Rid::new(name).expect("short");
        let whole = Layer { active: true, bitrate: 90, temporal: 2, rid: rid("l"), ..Layer::default() };
        stream.set_layer(0, whole);
        let mut spatials = [Spatial::default(); SPATIAL_LAYERS_MAX];
        spatials[0] = Spatial { active: true, bitrate: 100, width: 320, height: 180 };
        spatials[1] = Spatial { active: false, bitrate: 100, width: 640, height: 360 };
        stream.set_layer(1, Layer { spatial: 1, spatials, rid: rid("h"), ..whole });
        let of = |r: &LayerReport| (r.rid.to_string(), r.spatial, r.active, r.bitrate, r.height, r.temporal);
        let expected = [("l", 0, true, 90, 0, 2), ("h", 0, true, 100, 180, 2), ("h", 1, false, 100, 360, 2)];
        let reports: Vec<_> = layer_reports(&stream).iter().map(of).collect();
        assert_eq!(reports, expected.map(|(rid, s, a, b, h, t)| (rid.to_owned(), s, a, b, h, t)));
    }
}
