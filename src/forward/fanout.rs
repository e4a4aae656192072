//! Which of this shard's viewers get a stream's packets, and in which order the copies leave.
//!
//! Packets of a track that are at hand together become one job. A job goes through its runs (what leaves as one
//! message) and for each run through the viewers, so that a large keyframe reaches all viewers side by side. Audio goes
//! before all video; tracks of different streams take turns.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use str0m::media::MediaKind;

use super::burst::{self, Segmenting};
use super::gop::Gop;
use super::select;
use super::table::Stream;
use super::track::{NotTaken, Track};
use crate::id::{ShardId, StreamId};
use crate::limits;
use crate::units::Instant;
use crate::wire::packet::{CanonicalPacket, MediaPacket, Rendition, Run};

/// A viewer that waits is asked for again after so long, should the first request have been lost between shards.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Viewers' own requests for a keyframe that go to another shard are this far apart; each viewer repeats its own until one
/// comes.
const PASS_ON_AGAIN: Duration = Duration::from_millis(100);

/// A layer whose last viewer leaves and comes back, again and again, does not have its past brought each time.
const PAST_AGAIN: Duration = Duration::from_millis(200);

/// Messages of one track before another one's turn: one flush.
const QUANTA_PER_TURN: usize = limits::SEND_BATCH_MESSAGES;

/// Streams that this shard's viewers watch. `K` names a viewer.
#[derive(Debug)]
pub struct Fanout<K> {
    shard: ShardId,
    segmenting: Segmenting,
    streams: FxHashMap<StreamId, LocalStream<K>>,
    /// Tracks with packets to send: audio, video.
    ready: [VecDeque<TrackKey>; 2],
    /// What is left of the front video track's turn.
    quanta_left: usize,
    /// When the first of the tracks that are paced may go on.
    paced_until: Instant,
}

/// A stream's track by its place there.
type TrackKey = (StreamId, usize);

#[derive(Debug)]
struct LocalStream<K> {
    stream: Arc<Stream>,
    /// Audio, and each rendition of the video that somebody here has watched. They keep their places.
    tracks: Vec<Track<K>>,
    /// Their places, so that a rendition comes before those that it [descends](Rendition::descends_to) to: who goes down leaves
    /// the upper one first.
    order: Vec<usize>,
    /// When this shard last asked for a keyframe of each layer on behalf of viewers that wait.
    asked: [Option<Instant>; limits::LAYERS_MAX],
    /// When this shard last passed a viewer's own request on.
    passed_on: [Option<Instant>; limits::LAYERS_MAX],
    /// When this shard last asked for a layer's past.
    past_asked: [Option<Instant>; limits::LAYERS_MAX],
}

/// One message to be written: these packets for this viewer.
#[derive(Clone, Copy, Debug)]
pub struct Quantum<'a, K> {
    pub viewer: K,
    pub kind: MediaKind,
    pub rendition: Rendition,
    /// The whole job's; `run` says which.
    pub packets: &'a [CanonicalPacket],
    pub run: &'a Run,
}

/// What a viewer has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The track is already here, with its recent past.
    Watched,
    /// This shard had no viewer of it, or has nothing of it yet: its recent past is with the publisher's shard.
    First,
}

impl<K> LocalStream<K> {
    fn track(&self, kind: MediaKind, rendition: Rendition) -> Option<&Track<K>> {
        self.tracks.iter().find(|t| (t.kind, t.rendition) == (kind, rendition))
    }

    fn track_mut(&mut self, kind: MediaKind, rendition: Rendition) -> Option<&mut Track<K>> {
        self.tracks.iter_mut().find(|t| (t.kind, t.rendition) == (kind, rendition))
    }

    /// Its place.
    fn add(&mut self, track: Track<K>) -> usize {
        let place = self.tracks.len();
        let is_lower = |at: &usize| {
            track.kind == self.tracks[*at].kind && track.rendition.descends_to(&self.tracks[*at].rendition)
        };
        let before = self.order.iter().position(is_lower).unwrap_or(place);
        self.order.insert(before, place);
        self.tracks.push(track);
        place
    }

    /// A shard without viewers of a layer does not get its packets.
    fn update_interest(&self, shard: ShardId, kind: MediaKind, layer: u8) {
        let mut of_layer = self.tracks.iter().filter(|t| t.kind == kind && t.rendition.layer == layer);
        self.stream.set_interest(kind, layer, shard, of_layer.any(Track::watched));
    }
}

impl<K: Copy + PartialEq> Fanout<K> {
    pub fn new(shard: ShardId, segmenting: Segmenting) -> Fanout<K> {
        Fanout {
            shard,
            segmenting,
            streams: FxHashMap::default(),
            ready: [VecDeque::new(), VecDeque::new()],
            quanta_left: QUANTA_PER_TURN,
            paced_until: Instant::FAR_FUTURE,
        }
    }

