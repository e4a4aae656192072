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
    /// Takes `bytes`, or says when they may leave, which changes nothing. `rate`: bytes per second, 1 at least. `depth`: what may be
    /// gathered, bytes; who needs more waits until the bucket is full.
    pub fn take(&mut self, now: Instant, rate: u64, depth: u64, bytes: u64) -> Result<(), Instant> {
        let earned = u128::from(rate) * now.since(self.at).as_nanos() / 1_000_000_000;
        let allowance = (self.allowance + earned.min(depth.into()) as u64).min(depth);
        let needed = bytes.min(depth);
        if allowance < needed {
            let missing = u128::from(needed - self.allowance) * 1_000_000_000;
            return Err(self.at + Duration::from_nanos(missing.div_ceil(rate.into()) as u64));
        }
        self.allowance = allowance - needed;
        if earned > 0 {
            self.at = now;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_often_somebody_asks_the_answer_is_the_same() {
        let mut bucket = Bucket::default();
        let mut take = |nanos: u64, bytes| bucket.take(Instant::from_nanos(nanos), 1_000_000, 5000, bytes);
        assert_eq!(take(5_000_000, 5000), Ok(()));
        // Each time a third of a byte is left over.
        for asked in 0..3_000 {
            assert_eq!(take(5_000_000 + 1_333 * asked, 5000), Err(Instant::from_nanos(10_000_000)));
        }
        assert_eq!(take(10_000_000, 5000), Ok(()));
    }
}
