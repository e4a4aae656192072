//! Which layer each viewer is to see, and the way from one to the other: the new one is asked for a keyframe, and the old
//! one goes on until it comes.

use std::sync::Arc;
use std::time::Duration;

use str0m::media::MediaKind;

use super::Shard;
use super::timers::Armed;
use super::viewers::Viewer;
use crate::datagram::SendBatch;
use crate::forward::fanout::Joined;
use crate::forward::select::{self, Layers, RUNGS_MAX, Ranking, Rung, Wish};
use crate::forward::table::Stream;
use crate::id::{SessionId, StreamId};
use crate::limits;
use crate::session::bwe::{self, Allocator, Bwe, Conditions, Limit};
use crate::units::{Bitrate, Instant};
use crate::wire::packet::Rendition;

/// How often viewers of streams with a choice are looked at.
const SELECT_INTERVAL: Duration = Duration::from_millis(100);

/// A layer that sends no keyframe for so long, though it was asked for one, is left alone for [`BARRED`].
const GIVE_UP: Duration = Duration::from_secs(5);
const BARRED: Duration = Duration::from_secs(10);

/// The way down takes a picture or two. Should one of the renditions be ahead of the other all the time, a keyframe ends it.
const DESCENT: Duration = Duration::from_secs(1);

/// So long a repair of what was shown before may take.
const REPAIRED: Duration = Duration::from_secs(1);

/// Padding is written while a batch holds fewer messages: what is left is due in the next turn, so that neither audio nor
/// video waits for a crowd's probes.
const PROBES_PER_FLUSH: usize = limits::SEND_BATCH_MESSAGES / 4;

/// Of audio, with its headers: it is served first.
const AUDIO: Bitrate = Bitrate::from_bps(60_000);

/// Headers and tags that a layer's payload travels with, in percent.
const OVERHEAD_PERCENT: u64 = 105;

/// What one viewer wants to see, and how far it has come.
#[derive(Default)]
pub(super) struct Selection {
    wish: Wish,
    allocator: Allocator,
    /// Since when it waits for the first keyframe of its target.
    switching: Option<Instant>,
    /// Rungs that did not send one, by index, and until when they are left out. Each once.
    barred: Vec<(usize, Instant)>,
    /// What was shown before it went down, and until when that is stored for its NACKs.
    leaving: Option<(Rendition, Instant)>,
    /// When its congestion control wants to be called.
    armed: Armed,
}

impl Selection {
    /// What is to be shown; `None`: nothing is sent. `reads`: the viewer reads dependency descriptors.
    fn choose(&mut self, now: Instant, layers: &Layers, reads: bool, bwe: Option<&mut Bwe>) -> Option<Rung> {
        let mut ranking = Ranking::of(layers, reads);
        self.leave_out_barred(now, ranking.rungs_mut());
        let mut costs = [bwe::Layer { cost: Bitrate::from_bps(0), active: false }; RUNGS_MAX];
        let mut cost = 0;
        for (by_rank, rung) in costs.iter_mut().zip(ranking.rungs()) {
            cost = cost.max(rung.bitrate * OVERHEAD_PERCENT / 100);
            *by_rank = bwe::Layer { cost: Bitrate::from_bps(cost), active: rung.active };
        }
        let limit = match (ranking.pinned(layers, &self.wish), ranking.highest_allowed(&self.wish)) {
            (Some(rank), _) => Limit::Pinned(rank),
            (None, Some(rank)) => Limit::UpTo(rank),
            (None, None) => Limit::None,
        };
        let conditions = Conditions {
            layers: &costs[..ranking.rungs().len()],
            audio: AUDIO,
            // Whose path nobody estimates gets the best there is.
            estimate: bwe.as_ref().map_or(bwe::ESTIMATE_MAX, |bwe| bwe.estimate()),
            loss: bwe.as_ref().map_or(0.0, |bwe| bwe.loss()),
            limit,
        };
        let rank = self.allocator.choose(now, &conditions)?;
        if let Some(bwe) = bwe {
            bwe.set_goal(self.allocator.goal(now, &conditions));
        }
        ranking.rungs().get(rank).copied()
    }

    /// What it asks for, and what its path carries of that.
    fn granted(&self) -> Wish {
        let max_temporal = if self.allocator.is_thinned() { Some(0) } else { self.wish.max_temporal };
        Wish { max_temporal, ..self.wish }
    }

