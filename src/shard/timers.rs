//! The shard's timers: who wants to be called when, in ticks of a millisecond.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::units::Instant;

const TICK: Duration = Duration::from_millis(1);

/// Deadlines by key. A key may be in the heap more than once; only the entry that matches its owner's `armed` counts.
#[derive(Debug)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(Instant, usize)>>,
}

/// When a key's entry stands in the heap; kept by the key's owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Armed(Option<Instant>);

impl Timers {
    pub fn new() -> Timers {
        Timers { heap: BinaryHeap::new() }
    }

    /// Makes sure that `key` comes up at `deadline` (rounded up to a tick) or earlier.
    ///
    /// A later deadline leaves the entry where it is: when it comes up, its owner says what it wants then. Media moves
    /// deadlines with each packet, and most moves cost nothing this way.
    pub fn arm(&mut self, key: usize, armed: &mut Armed, deadline: Instant) {
        if deadline == Instant::FAR_FUTURE {
            return;
        }
        let tick = TICK.as_nanos() as u64;
        let at = Instant::from_nanos(deadline.as_nanos().div_ceil(tick).saturating_mul(tick));
        if armed.0.is_none_or(|armed_at| at < armed_at) {
            armed.0 = Some(at);
            self.heap.push(Reverse((at, key)));
        }
    }

    /// The next key whose time has come. The caller finds its owner and calls [`Armed::fires`].
    pub fn pop_due(&mut self, now: Instant) -> Option<(Instant, usize)> {
        let Reverse((at, _)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    pub fn next(&self) -> Instant {
        self.heap.peek().map_or(Instant::FAR_FUTURE, |Reverse((at, _))| *at)
    }
}

impl Default for Timers {
    fn default() -> Self {
        Timers::new()
    }
}

impl Armed {
    /// Whether the entry that came up is the one that counts; then nothing is armed any more.
    pub fn fires(&mut self, at: Instant) -> bool {
        if self.0 == Some(at) {
            self.0 = None;
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(us: u64) -> Instant {
        Instant::from_nanos(us * 1000)
    }

    #[test]
    fn deadlines_come_up_in_order_and_never_early() {
        let mut timers = Timers::new();
        let mut armed = [Armed::default(); 3];
        timers.arm(2, &mut armed[2], us(2500));
        timers.arm(0, &mut armed[0], us(100));
        timers.arm(1, &mut armed[1], Instant::FAR_FUTURE);
        assert_eq!(timers.next(), us(1000));
        assert_eq!(timers.pop_due(us(999)), None);
        assert_eq!(timers.pop_due(us(1000)), Some((us(1000), 0)));
        assert!(armed[0].fires(us(1000)));
        assert_eq!(timers.pop_due(us(2999)), None);
        assert_eq!(timers.pop_due(us(3000)), Some((us(3000), 2)));
    }

    #[test]
    fn an_earlier_deadline_replaces_a_later_one() {
        let mut timers = Timers::new();
        let mut armed = Armed::default();
        timers.arm(7, &mut armed, us(9000));
        timers.arm(7, &mut armed, us(2000));
        timers.arm(7, &mut armed, us(5000));
        assert_eq!(timers.pop_due(us(2000)), Some((us(2000), 7)));
        assert!(armed.fires(us(2000)));
        assert_eq!(timers.pop_due(us(9000)), Some((us(9000), 7)));
        assert!(!armed.fires(us(9000)), "the first entry is stale");
    }
}
