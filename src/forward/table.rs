//! The forwarding table: per stream, which shards have viewers, and whose media they see. Atomics only.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use str0m::media::MediaKind;

use super::select::{Layer, Layers, Spatial};
use crate::id::{Generation, Rid, ShardId, StreamId};
use crate::limits;
use crate::wire::descriptor::SPATIAL_LAYERS_MAX;

/// One named stream, shared by every shard and by control for as long as anyone publishes or watches it.
///
/// A publisher's shard reads `interest` for each packet; viewers' shards write it when their first viewer of a
/// kind joins and their last one leaves. Nothing here blocks.
#[derive(Debug)]
pub struct Stream {
    pub id: StreamId,
    pub name: Box<str>,
    /// One bit per shard that has viewers, for audio and for each layer of the video.
    interest: [AtomicU64; 1 + limits::LAYERS_MAX],
    /// The generation that viewers see, 0 before the first publisher; and the shard where it lives, in the low 16 bits: both change
    /// at once.
    active: AtomicU64,
    /// The active publisher does not answer requests for a keyframe.
    deaf: AtomicBool,
    /// Of the active publisher's video.
    layers: [SharedLayer; limits::LAYERS_MAX],
}

/// A [`Layer`] in atomics. Each is right by itself; a reader may see one of them newer than another.
#[derive(Debug, Default)]
struct SharedLayer {
    active: AtomicBool,
    bitrate: AtomicU64,
    /// Width in the upper half, height in the lower.
    size: AtomicU32,
    rid: AtomicU64,
    /// Whether only described, highest spatial id, highest temporal id: a byte each.
    scalability: AtomicU32,
    spatials: [SharedSpatial; SPATIAL_LAYERS_MAX],
}

/// A [`Spatial`] in atomics.
#[derive(Debug, Default)]
struct SharedSpatial {
    active: AtomicBool,
    bitrate: AtomicU64,
    size: AtomicU32,
}

const SHARD_BITS: u32 = u16::BITS;

impl Stream {
    pub fn new(id: StreamId, name: &str) -> Stream {
        Stream {
            id,
            name: name.into(),
            interest: Default::default(),
            active: AtomicU64::new(0),
            deaf: AtomicBool::new(false),
            layers: Default::default(),
        }
    }

    /// # Panics
    /// When `layer` is not below [`limits::LAYERS_MAX`].
    pub fn set_interest(&self, kind: MediaKind, layer: u8, shard: ShardId, wanted: bool) {
        let bit = 1u64 << shard.index();
        let mask = &self.interest[place(kind, layer)];
        if wanted {
            mask.fetch_or(bit, Ordering::AcqRel);
        } else {
            mask.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// The shards that want this, one bit each.
    ///
    /// # Panics
    /// When `layer` is not below [`limits::LAYERS_MAX`].
    pub fn interest(&self, kind: MediaKind, layer: u8) -> u64 {
        self.interest[place(kind, layer)].load(Ordering::Acquire)
    }

    /// Makes `generation` the one that viewers see, unless a later one already is.
    ///
    /// Returns whether it is the one now. The caller calls it on the first authenticated RTP of its publisher.
    pub fn activate(&self, generation: Generation, shard: ShardId) -> bool {
        let before = self.active.fetch_max(generation.0 << SHARD_BITS | u64::from(shard.0), Ordering::AcqRel);
        if before >> SHARD_BITS > generation.0 {
            return false;
        }
        self.deaf.store(false, Ordering::Release);
        for layer in 0..self.layers.len() {
            self.set_layer(layer as u8, Layer::default());
        }
        true
    }

    pub fn active(&self) -> Generation {
        Generation(self.active.load(Ordering::Acquire) >> SHARD_BITS)
    }

    /// To be called by the active publisher's shard only.
    pub fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Release);
    }

    /// OBS and ffmpeg do not answer requests for a keyframe: no use waiting for one.
    pub fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::Acquire)
    }

    /// To be called by the active publisher's shard only.
    ///
    /// # Panics
    /// When `layer` is not below [`limits::LAYERS_MAX`].
    pub fn set_layer(&self, layer: u8, figures: Layer) {
        let shared = &self.layers[usize::from(layer)];
        shared.bitrate.store(figures.bitrate, Ordering::Relaxed);
        shared.size.store(size_bits(figures.width, figures.height), Ordering::Relaxed);
        shared.rid.store(figures.rid.to_bits(), Ordering::Relaxed);
        let scalability = [0, u8::from(figures.described), figures.spatial, figures.temporal];
        shared.scalability.store(u32::from_be_bytes(scalability), Ordering::Relaxed);
        for (shared, of) in shared.spatials.iter().zip(figures.spatials) {
            shared.active.store(of.active, Ordering::Relaxed);
            shared.bitrate.store(of.bitrate, Ordering::Relaxed);
            shared.size.store(size_bits(of.width, of.height), Ordering::Relaxed);
        }
        shared.active.store(figures.active, Ordering::Release);
    }

    pub fn layers(&self) -> Layers {
        self.layers.each_ref().map(|shared| {
            let active = shared.active.load(Ordering::Acquire);
            let (width, height) = size_of_bits(shared.size.load(Ordering::Relaxed));
            let bitrate = shared.bitrate.load(Ordering::Relaxed);
            let rid = Rid::from_bits(shared.rid.load(Ordering::Relaxed));
            let [_, described, spatial, temporal] = shared.scalability.load(Ordering::Relaxed).to_be_bytes();
            let spatials = shared.spatials.each_ref().map(|shared| {
                let (width, height) = size_of_bits(shared.size.load(Ordering::Relaxed));
                let active = shared.active.load(Ordering::Relaxed);
                Spatial { active, bitrate: shared.bitrate.load(Ordering::Relaxed), width, height }
            });
            Layer { active, bitrate, width, height, rid, spatial, temporal, described: described != 0, spatials }
        })
    }

    /// Meaningful while there is an active publisher.
    pub fn publisher_shard(&self) -> ShardId {
        // Truncation leaves the shard.
        ShardId(self.active.load(Ordering::Acquire) as u16)
    }
}

fn size_bits(width: u16, height: u16) -> u32 {
    u32::from(width) << 16 | u32::from(height)
}

fn size_of_bits(bits: u32) -> (u16, u16) {
    ((bits >> 16) as u16, bits as u16)
}

fn place(kind: MediaKind, layer: u8) -> usize {
    match kind {
        MediaKind::Audio => 0,
        MediaKind::Video => 1 + usize::from(layer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shard_is_that_of_the_generation_which_is_active() {
        let stream = Stream::new(StreamId(1), "cam");
        assert!(stream.activate(Generation(1), ShardId(63)));
        assert_eq!((stream.active(), stream.publisher_shard()), (Generation(1), ShardId(63)));
        assert!(stream.activate(Generation(3), ShardId(0)));
        // Whoever is late leaves no trace.
        assert!(!stream.activate(Generation(2), ShardId(5)));
        assert_eq!((stream.active(), stream.publisher_shard()), (Generation(3), ShardId(0)));
    }
}
