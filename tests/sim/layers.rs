//! Simulcast: a publisher with three layers, and viewers that see one of them at a time.

use std::collections::BTreeSet;

use manycast::sim::client::Source;
use manycast::sim::{Path, World, oracle};
use str0m::media::MediaKind;

use crate::{SECOND, sound};

fn three_layers() -> Source {
    Source { layers: 3, ..Source::default() }
}

/// Layers that a viewer has seen, in order.
fn layers(world: &World, viewer: manycast::sim::ClientId) -> Vec<u8> {
    let got = world.client(viewer).got().iter().filter(|g| g.kind == MediaKind::Video);
    let mut layers: Vec<u8> = got.map(|g| g.stamp.layer).collect();
    layers.dedup();
    layers
}

#[test]
fn every_viewer_ends_up_with_the_highest_layer_and_sees_one_video() {
    for (seed, shards) in [(400, 1), (401, 4)] {
        let mut world = World::new(seed, shards);
        world.publish("a", three_layers(), Path::CLEAN);
        world.run_for(2 * SECOND);
        let viewers: Vec<_> = (0..6).map(|_| world.watch("a", Path::CLEAN)).collect();
        world.run_for(25 * SECOND);
        sound(&mut world, &viewers);
        for viewer in viewers {
            let seen = layers(&world, viewer);
            assert_eq!(seen.last(), Some(&2), "seed {seed}: {seen:?}");
            assert!(seen.len() <= 3, "seed {seed}: {seen:?}");
            assert_eq!(oracle::judge(world.client(viewer).got(), MediaKind::Video).missing, 0, "seed {seed}");
        }
    }
}

#[test]
fn a_publisher_comes_back_without_layers_and_again_with_them() {
    let mut world = World::new(410, 2);
    let first = world.publish("a", three_layers(), Path::CLEAN);
    world.run_for(2 * SECOND);
    let viewers: Vec<_> = (0..4).map(|_| world.watch("a", Path::CLEAN)).collect();
    world.run_for(8 * SECOND);
    world.kill(first);
    world.run_for(SECOND);
    world.publish("a", Source { id: 2, ..Source::default() }, Path::CLEAN);
    world.run_for(4 * SECOND);
    world.publish("a", Source { id: 3, ..three_layers() }, Path::CLEAN);
    world.run_for(8 * SECOND);
    sound(&mut world, &viewers);
    for viewer in viewers {
        let got = world.client(viewer).got();
        let video = got.iter().filter(|g| g.kind == MediaKind::Video);
        let sources: BTreeSet<(u32, u8)> = video.map(|g| (g.stamp.source, g.stamp.layer)).collect();
        assert!(sources.contains(&(1, 2)) && sources.contains(&(2, 0)) && sources.contains(&(3, 2)), "{sources:?}");
        assert_eq!(layers(&world, viewer).last(), Some(&2));
    }
}

#[test]
fn losses_do_not_mix_up_layers() {
    let mut world = World::new(420, 2);
    world.publish("a", Source { keyframe_interval: 60, ..three_layers() }, Path::LOSSY);
    world.run_for(2 * SECOND);
    let viewers: Vec<_> = (0..3).map(|_| world.watch("a", Path::LOSSY)).collect();
    world.run_for(25 * SECOND);
    sound(&mut world, &viewers);
    for viewer in viewers {
        assert_eq!(layers(&world, viewer).last(), Some(&2));
    }
}