    /// From now on `viewer` gets the packets of this rendition.
    pub fn join(&mut self, stream: &Arc<Stream>, kind: MediaKind, rendition: Rendition, viewer: K) -> Joined {
        let local = self.streams.entry(stream.id).or_insert_with(|| LocalStream {
            stream: stream.clone(),
            tracks: Vec::new(),
            order: Vec::new(),
            asked: Default::default(),
            passed_on: Default::default(),
            past_asked: Default::default(),
        });
        let at = local
            .tracks
            .iter()
            .position(|t| (t.kind, t.rendition) == (kind, rendition))
            .unwrap_or_else(|| local.add(Track::new(kind, rendition)));
        let track = &mut local.tracks[at];
        // Twice in the list it would get everything twice, under the same numbers.
        if track.viewers.contains(&Some(viewer)) {
            return Joined::Watched;
        }
        let joined = if track.watched() && !track.cold { Joined::Watched } else { Joined::First };
        match track.free.pop() {
            Some(place) => track.viewers[place] = Some(viewer),
            None => track.viewers.push(Some(viewer)),
        }
        if joined == Joined::First {
            local.update_interest(self.shard, kind, rendition.layer);
        }
        joined
    }

    /// As [`Self::join`], for a viewer of a rendition that [descends](Rendition::descends_to) to this one.
    pub fn join_below(&mut self, stream: &Arc<Stream>, above: Rendition, rendition: Rendition, viewer: K) {
        let source = self.streams.get(&stream.id).and_then(|s| s.track(MediaKind::Video, above)?.canonical.source());
        self.join(stream, MediaKind::Video, rendition, viewer);
        let track = self.streams.get_mut(&stream.id).and_then(|s| s.track_mut(MediaKind::Video, rendition));
        if let Some(track) = track.filter(|t| t.cold) {
            track.resumes = source;
        }
    }

    /// `viewer` gets no more of this rendition.
    pub fn leave_rendition(&mut self, stream: StreamId, kind: MediaKind, rendition: Rendition, viewer: K) {
        let Some(local) = self.streams.get_mut(&stream) else { return };
        let Some(track) = local.track_mut(kind, rendition) else { return };
        let Some(place) = track.viewers.iter().position(|v| *v == Some(viewer)) else { return };
        track.viewers[place] = None;
        track.free.push(place);
        if !track.watched() {
            track.forget();
            local.update_interest(self.shard, kind, rendition.layer);
        }
    }

    pub fn leave(&mut self, stream: StreamId, viewer: K) {
        let Some(local) = self.streams.get(&stream) else { return };
        let tracks: Vec<_> = local.tracks.iter().map(|t| (t.kind, t.rendition)).collect();
        for (kind, rendition) in tracks {
            self.leave_rendition(stream, kind, rendition, viewer);
        }
        if self.streams.get(&stream).is_some_and(|local| !local.tracks.iter().any(Track::watched)) {
            self.streams.remove(&stream);
            // Their places would be those of others when the stream is watched again.
            self.ready.iter_mut().for_each(|ready| ready.retain(|(s, _)| *s != stream));
        }
    }

    /// Gives the packet its number and its place in the queue of each rendition that it is in and that is watched; says which
    /// of them do not take it.
    pub fn handle(&mut self, now: Instant, packet: &Arc<MediaPacket>, mut tell: impl FnMut(NotTaken)) {
        let Some(local) = self.streams.get_mut(&packet.stream) else { return };
        for at in local.order.iter().copied() {
            let track = &mut local.tracks[at];
            if track.kind != packet.kind || !track.watched() || track.passes_by(packet) {
                continue;
            }
            match track.rendition.takes(packet) {
                None => continue,
                Some(false) => {
                    track.canonical.leave_out(packet);
                    continue;
                }
                Some(true) => {}
            }
            let idle = track.is_idle();
            if let Err(not_taken) = track.take(now, packet) {
                tell(not_taken);
            }
            if idle && !track.is_idle() {
                self.ready[packet.kind as usize].push_back((packet.stream, at));
            }
        }
    }

    /// Packets of a stream's past, a keyframe first, for replays to begin with. As they come only those get them that have
    /// begun with a keyframe which was faster. `whole`: nothing is left out between them.
    pub fn handle_past(&mut self, now: Instant, stream: StreamId, packets: &[Arc<MediaPacket>], whole: bool) {
        let Some(local) = self.streams.get_mut(&stream) else { return };
        for (at, track) in local.tracks.iter_mut().enumerate().filter(|(_, t)| t.watched()) {
            let (idle, begun, kind) = (track.is_idle(), !track.cold, track.kind);
            for packet in packets.iter().filter(|p| p.kind == kind) {
                if !whole && !begun {
                    track.gop.cut_before(packet);
                }
                track.handle_past(now, packet, begun);
            }
            // What came while the past was on its way here.
            for packet in track.early.take() {
                track.handle_past(now, &packet, begun);
            }
            if idle && !track.is_idle() {
                self.ready[kind as usize].push_back((stream, at));
            }
        }
    }

