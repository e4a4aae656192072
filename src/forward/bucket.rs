//! A token bucket of bytes.

use std::time::Duration;

use crate::units::Instant;

/// It fills from [`Instant::ZERO`] on.
#[derive(Debug, Default)]
pub struct Bucket {
    /// Bytes that may leave at once.
    allowance: u64,
    at: Instant,
}

impl Bucket {
    /// Takes `bytes`, or says when they may leave. `rate`: bytes per second, 1 at least. `depth`: what may be gathered, bytes; who
    /// needs more waits until the bucket is full.
    pub fn take(&mut self, now: Instant, rate: u64, depth: u64, bytes: u64) -> Result<(), Instant> {
        let earned = u128::from(rate) * now.since(self.at).as_nanos() / 1_000_000_000;
        if earned > 0 {
            self.at = now;
            self.allowance = (self.allowance + earned.min(depth.into()) as u64).min(depth);
        }
        let needed = bytes.min(depth);
        if self.allowance < needed {
            let missing = u128::from(needed - self.allowance) * 1_000_000_000;
            return Err(self.at + Duration::from_nanos(missing.div_ceil(rate.into()) as u64));
        }
        self.allowance -= needed;
        Ok(())
    }
}
