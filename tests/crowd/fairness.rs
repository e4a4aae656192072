//! A keyframe for a thousand viewers: all get it side by side, and audio does not wait for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::room::{Room, STREAM};
use manycast::id::Generation;
use manycast::limits::SEND_BATCH_MESSAGES;
use manycast::shard::ShardConfig;
use manycast::shard::message::PeerMessage;
use manycast::units::Instant;
use manycast::wire::codec::Format;
use manycast::wire::descriptor::Descriptor;
use manycast::wire::packet::{EndToEnd, MediaPacket};
use str0m::media::MediaKind;

const VIEWERS: usize = 1000;
/// 250 kB.
const KEYFRAME_PACKETS: u64 = 228;
const SEGMENTS_MAX: usize = 16;

fn packet(arrival: Instant, kind: MediaKind, seq: u64) -> PeerMessage {
    let (format, bytes) = match kind {
        MediaKind::Audio => (Format::OPUS, 80),
        MediaKind::Video => (Format::VP8, 1100),
    };
    PeerMessage::Media(Arc::new(MediaPacket {
        stream: STREAM,
        kind,
        generation: Generation(1),
        format,
        ssrc: kind as u32 + 1,
        seq,
        timestamp: 0,
        marker: false,
        starts_keyframe: kind == MediaKind::Audio || seq == 1,
        descriptor: Descriptor::default(),
        extensions: EndToEnd::default(),
        arrival,
        captured: arrival,
        payload: Arc::from(vec![0x10; bytes]),
    }))
}

/// One message as it left: to whom, how many packets, which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    viewer: SocketAddr,
    packets: usize,
    audio: bool,
}

/// One flush. RTCP is not looked at.
fn flush(room: &mut Room) -> (Vec<Sent>, bool) {
    let more = room.shard.poll_transmit(room.now, &mut room.out);
    let messages = room.out.iter().filter(|m| !(200..=206).contains(&m.data[1]));
    let sent = messages
        .map(|m| Sent {
            viewer: m.remote,
            packets: m.data.len().div_ceil(m.segment.map_or(m.data.len(), usize::from)),
            audio: m.data.len() < 200,
        })
        .collect();
    room.out.clear();
    (sent, more)
}

fn room(viewers: usize, config: ShardConfig) -> Room {
    let mut room = Room::with(|| 0, config);
    (0..viewers).for_each(|_| {
        room.watch();
    });
    room.run_until(|room| room.clients.iter().all(|c| c.connected_at.is_some()));
    room
}

fn give(room: &mut Room, kind: MediaKind, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        room.shard.handle_peer(room.now, packet(room.now, kind, seq), &mut room.out);
    }
}

#[test]
fn a_keyframe_goes_to_all_viewers_side_by_side_and_audio_overtakes_it() {
    let mut room = room(VIEWERS, ShardConfig::default());
    give(&mut room, MediaKind::Video, 1..=KEYFRAME_PACKETS);
    let mut packets: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    let (mut flushes, mut audio, mut waited) = (0, None, 0);
    loop {
        let (sent, more) = flush(&mut room);
        flushes += 1;
        assert!(sent.len() <= SEND_BATCH_MESSAGES + 1, "{} messages in a flush", sent.len());
        for message in &sent {
            assert!(message.packets <= SEGMENTS_MAX, "{message:?}");
            if !message.audio {
                *packets.entry(message.viewer).or_default() += message.packets;
            }
        }
        // Nobody is ahead of anybody else by more than one quantum.
        let (least, most) = (packets.values().min().unwrap_or(&0), packets.values().max().unwrap_or(&0));
        let started = packets.len() == VIEWERS;
        assert!(most - if started { *least } else { 0 } <= SEGMENTS_MAX, "{least} to {most}");
        match &mut audio {
            None if flushes == 5 => {
                // It comes while video is being flushed, so the flush that is under way is all it waits for.
                give(&mut room, MediaKind::Audio, 1..=1);
                audio = Some(VIEWERS);
            }
            Some(left) if *left > 0 => {
                let video = sent.iter().filter(|m| !m.audio).count();
                *left -= sent.len() - video;
                if *left > 0 {
                    waited += video;
                }
            }
            _ => {}
        }
        if !more {
            break;
        }
    }
    assert_eq!(waited, 0, "video messages that left before the last copy of the audio packet");
    assert_eq!(audio, Some(0), "every viewer got the audio packet");
    assert_eq!(packets.len(), VIEWERS);
    assert!(packets.values().all(|p| *p == KEYFRAME_PACKETS as usize), "{packets:?}");
}

/// Only what may still grow is held, only for video, and never for longer than was set.
#[test]
fn the_beginning_of_a_frame_waits_for_the_rest_and_audio_does_not() {
    let hold = Duration::from_micros(150);
    let mut room = room(10, ShardConfig { video_hold: hold, ..ShardConfig::default() });
    give(&mut room, MediaKind::Video, 1..=3);
    assert_eq!(flush(&mut room), (vec![], false), "three packets of a frame wait");
    assert_eq!(room.shard.next_timeout(), room.now + hold);
    give(&mut room, MediaKind::Video, 4..=6);
    room.now += hold;
    let (sent, _) = flush(&mut room);
    assert_eq!(sent.iter().map(|s| s.packets).collect::<Vec<_>>(), [6; 10], "all six leave together");
    give(&mut room, MediaKind::Video, 7..=7);
    give(&mut room, MediaKind::Audio, 1..=1);
    let (sent, _) = flush(&mut room);
    assert!(sent[..10].iter().all(|s| s.audio), "audio is not held: {sent:?}");
    give(&mut room, MediaKind::Video, 8..=23);
    assert!(!flush(&mut room).0.is_empty(), "a full message is not held");
}
