//! A viewer and the three spatial layers of one VP9 stream.

use std::sync::Arc;
use std::time::Duration;

use crate::fairness::deliver;
use crate::packets::{SPATIAL_PACKETS, vp9_picture};
use crate::room::Room;
use manycast::forward::select::{Layer, Spatial, Wish};
use manycast::id::{Generation, SessionId, ShardId};
use manycast::shard::message::{Command, PeerMessage};
use manycast::sim::client::Got;
use str0m::media::MediaKind;

const PICTURE: Duration = Duration::from_millis(33);

/// A room whose publisher lives on another shard, and what it has sent.
struct Stage {
    room: Room,
    picture: u64,
    /// Of a hundred packets, so many are lost on their way to the viewer.
    lost: usize,
}

impl Stage {
    fn new(estimate: bool) -> Stage {
        let mut room = Room::new(|| 0);
        room.estimate = estimate;
        assert!(room.stream.activate(Generation(1), ShardId(1)));
        let mut spatials = [Spatial::default(); 4];
        for (of, (bitrate, height)) in spatials.iter_mut().zip([(200_000, 180), (700_000, 360), (2_000_000, 720)]) {
            *of = Spatial { active: true, bitrate, width: height * 16 / 9, height };
        }
        let (bitrate, width, height) = (2_000_000, 1280, 720);
        let layer = Layer { active: true, bitrate, width, height, spatial: 2, spatials, ..Layer::default() };
        room.stream.set_layer(0, layer);
        Stage { room, picture: 0, lost: 0 }
    }

    fn watch(&mut self) {
        self.room.watch();
        self.room.run_until(|room| room.clients.iter().all(|c| c.connected_at.is_some()));
    }

    fn wish(&mut self, max_spatial: Option<u8>) {
        let wish = Wish { max_spatial, ..Wish::default() };
        let command = Command::SelectLayer { session: SessionId(1), wish };
        self.room.shard.handle_command(self.room.now, command, &mut self.room.out);
    }

    /// So many pictures, the first one a key picture if it is to be.
    fn play(&mut self, pictures: u64, key: bool) {
        for i in 0..pictures {
            self.picture += 1;
            for packet in vp9_picture(self.room.now, self.picture, key && i == 0) {
                self.give(packet);
            }
            self.rest();
        }
    }

    fn give(&mut self, packet: manycast::wire::packet::MediaPacket) {
        self.room.shard.handle_peer(self.room.now, PeerMessage::Media(Arc::new(packet)), &mut self.room.out);
    }

    /// Until the next picture.
    fn rest(&mut self) {
        let (lost, mut number) = (self.lost, 0);
        deliver(&mut self.room, || {
            number += 1;
            number * lost % 100 >= lost
        });
        let next = self.room.now + PICTURE;
        self.room.run_until(|room| room.now >= next);
    }

    fn got(&self, viewer: usize) -> &[Got] {
        self.room.clients[viewer].got()
    }

    /// Of each picture that a viewer has: how many spatial layers. Each must be whole, and all numbers follow each other.
    #[track_caller]
    fn pictures(&self, viewer: usize) -> Vec<usize> {
        let got = self.got(viewer);
        for pair in got.windows(2) {
            let [a, b] = pair else { continue };
            let pictures = b.stamp.frame - a.stamp.frame;
            assert_eq!((b.seq, b.timestamp), (a.seq + 1, a.timestamp.wrapping_add(3000 * pictures)), "{a:?} {b:?}");
            let number = |g: &Got| (g.picture_id.expect("VP9"), g.tl0_pic_idx.expect("VP9"));
            let ((id, tl0), next) = (number(a), number(b));
            assert_eq!(next, ((id + pictures as u16) & 0x7fff, tl0.wrapping_add(pictures as u8)), "{a:?} {b:?}");
            assert_eq!(a.marker, pictures > 0, "{a:?} {b:?}");
        }
        let whole = |picture: &[Got]| {
            let spatials = picture.last().map_or(0, |g| g.stamp.source as usize + 1);
            let packets: u32 = SPATIAL_PACKETS[..spatials].iter().sum();
            assert_eq!(picture.len(), packets as usize, "{picture:?}");
            spatials
        };
        got.chunk_by(|a, b| a.stamp.frame == b.stamp.frame).map(whole).collect()
    }
}

fn runs(pictures: &[usize]) -> Vec<usize> {
    let mut runs = pictures.to_vec();
    runs.dedup();
    runs
}

#[test]
fn the_way_down_is_the_end_of_a_picture_and_the_way_up_a_keyframe() {
    let mut stage = Stage::new(false);
    stage.watch();
    stage.play(10, true);
    stage.room.asked = 0;
    for (max_spatial, spatials) in [(Some(1), 2), (Some(0), 1)] {
        stage.wish(max_spatial);
        let before = stage.pictures(0).len();
        stage.play(5, false);
        let seen = stage.pictures(0);
        assert_eq!(seen.len(), before + 5, "no picture is left out");
        assert_eq!(seen[before + 2..], [spatials; 3], "two pictures later at most");
    }
    assert_eq!(stage.room.asked, 0, "no keyframe is needed");
    stage.wish(None);
    stage.play(120, false);
    assert_eq!(runs(&stage.pictures(0)), [3, 2, 1], "not before a keyframe");
    assert!(stage.room.asked > 0);
    stage.play(5, true);
    assert_eq!(runs(&stage.pictures(0)), [3, 2, 1, 3]);
    assert_eq!(stage.room.stream.interest(MediaKind::Video, 0), 1);
}

