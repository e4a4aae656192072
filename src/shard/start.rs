//! A viewer's first picture: a keyframe that has just come, one that the publisher is asked for, or a replay of what came
//! since the last one.
//!
//! A replay runs through a track's past (`forward::gop`), the keyframe at once and the rest faster than it came, until it
//! meets the present; from there on the viewer gets what everybody gets.
//!
//! In the same way a viewer that is at the present falls behind for a moment when its path carries less than a keyframe is
//! spread at: it gets the keyframe, and what comes meanwhile, at a pace of its own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use str0m::media::MediaKind;

use super::Shard;
use super::message::PeerMessage;
use super::viewers::{Found, note};
use crate::datagram::SendBatch;
use crate::forward::bucket::Bucket;
use crate::forward::fanout::Joined;
use crate::forward::gop::Gop;
use crate::forward::keyframes::ANSWER_WAIT;
use crate::forward::pacer;
use crate::forward::table::Stream;
use crate::id::{Generation, StreamId};
use crate::metrics::DropReason;
use crate::session::egress::{Egress, Written};
use crate::session::squeeze::Squeeze;
use crate::units::{Bitrate, Instant};
use crate::wire::packet::{CanonicalPacket, MediaPacket, Rendition};

/// A keyframe that began so recently is replayed: the publisher is not asked for another one before a second has passed.
const YOUNG: Duration = Duration::from_secs(1);

/// What follows the keyframe is replayed at so many percent of the pace that it came at.
const REPLAY_PERCENT_MAX: u64 = 800;
/// And so many at least, whatever the viewer's path is known to carry: or it would never end.
const REPLAY_PERCENT_MIN: u64 = 125;
/// Where the track's own bitrate is not known yet, at least so much: 2 Mbit/s.
const UNKNOWN_BYTES_PER_SECOND: u64 = 250_000;

/// What a viewer that has fallen behind lacks reaches it after so long, whatever its path is known to carry.
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// And before the next keyframe, or it would never see one whole: in percent of the time since the last one.
const BEHIND_PERCENT_MAX: u32 = 70;
/// The rest of a keyframe is looked for again after so long.
const KEYFRAME_REST: Duration = Duration::from_millis(5);

/// What a track's bitrate is measured over.
const METERED: Duration = Duration::from_secs(1);

/// Of all replays of a shard together, without their keyframes: a third of what a core sends. A replay that does not fit
/// is cut down to its keyframe, and the viewer goes on with the next one.
const REPLAY_BYTES_PER_SECOND: u64 = 32 * 1024 * 1024;

/// Viewers of a shard that have no picture yet, or are on their way to the present.
#[derive(Default)]
pub(super) struct Starts {
    /// When the answer to a viewer's request is overdue. In order: all wait for the same time.
    waiting: VecDeque<(Instant, usize)>,
    replays: BinaryHeap<Reverse<Replay>>,
    /// Rises with each message, so that replays take turns.
    turn: u64,
    /// A second of it may be gathered.
    budget: Bucket,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Replay {
    due: Instant,
    turn: u64,
    viewer: usize,
    stream: StreamId,
    rendition: Rendition,
    /// Canonical number of the keyframe that it began with.
    keyframe: u64,
    /// And of the one that the past begins with now: that came late, and most of what follows is sent.
    past: u64,
    began: Instant,
    /// `None`: the viewer was at the present a moment ago, and time is as it is.
    squeeze: Option<Squeeze>,
    /// Packets of the past that are sent, and their payload.
    sent: usize,
    sent_bytes: u64,
    /// Of the track, behind the keyframe.
    bytes_per_second: u64,
    /// Nothing but the keyframe.
    keyframe_only: bool,
}

/// In bytes per second: `fast`, but no more than the path carries, where that is known. `own`: what the packets came with.
fn pace(own: u64, fast: u64, bound: Option<Bitrate>) -> u64 {
    let bound = bound.map_or(fast, |bound| bound.as_bps() / 8);
    fast.min(bound).max(own * REPLAY_PERCENT_MIN / 100).max(own + 1)
}

fn replay_pace(now: Instant, own: u64, egress: &Egress) -> u64 {
    pace(own, own * REPLAY_PERCENT_MAX / 100, egress.bound(now))
}

/// Of a viewer that has fallen behind: `everybodys`, or what its path is thought to carry in a burst. But what is `left`, in
/// bytes, is to be there `within` so long: of a picture that was still, and whose keyframe is a thousand times as large as what
/// came before, no bound knows.
fn behind_pace(now: Instant, own: u64, everybodys: u64, left: u64, within: Duration, egress: &Egress) -> u64 {
    pace(own, everybodys, burst_bound(now, own, egress)).max(per_second(left, within))
}

/// How long after its beginning a keyframe is to be there, and what has come meanwhile.
fn behind_max(gop: &Gop<CanonicalPacket>) -> Duration {
    gop.interval().map_or(BEHIND_MAX, |interval| BEHIND_MAX.min(interval * BEHIND_PERCENT_MAX / 100))
}

/// Of what a track had in the second that has passed, what is not its last keyframe's.
fn without_keyframe(now: Instant, measured: u64, gop: &Gop<CanonicalPacket>) -> u64 {
    let young = gop.began().is_some_and(|began| now.since(began) < METERED);
    measured.saturating_sub(if young { gop.keyframe_bytes() as u64 } else { 0 })
}

/// In a burst more may leave than a path is known to carry. `own`: the track's bytes per second without it.
fn burst_bound(now: Instant, own: u64, egress: &Egress) -> Option<Bitrate> {
    let bound = egress.burst_bound(now, Bitrate::from_bps(8 * own))?;
    Some(Bitrate::from_bps(bound.as_bps().saturating_mul(pacer::SPREAD_PERCENT) / 100))
}

impl Replay {
    /// From a keyframe on, at once and with times as they are; `own`: the track's bytes per second behind it.
    fn new(now: Instant, viewer: usize, stream: StreamId, rendition: Rendition, keyframe: u64, own: u64) -> Replay {
        Replay {
            due: now,
            turn: 0,
            viewer,
            stream,
            rendition,
            keyframe,
            past: keyframe,
            began: now,
            squeeze: None,
            sent: 0,
            sent_bytes: 0,
            bytes_per_second: own,
            keyframe_only: false,
        }
    }
}

impl Starts {
    pub fn leave(&mut self, viewer: usize) {
        self.waiting.retain(|(_, v)| *v != viewer);
        self.replays.retain(|Reverse(r)| r.viewer != viewer);
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.replays.peek().is_some_and(|Reverse(r)| r.due <= now)
    }

