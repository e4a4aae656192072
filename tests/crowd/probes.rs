//! A crowd whose links are all probed at the same moment.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::fairness::deliver;
use crate::packets::{of_layer, packet};
use crate::room::Room;
use manycast::forward::select::Layer;
use manycast::id::{Generation, ShardId};
use manycast::limits::SEND_BATCH_MESSAGES;
use manycast::shard::message::PeerMessage;
use manycast::units::Instant;
use manycast::wire::codec::Format;

const VIEWERS: usize = 150;

/// Viewers that see the lower of two layers, and may want the higher one.
fn crowd() -> Room {
    let mut room = Room::new(|| 0);
    room.estimate = true;
    assert!(room.stream.activate(Generation(1), ShardId(1)));
    for (index, bitrate) in [500_000, 1_700_000].into_iter().enumerate() {
        room.stream.set_layer(index as u8, Layer { active: true, bitrate, ..Layer::default() });
    }
    for _ in 0..VIEWERS {
        room.watch();
    }
    room.run_until(|room| room.clients.iter().all(|c| c.connected_at.is_some()));
    let keyframe = Arc::new(of_layer(room.now, 0, 1, true, 500));
    room.shard.handle_peer(room.now, PeerMessage::Media(keyframe), &mut room.out);
    deliver(&mut room, || true);
    // To a tick of the shard's timers, so that what is due again at once is due now.
    room.now = Instant::from_nanos(room.now.as_nanos().next_multiple_of(1_000_000));
    room
}

/// What left in a turn: padding by viewer, and how many messages of audio.
fn turn(room: &mut Room, padding: &mut BTreeMap<SocketAddr, usize>) -> (usize, bool) {
    if room.shard.next_timeout() <= room.now {
        room.shard.handle_timeout(room.now, &mut room.out);
    }
    let more = room.shard.poll_transmit(room.now, &mut room.out);
    assert!(room.out.len() <= SEND_BATCH_MESSAGES, "{} messages", room.out.len());
    let media = room.out.iter().filter(|m| !(200..=206).contains(&m.data[1]));
    let (probes, audio): (Vec<_>, Vec<_>) = media.partition(|m| m.data.len() > 200);
    assert!(probes.len() <= SEND_BATCH_MESSAGES / 4, "{} probes in a flush", probes.len());
    for message in probes {
        *padding.entry(message.remote).or_default() += 1;
    }
    let audio = audio.len();
    room.out.clear();
    (audio, more || room.shard.next_timeout() <= room.now)
}

#[test]
fn a_crowds_probes_leave_room_in_each_flush_and_go_on_in_the_next() {
    let mut room = crowd();
    let mut padding = BTreeMap::new();
    // Within a second the shard finds out that there is a choice.
    room.now += Duration::from_secs(1);
    while turn(&mut room, &mut padding).1 {}
    assert_eq!(padding.len(), VIEWERS, "all of them are probed");
    // It was kept from its work for a while: all that is left of the probes is due.
    room.now += Duration::from_millis(50);
    turn(&mut room, &mut padding);
    let audio = Arc::new(packet(room.now, Format::OPUS, 1, vec![0; 40]));
    room.shard.handle_peer(room.now, PeerMessage::Media(audio), &mut room.out);
    let mut heard = 0;
    loop {
        let (audio, more) = turn(&mut room, &mut padding);
        // Each with a report of ours: two messages for a viewer.
        assert!(audio >= (VIEWERS - heard).min(SEND_BATCH_MESSAGES / 3), "{audio} after {heard}");
        heard += audio;
        if !more {
            break;
        }
    }
    assert_eq!(heard, VIEWERS);
    // 25 ms of 1.2 times what the higher layer wants.
    assert!(padding.values().all(|packets| *packets > 15), "{padding:?}");
}