    /// Unless nothing else is sent: a new publisher may have nothing but what the last one's layer was barred for.
    fn leave_out_barred(&self, now: Instant, rungs: &mut [Rung]) {
        let is_barred = |rung: &Rung| self.barred.iter().any(|(index, until)| *index == rung.index() && now < *until);
        if rungs.iter().any(|rung| rung.active && !is_barred(rung)) {
            rungs.iter_mut().for_each(|rung| rung.active &= !is_barred(rung));
        }
    }
}

impl Shard {
    /// What a viewer begins with.
    pub(super) fn first_rendition(&mut self, now: Instant, viewer: usize, stream: &Stream) -> Rendition {
        let Viewer { egress, selection, .. } = &mut self.viewers[viewer];
        let layers = stream.layers();
        let reads = egress.reads_descriptors();
        let rung = selection.choose(now, &layers, reads, egress.bwe());
        let rendition =
            rung.map_or_else(Rendition::default, |rung| rung.rendition(&layers, &selection.granted(), reads));
        egress.set_target(rendition);
        rendition
    }

    /// A viewer has said what it wants to see.
    pub(super) fn handle_wish(&mut self, now: Instant, session: SessionId, wish: Wish, out: &mut SendBatch) {
        let Some(entry) = self.by_id.get(&session).and_then(|key| self.sessions.get(*key)) else { return };
        let (Some(viewer), stream) = (entry.viewer, entry.slot.stream.clone()) else { return };
        if !self.viewers[viewer].egress.wants(MediaKind::Video) {
            return;
        }
        self.viewers[viewer].selection.wish = wish;
        self.select(now, viewer, &stream, &stream.layers(), out);
    }

    /// Looks at the viewers of all streams with a choice, when it is time.
    pub(super) fn select_all(&mut self, now: Instant, out: &mut SendBatch) {
        if now < self.next_select {
            return;
        }
        let streams: Vec<Arc<Stream>> = self.fanout.layered().cloned().collect();
        for stream in &streams {
            let viewers: Vec<usize> = self.fanout.viewers_of_video(stream.id).collect();
            let layers = stream.layers();
            for viewer in viewers {
                self.select(now, viewer, stream, &layers, out);
            }
        }
        self.next_select = if streams.is_empty() { Instant::FAR_FUTURE } else { now + SELECT_INTERVAL };
    }

    /// Whether a stream here has a choice is found out once a second.
    pub(super) fn arm_select(&mut self, now: Instant) {
        if self.next_select == Instant::FAR_FUTURE && self.fanout.layered().next().is_some() {
            self.next_select = now;
        }
    }

    fn select(&mut self, now: Instant, viewer: usize, stream: &Stream, layers: &Layers, out: &mut SendBatch) {
        let Some(Viewer { selection, .. }) = self.viewers.get_mut(viewer) else { return };
        if let Some((before, _)) = selection.leaving.take_if(|(_, until)| now >= *until) {
            self.leave_unseen(viewer, stream.id, before);
        }
        let Viewer { egress, selection, .. } = &mut self.viewers[viewer];
        if egress.bwe().is_none() && select::is_choice(layers) {
            let highest = layers.iter().map(|l| l.bitrate).max().unwrap_or_default();
            egress.estimate_by_reports(Bitrate::from_bps(2 * highest));
        }
        let reads = egress.reads_descriptors();
        let chosen = selection.choose(now, layers, reads, egress.bwe());
        self.probe(now, viewer, out);
        let Viewer { egress, selection, .. } = &mut self.viewers[viewer];
        let Some(rung) = chosen else { return };
        let (shown, target) = (egress.shown(), egress.target());
        let mut wanted = rung.rendition(layers, &selection.granted(), reads);
        if wanted == target {
            // Its first picture of all replaces none.
            let switching = selection.switching.filter(|_| shown != Some(target));
            match (switching, shown) {
                // Of the same layer there is nothing else to be had.
                (Some(since), Some(shown))
                    if now.since(since) >= GIVE_UP && !stream.is_deaf() && !shown.is_beside(&wanted) =>
                {
                    selection.barred.retain(|(index, _)| *index != rung.index());
                    selection.barred.push((rung.index(), now + BARRED));
                    wanted = shown;
                }
                // The keyframe that answered may have been another viewer's, and may have come before this one was there. The way down
                // needs none, as a rule.
                (Some(since), _) if !egress.is_descending() || now.since(since) >= DESCENT => {
                    if self.fanout.ask_for_keyframe(now, stream.id, wanted.layer) {
                        self.request_keyframe(now, stream.id, wanted.layer, out);
                    }
                    return;
                }
                _ => return,
            }
        }
        self.retarget(now, viewer, stream, wanted, out);
    }

