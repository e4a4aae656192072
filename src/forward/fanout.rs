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
use super::store::Store;
use super::table::Stream;
use crate::id::{ShardId, StreamId};
use crate::limits;
use crate::units::Instant;
use crate::wire::packet::{CanonicalPacket, MediaPacket, Run};

/// A viewer that waits is asked for again after so long, should the first request have been lost between shards.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Viewers' own requests for a keyframe that go to another shard are this far apart; each viewer repeats its own until one
/// comes.
const PASS_ON_AGAIN: Duration = Duration::from_millis(100);

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
    /// Streams with packets to send: audio, video.
    ready: [VecDeque<StreamId>; 2],
    /// What is left of the front video track's turn.
    quanta_left: usize,
}

#[derive(Debug)]
struct LocalStream<K> {
    stream: Arc<Stream>,
    /// Audio and video.
    tracks: [Track<K>; 2],
    /// When this shard last asked for a keyframe on behalf of viewers that wait.
    asked: Option<Instant>,
    /// When this shard last passed a viewer's own request on.
    passed_on: Option<Instant>,
}

#[derive(Debug)]
struct Track<K> {
    canonical: Canonical,
    store: Store,
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
}

/// One message to be written: these packets for this viewer.
#[derive(Clone, Copy, Debug)]
pub struct Quantum<'a, K> {
    pub viewer: K,
    pub kind: MediaKind,
    /// The whole job's; `run` says which.
    pub packets: &'a [CanonicalPacket],
    pub run: &'a Run,
}

/// What became of a packet that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It waits for its turn.
    Queued,
    /// Nobody here watches.
    Unwatched,
    Refused(Refused),
    /// The track's queue is full: viewers get it when they NACK it.
    Full,
}

impl<K> Track<K> {
    fn new() -> Track<K> {
        Track {
            canonical: Canonical::default(),
            store: Store::default(),
            viewers: Vec::new(),
            free: Vec::new(),
            gathered: Vec::new(),
            job: None,
            spare: None,
        }
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
    /// The next place that has a viewer, of the run that is under way; `None` when the job is done.
    fn advance<K: Copy>(&mut self, viewers: &[Option<K>]) -> Option<(usize, K)> {
        while self.run < self.runs.len() {
            while self.viewer < viewers.len() {
                self.viewer += 1;
                if let Some(viewer) = viewers[self.viewer - 1] {
                    return Some((self.run, viewer));
                }
            }
            self.viewer = 0;
            self.run += 1;
        }
        None
    }

    fn clear(&mut self) {
        self.packets.clear();
        self.runs.clear();
        self.run = 0;
        self.viewer = 0;
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
        }
    }

    /// From now on `viewer` gets the stream's packets of this kind.
    pub fn join(&mut self, stream: &Arc<Stream>, kind: MediaKind, viewer: K) {
        let local = self.streams.entry(stream.id).or_insert_with(|| LocalStream {
            stream: stream.clone(),
            tracks: [Track::new(), Track::new()],
            asked: None,
            passed_on: None,
        });
        let track = &mut local.tracks[kind as usize];
        if !track.watched() {
            stream.set_interest(kind, self.shard, true);
        }
        match track.free.pop() {
            Some(place) => track.viewers[place] = Some(viewer),
            None => track.viewers.push(Some(viewer)),
        }
    }

    pub fn leave(&mut self, stream: StreamId, viewer: K) {
        let Some(local) = self.streams.get_mut(&stream) else { return };
        for kind in [MediaKind::Audio, MediaKind::Video] {
            let track = &mut local.tracks[kind as usize];
            let Some(place) = track.viewers.iter().position(|v| *v == Some(viewer)) else { continue };
            track.viewers[place] = None;
            track.free.push(place);
            if !track.watched() {
                local.stream.set_interest(kind, self.shard, false);
            }
        }
        if !local.tracks.iter().any(Track::watched) {
            self.streams.remove(&stream);
        }
    }

