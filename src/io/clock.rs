//! The clock that threads ask: those of `node` for their shards, those of `load` for their clients.

use std::time::{Duration, Instant as StdInstant, SystemTime, UNIX_EPOCH};

use crate::units::{Epoch, Instant};

/// Time since this was made. A copy per thread.
#[derive(Clone, Copy, Debug)]
pub struct Clock(StdInstant);

impl Clock {
    #[expect(clippy::new_without_default, reason = "a default that reads the clock would be a surprise")]
    #[expect(clippy::disallowed_methods, reason = "the clock's start")]
    pub fn new() -> Clock {
        Clock(StdInstant::now())
    }

    pub fn now(self) -> Instant {
        Instant::ZERO + self.0.elapsed()
    }

    /// The wall clock when this one started.
    #[expect(clippy::disallowed_methods, reason = "sender reports carry wall clock time")]
    pub fn unix_at_start(self) -> Duration {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        unix.saturating_sub(self.0.elapsed())
    }

    pub fn epoch(self) -> Epoch {
        Epoch::new(self.0)
    }
}
