//! What went wrong once at the edges: switches and replays that cross, tracks that come and go within one turn.

use std::sync::Arc;
use std::time::Duration;

use crate::fairness::{deliver, room};
use crate::packets::of_layer;
use crate::room::{Room, STREAM};
use manycast::forward::burst::Segmenting;
use manycast::forward::fanout::{Fanout, Joined};
use manycast::forward::select::{Layer, Wish};
use manycast::forward::table::Stream;
use manycast::id::{Generation, Rid, SessionId, ShardId, StreamId};
use manycast::shard::ShardConfig;
use manycast::shard::message::{Command, PeerMessage};
use manycast::units::Instant;
use manycast::wire::packet::{MediaPacket, Rendition};
use str0m::media::MediaKind;

fn packet(now: Instant, stream: StreamId, layer: u8, seq: u64, key: bool, bytes: usize) -> MediaPacket {
    MediaPacket { stream, ..of_layer(now, layer, seq, key, bytes) }
}

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

/// So much of a stream at once, after a quiet second, that the rest of it is held back; returns the moment.
fn pace(fanout: &mut Fanout<usize>, stream: StreamId) -> Instant {
    let mut seq = 0;
    for ms in 0..1500u64 {
        if ms % 33 == 0 {
            seq += 1;
            fanout.handle(at(ms), &Arc::new(packet(at(ms), stream, 0, seq, seq == 1, 1000)), |_| {});
            while fanout.poll(at(ms)).is_some() {}
        }
    }
    let now = at(1500);
    for job in 0..8 {
        for i in 0..50 {
            fanout.handle(now, &Arc::new(packet(now, stream, 0, seq + 1 + i + 50 * job, i + job == 0, 1000)), |_| {});
        }
        while fanout.poll(now).is_some() {}
    }
    now
}

/// A paced track, and one whose viewers have gone: does poll return?
#[test]
fn a_paced_track_does_not_keep_the_shard_busy_when_another_has_gone() {
    let mut fanout: Fanout<usize> = Fanout::new(ShardId(0), Segmenting::default());
    let a = Arc::new(Stream::new(StreamId(1), "a"));
    let b = Arc::new(Stream::new(StreamId(2), "b"));
    fanout.join(&a, MediaKind::Video, Rendition::default(), 1);
    fanout.join(&b, MediaKind::Video, Rendition::default(), 2);
    let now = pace(&mut fanout, a.id);
    assert!(fanout.paced_until() > now && fanout.paced_until() < at(3000));
    // One packet of `b`, whose only viewer leaves before the shard sends.
    fanout.handle(now, &Arc::new(packet(now, b.id, 0, 1, true, 1000)), |_| {});
    fanout.leave(b.id, 2);
    assert!(fanout.poll(now).is_none());
}

/// As above, without anyone leaving: `b` has exactly a turn's worth of quanta.
#[test]
fn a_paced_track_does_not_keep_the_shard_busy_when_another_is_done() {
    let mut fanout: Fanout<usize> = Fanout::new(ShardId(0), Segmenting::default());
    let a = Arc::new(Stream::new(StreamId(1), "a"));
    let b = Arc::new(Stream::new(StreamId(2), "b"));
    fanout.join(&a, MediaKind::Video, Rendition::default(), 1);
    for v in 0..64 {
        fanout.join(&b, MediaKind::Video, Rendition::default(), 100 + v);
    }
    let now = pace(&mut fanout, a.id);
    fanout.handle(now, &Arc::new(packet(now, b.id, 0, 1, true, 1000)), |_| {});
    let mut n = 0;
    while fanout.poll(now).is_some() {
        n += 1;
    }
    assert!(n >= 64, "{n}: every viewer got it");
}

