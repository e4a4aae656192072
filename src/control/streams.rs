//! Streams by name: who publishes, who watches, what it carries; and `GET /api/streams`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use str0m::media::MediaKind;

use super::sessions::Sessions;
use crate::forward::table::Stream;
use crate::id::{Generation, SessionId, StreamId};
use crate::shard::message::{LAYERS_REPORTED_MAX, LayerReport, TrackReport};
use crate::units::{Bitrate, Instant};

/// One stream, for as long as anyone publishes or watches it.
pub(super) struct Entry {
    pub table: Arc<Stream>,
    /// The last one given away.
    pub generation: Generation,
    /// All that offered and have not ended, the active one among them.
    pub publishers: BTreeMap<SessionId, Generation>,
    /// The newest publisher has offered several layers.
    pub simulcast: bool,
    /// The one that viewers see.
    pub active: Option<Active>,
    pub viewers: BTreeSet<SessionId>,
    /// Without an active publisher: how long viewers wait for the next.
    pub grace_until: Instant,
    /// The video's layers in the last report, best first. None while nobody publishes.
    pub layers: Vec<LayerReport>,
    /// When event streams are told of the layers next; never while nobody listens.
    pub layers_due: Instant,
    /// When event streams are told of the viewers next; never while they know.
    pub viewers_due: Instant,
    pub viewers_told: Instant,
    /// Audio and video.
    figures: [Option<Figures>; 2],
}

#[derive(Clone, Copy)]
pub(super) struct Active {
    pub session: SessionId,
    pub generation: Generation,
    pub since: Instant,
}

/// A track's figures out of the shards' reports.
#[derive(Clone, Copy)]
struct Figures {
    report: TrackReport,
    at: Instant,
    bitrate: Bitrate,
}

#[derive(Default)]
pub(super) struct Streams {
    entries: BTreeMap<StreamId, Entry>,
    by_name: BTreeMap<String, StreamId>,
    last: u32,
}

impl Entry {
    fn new(id: StreamId, name: &str) -> Entry {
        Entry {
            table: Arc::new(Stream::new(id, name)),
            generation: Generation::default(),
            publishers: BTreeMap::new(),
            simulcast: false,
            active: None,
            viewers: BTreeSet::new(),
            grace_until: Instant::ZERO,
            layers: Vec::new(),
            layers_due: Instant::FAR_FUTURE,
            viewers_due: Instant::FAR_FUTURE,
            viewers_told: Instant::ZERO,
            figures: [None, None],
        }
    }

    fn is_idle(&self) -> bool {
        self.publishers.is_empty() && self.viewers.is_empty()
    }

    /// Takes a shard's figures of one track.
    pub fn take_report(&mut self, at: Instant, report: TrackReport) {
        let slot = &mut self.figures[report.kind as usize];
        let before = slot.filter(|f| f.report.bytes <= report.bytes && f.at < at);
        let bitrate = before.map_or(Bitrate::default(), |f| Bitrate::of(report.bytes - f.report.bytes, at - f.at));
        *slot = Some(Figures { report, at, bitrate });
    }

    /// Takes a shard's report of the video's layers. Returns whether more has changed than bitrates.
    pub fn take_layers(&mut self, mut layers: Vec<LayerReport>) -> bool {
        layers.truncate(LAYERS_REPORTED_MAX);
        layers.sort_by_key(|l| std::cmp::Reverse((l.height, l.bitrate)));
        let changed = shape(&self.layers) != shape(&layers);
        self.layers = layers;
        changed
    }

    /// How long the active publisher has sent nothing; `None` without one. Shards report once a second, so a
    /// publisher that lives may seem silent for that long.
    pub fn silent_for(&self, now: Instant) -> Option<Duration> {
        let active = self.active?;
        let packets = self.figures.iter().flatten().map(|f| f.report.last_packet);
        let last = packets.max().unwrap_or(Instant::ZERO).max(active.since);
        Some(now - last)
    }

