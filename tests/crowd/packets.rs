//! What the shard gets of a publisher that lives elsewhere.

use std::sync::Arc;

use crate::room::STREAM;
use manycast::id::Generation;
use manycast::units::Instant;
use manycast::wire::codec::{Codec, Format};
use manycast::wire::packet::{EndToEnd, MediaPacket};
use manycast::wire::{keyframe, vp8, vp9};
use str0m::media::MediaKind;

/// A frame by itself, of the stream that a room begins with.
pub fn packet(now: Instant, format: Format, seq: u64, payload: Vec<u8>) -> MediaPacket {
    let kind = format.codec.kind();
    let descriptor = match format.codec {
        Codec::Vp8 => vp8::parse(&payload, true),
        Codec::Vp9 => vp9::parse(&payload),
        _ => None,
    };
    MediaPacket {
        stream: STREAM,
        kind,
        layer: 0,
        generation: Generation(1),
        format,
        ssrc: kind as u32 + 1,
        seq,
        timestamp: seq as u32 * 3000,
        marker: true,
        starts_keyframe: kind == MediaKind::Audio || keyframe::starts_keyframe(format.codec, &payload),
        descriptor: descriptor.unwrap_or_default(),
        dependency: None,
        extensions: EndToEnd::default(),
        arrival: now,
        captured: now,
        payload: Arc::from(payload),
    }
}

/// A payload of VP8. Pictures of the layers are numbered apart; `stamp` is what [`manycast::sim::client::Stamp`] calls the source.
pub fn vp8_payload(layer: u8, seq: u64, temporal: u8, key: bool, bytes: usize) -> Vec<u8> {
    let stamp = u32::from(layer.max(temporal));
    let header = [0x90, 0xe0, 0x80 | layer, seq as u8, seq as u8, temporal << 6, 0x10 | u8::from(!key)];
    let mut payload = [&header[..], &stamp.to_be_bytes()].concat();
    payload.resize(bytes.max(payload.len()), 0);
    payload
}

/// A frame of a simulcast layer.
pub fn of_layer(now: Instant, layer: u8, seq: u64, key: bool) -> MediaPacket {
    let payload = vp8_payload(layer, seq, 0, key, 500);
    MediaPacket { layer, ssrc: u32::from(layer) + 1, ..packet(now, Format::VP8, seq, payload) }
}
