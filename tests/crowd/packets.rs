//! What the shard gets of a publisher that lives elsewhere.

use std::sync::Arc;

use crate::room::STREAM;
use manycast::id::Generation;
use manycast::sim::client::Stamp;
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
pub fn of_layer(now: Instant, layer: u8, seq: u64, key: bool, bytes: usize) -> MediaPacket {
    let payload = vp8_payload(layer, seq, 0, key, bytes);
    MediaPacket { layer, ssrc: u32::from(layer) + 1, ..packet(now, Format::VP8, seq, payload) }
}

/// Packets of each spatial layer's frame; at 30 pictures a second 190 kbit/s, 0.7 and 2 Mbit/s with those below.
pub const SPATIAL_PACKETS: [u32; 3] = [1, 2, 5];

/// A picture of VP9 in three spatial layers. Only those of a key picture depend on the ones below (as in `L3T3_KEY`).
pub fn vp9_picture(now: Instant, picture: u64, key: bool) -> Vec<MediaPacket> {
    let format = Format { codec: Codec::Vp9, profile: 0, packetization_mode: 0 };
    let frames =
        SPATIAL_PACKETS.iter().enumerate().flat_map(|(spatial, n)| (0..*n).map(move |at| (spatial, at, n - 1)));
    let packet = |(number, (spatial, at, last)): (u64, (usize, u32, u32))| {
        let (begins, ends) = (at == 0, at == last);
        // I, P, L, B, E; then TID, U, SID, D.
        let flags = 0xa0 | u8::from(!key) << 6 | u8::from(begins) << 3 | u8::from(ends) << 2;
        let layer = (spatial as u8) << 1 | u8::from(key && spatial > 0);
        let mut payload = vec![flags, 0x80 | (picture >> 8) as u8, picture as u8, layer, picture as u8];
        let first_of_frame = begins && spatial == 0;
        Stamp { source: spatial as u32, layer: 0, packet: at, frame: picture as u32, keyframe: key, first_of_frame }
            .write(&mut payload);
        payload.resize(800 + 40 * usize::from(begins), 0);
        MediaPacket {
            timestamp: picture as u32 * 3000,
            marker: ends && spatial == SPATIAL_PACKETS.len() - 1,
            ..packet(now, format, picture * u64::from(SPATIAL_PACKETS.iter().sum::<u32>()) + number, payload)
        }
    };
    (0..).zip(frames).map(packet).collect()
}
