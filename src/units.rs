//! Time and rates as types: a clock that never asks the operating system, and bits per second.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point in time, in nanoseconds since the node (or the simulated world) started.
///
/// Nothing in the library below `node` reads a clock: whoever calls passes the time in, so that a whole
/// SFU can run under virtual time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The start of the node.
    pub const ZERO: Instant = Instant(0);
    /// Later than anything that will happen.
    pub const FAR_FUTURE: Instant = Instant(u64::MAX);

    pub const fn from_nanos(nanos: u64) -> Instant {
        Instant(nanos)
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time since `earlier`; zero when `earlier` is in fact later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, rhs: Instant) -> Duration {
        self.since(rhs)
    }
}

/// Ties [`Instant`] to the `std::time::Instant` that str0m works with.
///
/// One epoch per node: an offset is added, no clock is read.
#[derive(Clone, Copy, Debug)]
pub struct Epoch(std::time::Instant);

impl Epoch {
    /// `start` is the std instant that [`Instant::ZERO`] stands for.
    pub fn new(start: std::time::Instant) -> Epoch {
        Epoch(start)
    }

    pub fn to_std(self, at: Instant) -> std::time::Instant {
        self.0 + Duration::from_nanos(at.0)
    }

    /// str0m's "not happening" is years away; anything before the epoch is [`Instant::ZERO`].
    pub fn from_std(self, at: std::time::Instant) -> Instant {
        Instant::ZERO + at.saturating_duration_since(self.0)
    }
}

/// Bits per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bitrate(u64);

impl Bitrate {
    pub const fn from_bps(bps: u64) -> Bitrate {
        Bitrate(bps)
    }

    pub const fn as_bps(self) -> u64 {
        self.0
    }

    /// The rate of `bytes` within `time`; zero for no time.
    pub fn of(bytes: u64, time: Duration) -> Bitrate {
        let nanos = time.as_nanos();
        if nanos == 0 {
            return Bitrate(0);
        }
        Bitrate(u64::try_from(u128::from(bytes) * 8 * 1_000_000_000 / nanos).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Bitrate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bps if bps >= 1_000_000 => write!(f, "{:.1} Mbit/s", bps as f64 / 1e6),
            bps if bps >= 1_000 => write!(f, "{:.0} kbit/s", bps as f64 / 1e3),
            bps => write!(f, "{bps} bit/s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_never_wraps() {
        assert_eq!(Instant::FAR_FUTURE + Duration::from_secs(1), Instant::FAR_FUTURE);
        assert_eq!(Instant::ZERO - Instant::from_nanos(5), Duration::ZERO);
    }

    #[test]
    fn a_bitrate_is_bits_over_time() {
        assert_eq!(Bitrate::of(125_000, Duration::from_secs(1)).as_bps(), 1_000_000);
        assert_eq!(Bitrate::of(1, Duration::ZERO).as_bps(), 0);
        assert_eq!(Bitrate::from_bps(2_500_000).to_string(), "2.5 Mbit/s");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any std instant will do")]
    fn an_epoch_maps_both_ways() {
        let epoch = Epoch::new(std::time::Instant::now());
        let at = Instant::from_nanos(1_234_567);
        assert_eq!(epoch.from_std(epoch.to_std(at)), at);
    }
}