    /// The next message to write; `None` when every viewer has everything, or what is left is paced.
    pub fn poll(&mut self, now: Instant) -> Option<Quantum<'_, K>> {
        let (kind, (stream, at), run, viewer) = self.next_quantum(now)?;
        let track = &self.streams.get(&stream)?.tracks[at];
        let job = track.job.as_ref()?;
        Some(Quantum { viewer, kind, rendition: track.rendition, packets: &job.packets, run: &job.runs[run] })
    }

    fn next_quantum(&mut self, now: Instant) -> Option<(MediaKind, TrackKey, usize, K)> {
        self.paced_until = Instant::FAR_FUTURE;
        let mut paced = 0;
        loop {
            let kind =
                [MediaKind::Audio, MediaKind::Video].into_iter().find(|k| !self.ready[*k as usize].is_empty())?;
            let ready = &mut self.ready[kind as usize];
            if kind == MediaKind::Video && self.quanta_left == 0 {
                self.quanta_left = QUANTA_PER_TURN;
                ready.rotate_left(1);
            }
            let (stream, at) = *ready.front()?;
            let Some(local) = self.streams.get_mut(&stream) else {
                ready.pop_front();
                continue;
            };
            let track = &mut local.tracks[at];
            if track.job.is_none() && !track.start(self.segmenting) {
                ready.pop_front();
                continue;
            }
            if let Err(until) = track.is_due(now) {
                self.paced_until = self.paced_until.min(until);
                paced += 1;
                // Tracks that had nothing may have gone since the first was counted.
                if paced >= ready.len() {
                    return None;
                }
                ready.rotate_left(1);
                self.quanta_left = QUANTA_PER_TURN;
                continue;
            }
            let Some(job) = &mut track.job else { continue };
            if let Some((run, viewer)) = job.advance(&track.viewers) {
                if kind == MediaKind::Video {
                    self.quanta_left -= 1;
                }
                return Some((kind, (stream, at), run, viewer));
            }
            if let Some(mut job) = track.job.take() {
                job.clear();
                track.spare = Some(job);
                // Idle tracks are none of the ready ones.
                if kind == MediaKind::Audio && !track.is_idle() {
                    self.ready[kind as usize].rotate_left(1);
                }
            }
        }
    }

    /// When [`Self::poll`] has something again that it held back.
    pub fn paced_until(&self) -> Instant {
        self.paced_until
    }

    pub fn audio_waits(&self) -> bool {
        !self.ready[MediaKind::Audio as usize].is_empty()
    }

    /// When what waits is nothing but beginnings of video frames: since when. Audio is never held.
    pub fn amid_frame_since(&self) -> Option<Instant> {
        if self.audio_waits() {
            return None;
        }
        let mut since = None;
        for (stream, at) in &self.ready[MediaKind::Video as usize] {
            let track = &self.streams.get(stream)?.tracks[*at];
            if !track.is_amid_frame(self.segmenting) {
                return None;
            }
            let arrival = track.gathered.first()?.packet.arrival;
            since = Some(since.map_or(arrival, |at: Instant| at.min(arrival)));
        }
        since
    }

    /// A packet of the track's recent past.
    pub fn stored(
        &self,
        stream: StreamId,
        kind: MediaKind,
        rendition: Rendition,
        seq: u64,
    ) -> Option<&CanonicalPacket> {
        let track = self.streams.get(&stream)?.track(kind, rendition)?;
        track.store.get(seq).or_else(|| track.gop.get(seq))
    }

    /// Streams with a choice of layers, or viewers of something else than all that most streams have.
    pub fn layered(&self) -> impl Iterator<Item = &Arc<Stream>> {
        let layered = |l: &&LocalStream<K>| {
            let layers = l.stream.layers();
            l.tracks.iter().any(|t| t.watched() && t.rendition != Rendition::default())
                || layers[1..].iter().any(|layer| layer.active)
                || select::is_choice(&layers)
        };
        self.streams.values().filter(layered).map(|l| &l.stream)
    }

    /// Who watches the stream's video, in whichever rendition.
    pub fn viewers_of_video(&self, stream: StreamId) -> impl Iterator<Item = K> {
        let tracks = self.streams.get(&stream).into_iter().flat_map(|l| &l.tracks);
        tracks.filter(|t| t.kind == MediaKind::Video).flat_map(|t| t.viewers.iter().flatten().copied())
    }

    /// The video's past from its last keyframe on, and the highest number in it.
    pub fn gop(&self, stream: StreamId, rendition: Rendition) -> Option<(&Gop<CanonicalPacket>, u64)> {
        let track = self.streams.get(&stream)?.track(MediaKind::Video, rendition)?;
        Some((&track.gop, track.newest_seq))
    }

    /// Bytes in the second that has passed, if there was one.
    pub fn bytes_per_second(&mut self, now: Instant, stream: StreamId, rendition: Rendition) -> Option<u64> {
        self.streams.get_mut(&stream)?.track_mut(MediaKind::Video, rendition)?.meter.bytes_per_second(now)
    }

    /// The first message of what comes from `from` on in the video's past.
    pub fn past_run(&self, stream: StreamId, rendition: Rendition, from: usize) -> Option<(&[CanonicalPacket], Run)> {
        let packets = self.streams.get(&stream)?.track(MediaKind::Video, rendition)?.gop.packets();
        (from < packets.len()).then(|| (packets, burst::first_run(packets, from, self.segmenting)))
    }

    /// A viewer needs a keyframe: returns whether to ask now, or whether it was asked for a moment ago.
    pub fn ask_for_keyframe(&mut self, now: Instant, stream: StreamId, layer: u8) -> bool {
        let Some(local) = self.streams.get_mut(&stream) else { return false };
        due_again(now, &mut local.asked[usize::from(layer)], ASK_AGAIN)
    }

    /// A viewer asks for a keyframe of a publisher on another shard: returns whether to pass it on, or whether one was
    /// passed on a moment ago.
    pub fn pass_on_keyframe_request(&mut self, now: Instant, stream: StreamId, layer: u8) -> bool {
        let Some(local) = self.streams.get_mut(&stream) else { return false };
        due_again(now, &mut local.passed_on[usize::from(layer)], PASS_ON_AGAIN)
    }

    /// Whether to ask for a layer's past, which is up to 6000 packets, or whether that was done a moment ago.
    pub fn ask_for_past(&mut self, now: Instant, stream: StreamId, layer: u8) -> bool {
        let Some(local) = self.streams.get_mut(&stream) else { return false };
        due_again(now, &mut local.past_asked[usize::from(layer)], PAST_AGAIN)
    }

    /// The request of a viewer that joins is never held back: the throttle belongs to the publisher's shard. False: another
    /// has joined in this very turn.
    pub fn joined(&mut self, now: Instant, stream: StreamId, layer: u8) -> bool {
        let Some(local) = self.streams.get_mut(&stream) else { return true };
        local.asked[usize::from(layer)].replace(now) != Some(now)
    }

    /// How many streams are watched here.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    pub fn stream(&self, stream: StreamId) -> Option<&Arc<Stream>> {
        self.streams.get(&stream).map(|l| &l.stream)
    }
}