    fn retarget(&mut self, now: Instant, viewer: usize, stream: &Stream, wanted: Rendition, out: &mut SendBatch) {
        let Some(shared) = self.fanout.stream(stream.id).cloned() else { return };
        let Viewer { egress, selection, .. } = &mut self.viewers[viewer];
        let (shown, before) = (egress.shown(), egress.target());
        egress.set_target(wanted);
        selection.switching = (shown != Some(wanted)).then_some(now);
        if shown != Some(before) {
            self.fanout.leave_rendition(stream.id, MediaKind::Video, before, viewer);
        }
        if shown == Some(wanted) {
            // It had been stopped for another layer that did not come.
            if egress.is_waiting() {
                self.request_keyframe_at_once(now, stream.id, wanted.layer, out);
            }
            return;
        }
        if let Some(shown) = shown.filter(|shown| stream.layers()[usize::from(shown.layer)].active) {
            if self.viewers[viewer].egress.is_descending() {
                return self.fanout.join_below(&shared, shown, wanted, viewer);
            }
            // Of a keyframe whose first packet is late the others may be there already.
            if self.fanout.join(&shared, MediaKind::Video, wanted, viewer) == Joined::First {
                self.request_past(now, &shared, wanted.layer);
            }
            self.request_keyframe_at_once(now, stream.id, wanted.layer, out);
        } else {
            // Nothing goes on meanwhile, so the past of the new one is welcome.
            self.viewers[viewer].egress.stop_video();
            self.start_rendition(now, viewer, &shared, wanted, out);
        }
    }

    /// Viewers whose congestion control has something to do, or padding to send.
    pub(super) fn handle_probes(&mut self, now: Instant, out: &mut SendBatch) {
        while out.len() < PROBES_PER_FLUSH
            && let Some((at, viewer)) = self.probe_timers.pop_due(now)
        {
            if self.viewers.get_mut(viewer).is_some_and(|v| v.selection.armed.fires(at)) {
                self.probe(now, viewer, out);
            }
        }
    }

    /// To be called when a viewer's congestion control has heard something, or is due.
    pub(super) fn probe(&mut self, now: Instant, viewer: usize, out: &mut SendBatch) {
        let Viewer { egress, selection, .. } = &mut self.viewers[viewer];
        let Some(bwe) = egress.bwe() else { return };
        bwe.handle_timeout(now);
        while out.len() < PROBES_PER_FLUSH
            && let Some(order) = egress.bwe().and_then(|bwe| bwe.poll_probe(now))
        {
            if !egress.pad(now, order, out) {
                break;
            }
            self.counters.padding_sent += 1;
        }
        let due = egress.bwe().map_or(Instant::FAR_FUTURE, |bwe| bwe.next_timeout());
        // With room left, what is past waits for feedback, or for the next look at the viewer.
        if due > now || out.len() >= PROBES_PER_FLUSH {
            self.probe_timers.arm(viewer, &mut selection.armed, due.max(now));
        }
    }

    /// A viewer has begun with its target.
    pub(super) fn handle_switched(&mut self, now: Instant, viewer: usize, before: Rendition) {
        let Some(Viewer { session, egress, selection }) = self.viewers.get_mut(viewer) else { return };
        selection.switching = None;
        let stream = self.sessions[*session].session.stream;
        self.counters.layer_switches += 1;
        // Without a keyframe in between, the decoder still needs what is missing of the pictures before.
        let left = match egress.shown().is_some_and(|shown| before.descends_to(&shown)) {
            true => selection.leaving.replace((before, now + REPAIRED)).map(|(left, _)| left).filter(|l| *l != before),
            false => Some(before),
        };
        if let Some(left) = left {
            self.leave_unseen(viewer, stream, left);
        }
    }

    /// Unless the viewer has come back to it, or is to.
    fn leave_unseen(&mut self, viewer: usize, stream: StreamId, rendition: Rendition) {
        let egress = &self.viewers[viewer].egress;
        if egress.shown() != Some(rendition) && egress.target() != rendition {
            self.fanout.leave_rendition(stream, MediaKind::Video, rendition, viewer);
        }
    }
}
