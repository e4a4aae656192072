//! Audio and video of one moment are shown at one moment: by the sender reports that a viewer gets, whatever happens to
//! publishers and layers.

use std::collections::BTreeMap;

use manycast::sim::client::{Got, Source};
use manycast::sim::{ClientId, Path, World};
use str0m::media::MediaKind;

use crate::{SECOND, sound};

/// ITU-R BT.1359: nobody notices sound that leads by less.
const SKEW_MAX: f64 = 0.045;

/// From a packet's capture, by its publisher's own count, to the moment for which the viewer takes it.
fn delay(got: &Got) -> Option<f64> {
    let captured = match got.kind {
        MediaKind::Video => f64::from(got.stamp.frame) / 30.0,
        // The simulator's audio starts 7 ms after its video.
        MediaKind::Audio => 0.007 + f64::from(got.stamp.packet) * 0.02,
    };
    Some(got.shown_at? - captured)
}

/// The largest distance between audio and video of one publisher, packet by packet.
fn skew(world: &World, viewer: ClientId) -> BTreeMap<u32, f64> {
    let mut latest: BTreeMap<u32, [Option<f64>; 2]> = BTreeMap::new();
    let mut worst = BTreeMap::new();
    for got in world.client(viewer).got() {
        let Some(delay) = delay(got) else { continue };
        let both = latest.entry(got.stamp.source).or_default();
        both[got.kind as usize] = Some(delay);
        if let [Some(audio), Some(video)] = both {
            let skew = (*audio - *video).abs();
            let worst: &mut f64 = worst.entry(got.stamp.source).or_default();
            *worst = worst.max(skew);
        }
    }
    worst
}

fn assert_in_sync(world: &World, viewers: &[ClientId], publishers: usize) {
    for viewer in viewers {
        let skew = skew(world, *viewer);
        assert_eq!(skew.len(), publishers, "{skew:?}");
        assert!(skew.values().all(|s| *s <= SKEW_MAX), "seed {}: {viewer:?}: {skew:?} s", world.seed);
    }
}

#[test]
fn sound_stays_with_the_picture_when_publishers_change() {
    for (seed, shards) in [(500, 1), (501, 4)] {
        let mut world = World::new(seed, shards);
        let first = world.publish("a", Source { keyframe_interval: 60, ..Source::default() }, Path::CLEAN);
        world.run_for(3 * SECOND);
        let viewers: Vec<_> = (0..3).map(|_| world.watch("a", Path::CLEAN)).collect();
        world.run_for(4 * SECOND);
        world.kill(first);
        world.run_for(2 * SECOND);
        world.publish("a", Source { id: 2, keyframe_interval: 60, ..Source::default() }, Path::CLEAN);
        world.run_for(4 * SECOND);
        world.publish("a", Source { id: 3, ..Source::default() }, Path::LOSSY);
        world.run_for(4 * SECOND);
        sound(&mut world, &viewers);
        assert_in_sync(&world, &viewers, 3);
    }
}

#[test]
fn sound_stays_with_the_picture_when_layers_change() {
    let mut world = World::new(510, 2);
    world.publish("a", Source { layers: 3, ..Source::default() }, Path::CLEAN);
    world.run_for(2 * SECOND);
    let viewers: Vec<_> = (0..3).map(|_| world.watch("a", Path::CLEAN)).collect();
    world.run_for(3 * SECOND);
    for rid in ["m", "l", "m", "l"] {
        for viewer in &viewers {
            assert_eq!(world.choose_layer(*viewer, &format!("{{\"rid\":\"{rid}\"}}")), 200);
        }
        world.run_for(2 * SECOND);
    }
    sound(&mut world, &viewers);
    for viewer in &viewers {
        let video = world.client(*viewer).got().iter().filter(|g| g.kind == MediaKind::Video);
        let mut layers: Vec<u8> = video.map(|g| g.stamp.layer).collect();
        layers.dedup();
        assert!(layers.len() >= 4, "{layers:?}");
    }
    assert_in_sync(&world, &viewers, 1);
}