/// The stream is dropped and made again between two polls.
#[test]
fn a_stream_that_is_left_and_joined_within_a_turn_keeps_no_places() {
    let mut fanout: Fanout<usize> = Fanout::new(ShardId(0), Segmenting::default());
    let a = Arc::new(Stream::new(StreamId(1), "a"));
    fanout.join(&a, MediaKind::Audio, Rendition::default(), 1);
    fanout.join(&a, MediaKind::Video, Rendition::default(), 1);
    fanout.handle(at(1), &Arc::new(packet(at(1), a.id, 0, 1, true, 1000)), |_| {});
    fanout.leave(a.id, 1);
    fanout.join(&a, MediaKind::Audio, Rendition::default(), 2);
    fanout.poll(at(1));
}

/// Who joins beside a viewer that still waits, or is on its way down, may be the first that needs the past.
#[test]
fn a_track_that_has_nothing_yet_is_to_get_its_past_for_each_viewer() {
    let mut fanout: Fanout<usize> = Fanout::new(ShardId(0), Segmenting::default());
    let a = Arc::new(Stream::new(StreamId(1), "a"));
    let below = Rendition { spatial_max: 1, ..Rendition::default() };
    fanout.join(&a, MediaKind::Video, Rendition::default(), 1);
    fanout.join_below(&a, Rendition::default(), below, 1);
    assert_eq!(fanout.join(&a, MediaKind::Video, below, 2), Joined::First);
    fanout.handle(at(1), &Arc::new(packet(at(1), a.id, 0, 1, true, 1000)), |_| {});
    assert_eq!(fanout.join(&a, MediaKind::Video, below, 3), Joined::Watched);
}

fn show(room: &Room, active: [bool; 3]) {
    for (i, (bitrate, height)) in [(150_000, 180), (500_000, 360), (1_700_000, 720)].into_iter().enumerate() {
        let rid = Rid::new(["l", "m", "h"][i]).expect("short");
        let layer = Layer { active: active[i], bitrate, width: height * 16 / 9, height, rid, ..Layer::default() };
        room.stream.set_layer(i as u8, layer);
    }
}

fn give(room: &mut Room, layer: u8, seq: u64, key: bool) {
    let p = packet(room.now, STREAM, layer, seq, key, 500);
    room.shard.handle_peer(room.now, PeerMessage::Media(Arc::new(p)), &mut room.out);
}

fn past(room: &mut Room, layer: u8, seqs: std::ops::Range<u64>) {
    let first = seqs.start;
    let packets = seqs.map(|seq| Arc::new(packet(room.now, STREAM, layer, seq, seq == first, 500))).collect();
    room.shard.handle_peer(room.now, PeerMessage::Past { stream: STREAM, packets, whole: true }, &mut room.out);
}

fn wish(room: &mut Room, rid: &str) {
    let wish = Wish { rid: Rid::new(rid), ..Wish::default() };
    room.shard.handle_command(room.now, Command::SelectLayer { session: SessionId(1), wish }, &mut room.out);
}

/// Under each number there was one packet. (Debug builds also see an index that is sealed twice.)
#[track_caller]
fn assert_once(room: &Room) {
    let seqs: Vec<u64> = room.clients[0].got().iter().map(|g| g.seq).collect();
    let distinct: std::collections::BTreeSet<&u64> = seqs.iter().collect();
    assert_eq!(distinct.len(), seqs.len(), "{seqs:?}");
}

fn start() -> Room {
    let mut room = room(0, ShardConfig::default());
    assert!(room.stream.activate(Generation(1), ShardId(1)));
    show(&room, [true; 3]);
    room.watch();
    room.run_until(|room| room.clients[0].connected_at.is_some());
    give(&mut room, 2, 1, true);
    deliver(&mut room, || true);
    for seq in 2..5 {
        room.now += Duration::from_millis(33);
        give(&mut room, 2, seq, false);
        deliver(&mut room, || true);
    }
    room
}

/// The viewer has got so many packets, without a gap, each once, and time goes forward.
#[track_caller]
fn assert_whole(room: &Room, packets: usize) {
    let mut got: Vec<_> = room.clients[0].got().iter().map(|g| (g.seq, g.timestamp)).collect();
    got.sort_unstable();
    assert_eq!(got.len(), packets, "{got:?}");
    for pair in got.windows(2) {
        let ahead = pair[1].1.wrapping_sub(pair[0].1);
        assert!(pair[1].0 == pair[0].0 + 1 && ahead < 1 << 31, "{pair:?} of {got:?}");
    }
}

