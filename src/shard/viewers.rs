//! What a shard does for its viewers: copies and resends out, their RTCP in.

use str0m::media::MediaKind;
use tracing::info;

use super::Shard;
use super::layers::Selection;
use super::message::Event;
use crate::datagram::SendBatch;
use crate::id::StreamId;
use crate::limits;
use crate::metrics::DropReason;
use crate::session::CloseReason;
use crate::session::egress::{Asked, Egress, Granted, Lost, Written};
use crate::units::Instant;
use crate::wire::classify::Kind;
use crate::wire::packet::{CanonicalPacket, Rendition};

/// A connected viewer: what each copy needs, in one dense table.
pub(super) struct Viewer {
    pub egress: Egress,
    /// Its session's key.
    pub session: usize,
    /// Apart: no copy touches it.
    pub selection: Box<Selection>,
}

/// A packet that a viewer has NACKed, with its number on the RTX stream.
pub(super) struct Resend {
    pub viewer: usize,
    packet: CanonicalPacket,
    granted: Granted,
}

/// Of one flush, so that a storm of NACKs halves the way of media at most.
const RESENDS_PER_FLUSH: usize = limits::SEND_BATCH_MESSAGES / 2;
/// Messages of replays in one flush.
const REPLAYS_PER_FLUSH: usize = limits::SEND_BATCH_MESSAGES / 4;

impl Shard {
    pub(super) fn handle_connected(
        &mut self,
        now: Instant,
        key: usize,
        egress: Option<Box<Egress>>,
        out: &mut SendBatch,
    ) {
        let entry = &mut self.sessions[key];
        self.events.push_back(Event::Connected { session: entry.session.id });
        let Some(egress) = egress else { return };
        let stream = entry.slot.stream.clone();
        info!(session = %entry.session.id, stream = %stream.id, shard = %self.id, "viewer joined");
        let viewer = self.viewers.insert(Viewer { egress: *egress, session: key, selection: Box::default() });
        entry.viewer = Some(viewer);
        let egress = &mut self.viewers[viewer].egress;
        egress.set_owner(viewer as u32);
        let (audio, video) = (egress.wants(MediaKind::Audio), egress.wants(MediaKind::Video));
        if audio {
            self.fanout.join(&stream, MediaKind::Audio, Rendition::default(), viewer);
        }
        if video {
            self.start_video(now, viewer, &stream, out);
        }
    }

    fn held_until(&self) -> Option<Instant> {
        if self.config.video_hold.is_zero() {
            return None;
        }
        self.fanout.amid_frame_since().map(|since| since + self.config.video_hold)
    }

    /// When [`Self::poll_transmit`] has something that it does not have now.
    pub(super) fn next_transmit(&self) -> Instant {
        let held = self.held_until().unwrap_or(Instant::FAR_FUTURE);
        held.min(self.fanout.paced_until()).min(self.starts.next_timeout())
    }