fn due_again(now: Instant, last: &mut Option<Instant>, interval: Duration) -> bool {
    let due = last.is_none_or(|at| now.since(at) >= interval);
    if due {
        *last = Some(now);
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::Format;
    use crate::wire::packet::testing::video;

    #[test]
    fn those_who_join_in_one_turn_ask_for_a_keyframe_once() {
        let mut fanout = Fanout::new(ShardId(0), Segmenting::default());
        let stream = Arc::new(Stream::new(StreamId(1), "live"));
        fanout.join(&stream, MediaKind::Video, Rendition::default(), 0);
        let at = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        assert!(fanout.joined(at(1), StreamId(1), 0));
        assert!(!fanout.joined(at(1), StreamId(1), 0));
        assert!(fanout.joined(at(1), StreamId(1), 1), "another layer");
        assert!(fanout.joined(at(2), StreamId(1), 0));
    }

    #[test]
    fn audio_without_end_leaves_other_streams_their_turn() {
        let mut fanout = Fanout::new(ShardId(0), Segmenting::default());
        for id in [1, 2] {
            let stream = Arc::new(Stream::new(StreamId(id), "live"));
            fanout.join(&stream, MediaKind::Audio, Rendition::default(), id);
        }
        let audio = |id, seq| {
            let packet = video(seq, 960 * seq as u32, false, 100);
            Arc::new(MediaPacket { stream: StreamId(id), kind: MediaKind::Audio, format: Format::OPUS, ..packet })
        };
        let mut next = |seq| {
            fanout.handle(Instant::ZERO, &audio(1, seq), |not| panic!("{not:?}"));
            if seq == 1 || seq == 4 {
                fanout.handle(Instant::ZERO, &audio(2, seq), |not| panic!("{not:?}"));
            }
            fanout.poll(Instant::ZERO).map(|quantum| quantum.viewer)
        };
        assert_eq!([1, 2, 3, 4].map(&mut next), [1, 2, 1, 2].map(Some));
        assert!(fanout.ready[MediaKind::Audio as usize].len() <= 2, "each is in it once");
    }
}
