//! Which layer each viewer is to see, and the way from one to the other: the new one is asked for a keyframe, and the old
//! one goes on until it comes.

use std::sync::Arc;
use std::time::Duration;

use str0m::media::MediaKind;

use super::Shard;
use super::timers::Armed;
use super::viewers::Viewer;
use crate::datagram::SendBatch;
use crate::forward::select::{Layers, Ranking, Wish};
use crate::forward::table::Stream;
use crate::id::SessionId;
use crate::limits::{self, LAYERS_MAX};
use crate::session::bwe::{self, Allocator, Bwe, Conditions, Limit};
use crate::units::{Bitrate, Instant};
use crate::wire::packet::Rendition;

/// How often viewers of streams with a choice are looked at.
const SELECT_INTERVAL: Duration = Duration::from_millis(100);

/// A layer that sends no keyframe for so long, though it was asked for one, is left alone for [`BARRED`].
const GIVE_UP: Duration = Duration::from_secs(5);
const BARRED: Duration = Duration::from_secs(10);

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
    /// Layers that did not send one, and until when they are left out.
    barred: [Option<Instant>; LAYERS_MAX],
    /// When its congestion control wants to be called.
    armed: Armed,
}

impl Selection {
    /// The layer to be shown; `None`: nothing is sent.
    fn choose(&mut self, now: Instant, mut layers: Layers, bwe: Option<&mut Bwe>) -> Option<u8> {
        let is_barred = |barred: &Option<Instant>| barred.is_some_and(|until| now < until);
        // A new publisher may have nothing but what the last one's layer was barred for.
        if layers.iter().zip(&self.barred).any(|(layer, barred)| layer.active && !is_barred(barred)) {
            for (layer, barred) in layers.iter_mut().zip(&self.barred) {
                layer.active &= !is_barred(barred);
            }
        }
        let ranking = Ranking::of(&layers);
        let mut costs = [bwe::Layer { cost: Bitrate::from_bps(0), active: false }; LAYERS_MAX];
        let mut cost = 0;
        for (by_rank, index) in costs.iter_mut().zip(ranking.indices()) {
            let layer = &layers[usize::from(*index)];
            cost = cost.max(layer.bitrate * OVERHEAD_PERCENT / 100);
            *by_rank = bwe::Layer { cost: Bitrate::from_bps(cost), active: layer.active };
        }
        let limit = match (ranking.pinned(&layers, &self.wish), ranking.highest_allowed(&layers, &self.wish)) {
            (Some(rank), _) => Limit::Pinned(rank),
            (None, Some(rank)) => Limit::UpTo(rank),
            (None, None) => Limit::None,
        };
        let conditions = Conditions {
            layers: &costs[..ranking.indices().len()],
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
        ranking.indices().get(rank).copied()
    }

    /// A cap at what there is, or above it, is none: what viewers may ask for does not decide how many renditions there are.
    fn rendition(&self, layer: u8, layers: &Layers) -> Rendition {
        let there = layers[usize::from(layer)];
        let cap = |max: Option<u8>, highest: u8| max.filter(|max| *max < highest).unwrap_or(u8::MAX);
        Rendition {
            layer,
            spatial_max: cap(self.wish.max_spatial, there.spatial),
            temporal_max: cap(self.wish.max_temporal, there.temporal),
        }
    }
}

impl Shard {
    /// What a viewer begins with.
    pub(super) fn first_rendition(&mut self, now: Instant, viewer: usize, stream: &Stream) -> Rendition {
        let Viewer { egress, selection, .. } = &mut self.viewers[viewer];
        let layers = stream.layers();
        let layer = selection.choose(now, layers, egress.bwe()).unwrap_or_default();
        let rendition = selection.rendition(layer, &layers);
        egress.set_target(rendition);
        rendition
    }

    /// A viewer has said what it wants to see.
    pub(super) fn handle_wish(&mut self, now: Instant, session: SessionId, wish: Wish, out: &mut SendBatch) {
        let Some(entry) = self.by_id.get(&session).and_then(|key| self.sessions.get(*key)) else { return };
        let (Some(viewer), stream) = (entry.viewer, entry.slot.stream.clone()) else { return };
        self.viewers[viewer].selection.wish = wish;
        self.select(now, viewer, &stream, out);
    }

    /// Looks at the viewers of all streams with a choice, when it is time.
    pub(super) fn select_all(&mut self, now: Instant, out: &mut SendBatch) {
        if now < self.next_select {
            return;
        }
        let streams: Vec<Arc<Stream>> = self.fanout.layered().cloned().collect();
        for stream in &streams {
            let viewers: Vec<usize> = self.fanout.viewers_of_video(stream.id).collect();
            for viewer in viewers {
                self.select(now, viewer, stream, out);
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

    fn select(&mut self, now: Instant, viewer: usize, stream: &Stream, out: &mut SendBatch) {
        let Some(Viewer { egress, selection, .. }) = self.viewers.get_mut(viewer) else { return };
        let layers = stream.layers();
        if layers.iter().filter(|l| l.active).count() > 1 {
            let highest = layers.iter().map(|l| l.bitrate).max().unwrap_or_default();
            egress.estimate_by_reports(Bitrate::from_bps(2 * highest));
        }
        let chosen = selection.choose(now, layers, egress.bwe());
        self.probe(now, viewer, out);
        let Viewer { egress, selection, .. } = &mut self.viewers[viewer];
        let Some(layer) = chosen else { return };
        let (shown, target) = (egress.shown(), egress.target());
        let mut wanted = selection.rendition(layer, &layers);
        if wanted == target {
            match (selection.switching, shown) {
                (Some(since), Some(shown)) if now.since(since) >= GIVE_UP && !stream.is_deaf() => {
                    selection.barred[usize::from(layer)] = Some(now + BARRED);
                    wanted = shown;
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
        if shown.is_some_and(|shown| stream.layers()[usize::from(shown.layer)].active) {
            self.fanout.join(&shared, MediaKind::Video, wanted, viewer);
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

    /// The first keyframe of its target has reached a viewer.
    pub(super) fn handle_switched(&mut self, viewer: usize, before: Rendition) {
        let Some(Viewer { session, selection, .. }) = self.viewers.get_mut(viewer) else { return };
        selection.switching = None;
        let stream = self.sessions[*session].session.stream;
        self.fanout.leave_rendition(stream, MediaKind::Video, before, viewer);
        self.counters.layer_switches += 1;
    }
}
