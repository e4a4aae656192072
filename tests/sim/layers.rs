//! Simulcast: a publisher with three layers, and viewers that see one of them at a time, as their links allow.

use std::collections::BTreeSet;
use std::time::Duration;

use manycast::sim::client::Source;
use manycast::sim::{ClientId, Path, World, oracle};
use manycast::units::{Bitrate, Instant};
use str0m::media::MediaKind;

use crate::{SECOND, sound};

fn three_layers() -> Source {
    Source { layers: 3, ..Source::default() }
}

/// As browsers send them: 150 kbit/s, 0.5 and 1.7 Mbit/s.
fn browser_layers() -> Source {
    Source { packets_per_frame: 1, bytes_per_packet: 600, packets_by_layer: [1, 3, 11], ..three_layers() }
}

/// Layers that a viewer has seen, in order.
fn layers(world: &World, viewer: ClientId) -> Vec<u8> {
    switches(world, viewer, Instant::ZERO).iter().map(|(_, layer)| *layer).collect()
}

/// Layers that a viewer has seen since `from`, each with its first packet's arrival.
fn switches(world: &World, viewer: ClientId, from: Instant) -> Vec<(Instant, u8)> {
    let got = world.client(viewer).got().iter().filter(|g| g.kind == MediaKind::Video && g.at >= from);
    let mut layers: Vec<(Instant, u8)> = got.map(|g| (g.at, g.stamp.layer)).collect();
    layers.dedup_by_key(|(_, layer)| *layer);
    layers
}

/// From `from` until a viewer saw nothing but `layer`.
#[track_caller]
fn settled(world: &World, viewer: ClientId, from: Instant, layer: u8) -> Duration {
    let seen = switches(world, viewer, from);
    match seen.last() {
        Some((at, last)) if *last == layer => *at - from,
        _ => panic!("seed {}: {viewer:?} saw {seen:?}", world.seed),
    }
}

/// Layers that a viewer has seen for a while: what was lost of one comes again among packets of the next.
fn stays(world: &World, viewer: ClientId) -> Vec<u8> {
    let seen = switches(world, viewer, Instant::ZERO);
    let ends = seen.iter().skip(1).map(|(at, _)| *at).chain([world.now()]);
    let long = seen.iter().zip(ends).filter(|((at, _), end)| *end - *at >= SECOND / 5);
    let mut layers: Vec<u8> = long.map(|((_, layer), _)| *layer).collect();
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
    let start = world.now();
    let viewers: Vec<_> = (0..3).map(|_| world.watch("a", Path::LOSSY)).collect();
    world.run_for(60 * SECOND);
    sound(&mut world, &viewers);
    for viewer in viewers {
        // Random loss of 5 % is not a full link.
        let up = settled(&world, viewer, start, 2);
        assert!(up <= 20 * SECOND, "{:?}", switches(&world, viewer, start));
        let stays = stays(&world, viewer);
        assert!(stays.is_sorted(), "{stays:?}");
    }
}

#[test]
fn one_viewers_bad_link_costs_it_its_layer_and_others_nothing() {
    for (seed, shards) in [(430, 1), (431, 4), (432, 4)] {
        let mut world = World::new(seed, shards);
        world.publish("a", browser_layers(), Path::CLEAN);
        world.run_for(2 * SECOND);
        let start = world.now();
        let (wide, thin) = (Path::narrow(Bitrate::from_bps(5_000_000)), Path::narrow(Bitrate::from_bps(1_000_000)));
        let viewers: Vec<_> = (0..4).map(|_| world.watch("a", wide)).collect();
        world.run_for(20 * SECOND);
        let first = viewers.iter().map(|v| settled(&world, *v, start, 2)).max();

        let (fall, victim) = (world.now(), viewers[0]);
        world.set_path(victim, thin);
        world.run_for(25 * SECOND);
        let down = settled(&world, victim, fall, 1);
        let rise = world.now();
        world.set_path(victim, wide);
        world.run_for(30 * SECOND);
        let up = settled(&world, victim, rise, 2);
        // One down, one up.
        let flaps = (switches(&world, victim, fall).len() - 3).div_ceil(2);
        println!("seed {seed}: first {first:?}, down {down:?}, up {up:?}, {flaps} flaps");
        assert!(down <= 5 * SECOND, "seed {seed}: {down:?}");
        assert!(up <= 20 * SECOND, "seed {seed}: {up:?}");
        assert!(flaps <= 2, "seed {seed}: {:?}", switches(&world, victim, fall));

        sound(&mut world, &viewers[1..]);
        for other in &viewers[1..] {
            assert_eq!(switches(&world, *other, fall).len(), 1, "seed {seed}: {other:?} switched");
            assert_eq!(oracle::judge(world.client(*other).got(), MediaKind::Video).missing, 0, "seed {seed}");
        }
    }
}

#[test]
fn a_stream_of_one_layer_costs_no_estimation() {
    let mut world = World::new(440, 1);
    world.publish("one", Source::default(), Path::CLEAN);
    world.publish("three", three_layers(), Path::CLEAN);
    world.run_for(2 * SECOND);
    let (one, three) = (world.watch("one", Path::CLEAN), world.watch("three", Path::CLEAN));
    let negotiated = |viewer| world.client(viewer).answer().contains("transport-wide-cc");
    assert_eq!((negotiated(one), negotiated(three)), (false, true));
    world.delete(three);
    world.run_for(10 * SECOND);
    sound(&mut world, &[one]);
    assert_eq!(world.counters().iter().map(|c| c.padding_sent).sum::<u64>(), 0);
}
