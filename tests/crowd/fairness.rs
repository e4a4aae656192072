//! A keyframe for a thousand viewers: all get it side by side, and audio does not wait for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::packets;
use crate::room::{Room, SERVER, SOCKET, STREAM};
use manycast::datagram::Received;
use manycast::forward::table::Stream;
use manycast::id::{Generation, ShardId, StreamId};
use manycast::limits::SEND_BATCH_MESSAGES;
use manycast::shard::ShardConfig;
use manycast::shard::message::PeerMessage;
use manycast::units::Instant;
use manycast::wire::codec::Format;
use manycast::wire::packet::MediaPacket;
use str0m::media::MediaKind;

const VIEWERS: usize = 1000;
/// 250 kB.
const KEYFRAME_PACKETS: u64 = 228;
const SEGMENTS_MAX: usize = 16;

fn packet(arrival: Instant, kind: MediaKind, seq: u64) -> PeerMessage {
    packet_of(STREAM, arrival, kind, seq)
}

fn packet_of(stream: StreamId, arrival: Instant, kind: MediaKind, seq: u64) -> PeerMessage {
    let (format, bytes) = match kind {
        MediaKind::Audio => (Format::OPUS, 80),
        MediaKind::Video => (Format::VP8, 1100),
    };
    let packet = packets::packet(arrival, format, seq, vec![0x10; bytes]);
    let starts_keyframe = kind == MediaKind::Audio || seq == 1;
    PeerMessage::Media(Arc::new(MediaPacket { stream, marker: false, starts_keyframe, ..packet }))
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

/// Brings the viewers everything that waits for them, or what `passes`.
pub fn deliver(room: &mut Room, mut passes: impl FnMut() -> bool) {
    loop {
        let more = room.shard.poll_transmit(room.now, &mut room.out);
        for message in room.out.iter() {
            let client = room.clients.iter_mut().find(|c| c.addr() == message.remote).expect("a viewer");
            for data in message.data.chunks(message.segment.map_or(usize::MAX, usize::from)) {
                if passes() {
                    client.handle_datagram(room.now, SERVER, data);
                }
            }
        }
        room.out.clear();
        if !more {
            break;
        }
    }
}

pub fn room(viewers: usize, config: ShardConfig) -> Room {
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

/// Viewers that lost every other packet of a frame ask for all of them at once.
#[test]
fn a_storm_of_nacks_delays_neither_audio_nor_all_video() {
    const NACKERS: usize = 40;
    let mut room = room(NACKERS, ShardConfig::default());
    give(&mut room, MediaKind::Video, 1..=200);
    let mut number = 0;
    deliver(&mut room, || {
        number += 1;
        number % 2 == 0
    });
    let mut nacks = Vec::new();
    let asked = room.now + Duration::from_millis(300);
    for client in &mut room.clients {
        while client.next_timeout() <= asked {
            let due = client.next_timeout();
            client.handle_timeout(due);
        }
        let remote = client.addr();
        nacks.extend(std::iter::from_fn(|| client.poll_transmit()).map(|(_, data)| (remote, data)));
    }
    room.now = asked;
    for (remote, data) in &nacks {
        let datagram = Received { socket: SOCKET, remote: *remote, data };
        room.shard.handle_datagram(room.now, datagram, &mut room.out);
    }
    // Reports of ours aside, which are not looked at, NACKs alone have written nothing.
    assert!(room.out.iter().all(|m| (200..=206).contains(&m.data[1]) || m.data[0] < 2), "resends wait for their turn");
    room.out.clear();
    give(&mut room, MediaKind::Audio, 1..=1);
    give(&mut room, MediaKind::Video, 201..=216);
    let mut audio_left = NACKERS;
    let (mut resends, mut flushes, mut flushes_with_video) = (0, 0, 0);
    loop {
        let (sent, more) = flush(&mut room);
        let resent = sent.iter().filter(|s| !s.audio && s.packets == 1).count();
        let audio = sent.iter().take_while(|s| s.audio).count();
        audio_left -= audio;
        assert!(audio_left == 0 || audio == sent.len(), "something overtook audio: {sent:?}");
        assert!(resent <= SEND_BATCH_MESSAGES / 2, "{resent} resends in a flush");
        resends += resent;
        flushes += 1;
        flushes_with_video += usize::from(sent.iter().any(|s| s.packets > 1));
        if !more {
            break;
        }
    }
    assert_eq!(audio_left, 0);
    assert!(resends > 10 * NACKERS, "{resends} resends: there was a storm");
    assert!(flushes_with_video > 0 && flushes > 10, "{flushes_with_video} of {flushes}");
}

const ELSEWHERE: ShardId = ShardId(1);

/// Requests for a keyframe that the shard passes on to the publisher's shard.
fn passed_on(room: &mut Room) -> Vec<StreamId> {
    std::iter::from_fn(|| room.shard.poll_peer())
        .map(|(to, message)| match message {
            PeerMessage::KeyframeRequest { stream, layer: 0 } if to == ELSEWHERE => stream,
            other => panic!("{other:?} for {to}"),
        })
        .collect()
}

#[test]
fn a_viewer_that_floods_keyframe_requests_does_not_flood_the_publishers_shard() {
    let mut room = room(1, ShardConfig::default());
    assert!(room.stream.activate(Generation(1), ELSEWHERE));
    give(&mut room, MediaKind::Video, 1..=1);
    deliver(&mut room, || true);
    let (remote, until) = (room.clients[0].addr(), room.now + Duration::from_secs(1));
    let mut asked = 0;
    passed_on(&mut room);
    while room.now < until {
        room.now += Duration::from_millis(2);
        room.clients[0].request_keyframe(room.now);
        while let Some((_, data)) = room.clients[0].poll_transmit() {
            asked += 1;
            room.shard.handle_datagram(room.now, Received { socket: SOCKET, remote, data: &data }, &mut room.out);
        }
    }
    let passed = passed_on(&mut room).len();
    assert!(asked > 100 && (5..=10).contains(&passed), "{passed} of {asked}");
}

#[test]
fn viewers_of_two_streams_that_wait_in_one_flush_are_both_asked_for() {
    let mut room = room(1, ShardConfig::default());
    let streams = [room.stream.clone(), Arc::new(Stream::new(StreamId(2), "other"))];
    room.stream = streams[1].clone();
    room.watch();
    room.run_until(|room| room.clients[1].connected_at.is_some());
    for stream in &streams {
        assert!(stream.activate(Generation(1), ELSEWHERE));
        room.shard.handle_peer(room.now, packet_of(stream.id, room.now, MediaKind::Video, 1), &mut room.out);
    }
    flush(&mut room);
    // So long after the keyframe that no replay can bring a viewer to the present.
    room.now += Duration::from_secs(13);
    for stream in &streams {
        room.shard.handle_peer(room.now, packet_of(stream.id, room.now, MediaKind::Video, 2), &mut room.out);
        room.stream = stream.clone();
        room.watch();
    }
    room.run_until(|room| room.clients.iter().all(|c| c.connected_at.is_some()));
    room.now += Duration::from_secs(2);
    room.shard.handle_timeout(room.now, &mut room.out);
    while flush(&mut room).1 {}
    room.now += Duration::from_secs(2);
    passed_on(&mut room);
    for stream in &streams {
        room.shard.handle_peer(room.now, packet_of(stream.id, room.now, MediaKind::Video, 3), &mut room.out);
    }
    flush(&mut room);
    assert_eq!(passed_on(&mut room), [StreamId(1), StreamId(2)]);
}

/// A keyframe of as many bytes as the second before it held.
#[test]
fn a_keyframe_is_spread_at_a_multiple_of_its_tracks_bitrate_and_audio_is_not() {
    let mut room = room(10, ShardConfig::default());
    for seq in 1..=120 {
        give(&mut room, MediaKind::Video, seq..=seq);
        while flush(&mut room).1 {}
        room.now += Duration::from_millis(10);
        room.shard.handle_timeout(room.now, &mut room.out);
    }
    let mut keyframe = |seq: u64| {
        let PeerMessage::Media(packet) = packet(room.now, MediaKind::Video, seq) else { return };
        let packet = MediaPacket { timestamp: 1_000_000, ..Arc::into_inner(packet).expect("the only one") };
        room.shard.handle_peer(room.now, PeerMessage::Media(Arc::new(packet)), &mut room.out);
    };
    (121..=220).for_each(&mut keyframe);
    let started = room.now;
    let mut left = 10 * 100;
    let mut at_once = None;
    loop {
        loop {
            let (sent, more) = flush(&mut room);
            left -= sent.iter().filter(|s| !s.audio).map(|s| s.packets).sum::<usize>();
            if !more {
                break;
            }
        }
        if at_once.is_none() {
            at_once = Some(10 * 100 - left);
            give(&mut room, MediaKind::Audio, 1..=1);
            let audio = flush(&mut room).0.iter().filter(|s| s.audio).count();
            assert_eq!(audio, 10, "audio passes what is held back");
        }
        if left == 0 {
            break;
        }
        assert!(room.shard.next_timeout() > room.now, "it says when to go on");
        room.now = room.now.max(room.shard.next_timeout());
        room.shard.handle_timeout(room.now, &mut room.out);
    }
    let took = room.now.since(started);
    // 110 kB, less a burst of 38 kB, at 2.5 times some 200 kB/s: its own bytes count.
    assert!((100..=300).contains(&took.as_millis()), "{took:?}");
    assert!(at_once.is_some_and(|packets| (160..=480).contains(&packets)), "{at_once:?} of 1000 packets at once");
}
