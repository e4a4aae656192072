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
use super::canonical::{Canonical, Refused};
use super::early::Early;
use super::gop::Gop;
use super::pacer::{Meter, Pacer};
use super::select;
use super::store::Store;
use super::table::Stream;
use crate::id::{Generation, ShardId, StreamId};
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

/// With fewer viewers, messages that are saved by waiting for the rest of a frame are not worth the wait.
const HOLD_VIEWERS_MIN: usize = 8;

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
    /// When this shard last asked for a keyframe of each layer on behalf of viewers that wait.
    asked: [Option<Instant>; limits::LAYERS_MAX],
    /// When this shard last passed a viewer's own request on.
    passed_on: [Option<Instant>; limits::LAYERS_MAX],
    /// When this shard last asked for a layer's past.
    past_asked: [Option<Instant>; limits::LAYERS_MAX],
}

#[derive(Debug)]
struct Track<K> {
    kind: MediaKind,
    rendition: Rendition,
    canonical: Canonical,
    store: Store,
    /// Video only.
    gop: Gop<CanonicalPacket>,
    /// Nobody watched before: nothing is taken before a keyframe, which comes by itself or with the past.
    cold: bool,
    /// While it is cold: viewers of this publisher's track, by generation and SSRC, can go on with the beginning of any picture.
    resumes: Option<(Generation, u32)>,
    /// The last packets that were refused for want of a keyframe.
    early: Early<Arc<MediaPacket>>,
    /// The highest canonical number so far.
    newest_seq: u64,
    meter: Meter,
    pacer: Pacer,
    /// A viewer keeps its place while it stays, so that a job under way skips nobody.
    viewers: Vec<Option<K>>,
    free: Vec<usize>,
    /// Packets for the next job.
    gathered: Vec<CanonicalPacket>,
    job: Option<Job>,
    /// Memory of the last job.
    spare: Option<Job>,
}

#[derive(Debug, Default)]
struct Job {
    packets: Vec<CanonicalPacket>,
    runs: Vec<Run>,
    run: usize,
    /// Whose turn it is.
    viewer: usize,
    /// Runs that the pacer has let pass.
    charged: usize,
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

/// Why a rendition does not take a packet that is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    Refused(Refused),
    /// The track's queue is full: viewers get it when they NACK it.
    Full,
}

/// What a viewer has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The track is already here, with its recent past.
    Watched,
    /// This shard had no viewer of it, or has nothing of it yet: its recent past is with the publisher's shard.
    First,
}

impl<K> Track<K> {
    fn new(kind: MediaKind, rendition: Rendition) -> Track<K> {
        Track {
            kind,
            rendition,
            canonical: Canonical::default(),
            store: Store::default(),
            gop: Gop::default(),
            cold: kind == MediaKind::Video,
            resumes: None,
            early: Early::default(),
            newest_seq: 0,
            meter: Meter::default(),
            pacer: Pacer::default(),
            viewers: Vec::new(),
            free: Vec::new(),
            gathered: Vec::new(),
            job: None,
            spare: None,
        }
    }

    /// Gives the packet its number and keeps it for those that ask later.
    fn place(&mut self, packet: &Arc<MediaPacket>) -> Result<CanonicalPacket, Refused> {
        if self.cold && !packet.starts_keyframe {
            if !self.resumes_with(packet) {
                return Err(Refused::AwaitingKeyframe);
            }
            self.canonical.resume(packet);
        }
        self.cold = false;
        self.resumes = None;
        let mut canonical = self.canonical.place(&self.rendition.describe(packet))?;
        canonical.marker = self.rendition.marker(packet);
        self.newest_seq = self.newest_seq.max(canonical.seq);
        self.store.insert(canonical.clone());
        if self.kind == MediaKind::Video {
            self.gop.insert(canonical.clone());
        }
        Ok(canonical)
    }

    fn resumes_with(&self, packet: &MediaPacket) -> bool {
        packet.descriptor.layer.starts_picture && self.resumes == Some((packet.generation, packet.ssrc))
    }

    /// The rest of a picture whose beginning nobody here has seen: the viewers for whom this is to begin get it as
    /// part of another rendition.
    fn passes_by(&self, packet: &MediaPacket) -> bool {
        let (generation, ssrc) = (packet.generation, packet.ssrc);
        self.cold && self.resumes == Some((generation, ssrc)) && !packet.starts_keyframe && !self.resumes_with(packet)
    }

    /// Whether a packet of the past is not here yet: a newer one, or one that has been overtaken.
    fn lacks(&self, packet: &MediaPacket) -> bool {
        if !self.canonical.has_placed(packet) {
            return true;
        }
        let begun = self.gop.packets().first().map(|p| p.seq);
        self.canonical.number(packet).zip(begun).is_some_and(|(seq, begun)| {
            seq > begun && seq + limits::STORE_PACKETS as u64 > self.newest_seq && self.store.get(seq).is_none()
        })
    }

    /// Gives the packet its place in the queue, and after a keyframe's first one those that have overtaken it.
    fn take(&mut self, now: Instant, packet: &Arc<MediaPacket>) -> Result<(), NotTaken> {
        let taken = match self.place(packet) {
            Ok(canonical) => self.gather(now, canonical),
            Err(refused) => {
                if refused == Refused::AwaitingKeyframe {
                    self.early.remember(packet.clone());
                }
                return Err(NotTaken::Refused(refused));
            }
        };
        if packet.starts_keyframe {
            let early = self.early.take();
            for follower in
                early.filter(|e| (e.generation, e.ssrc) == (packet.generation, packet.ssrc) && e.seq > packet.seq)
            {
                if let Ok(canonical) = self.place(&follower) {
                    // What finds no room is repaired by NACKs; it was counted when it came.
                    _ = self.gather(now, canonical);
                }
            }
        }
        taken
    }