/// Some time passes.
fn wait(room: &mut Room, ms: u64) {
    for _ in 0..ms {
        room.now += Duration::from_millis(1);
        deliver(room, || true);
    }
}

/// h has stopped, and the viewer waits for m. It has got 4 packets.
fn waiting_for_m() -> Room {
    let mut room = start();
    room.now += Duration::from_secs(2);
    show(&room, [true, true, false]);
    wish(&mut room, "m");
    room
}

fn past_of(room: &mut Room, age: Duration, seqs: &[u64], whole: bool) {
    let then = Instant::from_nanos(room.now.as_nanos() - age.as_nanos() as u64);
    let packets = seqs.iter().map(|seq| Arc::new(packet(then, STREAM, 1, *seq, *seq == 10, 500))).collect();
    room.shard.handle_peer(room.now, PeerMessage::Past { stream: STREAM, packets, whole }, &mut room.out);
}

#[test]
fn what_a_replay_has_overtaken_is_sent_when_it_comes() {
    let mut room = waiting_for_m();
    past_of(&mut room, Duration::ZERO, &[10, 11, 12, 14, 15], true);
    wait(&mut room, 50);
    give(&mut room, 1, 16, false);
    give(&mut room, 1, 13, false);
    wait(&mut room, 1);
    assert_whole(&room, 4 + 7);
}

#[test]
fn a_keyframe_that_a_replay_has_overtaken_takes_its_place() {
    let mut room = waiting_for_m();
    let before: Vec<u64> = (10..600).collect();
    past_of(&mut room, Duration::ZERO, &before, true);
    for seq in [600, 602, 603] {
        give(&mut room, 1, seq, false);
    }
    while room.clients[0].got().len() < 4 + 593 {
        room.now += Duration::from_micros(100);
        deliver(&mut room, || true);
    }
    give(&mut room, 1, 601, true);
    give(&mut room, 1, 604, false);
    wait(&mut room, 50);
    assert_whole(&room, 4 + 595);
}

#[test]
fn what_has_overtaken_the_keyframe_that_a_viewer_waits_for_is_sent_with_it() {
    let mut room = waiting_for_m();
    past_of(&mut room, Duration::from_secs(2), &[10, 11, 12], true);
    for (seq, key) in [(15, false), (14, false), (13, true), (16, false)] {
        give(&mut room, 1, seq, key);
        wait(&mut room, 1);
    }
    assert_whole(&room, 4 + 4);
}

#[test]
fn a_keyframe_that_is_faster_than_the_past_is_filled_up_by_it() {
    let mut room = waiting_for_m();
    give(&mut room, 1, 12, false);
    give(&mut room, 1, 10, true);
    wait(&mut room, 1);
    past_of(&mut room, Duration::ZERO, &[11, 12], false);
    wait(&mut room, 1);
    assert_whole(&room, 4 + 3);
}

#[test]
fn what_comes_while_the_past_is_on_its_way_is_not_lost() {
    let mut room = waiting_for_m();
    give(&mut room, 1, 12, false);
    give(&mut room, 1, 14, false);
    past_of(&mut room, Duration::ZERO, &[10, 11, 12, 13], true);
    wait(&mut room, 50);
    assert_whole(&room, 4 + 5);
}

/// The publisher's shard has kept no more than the keyframe: what comes now does not follow it.
#[test]
fn a_past_that_is_not_whole_is_a_keyframe_alone() {
    let mut room = waiting_for_m();
    past_of(&mut room, Duration::ZERO, &[10, 90, 91], false);
    wait(&mut room, 50);
    give(&mut room, 1, 92, false);
    wait(&mut room, 50);
    assert_whole(&room, 4 + 1);
    give(&mut room, 1, 93, true);
    wait(&mut room, 1);
    assert_whole(&room, 4 + 2);
}