#[test]
fn the_way_down_is_short_where_others_are_there_already() {
    let mut stage = Stage::new(false);
    stage.watch();
    stage.wish(Some(1));
    stage.play(10, true);
    stage.watch();
    stage.play(5, true);
    stage.room.asked = 0;
    let wish = Wish { max_spatial: Some(1), ..Wish::default() };
    let command = Command::SelectLayer { session: SessionId(2), wish };
    stage.room.shard.handle_command(stage.room.now, command, &mut stage.room.out);
    stage.play(5, false);
    assert_eq!([runs(&stage.pictures(0)), runs(&stage.pictures(1))], [vec![2], vec![3, 2]]);
    assert_eq!(stage.room.asked, 0);
}

#[test]
fn a_change_of_mind_on_the_way_down_loses_nothing() {
    let mut stage = Stage::new(false);
    stage.watch();
    stage.play(10, true);
    stage.room.asked = 0;
    stage.wish(Some(1));
    stage.wish(Some(0));
    stage.play(5, false);
    assert_eq!(runs(&stage.pictures(0)), [3, 1]);
    assert_eq!((stage.room.asked, stage.pictures(0).len()), (0, 15));
}

#[test]
fn the_way_down_is_as_short_from_a_rendition_that_leaves_something_out() {
    let mut stage = Stage::new(false);
    stage.watch();
    stage.wish(Some(0));
    stage.play(10, true);
    stage.wish(Some(1));
    stage.play(120, false);
    stage.play(5, true);
    assert_eq!(runs(&stage.pictures(0)), [1, 2]);
    stage.room.asked = 0;
    // The lower one was watched before the upper one.
    stage.wish(Some(0));
    stage.play(5, false);
    let seen = stage.pictures(0);
    assert_eq!(seen[seen.len() - 3..], [1; 3], "two pictures later at most");
    assert_eq!(stage.room.asked, 0, "no keyframe is needed");
}

#[test]
fn a_way_down_that_takes_too_long_ends_with_a_keyframe() {
    let mut stage = Stage::new(false);
    stage.watch();
    stage.play(10, true);
    stage.room.asked = 0;
    stage.wish(Some(1));
    let late = stage.room.now + Duration::from_millis(900);
    stage.room.run_until(|room| room.now >= late);
    assert_eq!(stage.room.asked, 0);
    let later = late + Duration::from_millis(300);
    stage.room.run_until(|room| room.now >= later);
    assert_eq!(stage.room.asked, 1);
    stage.play(5, true);
    assert_eq!(runs(&stage.pictures(0))[1..], [2]);
}

#[test]
fn what_is_missing_of_the_last_picture_before_the_way_down_is_still_repaired() {
    let mut stage = Stage::new(false);
    stage.watch();
    stage.play(10, true);
    stage.wish(Some(1));
    // The last picture with all layers lacks a packet of the middle one, which is lost on its way to us.
    let mut picture = vp9_picture(stage.room.now, stage.picture + 1, false);
    let late = picture.remove(1);
    picture.into_iter().for_each(|packet| stage.give(packet));
    stage.picture += 1;
    stage.rest();
    stage.play(5, false);
    let spatials = |stage: &Stage| stage.got(0).last().map(|g| g.stamp.source);
    assert_eq!(spatials(&stage), Some(1), "it is down");
    stage.give(late);
    stage.play(10, false);
    let mut frames: Vec<u64> = stage.got(0).iter().map(|g| g.seq).collect();
    let first = frames[0];
    frames.sort_unstable();
    assert!(frames.iter().copied().eq(first..first + frames.len() as u64), "{frames:?}");
}

#[test]
fn a_keyframe_that_comes_late_does_not_turn_time_back_on_the_way_up() {
    let mut stage = Stage::new(true);
    stage.watch();
    stage.play(15, true);
    stage.room.asked = 0;
    for _ in 0..15 {
        if stage.room.asked > 0 {
            break;
        }
        stage.play(30, false);
    }
    assert_eq!(runs(&stage.pictures(0)), [2], "on its way up");
    let mut key = vp9_picture(stage.room.now, stage.picture + 1, true);
    let late = key.remove(0);
    key.into_iter().for_each(|packet| stage.give(packet));
    stage.picture += 1;
    stage.rest();
    stage.play(1, false);
    stage.give(late);
    stage.room.asked = 0;
    stage.play(60, false);
    assert!(stage.room.asked > 0, "for another one");
    stage.play(5, true);
    let mut got = stage.got(0).to_vec();
    got.sort_by_key(|g| g.seq);
    for pair in got.windows(2) {
        let [a, b] = pair else { continue };
        let forward = b.timestamp.wrapping_sub(a.timestamp).cast_signed();
        assert!(b.seq == a.seq + 1 && forward >= 0, "{a:?} {b:?}");
    }
    assert_eq!(got.last().map(|g| g.stamp.source), Some(2));
}

#[test]
fn the_estimate_chooses_among_spatial_layers() {
    let mut stage = Stage::new(true);
    stage.watch();
    stage.play(15, true);
    assert_eq!(runs(&stage.pictures(0)), [2], "a start of 1 Mbit/s is enough for two of them");
    // Its link turns out to carry more; the publisher answers requests.
    for _ in 0..15 {
        let asked = std::mem::take(&mut stage.room.asked) > 0;
        stage.play(30, asked);
    }
    assert_eq!(runs(&stage.pictures(0)), [2, 3]);
    stage.room.asked = 0;
    let before = stage.got(0).len();
    stage.lost = 34;
    stage.play(60, false);
    let lowest = stage.got(0)[before..].iter().rev().take(10).map(|g| g.stamp.source).max();
    assert!(lowest < Some(2), "{lowest:?}");
    assert_eq!(stage.room.asked, 0, "down without a keyframe");
}