    /// Writes copies for viewers into `out`: audio, then what was NACKed and replays, then video. True: `out` is full, flush it, look for
    /// what else has come, and call again.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut SendBatch) -> bool {
        let held = self.held_until().is_some_and(|until| now < until);
        if held && self.resends.is_empty() && !self.starts.is_due(now) {
            return false;
        }
        let mut found = Found::default();
        let (mut resends_left, mut replays_left) = (RESENDS_PER_FLUSH, REPLAYS_PER_FLUSH);
        let more = loop {
            if out.is_full() {
                break true;
            }
            if resends_left > 0
                && !self.fanout.audio_waits()
                && let Some(resend) = self.resends.pop_front()
            {
                resends_left -= 1;
                self.resend(now, resend, out);
                continue;
            }
            if replays_left > 0 && !self.fanout.audio_waits() && self.replay_next(now, out, &mut found) {
                replays_left -= 1;
                continue;
            }
            if held || !self.copy_next(now, out, &mut found) {
                break !self.resends.is_empty() || self.starts.is_due(now);
            }
        };
        for key in found.unsuitable {
            self.close(now, key, CloseReason::CodecChanged, out);
        }
        for (stream, layer) in found.keyframe_wanted {
            if self.fanout.ask_for_keyframe(now, stream, layer) {
                self.request_keyframe(now, stream, layer, out);
            }
        }
        for (viewer, before) in found.switched {
            self.handle_switched(now, viewer, before);
        }
        more
    }

    /// Writes the next message of the fan-out; false when every viewer has everything.
    fn copy_next(&mut self, now: Instant, out: &mut SendBatch, found: &mut Found) -> bool {
        let Some(quantum) = self.fanout.poll(now) else { return false };
        // A viewer that leaves is taken out of the fan-out first.
        let Some(viewer) = self.viewers.get_mut(quantum.viewer) else { return true };
        let packets = quantum.run.packets.len() as u64;
        let first = &quantum.packets[quantum.run.packets.start].packet;
        let (key, rendition) = (quantum.viewer, quantum.rendition);
        let written = viewer.egress.write(now, quantum.kind, quantum.rendition, quantum.packets, quantum.run, out);
        if let Some(before) = viewer.egress.take_switched() {
            found.switched.push((quantum.viewer, before));
        }
        let dropped = match written {
            Written::Sent { packets, payload_bytes } => {
                self.counters.count_forwarded(packets, payload_bytes);
                match self.copied.last_mut() {
                    Some((same, copies)) if *same == first.arrival => *copies += u64::from(packets),
                    _ => self.copied.push((first.arrival, u64::from(packets))),
                }
                viewer.egress.report_if_due(now, self.config.unix_at_start, out);
                if quantum.kind == MediaKind::Video && first.starts_keyframe {
                    let (stream, keyframe) = (first.stream, quantum.packets[quantum.run.packets.start].seq);
                    self.begin_keyframe(now, key, stream, rendition, keyframe, payload_bytes);
                }
                return true;
            }
            Written::NotWanted => return true,
            Written::AwaitingKeyframe => {
                note(&mut found.keyframe_wanted, (first.stream, quantum.rendition.layer));
                DropReason::AwaitingKeyframe
            }
            Written::BeforeStart => DropReason::BeforeStart,
            Written::NoPayloadType => {
                note(&mut found.unsuitable, viewer.session);
                DropReason::NoPayloadType
            }
        };
        self.counters.drops.count_many(dropped, packets);
        true
    }

    fn resend(&mut self, now: Instant, resend: Resend, out: &mut SendBatch) {
        let Resend { viewer, packet, granted } = resend;
        if self.viewers[viewer].egress.resend(now, &packet, granted, out) {
            self.counters.packets_resent += 1;
        }
    }

    /// The flush that sent this round's copies is over.
    pub fn handle_flushed(&mut self, now: Instant) {
        for (arrival, copies) in self.copied.drain(..) {
            self.counters.latency.observe_duration(now.since(arrival), copies);
        }
    }

    /// SRTCP of a viewer. It has no business sending RTP.
    pub(super) fn feed_viewer(
        &mut self,
        now: Instant,
        key: usize,
        viewer: usize,
        kind: Kind,
        data: &[u8],
        out: &mut SendBatch,
    ) {
        if kind == Kind::Rtp {
            return self.counters.drops.count(DropReason::RtpDiscarded);
        }
        let egress = &mut self.viewers[viewer].egress;
        let (mut keyframe, mut lost) = (false, Vec::new());
        let entry = &mut self.sessions[key];
        let authentic = egress.handle_rtcp(now, data, |ask| match ask {
            Asked::Keyframe => keyframe = true,
            Asked::Resend(packet) => lost.push(packet),
        });
        if !authentic {
            if entry.broken_rtcp.passes(now) {
                info!(session = %entry.session.id, "broken RTCP discarded");
            }
            return self.counters.drops.count(DropReason::RtcpDiscarded);
        }
        self.counters.datagrams_consumed += 1;
        entry.session.authenticated(now);
        if let Some(report) = egress.take_report() {
            self.counters.fraction_lost.observe(report.fraction_lost.into(), 1);
            if let Some(round_trip) = report.round_trip {
                self.counters.round_trip.observe_duration(round_trip, 1);
            }
        }
        let stream = entry.session.stream;
        self.queue_resends(now, stream, viewer, &lost);
        self.probe(now, viewer, out);
        if keyframe {
            let layer = self.viewers[viewer].egress.awaited().layer;
            self.request_keyframe_for_viewer(now, stream, layer, out);
        }
    }

    /// What a viewer may have again is decided here, so that one that NACKs everything does not fill the queue of all. Second
    /// copies are for when each packet has its first.
    fn queue_resends(&mut self, now: Instant, stream: StreamId, viewer: usize, lost: &[Lost]) {
        let egress = &mut self.viewers[viewer].egress;
        let firsts = self.resends.len();
        for lost in lost {
            self.counters.nacks_received += 1;
            let Some(packet) = self.fanout.stored(stream, lost.kind, lost.rendition, lost.seq) else { continue };
            if self.resends.len() >= limits::RESEND_QUEUE_PACKETS {
                self.counters.drops.count(DropReason::ResendQueueFull);
                continue;
            }
            let Some(granted) = egress.grant_resend(now, *lost, packet) else { continue };
            self.resends.push_back(Resend { viewer, packet: packet.clone(), granted });
        }
        for first in firsts..self.resends.len() {
            if self.resends.len() >= limits::RESEND_QUEUE_PACKETS {
                return;
            }
            let Resend { packet, granted, .. } = &self.resends[first];
            let Some(granted) = egress.grant_copy(now, granted, packet) else { return };
            let packet = packet.clone();
            self.resends.push_back(Resend { viewer, packet, granted });
        }
    }
}