/// Another publisher has taken over, and its keyframe has not come yet.
#[test]
fn nobody_is_started_with_the_picture_of_a_publisher_that_was_replaced() {
    let mut room = start();
    assert!(room.stream.activate(Generation(2), ShardId(1)));
    show(&room, [true; 3]);
    room.watch();
    room.run_until(|room| room.clients[1].connected_at.is_some());
    wait(&mut room, 1000);
    assert_eq!(room.clients[1].got(), []);
    let successors = MediaPacket { generation: Generation(2), ssrc: 7, ..packet(room.now, STREAM, 2, 90, true, 500) };
    room.shard.handle_peer(room.now, PeerMessage::Media(Arc::new(successors)), &mut room.out);
    wait(&mut room, 1);
    assert_eq!(room.clients[1].got().len(), 1);
}

/// Layer h has stopped, the viewer is started from the past of m, and h is wished for before m's next packet.
fn back_to_h_during_a_replay() -> Room {
    let mut room = start();
    show(&room, [true, true, false]);
    wish(&mut room, "m");
    past(&mut room, 1, 10..20);
    deliver(&mut room, || true);
    room.now += Duration::from_millis(20);
    deliver(&mut room, || true);
    show(&room, [true; 3]);
    wish(&mut room, "h");
    room
}

/// Layer h stops, the viewer is started from the past of m, and h is wished for before m's next packet.
#[test]
fn a_layer_that_comes_back_during_a_replay_is_sent_once() {
    let mut room = back_to_h_during_a_replay();
    give(&mut room, 2, 100, true);
    give(&mut room, 2, 101, false);
    deliver(&mut room, || true);
    assert_once(&room);
}

/// While m is replayed, it stops too, and l is replayed.
#[test]
fn a_replay_that_is_replaced_does_not_go_on() {
    let mut room = start();
    show(&room, [true, true, false]);
    wish(&mut room, "m");
    past(&mut room, 1, 10..1000);
    deliver(&mut room, || true);
    show(&room, [true, false, false]);
    wish(&mut room, "l");
    past(&mut room, 0, 5..1000);
    for _ in 0..100 {
        room.now += Duration::from_millis(10);
        deliver(&mut room, || true);
    }
    assert_once(&room);
}

/// As t3, but the viewer leaves before another packet of h comes.
#[test]
fn a_viewer_leaves_every_track_that_it_was_in() {
    let mut room = back_to_h_during_a_replay();
    let reason = manycast::session::CloseReason::Deleted;
    room.shard.handle_command(room.now, Command::Close { session: SessionId(1), reason }, &mut room.out);
    assert_eq!(room.shard.sessions(), 0);
    assert_eq!([0, 1, 2].map(|l| room.stream.interest(MediaKind::Video, l)), [0; 3]);
    give(&mut room, 2, 100, true);
    deliver(&mut room, || true);
}

/// h stops; the viewer waits for m and says PLI.
#[test]
fn a_viewer_without_a_picture_asks_for_what_it_waits_for() {
    let mut room = start();
    while room.shard.poll_peer().is_some() {}
    show(&room, [true, true, false]);
    wish(&mut room, "m");
    while room.shard.poll_peer().is_some() {}
    room.now += Duration::from_millis(150);
    let now = room.now;
    room.clients[0].request_keyframe(now);
    let mut asked = Vec::new();
    for _ in 0..20 {
        room.clients[0].handle_timeout(room.now);
        while let Some((_, data)) = room.clients[0].poll_transmit() {
            let remote = room.clients[0].addr();
            let received = manycast::datagram::Received { socket: crate::room::SOCKET, remote, data: &data };
            room.shard.handle_datagram(room.now, received, &mut room.out);
        }
        room.out.clear();
        while let Some((_, m)) = room.shard.poll_peer() {
            if let PeerMessage::KeyframeRequest { layer, .. } = m {
                asked.push(layer)
            }
        }
        room.now += Duration::from_millis(10);
    }
    assert_eq!(asked, [1]);
}

