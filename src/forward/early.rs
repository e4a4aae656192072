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