    pub fn next_timeout(&self) -> Instant {
        let replay = self.replays.peek().map_or(Instant::FAR_FUTURE, |Reverse(r)| r.due);
        self.waiting.front().map_or(replay, |(overdue, _)| replay.min(*overdue))
    }

    pub fn len(&self) -> usize {
        self.waiting.len() + self.replays.len()
    }

    fn push(&mut self, replay: Replay) {
        self.turn += 1;
        self.replays.push(Reverse(Replay { turn: self.turn, ..replay }));
    }
}

/// How long `bytes` take, at so many per second.
fn spread(bytes: u64, per_second: u64) -> Duration {
    Duration::from_nanos(bytes * 1_000_000_000 / per_second)
}

/// Bytes per second.
fn per_second(bytes: u64, within: Duration) -> u64 {
    bytes * 1000 / within.max(Duration::from_millis(100)).as_millis() as u64
}

impl Shard {
    /// A viewer of video has joined.
    pub(super) fn start_video(&mut self, now: Instant, viewer: usize, stream: &Arc<Stream>, out: &mut SendBatch) {
        self.counters.keyframe_requests_received += 1;
        let rendition = self.first_rendition(now, viewer, stream);
        self.start_rendition(now, viewer, stream, rendition, out);
    }

    /// A viewer has no picture, and is to have one of this rendition.
    pub(super) fn start_rendition(
        &mut self,
        now: Instant,
        viewer: usize,
        stream: &Arc<Stream>,
        rendition: Rendition,
        out: &mut SendBatch,
    ) {
        if self.fanout.join(stream, MediaKind::Video, rendition, viewer) == Joined::First {
            self.request_past(now, stream, rendition.layer);
        }
        if self.try_replay(now, viewer, stream.id, false) {
            return;
        }
        self.request_keyframe_at_once(now, stream.id, rendition.layer, out);
        self.starts.waiting.push_back((now + ANSWER_WAIT, viewer));
    }

    /// Viewers whose request was not answered are given the past.
    pub(super) fn handle_overdue(&mut self, now: Instant) {
        while let Some((overdue, viewer)) = self.starts.waiting.front().copied()
            && overdue <= now
        {
            self.starts.waiting.pop_front();
            let stream = self.sessions[self.viewers[viewer].session].session.stream;
            self.try_replay(now, viewer, stream, true);
        }
    }