/// h pauses, m is asked for and does not come, h goes on: are timestamps and pictures of what the viewer gets going forward?
#[test]
fn a_viewer_whose_layer_comes_back_goes_forward() {
    let mut room = start();
    for seq in 5..30 {
        room.now += Duration::from_millis(33);
        give(&mut room, 2, seq, false);
        deliver(&mut room, || true);
    }
    show(&room, [true, true, false]);
    room.now += Duration::from_millis(1000);
    wish(&mut room, "m");
    room.now += Duration::from_millis(200);
    show(&room, [true, true, true]);
    wish(&mut room, "h");
    room.now += Duration::from_millis(210);
    room.shard.handle_timeout(room.now, &mut room.out);
    for seq in 30..60 {
        give(&mut room, 2, seq, false);
        deliver(&mut room, || true);
        room.now += Duration::from_millis(33);
        room.shard.handle_timeout(room.now, &mut room.out);
        deliver(&mut room, || true);
    }
    let got: Vec<_> = room.clients[0].got().iter().map(|g| (g.seq, g.timestamp, g.picture_id)).collect();
    for pair in got.windows(2) {
        assert!(pair[1].1.wrapping_sub(pair[0].1) < 1 << 31, "{pair:?}");
    }
}

/// h stops; m is replayed from a keyframe of 4 s ago. Does the viewer's clock agree with ours then?
#[test]
fn a_replay_of_another_layer_keeps_the_clock() {
    let mut room = start();
    let mut m = Vec::new();
    for i in 0..120u64 {
        room.now += Duration::from_millis(33);
        give(&mut room, 2, 5 + i, false);
        let mut p = packet(room.now, STREAM, 1, 10 + i, i == 0, 500);
        p.timestamp = 5_000_000 + 2970 * i as u32;
        m.push(Arc::new(p));
        deliver(&mut room, || true);
    }
    room.stream.set_deaf(true);
    let last = room.clients[0].got().last().copied().expect("video");
    show(&room, [true, true, false]);
    wish(&mut room, "m");
    room.shard.handle_peer(
        room.now,
        PeerMessage::Past { stream: STREAM, packets: m.into_iter().collect(), whole: true },
        &mut room.out,
    );
    for _ in 0..60 {
        deliver(&mut room, || true);
        room.now += Duration::from_millis(1);
    }
    let replayed = room.clients[0].got().last().copied().expect("video");
    let mut p = packet(room.now, STREAM, 1, 130, false, 500);
    p.timestamp = 5_000_000 + 2970 * 120;
    room.shard.handle_peer(room.now, PeerMessage::Media(Arc::new(p)), &mut room.out);
    deliver(&mut room, || true);
    let live = room.clients[0].got().last().copied().expect("video");
    let ms = |g: &manycast::sim::client::Got| {
        (g.at.since(last.at).as_millis(), g.timestamp.wrapping_sub(last.timestamp).cast_signed() / 90)
    };
    let first = room.clients[0].got().iter().find(|g| g.seq == last.seq + 1).copied().expect("video");
    assert!(ms(&first).1 > 0, "{:?}", ms(&first));
    // What is squeezed needs its time; a layer that is gone has been silent for a second, here it is not.
    let (ours, rtp) = ms(&live);
    assert!((rtp - ours as i32).abs() <= 300, "{rtp} ms of RTP after {ours} ms");
    assert!(ms(&replayed).1 <= rtp);
}

/// As t3b; then a viewer of another stream gets the key of the one who left.
#[test]
fn a_viewer_gets_nothing_of_another_stream() {
    let mut room = back_to_h_during_a_replay();
    let reason = manycast::session::CloseReason::Deleted;
    room.shard.handle_command(room.now, Command::Close { session: SessionId(1), reason }, &mut room.out);
    room.out.clear();
    room.stream = Arc::new(Stream::new(StreamId(2), "another"));
    assert!(room.stream.activate(Generation(1), ShardId(1)));
    show(&room, [true; 3]);
    room.watch();
    room.run_until(|room| room.clients[1].connected_at.is_some());
    give(&mut room, 2, 100, true);
    deliver(&mut room, || true);
    assert_eq!(room.clients[1].got().len(), 0);
}