    /// Makes one publisher the active one.
    pub fn activate(&mut self, now: Instant, session: SessionId, generation: Generation) {
        self.active = Some(Active { session, generation, since: now });
        self.figures = [None, None];
        self.layers.clear();
    }

    /// The active publisher is gone: viewers wait until `grace_until` for the next.
    pub fn deactivate(&mut self, grace_until: Instant) {
        self.active = None;
        self.grace_until = grace_until;
        self.layers.clear();
    }

    /// Viewers that are connected.
    pub fn watching(&self, sessions: &Sessions) -> usize {
        self.viewers.iter().filter(|v| sessions.get(**v).is_some_and(|r| r.established)).count()
    }
}

impl Streams {
    pub fn by_name(&self, name: &str) -> Option<&Entry> {
        self.entries.get(self.by_name.get(name)?)
    }

    pub fn get(&self, id: StreamId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    pub fn get_mut(&mut self, id: StreamId) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    /// The stream of this name; a new one when there is none.
    pub fn open(&mut self, name: &str) -> &mut Entry {
        let id = *self.by_name.entry(name.to_owned()).or_insert_with(|| {
            self.last += 1;
            StreamId(self.last)
        });
        self.entries.entry(id).or_insert_with(|| Entry::new(id, name))
    }

    /// Lets go of a stream that nobody publishes or watches.
    pub fn close_if_idle(&mut self, id: StreamId) {
        if let Some(entry) = self.entries.get(&id).filter(|e| e.is_idle()) {
            self.by_name.remove(&*entry.table.name);
            self.entries.remove(&id);
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// `GET /api/streams`.
    pub fn json(&self, now: Instant, sessions: &Sessions) -> serde_json::Value {
        let streams: Vec<serde_json::Value> =
            self.by_name.values().filter_map(|id| self.entries.get(id)).map(|e| stream(e, now, sessions)).collect();
        serde_json::json!({ "streams": streams })
    }
}

/// Layers without what changes all the time, in a fixed order.
fn shape(layers: &[LayerReport]) -> Vec<LayerReport> {
    let mut shape: Vec<LayerReport> = layers.iter().map(|l| LayerReport { bitrate: 0, ..l.clone() }).collect();
    shape.sort_by(|a, b| a.rid.cmp(&b.rid));
    shape
}

fn stream(entry: &Entry, now: Instant, sessions: &Sessions) -> serde_json::Value {
    let publisher = entry.active.and_then(|active| {
        let record = sessions.get(active.session)?;
        Some(serde_json::json!({
            "session": record.id.0,
            "seconds": (now - active.since).as_secs(),
            "silent_ms": entry.silent_for(now).unwrap_or_default().as_millis() as u64,
        }))
    });
    let tracks: Vec<serde_json::Value> = [MediaKind::Audio, MediaKind::Video]
        .into_iter()
        .filter_map(|kind| {
            let figures = entry.figures[kind as usize];
            let seen = entry.active.and_then(|a| sessions.get(a.session)?.tracks[kind as usize]);
            let format = seen.or(figures.map(|f| f.report.format).filter(|_| entry.active.is_some()))?;
            Some(serde_json::json!({
                "kind": if kind == MediaKind::Audio { "audio" } else { "video" },
                "codec": format.codec.name(),
                "format": format.to_string(),
                "bitrate_bps": figures.map_or(0, |f| f.bitrate.as_bps()),
                "packets": figures.map_or(0, |f| f.report.packets),
            }))
        })
        .collect();
    let connected = entry.watching(sessions);
    serde_json::json!({
        "name": entry.table.name,
        "live": entry.active.is_some(),
        "publisher": publisher,
        "publishers_pending": entry.publishers.len() - usize::from(entry.active.is_some()),
        "tracks": tracks,
        "viewers": connected,
        "viewers_pending": entry.viewers.len() - connected,
    })
}
