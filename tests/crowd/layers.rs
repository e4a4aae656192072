//! A viewer and three layers of one video: what it gets when it, or the publisher, changes its mind.

use std::sync::Arc;
use std::time::Duration;

use crate::fairness::{deliver, room};
use crate::packets::{of_layer, packet, vp8_payload};
use crate::room::Room;
use manycast::forward::select::{Layer, Wish};
use manycast::id::{Generation, SessionId, ShardId};
use manycast::shard::ShardConfig;
use manycast::shard::message::{Command, PeerMessage};
use manycast::sim::client::Got;
use manycast::units::{Bitrate, Instant};
use manycast::wire::codec::Format;
use manycast::wire::packet::MediaPacket;
use str0m::media::MediaKind;

const ELSEWHERE: ShardId = ShardId(1);
const VIEWER: SessionId = SessionId(1);

/// Layers of 150 kbit/s, 500 kbit/s and 1.7 Mbit/s whose publisher lives on another shard.
fn layered(active: [bool; 3]) -> Room {
    let room = room(0, ShardConfig::default());
    assert!(room.stream.activate(Generation(1), ELSEWHERE));
    show(&room, active);
    room
}

fn show(room: &Room, active: [bool; 3]) {
    for (i, (bitrate, height)) in [(150_000, 180), (500_000, 360), (1_700_000, 720)].into_iter().enumerate() {
        let width = height * 16 / 9;
        let layer = Layer { active: active[i], bitrate, width, height, temporal: 2, ..Layer::default() };
        room.stream.set_layer(i as u8, layer);
    }
}

/// A frame of a layer, whose numbers have nothing to do with those of the others; its payload tells which.
fn frame(now: Instant, layer: u8, seq: u64, key: bool) -> Arc<MediaPacket> {
    let apart = u64::from(layer);
    Arc::new(MediaPacket {
        seq: seq + 1000 * apart,
        timestamp: (seq * 3000 + 1_000_000 * apart) as u32,
        ..of_layer(now, layer, seq, key, 500)
    })
}

fn give(room: &mut Room, layer: u8, seq: u64, key: bool) {
    let packet = frame(room.now, layer, seq, key);
    room.shard.handle_peer(room.now, PeerMessage::Media(packet), &mut room.out);
}

/// Keyframes that the shard asks for, by layer; what it wants to know of the past is left out.
fn asked(room: &mut Room) -> Vec<u8> {
    let layer = |(_, message)| match message {
        PeerMessage::KeyframeRequest { layer, .. } => Some(layer),
        _ => None,
    };
    std::iter::from_fn(|| room.shard.poll_peer()).filter_map(layer).collect()
}

fn watch(room: &mut Room) {
    room.watch();
    room.run_until(|room| room.clients[0].connected_at.is_some());
}

/// A tenth of a second of all layers that are sent.
fn play(room: &mut Room, layers: &[u8], seq: &mut u64, keyframes: &[u8]) {
    for layer in layers {
        give(room, *layer, *seq, keyframes.contains(layer));
    }
    *seq += 1;
    deliver(room, || true);
    room.now += Duration::from_millis(100);
    room.shard.handle_timeout(room.now, &mut room.out);
    deliver(room, || true);
}

fn layers_seen(got: &[Got]) -> Vec<u32> {
    let mut seen: Vec<u32> = got.iter().map(|g| g.stamp.source).collect();
    seen.dedup();
    seen
}

#[track_caller]
fn assert_continuous(got: &[Got]) {
    for pair in got.windows(2) {
        let [a, b] = pair else { continue };
        assert_eq!(b.seq, a.seq + 1);
        let ahead = b.timestamp.wrapping_sub(a.timestamp);
        assert!((1..=20_000).contains(&ahead), "{ahead} ticks: {a:?} {b:?}");
        let picture = |g: &Got| (g.picture_id.expect("VP8"), g.tl0_pic_idx.expect("VP8"));
        let ((id, tl0), next) = (picture(a), picture(b));
        assert_eq!(next, ((id + 1) & 0x7fff, tl0.wrapping_add(1)), "{a:?} {b:?}");
    }
}

