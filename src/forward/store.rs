//! A track's newest packets, once for all viewers of a shard: what NACKs are answered from.

use crate::limits;
use crate::wire::packet::CanonicalPacket;

/// The last [`limits::STORE_PACKETS`] packets, by canonical sequence number.
#[derive(Debug, Default)]
pub struct Store {
    /// A power of two of places; a number has its place by its low bits. Empty before the first packet.
    ring: Vec<Option<CanonicalPacket>>,
}

impl Store {
    pub fn insert(&mut self, packet: CanonicalPacket) {
        if self.ring.is_empty() {
            self.ring.resize_with(limits::STORE_PACKETS, || None);
        }
        let place = packet.seq as usize % limits::STORE_PACKETS;
        // A late packet must not push a newer one out.
        if self.ring[place].as_ref().is_none_or(|old| old.seq <= packet.seq) {
            self.ring[place] = Some(packet);
        }
    }

    pub fn get(&self, seq: u64) -> Option<&CanonicalPacket> {
        self.ring.get(seq as usize % limits::STORE_PACKETS)?.as_ref().filter(|p| p.seq == seq)
    }
}