    /// `begun`: viewers may be past its keyframe.
    fn handle_past(&mut self, now: Instant, packet: &Arc<MediaPacket>, begun: bool) {
        match self.rendition.takes(packet) {
            Some(true) if self.lacks(packet) => {
                match self.place(packet) {
                    // What finds no room is repaired by NACKs.
                    Ok(canonical) if begun => _ = self.gather(now, canonical),
                    Err(Refused::AwaitingKeyframe) => self.early.remember(packet.clone()),
                    // What it refuses else is older than what it has.
                    _ => {}
                }
            }
            Some(false) if !self.canonical.has_placed(packet) => self.canonical.leave_out(packet),
            _ => {}
        }
    }

    /// Nothing waits to be sent.
    fn is_idle(&self) -> bool {
        self.gathered.is_empty() && self.job.is_none()
    }

    fn gather(&mut self, now: Instant, canonical: CanonicalPacket) -> Result<(), NotTaken> {
        self.meter.count(now, canonical.packet.payload.len());
        if self.gathered.len() >= limits::TRACK_QUEUE_PACKETS {
            return Err(NotTaken::Full);
        }
        self.gathered.push(canonical);
        Ok(())
    }

    fn watched(&self) -> bool {
        self.watching() > 0
    }

    /// How many viewers have a place.
    fn watching(&self) -> usize {
        self.viewers.len() - self.free.len()
    }

    /// The rest of a frame is likely to follow at once, and would leave in the same messages.
    fn is_amid_frame(&self, segmenting: Segmenting) -> bool {
        self.job.is_none()
            && self.gathered.len() < segmenting.segments_max
            && self.gathered.last().is_some_and(|p| !p.packet.marker)
            && self.watching() >= HOLD_VIEWERS_MIN
    }

    /// Whether the job's next message may leave now. A run is charged once for all viewers: each gets the same.
    fn is_due(&mut self, now: Instant) -> Result<(), Instant> {
        let Some(job) = &mut self.job else { return Ok(()) };
        job.skip_absent(&self.viewers);
        let Some(run) = job.runs.get(job.run).filter(|_| self.kind == MediaKind::Video && job.run >= job.charged)
        else {
            return Ok(());
        };
        let rate = self.meter.bytes_per_second(now);
        self.pacer.take(now, rate, run.packets.len() * run.payload_bytes)?;
        job.charged = job.run + 1;
        Ok(())
    }

    /// Makes a job of what was gathered; false when there is nothing.
    fn start(&mut self, segmenting: Segmenting) -> bool {
        if self.gathered.is_empty() {
            return false;
        }
        let mut job = self.spare.take().unwrap_or_default();
        std::mem::swap(&mut job.packets, &mut self.gathered);
        burst::plan(&job.packets, segmenting, &mut job.runs);
        self.job = Some(job);
        true
    }
}

impl Job {
    /// To the next place that has a viewer, in this run or in the next one.
    fn skip_absent<K>(&mut self, viewers: &[Option<K>]) {
        while self.run < self.runs.len() && viewers.get(self.viewer).is_none_or(Option::is_none) {
            self.viewer += 1;
            if self.viewer >= viewers.len() {
                self.viewer = 0;
                self.run += 1;
            }
        }
    }

    /// Run and viewer of the next message; `None` when the job is done.
    fn advance<K: Copy>(&mut self, viewers: &[Option<K>]) -> Option<(usize, K)> {
        self.skip_absent(viewers);
        if self.run >= self.runs.len() {
            return None;
        }
        let next = (self.run, viewers[self.viewer]?);
        self.viewer += 1;
        Some(next)
    }

    fn clear(&mut self) {
        self.packets.clear();
        self.runs.clear();
        self.run = 0;
        self.viewer = 0;
        self.charged = 0;
    }
}

impl<K> LocalStream<K> {
    fn track(&self, kind: MediaKind, rendition: Rendition) -> Option<&Track<K>> {
        self.tracks.iter().find(|t| (t.kind, t.rendition) == (kind, rendition))
    }

    fn track_mut(&mut self, kind: MediaKind, rendition: Rendition) -> Option<&mut Track<K>> {
        self.tracks.iter_mut().find(|t| (t.kind, t.rendition) == (kind, rendition))
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
            asked: Default::default(),
            passed_on: Default::default(),
            past_asked: Default::default(),
        });
        let at = local.tracks.iter().position(|t| (t.kind, t.rendition) == (kind, rendition)).unwrap_or_else(|| {
            local.tracks.push(Track::new(kind, rendition));
            local.tracks.len() - 1
        });
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
            // From here on its past has holes.
            track.gop.clear();
            track.early.clear();
            track.cold = kind == MediaKind::Video;
            track.resumes = None;
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
        for (at, track) in local.tracks.iter_mut().enumerate() {
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
            l.tracks.iter().any(|t| t.watched() && t.rendition != Rendition::default())
                || select::is_choice(&l.stream.layers())
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

    /// The request of a viewer that joins is never held back: the throttle belongs to the publisher's shard.
    pub fn joined(&mut self, now: Instant, stream: StreamId, layer: u8) {
        if let Some(local) = self.streams.get_mut(&stream) {
            local.asked[usize::from(layer)] = Some(now);
        }
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
