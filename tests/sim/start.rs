//! A viewer's first picture: soon, whole, and at the present a moment later, whatever the publisher does.

use std::time::Duration;

use manycast::metrics::Counters;
use manycast::sim::client::{Got, Source};
use manycast::sim::{ClientId, Path, World, oracle};
use str0m::media::MediaKind;

use crate::{SECOND, sound};

/// OBS and ffmpeg: a keyframe every 10 s, whoever asks.
fn deaf() -> Source {
    Source { keyframe_interval: 300, answers_pli: false, ..Source::default() }
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn video(world: &World, viewer: ClientId) -> Vec<Got> {
    world.client(viewer).got().iter().filter(|g| g.kind == MediaKind::Video).copied().collect()
}

/// From DTLS connected to the first video packet.
fn first_picture(world: &World, viewer: ClientId) -> Duration {
    let got = video(world, viewer);
    let connected = world.client(viewer).connected_at.expect("connected");
    got.first().expect("video came").at.since(connected)
}

fn sum(world: &mut World, of: fn(&Counters) -> u64) -> u64 {
    world.counters().iter().map(of).sum()
}

#[test]
fn a_publisher_that_ignores_requests_does_not_keep_viewers_waiting() {
    for (seed, shards) in [(300, 1), (301, 4)] {
        let mut world = World::new(seed, shards);
        world.publish("a", deaf(), Path::CLEAN);
        world.run_for(4 * SECOND);
        let first = world.watch("a", Path::CLEAN);
        world.run_for(2 * SECOND);
        assert!(first_picture(&world, first) < millis(450), "seed {seed}: {:?}", first_picture(&world, first));
        let mut viewers = vec![first];
        for _ in 0..8 {
            let viewer = world.watch("a", Path::CLEAN);
            world.run_for(millis(400));
            assert!(first_picture(&world, viewer) < millis(20), "seed {seed}: {:?}", first_picture(&world, viewer));
            viewers.push(viewer);
        }
        world.run_for(8 * SECOND);
        sound(&mut world, &viewers);
        let newest = video(&world, first).last().expect("video").stamp.packet;
        for viewer in viewers {
            let got = video(&world, viewer);
            assert_eq!(oracle::judge(&got, MediaKind::Video).missing, 0, "seed {seed}");
            // At the present: the same packet came last for all.
            assert!(got.last().expect("video").stamp.packet.abs_diff(newest) <= 4, "seed {seed}");
            // Nothing of the past was skipped on the way there, unless a keyframe was a shorter one.
            for pair in got.windows(2) {
                let step = pair[1].stamp.packet.wrapping_sub(pair[0].stamp.packet);
                let keyframe = pair[1].stamp.keyframe && pair[1].stamp.first_of_frame;
                assert!(step == 1 || keyframe, "seed {seed}: {pair:?}");
            }
        }
    }
}

#[test]
fn a_replay_reaches_the_present_faster_than_it_was_sent() {
    let mut world = World::new(310, 2);
    world.publish("a", deaf(), Path::CLEAN);
    world.run_for(2 * SECOND);
    world.watch("a", Path::CLEAN);
    world.run_for(6 * SECOND);
    let viewer = world.watch("a", Path::CLEAN);
    world.run_for(2 * SECOND);
    let got = video(&world, viewer);
    // Captures are 1/30 s apart, four packets each: behind by as many frames as the publisher had sent since.
    let started = got[0].at;
    let behind = |g: &Got| {
        let frame = Duration::from_secs(1) / 30;
        (g.at.since(started)).as_secs_f64() - (g.stamp.frame - got[0].stamp.frame) as f64 * frame.as_secs_f64()
    };
    let last = got.last().expect("video");
    let lag_at_start = -behind(last);
    assert!((7.0..9.0).contains(&lag_at_start), "the keyframe was {lag_at_start} s old");
    let caught_up = got.iter().find(|g| -behind(g) > lag_at_start - 0.05).expect("it does");
    let took = caught_up.at.since(started);
    assert!(took < millis(1300), "{took:?} for {lag_at_start} s");
    // A decoder's clock is right from the first packet on: each comes when its timestamp says, as if it had been captured then.
    for g in &got {
        let captured = f64::from(last.timestamp.wrapping_sub(g.timestamp)) / 90_000.0;
        let late = captured - last.at.since(g.at).as_secs_f64();
        assert!(late.abs() < 0.08, "{late} s: {g:?}");
    }
}

#[test]
fn a_publisher_that_answers_is_asked_and_five_hundred_joins_are_two_requests() {
    let mut world = World::new(320, 4);
    let publisher = world.publish("a", Source::default(), Path::CLEAN);
    world.run_for(5 * SECOND);
    let before = world.client(publisher).keyframe_requests();
    let mut viewers = Vec::new();
    for _ in 0..100 {
        viewers.extend((0..5).map(|_| world.watch("a", Path::CLEAN)));
        world.run_for(millis(10));
    }
    let asked = world.client(publisher).keyframe_requests() - before;
    assert!((1..=2).contains(&asked), "{asked} requests");
    world.run_for(SECOND);
    sound(&mut world, &viewers);
    for viewer in viewers {
        assert!(first_picture(&world, viewer) < millis(100), "{:?}", first_picture(&world, viewer));
    }
}

/// A replay is no smaller than what it replays: a crowd that comes at once gets the keyframe each, and the rest of the past as
/// far as the shard can afford it.
#[test]
fn a_crowd_that_comes_at_once_is_given_keyframes_and_nobody_else_suffers() {
    let mut world = World::new(330, 1);
    // 8 Mbit/s.
    let source = Source { packets_per_frame: 30, keyframe_interval: 300, ..deaf() };
    world.publish("a", source, Path::CLEAN);
    world.run_for(SECOND);
    let present = world.watch("a", Path::CLEAN);
    // 5 MB of past then: six of them fit into a second's budget.
    world.run_for(4 * SECOND);
    let crowd: Vec<_> = (0..12).map(|_| world.watch("a", Path::CLEAN)).collect();
    world.run_for(3 * SECOND);
    sound(&mut world, &crowd);
    assert_eq!(oracle::judge(&video(&world, present), MediaKind::Video).missing, 0);
    let started = sum(&mut world, |c| c.replays_started);
    assert_eq!(started, 13);
    let whole = crowd.iter().filter(|v| video(&world, **v).len() > 60).count();
    assert!((4..=8).contains(&whole), "{whole} whole replays");
    for viewer in &crowd {
        assert!(first_picture(&world, *viewer) < millis(100));
        assert!(video(&world, *viewer).len() >= 30, "the keyframe");
    }
    // The next keyframe, at 10 s, brings all of them to the present.
    world.run_for(4 * SECOND);
    sound(&mut world, &crowd);
    let newest = video(&world, present).last().expect("video").stamp.packet;
    for viewer in crowd {
        assert!(video(&world, viewer).last().expect("video").stamp.packet.abs_diff(newest) <= 30);
    }
}

#[test]
fn what_is_lost_of_a_replay_is_repaired() {
    let mut world = World::new(340, 2);
    world.publish("a", deaf(), Path::CLEAN);
    world.run_for(2 * SECOND);
    world.watch("a", Path::CLEAN);
    world.run_for(6 * SECOND);
    let viewer = world.watch("a", Path::LOSSY);
    world.run_for(3 * SECOND);
    sound(&mut world, &[viewer]);
    let judged = oracle::judge(world.client(viewer).got(), MediaKind::Video);
    assert!(judged.packets > 900, "{judged:?}");
    // One in twenty is lost, repairs too. str0m's receiver looks back a hundred packets, which a replay passes in a tenth of a
    // second, so it does not ask for all of them.
    assert!(judged.missing * 30 < judged.packets as u64, "{judged:?}");
    assert!(sum(&mut world, |c| c.packets_resent) > 50);
}
