//! The load tester's one clock: publishers stamp packets by it and viewers read them by it.

use std::time::Instant as StdInstant;

use crate::units::{Epoch, Instant};

/// Time since the run began. A copy per thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(StdInstant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the edge: everything else takes time as an argument")]
    pub fn new() -> Clock {
        Clock(StdInstant::now())
    }

    #[expect(clippy::disallowed_methods, reason = "the edge: everything else takes time as an argument")]
    pub fn now(self) -> Instant {
        Epoch::new(self.0).from_std(StdInstant::now())
    }

    pub fn epoch(self) -> Epoch {
        Epoch::new(self.0)
    }
}