    /// Starts a replay if the viewer has no picture, and either a keyframe is fresh or there is no use in asking for one.
    fn try_replay(&mut self, now: Instant, viewer: usize, stream: StreamId, overdue: bool) -> bool {
        let egress = &mut self.viewers[viewer].egress;
        let rendition = egress.target();
        let measured = self.fanout.bytes_per_second(now, stream, rendition);
        let Some((gop, newest)) = self.fanout.gop(stream, rendition) else { return false };
        let Some(began) = gop.began() else { return false };
        let useless = overdue || self.fanout.stream(stream).is_some_and(|s| s.is_deaf());
        if !(useless || now.since(began) <= YOUNG) {
            return false;
        }
        let keyframe = &gop.packets()[0];
        // Whose keyframe has not come yet has no past, and his predecessor's would only be seen to leap.
        if self.fanout.stream(stream).is_some_and(|s| s.active() != keyframe.packet.generation) {
            return false;
        }
        let end = gop.packets().iter().rev().find(|p| p.seq == newest).unwrap_or(keyframe);
        let rest = (gop.bytes() - gop.keyframe_bytes()) as u64;
        let average = per_second(rest, end.packet.arrival.since(began));
        let own = average.max(measured.unwrap_or(UNKNOWN_BYTES_PER_SECOND));
        // What comes meanwhile is replayed too.
        let takes = Duration::from_micros(rest * 1_000_000 / (replay_pace(now, own, egress) - own));
        let keyframe_only = !gop.is_whole();
        let squeeze = Squeeze::new(now, keyframe, end, takes);
        if !egress.start_replay(now, rendition, keyframe, end, squeeze) {
            return false;
        }
        let switched_from = egress.take_switched();
        // One that was stopped is still there, with numbers of its own.
        self.starts.replays.retain(|Reverse(r)| r.viewer != viewer);
        let budget = &mut self.starts.budget;
        let keyframe_only =
            keyframe_only || budget.take(now, REPLAY_BYTES_PER_SECOND, REPLAY_BYTES_PER_SECOND, rest).is_err();
        let replay = Replay::new(now, viewer, stream, rendition, keyframe.seq, own);
        self.starts.push(Replay { squeeze: Some(squeeze), keyframe_only, ..replay });
        self.counters.replays_started += 1;
        if let Some(before) = switched_from {
            self.handle_switched(now, viewer, before);
        }
        true
    }

    /// A viewer that gets the video as it comes has got the beginning of a keyframe. It falls behind if the rest is too fast
    /// for it, or if packets that follow it have come before.
    pub(super) fn begin_keyframe(
        &mut self,
        now: Instant,
        viewer: usize,
        stream: StreamId,
        rendition: Rendition,
        keyframe: u64,
        bytes: u32,
    ) {
        let measured = self.fanout.bytes_per_second(now, stream, rendition);
        let Some((gop, _)) = self.fanout.gop(stream, rendition) else { return };
        if !gop.is_whole() || gop.packets()[0].seq != keyframe {
            return;
        }
        let egress = &mut self.viewers[viewer].egress;
        let own = measured.map_or(UNKNOWN_BYTES_PER_SECOND, |measured| without_keyframe(now, measured, gop));
        let everybodys = measured.unwrap_or(UNKNOWN_BYTES_PER_SECOND) * pacer::SPREAD_PERCENT / 100;
        let is_there = gop.is_past_keyframe() && gop.keyframe_bytes() <= bytes as usize;
        let is_slow = !is_there && burst_bound(now, own, egress).is_some_and(|bound| bound.as_bps() / 8 < everybodys);
        let lacks = gop.is_overtaken() && egress.began_with(keyframe);
        if !is_slow && !lacks {
            return;
        }
        egress.fall_behind(keyframe);
        let pace = behind_pace(now, own, everybodys, gop.bytes() as u64, behind_max(gop), egress);
        // What it has got of the keyframe is passed over.
        let replay = Replay::new(now, viewer, stream, rendition, keyframe, own);
        self.starts.push(Replay { due: now + spread(bytes.into(), pace), ..replay });
    }