fn wish(room: &mut Room, wish: Wish) {
    room.shard.handle_command(room.now, Command::SelectLayer { session: VIEWER, wish }, &mut room.out);
}

#[test]
fn a_viewer_switches_at_the_new_layers_keyframe_and_sees_one_video() {
    let mut room = layered([true; 3]);
    watch(&mut room);
    let mut seq = 1;
    play(&mut room, &[0, 1, 2], &mut seq, &[0, 1, 2]);
    asked(&mut room);
    assert_eq!(room.stream.interest(MediaKind::Video, 2), 1);
    wish(&mut room, Wish { max_height: Some(200), ..Wish::default() });
    assert_eq!(asked(&mut room), [0]);
    for _ in 0..3 {
        play(&mut room, &[0, 1, 2], &mut seq, &[]);
    }
    assert_eq!(layers_seen(room.clients[0].got()), [2], "a delta frame is no beginning");
    play(&mut room, &[0, 1, 2], &mut seq, &[0]);
    for _ in 0..3 {
        play(&mut room, &[0, 1, 2], &mut seq, &[]);
    }
    let got = room.clients[0].got().to_vec();
    assert_eq!(layers_seen(&got), [2, 0]);
    assert_eq!([0, 2].map(|layer| room.stream.interest(MediaKind::Video, layer)), [1, 0], "only what is shown comes");
    wish(&mut room, Wish::default());
    // An up-switch is slow: the estimate must have been high enough for a while.
    for _ in 0..32 {
        play(&mut room, &[0, 1, 2], &mut seq, &[]);
    }
    assert_eq!(asked(&mut room), [2]);
    play(&mut room, &[0, 1, 2], &mut seq, &[2]);
    play(&mut room, &[0, 1, 2], &mut seq, &[]);
    let got = room.clients[0].got().to_vec();
    assert_eq!(layers_seen(&got), [2, 0, 2]);
    // The first switch replaces layer 2 by layer 0 of the same moment, which is not shown twice.
    assert_continuous(&got);
}

#[test]
fn who_comes_back_to_a_layer_that_all_had_left_begins_with_its_past() {
    let mut room = layered([true; 3]);
    watch(&mut room);
    let (mut seq, began) = (1, room.now);
    play(&mut room, &[0, 1, 2], &mut seq, &[0, 1, 2]);
    wish(&mut room, Wish { max_height: Some(200), ..Wish::default() });
    play(&mut room, &[0, 1, 2], &mut seq, &[0]);
    play(&mut room, &[0], &mut seq, &[]);
    assert_eq!(layers_seen(room.clients[0].got()), [2, 0]);
    room.watch();
    room.run_until(|room| room.clients[1].connected_at.is_some());
    deliver(&mut room, || true);
    // The first of these it has had before.
    let past = (1..seq).map(|at| frame(began + Duration::from_millis(100) * (at as u32 - 1), 2, at, at == 1)).collect();
    let message = PeerMessage::Past { stream: room.stream.id, packets: past, whole: true };
    room.shard.handle_peer(room.now, message, &mut room.out);
    deliver(&mut room, || true);
    let later = room.now + Duration::from_millis(100);
    room.run_until(|room| room.now >= later);
    let got = room.clients[1].got();
    assert_eq!((layers_seen(got), got.len() as u64), (vec![2], seq - 1));
}

#[test]
fn the_first_layer_is_replaced_as_any_other_when_it_stops() {
    let mut room = layered([true, false, false]);
    watch(&mut room);
    let mut seq = 1;
    play(&mut room, &[0], &mut seq, &[0]);
    for _ in 0..11 {
        play(&mut room, &[0], &mut seq, &[]);
    }
    asked(&mut room);
    show(&room, [false, true, false]);
    for _ in 0..11 {
        play(&mut room, &[1], &mut seq, &[]);
    }
    assert!(asked(&mut room).contains(&1));
    play(&mut room, &[1], &mut seq, &[1]);
    play(&mut room, &[1], &mut seq, &[]);
    assert_eq!(layers_seen(room.clients[0].got()), [0, 1]);
}

