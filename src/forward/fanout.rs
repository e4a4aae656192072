//! Which of this shard's viewers get a stream's packets.

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use str0m::media::MediaKind;

use super::canonical::{Canonical, Refused};
use super::table::Stream;
use crate::id::{ShardId, StreamId};
use crate::units::Instant;
use crate::wire::packet::{CanonicalPacket, MediaPacket};

/// A viewer that waits is asked for again after so long, should the first request have been lost between shards.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Streams that this shard's viewers watch. `K` names a viewer's session.
#[derive(Debug)]
pub struct Fanout<K> {
    shard: ShardId,
    streams: FxHashMap<StreamId, LocalStream<K>>,
}

#[derive(Debug)]
struct LocalStream<K> {
    stream: Arc<Stream>,
    /// Audio and video.
    tracks: [Track<K>; 2],
    /// When this shard last asked for a keyframe on behalf of viewers that wait.
    asked: Option<Instant>,
}

#[derive(Debug)]
struct Track<K> {
    canonical: Canonical,
    viewers: Vec<K>,
}

/// Where one packet goes.
pub struct Routed<'a, K> {
    pub canonical: CanonicalPacket<'a>,
    pub viewers: &'a [K],
}

impl<K: Copy + PartialEq> Fanout<K> {
    pub fn new(shard: ShardId) -> Fanout<K> {
        Fanout { shard, streams: FxHashMap::default() }
    }

    /// From now on `viewer` gets the stream's packets of this kind.
    pub fn join(&mut self, stream: &Arc<Stream>, kind: MediaKind, viewer: K) {
        let local = self.streams.entry(stream.id).or_insert_with(|| LocalStream {
            stream: stream.clone(),
            tracks: std::array::from_fn(|_| Track { canonical: Canonical::default(), viewers: Vec::new() }),
            asked: None,
        });
        let track = &mut local.tracks[kind as usize];
        if track.viewers.is_empty() {
            stream.set_interest(kind, self.shard, true);
        }
        track.viewers.push(viewer);
    }

    pub fn leave(&mut self, stream: StreamId, viewer: K) {
        let Some(local) = self.streams.get_mut(&stream) else { return };
        for kind in [MediaKind::Audio, MediaKind::Video] {
            let viewers = &mut local.tracks[kind as usize].viewers;
            let Some(at) = viewers.iter().position(|v| *v == viewer) else { continue };
            viewers.swap_remove(at);
            if viewers.is_empty() {
                local.stream.set_interest(kind, self.shard, false);
            }
        }
        if local.tracks.iter().all(|t| t.viewers.is_empty()) {
            self.streams.remove(&stream);
        }
    }

    /// Gives the packet its number and says who gets it. `None`: nobody here watches.
    pub fn route<'a>(&'a mut self, packet: &'a MediaPacket) -> Option<Result<Routed<'a, K>, Refused>> {
        let local = self.streams.get_mut(&packet.stream)?;
        let track = &mut local.tracks[packet.kind as usize];
        Some(track.canonical.place(packet).map(|canonical| Routed { canonical, viewers: &track.viewers }))
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

    /// A joining viewer's request is never held back: the throttle belongs to the publisher's shard.
    pub fn joined(&mut self, now: Instant, stream: StreamId) {
        if let Some(local) = self.streams.get_mut(&stream) {
            local.asked = Some(now);
        }
    }

    pub fn stream(&self, stream: StreamId) -> Option<&Arc<Stream>> {
        self.streams.get(&stream).map(|l| &l.stream)
    }

    pub fn viewers(&self, stream: StreamId) -> usize {
        self.streams.get(&stream).map_or(0, |l| l.tracks.iter().map(|t| t.viewers.len()).max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interest_follows_the_first_and_the_last_viewer() {
        let stream = Arc::new(Stream::new(StreamId(1), "a"));
        let mut fanout: Fanout<u32> = Fanout::new(ShardId(3));
        fanout.join(&stream, MediaKind::Video, 1);
        fanout.join(&stream, MediaKind::Video, 2);
        assert_eq!((stream.interest(MediaKind::Video), stream.interest(MediaKind::Audio)), (8, 0));
        fanout.leave(stream.id, 1);
        assert_eq!(stream.interest(MediaKind::Video), 8);
        fanout.leave(stream.id, 2);
        assert_eq!(stream.interest(MediaKind::Video), 0);
        assert_eq!(fanout.viewers(stream.id), 0);
    }
}