    /// Writes the next message of the replay that is due; false when none is.
    pub(super) fn replay_next(&mut self, now: Instant, out: &mut SendBatch, found: &mut Found) -> bool {
        if !self.starts.is_due(now) {
            return false;
        }
        let Some(Reverse(mut replay)) = self.starts.replays.pop() else { return false };
        let measured = self.fanout.bytes_per_second(now, replay.stream, replay.rendition);
        let viewer = &mut self.viewers[replay.viewer];
        let egress = &mut viewer.egress;
        let Some((gop, _)) = self.fanout.gop(replay.stream, replay.rendition) else { return true };
        let measured = measured.unwrap_or_default();
        let own = match replay.squeeze {
            Some(_) => replay.bytes_per_second.max(measured),
            None => replay.bytes_per_second.max(without_keyframe(now, measured, gop)),
        };
        let everybodys = own.max(measured) * pacer::SPREAD_PERCENT / 100;
        if !egress.is_replaying(replay.rendition, replay.keyframe) {
            return true;
        }
        match gop.packets().first() {
            Some(first) if first.seq == replay.past => {}
            Some(first) if egress.has_passed(first.seq) => {
                (replay.past, replay.sent, replay.sent_bytes) = (first.seq, 0, 0);
            }
            // A new keyframe has come: whoever has fallen behind leaves out the rest before it.
            Some(first) if replay.squeeze.is_none() => {
                egress.skip_to(replay.rendition, first);
                (replay.keyframe, replay.past, replay.began) = (first.seq, first.seq, now);
                (replay.sent, replay.sent_bytes) = (0, 0);
            }
            _ => {
                // It brings the viewer to the present.
                egress.end_replay(false);
                return true;
            }
        }
        let (keyframe_packets, gop_bytes, behind_max) = (gop.keyframe().len(), gop.bytes() as u64, behind_max(gop));
        let end = if replay.keyframe_only { keyframe_packets } else { gop.packets().len() };
        if replay.sent >= end {
            let rest = replay.squeeze.is_none() && !gop.is_past_keyframe();
            if rest && now.since(replay.began) < METERED {
                self.starts.push(Replay { due: now + KEYFRAME_REST, ..replay });
                return true;
            }
            let whole = !replay.keyframe_only && gop.is_whole();
            egress.end_replay(whole);
            if !whole {
                note(&mut found.keyframe_wanted, (replay.stream, replay.rendition.layer));
            }
            return true;
        }
        let Some((packets, mut run)) = self.fanout.past_run(replay.stream, replay.rendition, replay.sent) else {
            return true;
        };
        let due = |p: &CanonicalPacket| replay.squeeze.map_or(now, |squeeze| replay.began + squeeze.due(p));
        let early = packets[run.packets.clone()].iter().skip(1).position(|p| due(p) > now);
        run.packets.end = early.map_or(run.packets.end, |at| run.packets.start + 1 + at).min(end);
        let next_due = packets.get(run.packets.end).map_or(now, due);
        let in_keyframe = run.packets.end <= keyframe_packets;
        replay.sent = run.packets.end;
        replay.sent_bytes += packets[run.packets.clone()].iter().map(|p| p.packet.payload.len() as u64).sum::<u64>();
        let mut bytes = 0;
        match egress.replay(now, packets, &run, out) {
            Written::Sent { packets, payload_bytes } => {
                bytes = u64::from(payload_bytes);
                self.counters.count_forwarded(packets, payload_bytes);
            }
            Written::NoPayloadType => {
                note(&mut found.unsuitable, viewer.session);
                self.counters.drops.count_many(DropReason::NoPayloadType, run.packets.len() as u64);
                return true;
            }
            _ => {}
        }
        let pace = match replay.squeeze {
            None => {
                let left = gop_bytes.saturating_sub(replay.sent_bytes);
                behind_pace(now, own, everybodys, left, behind_max.saturating_sub(now.since(replay.began)), egress)
            }
            Some(_) if in_keyframe => u64::MAX,
            Some(_) => replay_pace(now, own, egress),
        };
        // At the present nothing of a replay is left to be spread: what comes next comes at its own pace.
        if replay.sent < end || replay.squeeze.is_none() {
            replay.due = (now + spread(bytes, pace)).max(next_due);
        }
        self.starts.push(replay);
        true
    }

    /// This shard has its first viewer of a layer: its past is with the publisher's.
    pub(super) fn request_past(&mut self, now: Instant, stream: &Stream, layer: u8) {
        if stream.active() != Generation::default() && self.fanout.ask_for_past(now, stream.id, layer) {
            let message = PeerMessage::PastRequest { stream: stream.id, layer, from: self.id };
            self.peers.push_back((stream.publisher_shard(), message));
        }
    }

    /// Viewers that wait may have been waiting for this.
    pub(super) fn handle_past(&mut self, now: Instant, stream: StreamId, packets: &[Arc<MediaPacket>], whole: bool) {
        self.fanout.handle_past(now, stream, packets, whole);
        let waiting: Vec<usize> = self.starts.waiting.iter().map(|(_, viewer)| *viewer).collect();
        for viewer in waiting {
            if self.sessions[self.viewers[viewer].session].session.stream == stream {
                self.try_replay(now, viewer, stream, false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_is_as_fast_as_the_viewers_path_and_comes_to_an_end() {
        let mbps = |mbps: u64| Some(Bitrate::from_bps(1_000_000 * mbps));
        assert_eq!(pace(500_000, 4_000_000, None), 4_000_000);
        assert_eq!(pace(500_000, 4_000_000, mbps(100)), 4_000_000);
        assert_eq!(pace(500_000, 4_000_000, mbps(8)), 1_000_000);
        assert_eq!(pace(500_000, 4_000_000, mbps(2)), 625_000, "the track has 4 Mbit/s");
        assert_eq!(pace(0, 0, mbps(0)), 1, "more than the track's, always");
    }
}
