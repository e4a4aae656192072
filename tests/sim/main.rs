//! The whole SFU under virtual time, with str0m clients and a seed.

mod layers;
mod lip_sync;
mod seeds;
mod start;

use std::time::Duration;

use manycast::sim::client::Source;
use manycast::sim::{Path, World, oracle};
use str0m::media::MediaKind;

const SECOND: Duration = Duration::from_secs(1);

/// Fails with the seed that replays the run.
#[track_caller]
fn sound(world: &mut World, viewers: &[manycast::sim::ClientId]) {
    let seed = world.seed;
    for viewer in viewers {
        for kind in [MediaKind::Audio, MediaKind::Video] {
            let judged = oracle::judge(world.client(*viewer).got(), kind);
            assert!(judged.faults.is_empty(), "seed {seed}: {viewer:?} {kind}: {:#?}", judged.faults);
            if judged.packets > 0 && world.path(*viewer).loss == 0.0 {
                assert!(judged.starts_whole, "seed {seed}: {viewer:?} {kind}: does not start on a keyframe");
            }
        }
    }
    let counters = world.counters();
    oracle::conservation(&counters, world.rtp_sent()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    // Two writers under one key would seal an index twice: str0m never even tries.
    let suppressed: u64 = counters.iter().map(|c| c.str0m_media_suppressed).sum();
    assert_eq!(suppressed, 0, "seed {seed}: str0m wanted to send media beside us");
}

fn clean_run(seed: u64, shards: u16) -> Vec<(usize, usize, u64)> {
    let mut world = World::new(seed, shards);
    world.publish("a", Source::default(), Path::CLEAN);
    world.run_for(SECOND);
    let viewers: Vec<_> = (0..8).map(|_| world.watch("a", Path::CLEAN)).collect();
    world.run_for(5 * SECOND);
    sound(&mut world, &viewers);
    viewers
        .iter()
        .map(|v| {
            let video = oracle::judge(world.client(*v).got(), MediaKind::Video);
            let audio = oracle::judge(world.client(*v).got(), MediaKind::Audio);
            (video.packets, audio.packets, video.missing + audio.missing)
        })
        .collect()
}

#[test]
fn every_viewer_gets_the_stream_whole() {
    for outcome in clean_run(1, 1) {
        let (video, audio, missing) = outcome;
        // 5 s less the handshake: 30 frames/s of 4 packets, 50 audio packets/s; and what of the second before was replayed
        // until the keyframe came.
        assert!((520..=720).contains(&video), "{outcome:?}");
        assert!((230..=255).contains(&audio), "{outcome:?}");
        assert_eq!(missing, 0);
    }
}

#[test]
fn four_shards_do_what_one_does() {
    let one = clean_run(2, 1);
    let four = clean_run(2, 4);
    assert_eq!(one.len(), four.len());
    for (a, b) in one.iter().zip(&four) {
        assert_eq!((a.2, b.2), (0, 0));
        // 20 µs from shard to shard may move a packet across the end of the run.
        assert!(a.0.abs_diff(b.0) <= 8 && a.1.abs_diff(b.1) <= 2, "{a:?} {b:?}");
    }
}

#[test]
fn losses_on_both_legs_are_repaired() {
    for seed in 10..14 {
        let mut world = World::new(seed, 2);
        world.publish("a", Source { keyframe_interval: 60, ..Source::default() }, Path::LOSSY);
        world.run_for(2 * SECOND);
        let viewers: Vec<_> = (0..4).map(|_| world.watch("a", Path::LOSSY)).collect();
        world.run_for(10 * SECOND);
        sound(&mut world, &viewers);
        for viewer in viewers {
            let video = oracle::judge(world.client(viewer).got(), MediaKind::Video);
            assert!(video.packets > 800, "seed {seed}: {video:?}");
            // Without repair it would be one in ten.
            assert!(video.missing as usize * 50 < video.packets, "seed {seed}: {video:?}");
        }
    }
}

#[test]
fn a_second_publisher_takes_over_and_viewers_see_one_stream() {
    for (seed, shards) in [(20, 1), (21, 4), (22, 4), (23, 3)] {
        let mut world = World::new(seed, shards);
        let first = world.publish("a", Source { id: 1, ..Source::default() }, Path::CLEAN);
        world.run_for(SECOND);
        let viewers: Vec<_> = (0..5).map(|_| world.watch("a", Path::CLEAN)).collect();
        world.run_for(2 * SECOND);
        world.publish("a", Source { id: 2, ..Source::default() }, Path::CLEAN);
        world.run_for(3 * SECOND);
        sound(&mut world, &viewers);
        assert!(world.client(first).closed, "seed {seed}: the first publisher was told goodbye");
        for viewer in viewers {
            let got = world.client(viewer).got();
            assert!(got.iter().any(|g| g.stamp.source == 1) && got.iter().any(|g| g.stamp.source == 2));
            assert_eq!(oracle::judge(got, MediaKind::Video).missing, 0, "seed {seed}");
        }
    }
}

#[test]
fn a_killed_publisher_comes_back_and_nobody_renegotiates() {
    let mut world = World::new(30, 3);
    let first = world.publish("a", Source { id: 1, ..Source::default() }, Path::CLEAN);
    world.run_for(SECOND);
    let viewers: Vec<_> = (0..5).map(|_| world.watch("a", Path::CLEAN)).collect();
    world.run_for(2 * SECOND);
    world.kill(first);
    world.run_for(8 * SECOND);
    let back = world.now();
    world.publish("a", Source { id: 2, ..Source::default() }, Path::CLEAN);
    world.run_for(3 * SECOND);
    sound(&mut world, &viewers);
    for viewer in viewers {
        let got = world.client(viewer).got();
        let again = got.iter().find(|g| g.stamp.source == 2 && g.kind == MediaKind::Video).expect("plays on");
        assert!(again.at.since(back) < SECOND, "after {:?}", again.at.since(back));
        assert_eq!(oracle::judge(got, MediaKind::Video).missing, 0);
    }
}

#[test]
fn a_seed_is_a_run() {
    let run = |keep: bool| {
        let mut world = World::new(40, 3);
        if keep {
            world.trace.keep_log();
        }
        world.publish("a", Source::default(), Path::LOSSY);
        world.run_for(SECOND);
        let viewer = world.watch("a", Path::LOSSY);
        world.watch("a", Path::CLEAN);
        world.run_for(4 * SECOND);
        world.leave(viewer);
        world.run_for(SECOND);
        world.trace
    };
    let (a, b) = (run(true), run(true));
    let parted = a.log().iter().zip(b.log()).enumerate().find(|(_, (a, b))| a != b);
    assert_eq!(parted, None);
    assert_eq!(a.hash(), b.hash());
    assert!(a.lines() > 1000);
}

#[test]
fn joining_viewers_cause_few_keyframe_requests() {
    let mut world = World::new(50, 2);
    let publisher = world.publish("a", Source::default(), Path::CLEAN);
    world.run_for(SECOND);
    let viewers: Vec<_> = (0..40)
        .map(|_| {
            let viewer = world.watch("a", Path::CLEAN);
            world.run_for(SECOND / 40);
            viewer
        })
        .collect();
    world.run_for(2 * SECOND);
    sound(&mut world, &viewers);
    let asked = world.client(publisher).keyframe_requests();
    assert!((1..=3).contains(&asked), "{asked} requests for 40 joins within a second");
    assert!(viewers.iter().all(|v| !world.client(*v).got().is_empty()));
}

#[test]
fn a_viewer_that_leaves_is_forgotten() {
    let mut world = World::new(60, 2);
    world.publish("a", Source::default(), Path::CLEAN);
    world.run_for(SECOND);
    let viewer = world.watch("a", Path::CLEAN);
    let silent = world.watch("a", Path::CLEAN);
    world.run_for(2 * SECOND);
    assert_eq!(world.sessions(), 3);
    world.leave(viewer);
    world.run_for(SECOND);
    assert_eq!(world.sessions(), 2);
    world.kill(silent);
    world.run_for(20 * SECOND);
    assert_eq!(world.sessions(), 2, "30 s without an authenticated packet, not less");
    world.run_for(12 * SECOND);
    assert_eq!(world.sessions(), 1);
}

#[test]
fn a_path_that_the_kernel_gives_to_another_shard_is_handed_over() {
    let mut moved = 0;
    for seed in 70..76 {
        let mut world = World::new(seed, 4);
        let publisher = world.publish("a", Source::default(), Path::CLEAN);
        world.run_for(SECOND);
        let viewer = world.watch("a", Path::CLEAN);
        world.run_for(2 * SECOND);
        for client in [viewer, publisher] {
            let before = world.arrives_at(client);
            world.rebind(client);
            moved += usize::from(world.arrives_at(client) != before);
            world.run_for(15 * SECOND);
            let last = world.client(viewer).got().iter().rev().find(|g| g.kind == MediaKind::Video);
            let silent = world.now().since(last.expect("video").at);
            assert!(silent < SECOND, "seed {seed}: {client:?} rebound, no video for {silent:?}");
        }
        assert_eq!(world.sessions(), 2, "seed {seed}: nobody was lost");
        // What was under way when the address changed is gone; nothing may be misnumbered by it.
        sound(&mut world, &[viewer]);
    }
    assert!(moved >= 6, "{moved} of 12 paths changed their shard");
}

#[test]
fn a_deleted_session_says_goodbye() {
    let mut world = World::new(80, 2);
    let publisher = world.publish("a", Source::default(), Path::CLEAN);
    world.run_for(SECOND);
    let viewer = world.watch("a", Path::CLEAN);
    world.run_for(SECOND);
    assert_eq!(world.delete(viewer), 200);
    world.run_for(SECOND);
    assert!(world.client(viewer).closed && world.sessions() == 1);
    assert_eq!(world.delete(viewer), 200, "again, within a minute");
    assert_eq!(world.delete(publisher), 200);
    world.run_for(SECOND);
    assert!(world.client(publisher).closed && world.sessions() == 0);
}

#[test]
fn viewers_outlive_their_publisher_by_its_grace_only() {
    let mut world = World::new(90, 2);
    let publisher = world.publish("a", Source::default(), Path::CLEAN);
    world.run_for(SECOND);
    let viewer = world.watch("a", Path::CLEAN);
    world.run_for(SECOND);
    world.leave(publisher);
    world.run_for(28 * SECOND);
    assert!(!world.client(viewer).closed);
    world.run_for(4 * SECOND);
    assert!(world.client(viewer).closed && world.sessions() == 0);
}

#[test]
fn strangers_get_no_answer_and_cost_nothing() {
    use manycast::metrics::DropReason;
    use manycast::wire::stun::write_binding_request;
    let mut world = World::new(100, 2);
    world.publish("a", Source::default(), Path::CLEAN);
    world.run_for(SECOND);
    let viewer = world.watch("a", Path::CLEAN);
    world.run_for(SECOND);
    let stranger = "198.51.100.7:4000".parse().expect("an address");
    let mut garbage: Vec<Vec<u8>> = vec![vec![], vec![0], vec![0x80; 4], vec![0xff; 2000], vec![0x16; 300]];
    garbage.push(vec![0x80; 1200]);
    garbage.push([&[0x80, 200][..], &[0; 60]].concat());
    garbage.push(write_binding_request("nobody:me", "some password of some", [7; 12], true));
    for cut in [4, 19, 21, 40] {
        garbage.push(write_binding_request("nobody:me", "some password of some", [7; 12], true)[..cut].to_vec());
    }
    let count = garbage.len() as u64;
    let before: u64 = world.counters().iter().map(|c| c.drops.total()).sum();
    for datagram in garbage {
        world.inject(stranger, datagram);
    }
    world.run_for(SECOND);
    let counters = world.counters();
    assert_eq!(counters.iter().map(|c| c.drops.total()).sum::<u64>() - before, count);
    assert_eq!(counters.iter().map(|c| c.drops.of(DropReason::StunUnknownUfrag)).sum::<u64>(), 1);
    assert_eq!(world.sent_to(stranger), 0);
    let packets = world.client(viewer).got().len();
    world.run_for(SECOND);
    assert!(world.client(viewer).got().len() > packets + 100, "the healthy session goes on");
    sound(&mut world, &[viewer]);
}

#[test]
fn a_viewer_with_another_certificate_than_its_offer_names_gets_no_media() {
    for seed in 110..114 {
        let mut world = World::new(seed, 2);
        world.publish("a", Source::default(), Path::CLEAN);
        world.run_for(SECOND);
        let impostor = world.watch_as_impostor("a", Path::CLEAN);
        world.run_for(5 * SECOND);
        assert!(world.client(impostor).got().is_empty(), "seed {seed}");
        let counters = world.counters();
        assert_eq!(
            counters.iter().map(|c| c.media_forwarded).sum::<u64>(),
            0,
            "seed {seed}: nothing was sealed for it"
        );
        assert_eq!(counters.iter().map(|c| c.str0m_media_suppressed).sum::<u64>(), 0, "seed {seed}");
        assert_eq!(world.sessions(), 1, "seed {seed}: it is gone, the publisher is not");
        let viewer = world.watch("a", Path::CLEAN);
        world.run_for(SECOND);
        assert!(world.client(viewer).got().len() > 100, "seed {seed}: others are served");
        sound(&mut world, &[viewer]);
    }
}

#[test]
fn a_publisher_with_another_certificate_than_its_offer_names_is_not_heard() {
    let mut world = World::new(115, 2);
    world.publish("a", Source { id: 1, ..Source::default() }, Path::CLEAN);
    world.run_for(SECOND);
    let viewer = world.watch("a", Path::CLEAN);
    world.run_for(2 * SECOND);
    world.publish_as_impostor("a", Source { id: 2, ..Source::default() }, Path::CLEAN);
    world.run_for(5 * SECOND);
    let got = world.client(viewer).got();
    assert!(got.iter().all(|g| g.stamp.source == 1), "the stream was not taken over");
    let last = got.last().expect("media").at;
    assert!(world.now().since(last) < SECOND, "and goes on");
    sound(&mut world, &[viewer]);
}

#[test]
fn sessions_live_on_when_the_certificate_changes() {
    let mut world = World::new(120, 2);
    world.publish("a", Source { id: 1, ..Source::default() }, Path::CLEAN);
    world.run_for(SECOND);
    let old = world.watch("a", Path::CLEAN);
    world.run_for(SECOND);
    // One that has its answer and not yet shaken hands, too.
    let between = world.watch("a", Path::CLEAN);
    world.rotate_certificate();
    let new = world.watch("a", Path::CLEAN);
    world.run_for(3 * SECOND);
    for viewer in [old, between, new] {
        let got = world.client(viewer).got();
        let last = got.last().unwrap_or_else(|| panic!("{viewer:?} got nothing")).at;
        assert!(world.now().since(last) < SECOND, "{viewer:?}");
    }
    world.publish("a", Source { id: 2, ..Source::default() }, Path::CLEAN);
    world.run_for(3 * SECOND);
    for viewer in [old, between, new] {
        assert!(world.client(viewer).got().iter().any(|g| g.stamp.source == 2), "{viewer:?}");
    }
    sound(&mut world, &[old, between, new]);
}

/// Whoever can write another's address on his datagrams gets through the gate, and no further.
#[test]
fn a_flood_of_forged_rtcp_moves_nothing() {
    use manycast::metrics::DropReason;
    let mut world = World::new(130, 2);
    let publisher = world.publish("a", Source::default(), Path::CLEAN);
    world.run_for(SECOND);
    let viewer = world.watch("a", Path::CLEAN);
    world.run_for(2 * SECOND);
    let totals = |world: &mut World| {
        let counters = world.counters();
        let sum = |f: fn(&manycast::metrics::Counters) -> u64| counters.iter().map(f).sum::<u64>();
        (
            sum(|c| c.nacks_received),
            sum(|c| c.packets_resent),
            sum(|c| c.keyframe_requests_received),
            sum(|c| c.drops.of(DropReason::RtcpDiscarded)),
        )
    };
    let (before, asked) = (totals(&mut world), world.client(publisher).keyframe_requests());
    let from = world.client(viewer).addr();
    for n in 0..5000u32 {
        // NACK, PLI and FIR by their first bytes; what follows is noise of any length.
        let first = [[0x81, 205], [0x81, 206], [0x84, 206]][n as usize % 3];
        let noise = (0..40 + n % 1200).map(|i| (i.wrapping_mul(n).wrapping_mul(2_654_435_761) >> 24) as u8);
        world.inject(from, first.into_iter().chain(noise).collect());
        if n % 100 == 0 {
            world.run_for(SECOND / 50);
        }
    }
    world.run_for(2 * SECOND);
    let after = totals(&mut world);
    assert_eq!((after.0, after.1, after.2), (before.0, before.1, before.2), "nothing was asked for");
    assert_eq!(after.3, before.3 + 5000, "each one was counted");
    assert_eq!(world.client(publisher).keyframe_requests(), asked);
    let judged = oracle::judge(world.client(viewer).got(), MediaKind::Video);
    assert_eq!(judged.missing, 0);
    sound(&mut world, &[viewer]);
}

/// Forged RTCP does not keep a session alive whose client is gone.
#[test]
fn only_authentic_packets_are_signs_of_life() {
    let mut world = World::new(140, 2);
    world.publish("a", Source::default(), Path::CLEAN);
    world.run_for(SECOND);
    let viewer = world.watch("a", Path::CLEAN);
    world.run_for(2 * SECOND);
    world.kill(viewer);
    let from = world.client(viewer).addr();
    for _ in 0..35 {
        world.inject(from, [&[0x81, 205, 0, 9][..], &[7; 36]].concat());
        world.run_for(SECOND);
    }
    assert_eq!(world.sessions(), 1);
}

/// str0m is told the whole offer again, and must not get its senders back by that.
#[test]
fn media_goes_on_when_ice_restarts() {
    for seed in 160..164 {
        let mut world = World::new(seed, 3);
        let publisher = world.publish("a", Source::default(), Path::CLEAN);
        world.run_for(SECOND);
        let viewer = world.watch("a", Path::CLEAN);
        world.run_for(2 * SECOND);
        for client in [viewer, publisher, viewer] {
            world.rebind(client);
            world.restart_ice(client);
            let restarted = world.now();
            world.run_for(8 * SECOND);
            let got = world.client(viewer).got();
            let after = got.iter().find(|g| g.kind == MediaKind::Video && g.at > restarted).expect("video goes on");
            assert!(
                after.at.since(restarted) < SECOND,
                "seed {seed}: {client:?}: after {:?}",
                after.at.since(restarted)
            );
            assert!(world.now().since(got.last().expect("media").at) < SECOND, "seed {seed}: {client:?}");
        }
        sound(&mut world, &[viewer]);
    }
}

/// All that can happen to a stream and to its viewers, over a bad network.
#[test]
fn whole_lives_are_sound() {
    for seed in 150..154 {
        let mut world = World::new(seed, 3);
        let source = |id| Source { id, keyframe_interval: 60, ..Source::default() };
        let first = world.publish("a", source(1), Path::LOSSY);
        world.run_for(2 * SECOND);
        let viewers: Vec<_> = (0..4).map(|_| world.watch("a", Path::LOSSY)).collect();
        world.run_for(3 * SECOND);
        world.rebind(viewers[0]);
        world.restart_ice(viewers[0]);
        world.request_keyframe(viewers[1]);
        world.run_for(2 * SECOND);
        world.kill(first);
        world.run_for(5 * SECOND);
        // Its goodbye, when the third takes over, may be lost: DTLS does not repeat it.
        world.publish("a", source(2), Path::LOSSY);
        world.run_for(3 * SECOND);
        world.publish("a", source(3), Path::LOSSY);
        world.run_for(3 * SECOND);
        world.leave(viewers[2]);
        assert_eq!(world.delete(viewers[3]), 200, "seed {seed}");
        world.run_for(20 * SECOND);
        sound(&mut world, &viewers);
        let sources = |v: manycast::sim::ClientId| {
            let got = world.client(v).got().iter();
            got.map(|g| g.stamp.source).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(sources(viewers[0]).len(), 3, "seed {seed}");
    }
}
