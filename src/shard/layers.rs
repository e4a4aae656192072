//! Which layer each viewer is to see, and the way from one to the other: the new one is asked for a keyframe, and the old
//! one goes on until it comes.

use std::sync::Arc;
use std::time::Duration;

use str0m::media::MediaKind;

use super::Shard;
use super::viewers::Viewer;
use crate::datagram::SendBatch;
use crate::forward::select::{self, Layers, Wish};
use crate::forward::table::Stream;
use crate::id::SessionId;
use crate::limits::LAYERS_MAX;
use crate::units::Instant;
use crate::wire::packet::Rendition;

/// How often viewers of streams with a choice are looked at.
const SELECT_INTERVAL: Duration = Duration::from_millis(100);

/// A layer that sends no keyframe for so long, though it was asked for one, is left alone for [`BARRED`].
const GIVE_UP: Duration = Duration::from_secs(5);
const BARRED: Duration = Duration::from_secs(10);

/// What one viewer wants to see, and how far it has come.
#[derive(Default)]
pub(super) struct Selection {
    wish: Wish,
    /// Since when it waits for the first keyframe of its target.
    switching: Option<Instant>,
    /// Layers that did not send one, and until when they are left out.
    barred: [Option<Instant>; LAYERS_MAX],
}

impl Selection {
    /// What is there for this viewer.
    fn usable(&self, now: Instant, mut layers: Layers) -> Layers {
        for (layer, barred) in layers.iter_mut().zip(&self.barred) {
            layer.active &= barred.is_none_or(|until| now >= until);
        }
        layers
    }

    fn rendition(&self, layer: u8) -> Rendition {
        let Wish { max_spatial, max_temporal, .. } = self.wish;
        Rendition { layer, spatial_max: max_spatial.unwrap_or(u8::MAX), temporal_max: max_temporal.unwrap_or(u8::MAX) }
    }
}

impl Shard {
    /// What a viewer begins with.
    pub(super) fn first_rendition(&mut self, viewer: usize, stream: &Stream) -> Rendition {
        let viewer = &mut self.viewers[viewer];
        let layer = select::choose(&stream.layers(), &viewer.selection.wish, None).unwrap_or_default();
        let rendition = viewer.selection.rendition(layer);
        viewer.egress.set_target(rendition);
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
        let layers = selection.usable(now, stream.layers());
        let Some(layer) = select::choose(&layers, &selection.wish, None) else { return };
        let (shown, target) = (egress.shown(), egress.target());
        let mut wanted = selection.rendition(layer);
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
            return;
        }
        if shown.is_some_and(|shown| stream.layers()[usize::from(shown.layer)].active) {
            self.fanout.join(&shared, MediaKind::Video, wanted, viewer);
            self.fanout.joined(now, stream.id, wanted.layer);
            self.request_keyframe(now, stream.id, wanted.layer, out);
        } else {
            // Nothing goes on meanwhile, so the past of the new one is welcome.
            self.viewers[viewer].egress.stop_video();
            self.start_rendition(now, viewer, &shared, wanted, out);
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
