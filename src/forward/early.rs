//! The last packets for which there was no keyframe yet: those of one may have overtaken its first packet.

use std::collections::VecDeque;

/// A keyframe of 75 kB.
const PACKETS: usize = 64;

/// In the order of their arrival; the oldest makes room.
#[derive(Debug)]
pub struct Early<P>(VecDeque<P>);

impl<P> Default for Early<P> {
    fn default() -> Self {
        Early(VecDeque::new())
    }
}

impl<P> Early<P> {
    pub fn remember(&mut self, packet: P) {
        if self.0.len() == PACKETS {
            self.0.pop_front();
        }
        self.0.push_back(packet);
    }

    pub fn take(&mut self) -> impl Iterator<Item = P> + use<P> {
        std::mem::take(&mut self.0).into_iter()
    }

    /// The newest first.
    pub fn iter(&self) -> impl Iterator<Item = &P> {
        self.0.iter().rev()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use str0m::media::MediaKind;

    use crate::forward::burst::Segmenting;
    use crate::forward::canonical::Refused;
    use crate::forward::fanout::Fanout;
    use crate::forward::table::Stream;
    use crate::forward::track::NotTaken;
    use crate::id::{Generation, ShardId, StreamId};
    use crate::limits;
    use crate::units::Instant;
    use crate::wire::packet::testing::video;
    use crate::wire::packet::{MediaPacket, Rendition};

    #[test]
    fn what_overtook_a_keyframe_is_stored_though_the_queue_is_full() {
        for room in 0..2 {
            let mut fanout = Fanout::new(ShardId(0), Segmenting::default());
            let stream = Arc::new(Stream::new(StreamId(1), "live"));
            fanout.join(&stream, MediaKind::Video, Rendition::default(), 0);
            let mut told = Vec::new();
            let mut handle = |generation, seq, key| {
                let packet = MediaPacket { generation: Generation(generation), ..video(seq, 0, key, 10) };
                fanout.handle(Instant::ZERO, &Arc::new(packet), |not| told.push(not));
            };
            let before = limits::TRACK_QUEUE_PACKETS as u64 - room;
            (0..before).for_each(|seq| handle(1, seq, seq == 0));
            [11, 12].into_iter().for_each(|seq| handle(2, seq, false));
            handle(2, 10, true);
            let refused = NotTaken::Refused(Refused::AwaitingKeyframe);
            let full = (room == 0).then_some(NotTaken::Full);
            assert_eq!(told, [Some(refused), Some(refused), full].into_iter().flatten().collect::<Vec<_>>());
            for seq in before..before + 3 {
                let stored = fanout.stored(stream.id, MediaKind::Video, Rendition::default(), seq);
                assert_eq!(stored.map(|p| p.packet.seq), Some(10 + seq - before));
            }
        }
    }
}