    /// Gives the packet its number and its place in the queue.
    pub fn handle(&mut self, packet: &Arc<MediaPacket>) -> Taken {
        let Some(local) = self.streams.get_mut(&packet.stream) else { return Taken::Unwatched };
        let track = &mut local.tracks[packet.kind as usize];
        if !track.watched() {
            return Taken::Unwatched;
        }
        let canonical = match track.canonical.place(packet) {
            Ok(canonical) => canonical,
            Err(refused) => return Taken::Refused(refused),
        };
        track.store.insert(canonical.clone());
        if track.gathered.len() >= limits::TRACK_QUEUE_PACKETS {
            return Taken::Full;
        }
        if track.gathered.is_empty() && track.job.is_none() {
            self.ready[packet.kind as usize].push_back(packet.stream);
        }
        track.gathered.push(canonical);
        Taken::Queued
    }

    /// The next message to write; `None` when every viewer has everything.
    pub fn poll(&mut self) -> Option<Quantum<'_, K>> {
        let (kind, stream, run, viewer) = self.next_quantum()?;
        let job = self.streams.get(&stream)?.tracks[kind as usize].job.as_ref()?;
        Some(Quantum { viewer, kind, packets: &job.packets, run: &job.runs[run] })
    }

    fn next_quantum(&mut self) -> Option<(MediaKind, StreamId, usize, K)> {
        loop {
            let kind =
                [MediaKind::Audio, MediaKind::Video].into_iter().find(|k| !self.ready[*k as usize].is_empty())?;
            let ready = &mut self.ready[kind as usize];
            if kind == MediaKind::Video && self.quanta_left == 0 {
                self.quanta_left = QUANTA_PER_TURN;
                ready.rotate_left(1);
            }
            let stream = *ready.front()?;
            let Some(local) = self.streams.get_mut(&stream) else {
                // Its last viewer has left.
                ready.pop_front();
                continue;
            };
            let track = &mut local.tracks[kind as usize];
            if track.job.is_none() && !track.start(self.segmenting) {
                ready.pop_front();
                continue;
            }
            let Some(job) = &mut track.job else { continue };
            if let Some((run, viewer)) = job.advance(&track.viewers) {
                if kind == MediaKind::Video {
                    self.quanta_left -= 1;
                }
                return Some((kind, stream, run, viewer));
            }
            if let Some(mut job) = track.job.take() {
                job.clear();
                track.spare = Some(job);
            }
        }
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
        for stream in &self.ready[MediaKind::Video as usize] {
            let track = &self.streams.get(stream)?.tracks[MediaKind::Video as usize];
            if !track.is_amid_frame(self.segmenting) {
                return None;
            }
            let arrival = track.gathered.first()?.packet.arrival;
            since = Some(since.map_or(arrival, |at: Instant| at.min(arrival)));
        }
        since
    }

    /// Whether anything waits to be sent.
    pub fn is_idle(&self) -> bool {
        self.ready.iter().all(VecDeque::is_empty)
    }

    /// A packet of the track's recent past.
    pub fn stored(&self, stream: StreamId, kind: MediaKind, seq: u64) -> Option<&CanonicalPacket> {
        self.streams.get(&stream)?.tracks[kind as usize].store.get(seq)
    }

    /// A viewer needs a keyframe: returns whether to ask now, or whether it was asked for a moment ago.
    pub fn ask_for_keyframe(&mut self, now: Instant, stream: StreamId) -> bool {
        let Some(local) = self.streams.get_mut(&stream) else { return false };
        if local.asked.is_some_and(|at| now.since(at) < ASK_AGAIN) {
            return false;
        }
        local.asked = Some(now);
        true
    }

    /// A viewer asks for a keyframe of a publisher on another shard: returns whether to pass it on, or whether one was
    /// passed on a moment ago.
    pub fn pass_on_keyframe_request(&mut self, now: Instant, stream: StreamId) -> bool {
        let Some(local) = self.streams.get_mut(&stream) else { return false };
        if local.passed_on.is_some_and(|at| now.since(at) < PASS_ON_AGAIN) {
            return false;
        }
        local.passed_on = Some(now);
        true
    }

    /// A joining viewer's request is never held back: the throttle belongs to the publisher's shard.
    pub fn joined(&mut self, now: Instant, stream: StreamId) {
        if let Some(local) = self.streams.get_mut(&stream) {
            local.asked = Some(now);
        }
    }

    pub fn stream(&self, stream: StreamId) -> Option<&Arc<Stream>> {
        self.streams.get(&stream).map(|l| &l.stream)
    }
}
