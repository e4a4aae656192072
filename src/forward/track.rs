//! A track as one shard's viewers watch it: numbered, kept, and on its way to them, run by run.

use std::sync::Arc;

use str0m::media::MediaKind;

use super::burst::{self, Segmenting};
use super::canonical::{Canonical, Refused};
use super::early::Early;
use super::gop::Gop;
use super::pacer::{Meter, Pacer};
use super::store::Store;
use crate::id::Generation;
use crate::limits;
use crate::units::Instant;
use crate::wire::packet::{CanonicalPacket, MediaPacket, Rendition, Run};

/// With fewer viewers, messages that are saved by waiting for the rest of a frame are not worth the wait.
const HOLD_VIEWERS_MIN: usize = 8;

#[derive(Debug)]
pub struct Track<K> {
    pub(super) kind: MediaKind,
    pub(super) rendition: Rendition,
    pub(super) canonical: Canonical,
    pub(super) store: Store,
    /// Video only.
    pub(super) gop: Gop<CanonicalPacket>,
    /// Nobody watched before: nothing is taken before a keyframe, which comes by itself or with the past.
    pub(super) cold: bool,
    /// While it is cold: viewers of this publisher's track, by generation and SSRC, can go on with the beginning of any picture.
    pub(super) resumes: Option<(Generation, u32)>,
    /// The last packets that were refused for want of a keyframe.
    pub(super) early: Early<Arc<MediaPacket>>,
    /// The highest canonical number so far.
    pub(super) newest_seq: u64,
    pub(super) meter: Meter,
    pacer: Pacer,
    /// A viewer keeps its place while it stays, so that a job under way skips nobody.
    pub(super) viewers: Vec<Option<K>>,
    pub(super) free: Vec<usize>,
    /// Packets for the next job.
    pub(super) gathered: Vec<CanonicalPacket>,
    pub(super) job: Option<Job>,
    /// Memory of the last job.
    pub(super) spare: Option<Job>,
}

#[derive(Debug, Default)]
pub struct Job {
    pub(super) packets: Vec<CanonicalPacket>,
    pub(super) runs: Vec<Run>,
    run: usize,
    /// Whose turn it is.
    viewer: usize,
    /// Runs that the pacer has let pass.
    charged: usize,
}

/// Why a rendition does not take a packet that is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    Refused(Refused),
    /// The track's queue is full: viewers get it when they NACK it.
    Full,
}

impl<K> Track<K> {
    pub(super) fn new(kind: MediaKind, rendition: Rendition) -> Track<K> {
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

    /// Nobody watches any more: from here on its past has holes, and who comes next begins with the publisher's shard's.
    pub(super) fn forget(&mut self) {
        self.gop.clear();
        self.early.clear();
        self.resumes = None;
        if self.kind == MediaKind::Video {
            self.cold = true;
            self.canonical.unbind();
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
    pub(super) fn passes_by(&self, packet: &MediaPacket) -> bool {
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
    pub(super) fn take(&mut self, now: Instant, packet: &Arc<MediaPacket>) -> Result<(), NotTaken> {
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
    pub(super) fn handle_past(&mut self, now: Instant, packet: &Arc<MediaPacket>, begun: bool) {
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
    pub(super) fn is_idle(&self) -> bool {
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

    pub(super) fn watched(&self) -> bool {
        self.watching() > 0
    }

    /// How many viewers have a place.
    fn watching(&self) -> usize {
        self.viewers.len() - self.free.len()
    }

    /// The rest of a frame is likely to follow at once, and would leave in the same messages.
    pub(super) fn is_amid_frame(&self, segmenting: Segmenting) -> bool {
        self.job.is_none()
            && self.gathered.len() < segmenting.segments_max
            && self.gathered.last().is_some_and(|p| !p.packet.marker)
            && self.watching() >= HOLD_VIEWERS_MIN
    }

    /// Whether the job's next message may leave now. A run is charged once for all viewers: each gets the same.
    pub(super) fn is_due(&mut self, now: Instant) -> Result<(), Instant> {
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
    pub(super) fn start(&mut self, segmenting: Segmenting) -> bool {
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
    pub(super) fn advance<K: Copy>(&mut self, viewers: &[Option<K>]) -> Option<(usize, K)> {
        self.skip_absent(viewers);
        if self.run >= self.runs.len() {
            return None;
        }
        let next = (self.run, viewers[self.viewer]?);
        self.viewer += 1;
        Some(next)
    }

    pub(super) fn clear(&mut self) {
        self.packets.clear();
        self.runs.clear();
        self.run = 0;
        self.viewer = 0;
        self.charged = 0;
    }
}
