//! Which layer a viewer gets: `POST …/layer` (WHEP's layer selection extension), and layers as clients read of them.

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::controller::Controller;
use super::exchange::{self, Request, Response};
use super::problem::{ACCEPT_POST, Problem};
use super::resource::Target;
use crate::id::{Rid, SessionId};
use crate::shard::message::{Command, LayerReport, Wish};
use crate::units::Instant;

/// What is left out is chosen by us; what is not known here is ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selection {
    /// Index of the m-line, as text or number.
    media_id: Option<Value>,
    /// `encodingId` is what Broadcast Box's player says.
    #[serde(alias = "encodingId")]
    rid: Option<Box<str>>,
    spatial_layer_id: Option<u64>,
    temporal_layer_id: Option<u64>,
    max_spatial_layer_id: Option<u64>,
    max_temporal_layer_id: Option<u64>,
    max_width: Option<u64>,
    max_height: Option<u64>,
}

impl Controller {
    /// 200 as soon as the layer is known: the switch comes with its next keyframe.
    pub(super) fn select_layer(
        &mut self,
        now: Instant,
        target: Target,
        request: &Request,
    ) -> Result<Response, Problem> {
        let record = self.admit_to_session(now, target, request)?;
        if !request.is("application/json") {
            return Err(Problem::media_type(ACCEPT_POST, "application/json"));
        }
        let selection = parse(&request.body)?;
        let (id, stream, video_line) = (record.id, record.slot.stream.id, record.video_line);
        let layers = self.streams.get(stream).map_or(&[][..], |e| &e.layers);
        let wish = selection.choose(layers, video_line)?;
        self.tell_wish(id, wish);
        Ok(exchange::empty(StatusCode::OK))
    }

    /// Before the viewer is connected there is nothing to choose for: then it waits here.
    fn tell_wish(&mut self, id: SessionId, wish: Wish) {
        let Some(record) = self.sessions.get_mut(id) else { return };
        match record.slot.owner().filter(|_| record.established) {
            Some(owner) => self.command(owner, Command::SelectLayer { session: id, wish }),
            None => record.wish = Some(wish),
        }
    }

    /// A viewer has connected: its shard hears what it has chosen meanwhile.
    pub(super) fn tell_early_wish(&mut self, id: SessionId) {
        if let Some(wish) = self.sessions.get_mut(id).and_then(|r| r.wish.take()) {
            self.tell_wish(id, wish);
        }
    }
}

fn parse(body: &[u8]) -> Result<Selection, Problem> {
    let what = "the body must be a JSON object such as {\"rid\":\"h\"}, or {} to leave the choice to the server";
    // serde would take an array for the fields in their order.
    let object = serde_json::from_slice::<Value>(body).ok().filter(Value::is_object);
    object.and_then(|o| serde_json::from_value(o).ok()).ok_or_else(|| Problem::malformed(what))
}

impl Selection {
    /// Checks it against the layers that the stream has.
    fn choose(self, layers: &[LayerReport], video_line: Option<usize>) -> Result<Wish, Problem> {
        let unknown = |detail| Err(Problem::unusable("unknown-layer", detail));
        if video_line.is_none() {
            return unknown("this session has no video");
        }
        if !self.names_video(video_line) {
            return unknown("mediaId is not the index of the video m-line");
        }
        let rid = self.rid.filter(|rid| !rid.is_empty());
        let fits = |l: &&LayerReport| rid.as_ref().is_none_or(|rid| *rid == l.rid);
        if rid.is_some() && !layers.iter().any(|l| fits(&l)) {
            return unknown("the stream has no layer with this rid");
        }
        let highest = |id: fn(&LayerReport) -> u8| layers.iter().filter(fits).map(id).max().map_or(0, u64::from);
        if self.spatial_layer_id.is_some_and(|id| id > highest(|l| l.spatial)) {
            return unknown("the stream has no such spatial layer");
        }
        if self.temporal_layer_id.is_some_and(|id| id > highest(|l| l.temporal)) {
            return unknown("the stream has no such temporal layer");
        }
        Ok(Wish {
            max_height: self.max_height.map(pixels),
            max_width: self.max_width.map(pixels),
            max_spatial: lower(self.spatial_layer_id, self.max_spatial_layer_id).map(layer_id),
            max_temporal: lower(self.temporal_layer_id, self.max_temporal_layer_id).map(layer_id),
            // Known ones are short enough.
            rid: rid.and_then(|rid| Rid::new(&rid)),
        })
    }

    fn names_video(&self, video_line: Option<usize>) -> bool {
        let Some(id) = &self.media_id else { return true };
        let line = id.as_str().map_or_else(|| id.as_u64(), |text| text.parse().ok());
        line.is_some_and(|line| video_line.is_some_and(|video| video as u64 == line))
    }
}

fn lower(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// A cap that no layer reaches is as good as the largest.
fn pixels(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

fn layer_id(value: u64) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// The `layers` event's data: under the index of the video m-line, best first. A layer that rests has no bitrate.
pub(super) fn layers_json(video_line: usize, layers: &[LayerReport]) -> Value {
    let list: Vec<Value> = layers.iter().map(layer_json).collect();
    json!({ video_line.to_string(): list })
}

fn layer_json(layer: &LayerReport) -> Value {
    let mut json = json!({ "spatialLayerId": layer.spatial, "temporalLayerId": layer.temporal });
    if !layer.rid.is_empty() {
        json["rid"] = layer.rid.as_ref().into();
    }
    if layer.active {
        json["bitrate"] = layer.bitrate.into();
    }
    if layer.width > 0 && layer.height > 0 {
        json["width"] = layer.width.into();
        json["height"] = layer.height.into();
        // As the draft spells it.
        json["heigth"] = layer.height.into();
    }
    json
}
