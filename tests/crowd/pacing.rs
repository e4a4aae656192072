//! A keyframe as large as the half of a second around it, for viewers whose paths carry less than it is spread at.

use std::sync::Arc;
use std::time::Duration;

use crate::fairness::room;
use crate::packets::packet;
use crate::room::Room;
use manycast::shard::ShardConfig;
use manycast::shard::message::PeerMessage;
use manycast::sim::client::Got;
use manycast::units::{Bitrate, Instant};
use manycast::wire::codec::Format;
use manycast::wire::packet::MediaPacket;
use str0m::media::MediaKind;

const FRAME: Duration = Duration::from_millis(33);
/// 2 Mbit/s.
const FRAME_PACKETS: u64 = 8;
const KEYFRAME_PACKETS: u64 = 120;
const PACKET_BYTES: usize = 1000;
/// One message.
const QUANTUM: usize = 16;

struct Stage {
    room: Room,
    seq: u64,
    frame: u32,
}

impl Stage {
    fn new(viewers: usize) -> Stage {
        Stage { room: room(viewers, ShardConfig::default()), seq: 0, frame: 0 }
    }

    /// More than a second of the stream for a viewer that says that its path carries next to nothing.
    fn narrow() -> Stage {
        let mut stage = Stage::new(1);
        stage.frame(FRAME_PACKETS, true);
        stage.frames(30);
        stage.say_bound(0, Bitrate::from_bps(100_000));
        stage.frames(5);
        stage
    }

    fn say_bound(&mut self, viewer: usize, bound: Bitrate) {
        self.room.clients[viewer].request_remb(self.room.now, bound);
        self.room.collect(viewer);
    }

    /// Hands the shard a packet of the frame that is under way.
    fn give(&mut self, seq: u64, starts_keyframe: bool) {
        let packet = packet(self.room.now, Format::VP8, seq, vec![0x10; PACKET_BYTES]);
        let packet = MediaPacket { timestamp: self.frame * 3000, marker: false, starts_keyframe, ..packet };
        self.room.shard.handle_peer(self.room.now, PeerMessage::Media(Arc::new(packet)), &mut self.room.out);
    }

    fn frame(&mut self, packets: u64, key: bool) {
        self.frame += 1;
        for at in 0..packets {
            self.give(self.seq + at, key && at == 0);
        }
        self.seq += packets;
        self.rest();
    }

    /// Until the next frame.
    fn rest(&mut self) {
        let next = self.room.now + FRAME;
        self.room.exchange();
        while self.room.now < next {
            self.room.now = next.min(self.room.shard.next_timeout().max(self.room.now + Duration::from_micros(100)));
            self.room.shard.handle_timeout(self.room.now, &mut self.room.out);
            self.room.exchange();
        }
    }

    fn frames(&mut self, frames: u64) {
        (0..frames).for_each(|_| self.frame(FRAME_PACKETS, false));
    }

    /// More than a second of the stream, and what viewers say of their paths; then a keyframe, whose beginning is returned.
    fn play_to_keyframe(&mut self, bounds: &[(usize, Bitrate)]) -> Instant {
        self.frame(FRAME_PACKETS, true);
        self.frames(30);
        for (viewer, bound) in bounds {
            self.say_bound(*viewer, *bound);
        }
        self.frames(10);
        let began = self.room.now;
        self.frame(KEYFRAME_PACKETS, true);
        began
    }

    fn got_since(&self, viewer: usize, since: Instant) -> Vec<Got> {
        let got = self.room.clients[viewer].got().iter();
        got.filter(|g| g.kind == MediaKind::Video && g.at >= since).copied().collect()
    }

    /// Everything, each once, without a gap, and in order.
    fn assert_whole(&self, viewer: usize) {
        let got = self.got_since(viewer, Instant::ZERO);
        assert_eq!(got.len() as u64, self.seq, "viewer {viewer}");
        let in_order = got.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1 && pair[1].at >= pair[0].at);
        assert!(in_order, "viewer {viewer}: {:?}", got.iter().map(|g| g.seq).collect::<Vec<_>>());
    }
}

