//! What is due when: a heap whose entries are judged when they fire, never taken back.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::id::{SessionId, StreamId};
use crate::shard::message::RequestId;
use crate::units::Instant;

/// What to look at when its time has come. It may have become void by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A client should have connected.
    Connect(SessionId),
    /// A shard should have said that a session ended.
    Closing(SessionId),
    /// A viewer has waited long enough for the first publisher.
    Wait(SessionId),
    /// A stream's viewers have waited long enough for the next publisher.
    Grace(StreamId),
    /// Nobody uses an old ufrag any more.
    OldUfrag(SessionId),
    /// Event streams are to be told of a stream's layers.
    Layers(StreamId),
    /// Event streams are to be told how many watch.
    ViewerCount(StreamId),
    /// An open event stream is to say that it lives.
    Ping(RequestId),
    /// A shard should have answered an ICE restart.
    Restart(RequestId),
}

#[derive(Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Timer)>>,
}

impl Timers {
    pub fn arm(&mut self, at: Instant, timer: Timer) {
        self.heap.push(Reverse((at, timer)));
    }

    pub fn next(&self) -> Instant {
        self.heap.peek().map_or(Instant::FAR_FUTURE, |Reverse((at, _))| *at)
    }

    pub fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        if self.next() > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, timer))| timer)
    }
}