/// What copying has found out, to be seen to when the batch is written.
#[derive(Default)]
pub(super) struct Found {
    /// Sessions that have no payload type for what is published.
    pub unsuitable: Vec<usize>,
    /// Streams with viewers that wait for a keyframe.
    pub keyframe_wanted: Vec<(StreamId, u8)>,
    /// Viewers that show another rendition now, and the one before.
    pub switched: Vec<(usize, Rendition)>,
}

pub(super) fn note<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use str0m::media::Pt;

    use super::*;
    use crate::datagram::SocketId;
    use crate::forward::table::Stream;
    use crate::id::ShardId;
    use crate::session::negotiate::BoundFormat;
    use crate::session::track::{ExtensionIds, TrackSetup};
    use crate::shard::ShardConfig;
    use crate::srtp::keys::{MasterKey, MasterKeys, Profile};
    use crate::wire::codec::Format;
    use crate::wire::packet::testing::video;

    /// A shard that has sent one viewer video packets of these sizes, numbered from 0.
    fn watched(sizes: impl IntoIterator<Item = usize>) -> (Instant, Shard) {
        let mut shard = Shard::new(ShardId(0), ShardConfig::default());
        let (pt, rtx) = (Pt::new_with_value(96), Some(Pt::new_with_value(97)));
        let track = TrackSetup {
            kind: MediaKind::Video,
            mid: "0".into(),
            ssrc: 1,
            rtx_ssrc: Some(2),
            formats: vec![BoundFormat { payload_type: pt, format: Format::VP8, rtx, nack: true, pli: true, fir: true }],
            extensions: ExtensionIds::default(),
        };
        let key = || MasterKey::new(Profile::Aes128Gcm, &[1; 16], &[2; 12]).unwrap();
        let keys = MasterKeys { local: key(), remote: key() };
        let path = Some((SocketId(0), ([192, 0, 2, 7], 5000).into()));
        let egress = Egress::new(&keys, vec![track], "manycast".into(), path, &mut StdRng::seed_from_u64(1));
        let viewer = shard.viewers.insert(Viewer { egress, session: 0, selection: Box::default() });
        let stream = Arc::new(Stream::new(StreamId(1), "live"));
        shard.fanout.join(&stream, MediaKind::Video, Rendition::default(), viewer);
        let (mut now, mut out) = (Instant::ZERO, SendBatch::new());
        for (seq, bytes) in sizes.into_iter().enumerate() {
            now += Duration::from_millis(1);
            let packet = Arc::new(video(seq as u64, seq as u32 * 90, seq == 0, bytes));
            shard.fanout.handle(now, &packet, |not| panic!("{not:?}"));
            while shard.poll_transmit(now, &mut out) {}
            out.clear();
        }
        // What was paced.
        now += Duration::from_secs(1);
        while shard.poll_transmit(now, &mut out) || !out.is_empty() {
            out.clear();
        }
        (now, shard)
    }

    /// The viewer NACKs these packets in one datagram.
    fn nack(now: Instant, shard: &mut Shard, seqs: impl IntoIterator<Item = u64>) {
        let lost = |seq| shard.viewers[0].egress.lost(MediaKind::Video, seq).expect("was sent");
        let lost: Vec<_> = seqs.into_iter().map(lost).collect();
        shard.queue_resends(now, StreamId(1), 0, &lost);
    }

    fn queued(shard: &Shard) -> Vec<u64> {
        shard.resends.iter().map(|r| r.packet.seq).collect()
    }

    #[test]
    fn second_copies_wait_until_all_have_their_first() {
        let (now, mut shard) = watched([1000; 600]);
        nack(now, &mut shard, 300..320);
        assert_eq!(queued(&shard), (300..320).chain(300..320).collect::<Vec<_>>());
        // Twice so many would be more than may be sent again.
        let (now, mut shard) = watched([1000; 600]);
        nack(now, &mut shard, 300..550);
        assert_eq!(queued(&shard), (300..550).collect::<Vec<_>>());
    }

    #[test]
    fn the_queue_of_resends_holds_what_it_may_and_no_more() {
        // Small packets, so that it is not the allowance that ends.
        let (mut now, mut shard) = watched((0..1600).map(|seq| if seq < 600 { 1000 } else { 10 }));
        nack(now, &mut shard, [700]);
        shard.resends.truncate(1);
        for full in [2001, 4001, limits::RESEND_QUEUE_PACKETS, limits::RESEND_QUEUE_PACKETS] {
            now += Duration::from_secs(1);
            nack(now, &mut shard, 600..1600);
            assert_eq!(shard.resends.len(), full);
        }
        assert_eq!(shard.counters.drops.of(DropReason::ResendQueueFull), 905 + 1000);
    }

    /// What each copy touches: the entry of the dense table, and the expanded key behind it, which aws-lc keeps on the heap
    /// (`EVP_AEAD_CTX`: 600 bytes in its header).
    #[test]
    fn a_viewers_hot_state_is_small() {
        const AEAD_CONTEXT_BYTES: usize = 600;
        assert!(size_of::<Viewer>() + AEAD_CONTEXT_BYTES <= 1536, "{}", size_of::<Viewer>());
    }
}