/// When the keyframe was there, after its beginning.
fn took(got: &[Got], began: Instant) -> u128 {
    got[KEYFRAME_PACKETS as usize - 1].at.since(began).as_millis()
}

/// The most packets within 100 ms.
fn peak(got: &[Got]) -> usize {
    let within =
        |from: Instant| got.iter().filter(|g| (from..from + Duration::from_millis(100)).contains(&g.at)).count();
    got.iter().map(|first| within(first.at)).max().unwrap_or_default()
}

#[test]
fn a_keyframe_is_no_faster_than_each_viewer_says_that_its_path_carries() {
    let mut stage = Stage::new(3);
    let began = stage.play_to_keyframe(&[(1, Bitrate::from_bps(1_200_000)), (2, Bitrate::from_bps(100_000))]);
    stage.frames(90);
    let [fast, slow, slower] = [0, 1, 2].map(|viewer| stage.got_since(viewer, began));
    // 120 kB less a burst at 2.5 times 240 to 360 kB/s, whose own bytes count; less a message at 2.5 times 1.2 Mbit/s; at 1.25 times.
    assert!((60..=180).contains(&took(&fast, began)), "{} ms", took(&fast, began));
    assert!((270..=330).contains(&took(&slow, began)), "{} ms", took(&slow, began));
    assert!((330..=430).contains(&took(&slower, began)), "{} ms", took(&slower, began));
    // That is 37 packets in 100 ms.
    assert!(peak(&slow) <= 38 + QUANTUM, "{}", peak(&slow));
    assert!(peak(&fast) > 38 + 2 * QUANTUM, "{}", peak(&fast));
    (0..3).for_each(|viewer| stage.assert_whole(viewer));
    // All are at the present again.
    let last = stage.room.now;
    stage.frame(FRAME_PACKETS, false);
    for viewer in 0..3 {
        let got = stage.got_since(viewer, last);
        assert_eq!((got.len() as u64, got[0].at), (FRAME_PACKETS, last), "viewer {viewer}");
    }
}

#[test]
fn a_viewer_that_is_behind_goes_on_with_the_next_keyframe() {
    let mut stage = Stage::new(2);
    let began = stage.play_to_keyframe(&[(1, Bitrate::from_bps(100_000))]);
    stage.frames(1);
    let before = stage.got_since(1, began).len() as u64;
    assert!(before < KEYFRAME_PACKETS, "still behind: {before}");
    stage.frame(KEYFRAME_PACKETS, true);
    stage.frames(60);
    stage.assert_whole(0);
    let got = stage.got_since(1, Instant::ZERO);
    assert!(got.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1), "no gap that it would NACK");
    let skipped = stage.seq - got.len() as u64;
    assert!((1..KEYFRAME_PACKETS + FRAME_PACKETS).contains(&skipped), "{skipped}");
}

/// A still picture: hardly anything, and a keyframe every other second. Paths are known by what little came over them.
#[test]
fn a_keyframe_is_there_within_a_second_however_little_came_before() {
    let mut stage = Stage::new(2);
    stage.frame(FRAME_PACKETS, true);
    for second in 0..4 {
        for viewer in 0..2 {
            stage.say_bound(viewer, Bitrate::from_bps([250_000, 3_000_000][viewer]));
        }
        (0..30).for_each(|_| stage.frame(1, false));
        let began = stage.room.now;
        stage.frame(KEYFRAME_PACKETS, true);
        (0..45).for_each(|_| stage.frame(1, false));
        let [slow, fast] = [0, 1].map(|viewer| took(&stage.got_since(viewer, began), began));
        assert!((300..=1020).contains(&slow) && fast < 300, "{slow} ms, {fast} ms in second {second}");
    }
    (0..2).for_each(|viewer| stage.assert_whole(viewer));
}