#[test]
fn a_layer_that_stops_is_replaced_and_comes_back() {
    let mut room = layered([true; 3]);
    watch(&mut room);
    let mut seq = 1;
    play(&mut room, &[0, 1, 2], &mut seq, &[0, 1, 2]);
    for _ in 0..11 {
        play(&mut room, &[0, 1, 2], &mut seq, &[]);
    }
    asked(&mut room);
    show(&room, [true, true, false]);
    for _ in 0..2 {
        play(&mut room, &[0, 1], &mut seq, &[]);
    }
    assert_eq!(asked(&mut room), [1]);
    play(&mut room, &[0, 1], &mut seq, &[1]);
    show(&room, [true; 3]);
    for _ in 0..32 {
        play(&mut room, &[0, 1, 2], &mut seq, &[]);
    }
    assert_eq!(asked(&mut room), [2]);
    play(&mut room, &[0, 1, 2], &mut seq, &[2]);
    play(&mut room, &[0, 1, 2], &mut seq, &[]);
    assert_eq!(layers_seen(room.clients[0].got()), [2, 1, 2]);
}

#[test]
fn a_layer_that_sends_no_keyframe_is_left_alone_for_a_while() {
    let mut room = layered([true, true, false]);
    watch(&mut room);
    let mut seq = 1;
    play(&mut room, &[0, 1], &mut seq, &[0, 1]);
    show(&room, [true; 3]);
    let mut requests = 0;
    for _ in 0..90 {
        play(&mut room, &[0, 1, 2], &mut seq, &[]);
        requests += asked(&mut room).iter().filter(|l| **l == 2).count();
    }
    assert_eq!(layers_seen(room.clients[0].got()), [1]);
    assert_eq!(room.stream.interest(MediaKind::Video, 2), 0, "it is given up");
    assert!((1..=6).contains(&requests), "{requests}");
    for _ in 0..130 {
        play(&mut room, &[0, 1, 2], &mut seq, &[]);
    }
    play(&mut room, &[0, 1, 2], &mut seq, &[2]);
    play(&mut room, &[0, 1, 2], &mut seq, &[]);
    assert_eq!(layers_seen(room.clients[0].got()), [1, 2], "and tried again");
}

#[test]
fn a_layer_whose_keyframe_came_just_before_is_asked_for_again() {
    let mut room = layered([true; 3]);
    watch(&mut room);
    wish(&mut room, Wish { max_height: Some(360), ..Wish::default() });
    // Another one sees the highest layer all the time.
    room.watch();
    room.run_until(|room| room.clients[1].connected_at.is_some());
    let mut seq = 1;
    play(&mut room, &[0, 1, 2], &mut seq, &[0, 1, 2]);
    asked(&mut room);
    wish(&mut room, Wish::default());
    let mut requests = Vec::new();
    for _ in 0..40 {
        play(&mut room, &[0, 1, 2], &mut seq, &[]);
        requests.extend(asked(&mut room));
        if !requests.is_empty() {
            break;
        }
    }
    assert_eq!(requests, [2]);
    // The publisher's shard has passed over that, for the other one's keyframe was a moment ago.
    for _ in 0..11 {
        play(&mut room, &[0, 1, 2], &mut seq, &[]);
    }
    assert_eq!(asked(&mut room), [2], "a second later");
    play(&mut room, &[0, 1, 2], &mut seq, &[2]);
    for _ in 0..20 {
        play(&mut room, &[0, 1, 2], &mut seq, &[]);
    }
    assert_eq!(layers_seen(room.clients[0].got()), [1, 2]);
    assert_eq!(asked(&mut room), [0; 0]);
}

/// VP8 with three temporal layers: 0 2 1 2, in frames of one packet.
fn give_temporal(room: &mut Room, seq: u64) {
    let temporal = [0u8, 2, 1, 2][(seq as usize - 1) % 4];
    let mut payload = vp8_payload(0, seq, temporal, seq == 1, 500);
    payload[4] = seq.div_ceil(4) as u8; // TL0PICIDX
    let packet = packet(room.now, Format::VP8, seq, payload);
    room.shard.handle_peer(room.now, PeerMessage::Media(Arc::new(packet)), &mut room.out);
    deliver(room, || true);
    room.now += Duration::from_millis(33);
    room.shard.handle_timeout(room.now, &mut room.out);
}