/// Keyframes twice a second, and hardly anything in between.
#[test]
fn a_viewer_that_is_behind_sees_keyframes_whole_however_soon_the_next_one_comes() {
    let mut stage = Stage::narrow();
    let began = stage.room.now;
    for _ in 0..8 {
        stage.frame(KEYFRAME_PACKETS, true);
        stage.say_bound(0, Bitrate::from_bps(100_000));
        (0..14).for_each(|_| stage.frame(1, false));
    }
    let got = stage.got_since(0, began);
    let of_picture = |timestamp: u32| got.iter().filter(|g| g.timestamp == timestamp).count() as u64;
    let first = got[0].timestamp;
    let whole = (0..8).filter(|at| of_picture(first.wrapping_add(at * 15 * 3000)) == KEYFRAME_PACKETS).count();
    assert!(whole >= 6, "{whole} of 8");
    assert!(peak(&got) < KEYFRAME_PACKETS as usize / 2, "{}", peak(&got));
}

/// A browser's word is at most 1.5 times what it gets.
#[test]
fn a_word_that_says_only_how_little_came_leaves_nobody_behind() {
    let mut stage = Stage::new(2);
    stage.frame(FRAME_PACKETS, true);
    for second in 0..4 {
        stage.say_bound(1, Bitrate::from_bps(360_000));
        (0..30).for_each(|_| stage.frame(1, false));
        let began = stage.room.now;
        stage.frame(KEYFRAME_PACKETS, true);
        (0..45).for_each(|_| stage.frame(1, false));
        let [without, with] = [0, 1].map(|viewer| took(&stage.got_since(viewer, began), began));
        assert_eq!(without, with, "in second {second}");
    }
}

#[test]
fn a_keyframe_that_leaves_whole_holds_nothing_up() {
    let mut stage = Stage::narrow();
    stage.give(stage.seq, true);
    stage.seq += 1;
    stage.frame(QUANTUM as u64 - 2, false);
    stage.frames(1);
    let last = stage.room.now;
    stage.frames(1);
    let got = stage.got_since(0, last);
    assert_eq!((got.len() as u64, got[0].at), (FRAME_PACKETS, last));
}

/// The rest of the keyframe comes when the beginning has left.
#[test]
fn a_keyframe_that_comes_in_two_parts_keeps_its_pace() {
    let mut stage = Stage::narrow();
    let began = stage.room.now;
    stage.frame(1, true);
    stage.frame -= 1;
    stage.frame(KEYFRAME_PACKETS - 1, false);
    stage.frames(90);
    let got = stage.got_since(0, began);
    assert!((300..=520).contains(&took(&got, began)), "{} ms", took(&got, began));
    assert!(peak(&got) < 60, "{}", peak(&got));
    stage.assert_whole(0);
}

#[test]
fn a_keyframe_whose_first_packet_is_late_leaves_nobody_behind_who_has_the_others() {
    let mut stage = Stage::new(1);
    stage.frame(FRAME_PACKETS, true);
    stage.frames(30);
    let missing = stage.seq;
    stage.seq += 1;
    stage.frame(3 * FRAME_PACKETS, false);
    stage.frames(1);
    stage.give(missing, true);
    let late = stage.room.now;
    // More than one message.
    stage.frame(3 * FRAME_PACKETS, false);
    let got = stage.got_since(0, late);
    assert_eq!(got.len() as u64, 1 + 3 * FRAME_PACKETS);
    assert!(got.iter().all(|g| g.at <= late + Duration::from_millis(1)), "it is at the present");
}

#[test]
fn a_repair_from_before_the_keyframe_reaches_a_viewer_that_is_behind() {
    let mut stage = Stage::narrow();
    let missing = stage.seq;
    stage.seq += 1;
    stage.frame(KEYFRAME_PACKETS, true);
    stage.give(missing, false);
    stage.frames(90);
    let mut seqs: Vec<u64> = stage.got_since(0, Instant::ZERO).iter().map(|g| g.seq).collect();
    seqs.sort_unstable();
    assert_eq!(seqs.len() as u64, stage.seq);
    assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1));
}