#[test]
fn temporal_layers_above_the_wish_leave_no_trace() {
    let mut room = layered([true, false, false]);
    watch(&mut room);
    wish(&mut room, Wish { max_temporal: Some(1), ..Wish::default() });
    (1..=80).for_each(|seq| give_temporal(&mut room, seq));
    let got = room.clients[0].got();
    assert_eq!(got.len(), 40);
    for (i, pair) in got.windows(2).enumerate() {
        let [a, b] = pair else { continue };
        let pictures = b.picture_id.expect("VP8").wrapping_sub(a.picture_id.expect("VP8"));
        assert_eq!((b.seq - a.seq, pictures, b.timestamp.wrapping_sub(a.timestamp)), (1, 1, 6000), "{i}");
        assert_eq!(b.stamp.source, [1, 0][i % 2]);
    }
}

#[test]
fn the_way_down_to_fewer_temporal_layers_waits_for_no_keyframe() {
    for first in 20..24 {
        let mut room = layered([true, false, false]);
        watch(&mut room);
        (1..first).for_each(|seq| give_temporal(&mut room, seq));
        asked(&mut room);
        for (begins, max_temporal) in [(first, 1), (first + 20, 0)] {
            wish(&mut room, Wish { max_temporal: Some(max_temporal), ..Wish::default() });
            (begins..begins + 20).for_each(|seq| give_temporal(&mut room, seq));
        }
        assert_eq!(asked(&mut room), [0; 0]);
        let got = room.clients[0].got();
        let tl0 = |seq: u32| seq.div_ceil(4) as u8;
        let shown: Vec<u32> = got.iter().map(|g| (g.timestamp - got[0].timestamp) / 3000 + 1).collect();
        for (pair, seqs) in got.windows(2).zip(shown.windows(2)) {
            let ([a, b], [was, is]) = (pair, seqs) else { continue };
            let number = |g: &Got| (g.picture_id.expect("VP8"), g.tl0_pic_idx.expect("VP8"));
            let ((id, before), next) = (number(a), number(b));
            assert_eq!((b.seq, next), (a.seq + 1, (id + 1, before + tl0(*is) - tl0(*was))), "{a:?} {b:?}");
        }
        let is_wanted = |seq: &u32| {
            let temporal = [0, 2, 1, 2][(*seq as usize - 1) % 4];
            let since = |begins: u64| u64::from(*seq) >= begins + 8;
            !(since(first) && temporal > 1 || since(first + 20) && temporal > 0)
        };
        assert!(shown.iter().all(is_wanted), "within two periods: {shown:?}");
        let all: Vec<u32> = (1..first as u32 + 40).filter(is_wanted).collect();
        let base = |seqs: &[u32]| seqs.iter().filter(|seq| *seq % 4 == 1).count();
        assert_eq!(base(&shown), base(&all), "what others depend on is never left out: {shown:?}");
    }
}

#[test]
fn who_has_not_even_room_for_the_lowest_layer_gets_its_temporal_base() {
    let mut room = layered([true, true, false]);
    watch(&mut room);
    wish(&mut room, Wish { max_height: Some(200), ..Wish::default() });
    (1..60).for_each(|seq| give_temporal(&mut room, seq));
    let say = |room: &mut Room, kbps: u64| {
        room.clients[0].request_remb(room.now, Bitrate::from_bps(kbps * 1000));
        room.collect(0);
        room.exchange();
    };
    let last = |room: &Room| room.clients[0].got().iter().rev().take(4).map(|g| g.stamp.source).collect::<Vec<_>>();
    assert_eq!(last(&room), [1, 2, 0, 2]);
    asked(&mut room);
    say(&mut room, 100);
    (60..100).for_each(|seq| give_temporal(&mut room, seq));
    assert_eq!((last(&room), asked(&mut room)), (vec![0; 4], vec![]), "at once, and no keyframe");
    say(&mut room, 1000);
    (100..380).for_each(|seq| give_temporal(&mut room, seq));
    assert_eq!((last(&room), asked(&mut room)), (vec![0; 4], vec![]), "not for 10 s");
    (380..520).for_each(|seq| give_temporal(&mut room, seq));
    assert_eq!(last(&room), [0; 4], "the way up is a keyframe");
    assert!(asked(&mut room).contains(&0));
}
