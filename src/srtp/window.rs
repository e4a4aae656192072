//! Which of the latest indices have been seen: against replay (RFC 3711 §3.3.2), and against sealing one twice.

/// How far back an index can be judged. RFC 3711 asks for 64 at least.
pub(super) const WINDOW: u64 = 128;

/// Empty until the first `insert`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    /// One above the highest index seen; 0: none seen.
    next: u64,
    /// Bit n: `next - 1 - n` was seen.
    seen: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    New,
    Seen,
    /// Too far back to tell.
    Old,
}

impl Window {
    pub(super) fn highest(&self) -> Option<u64> {
        self.next.checked_sub(1)
    }

    pub(super) fn verdict(&self, index: u64) -> Verdict {
        match self.next.checked_sub(index + 1) {
            None => Verdict::New,
            Some(back) if back >= WINDOW => Verdict::Old,
            Some(back) if self.seen >> back & 1 == 1 => Verdict::Seen,
            Some(_) => Verdict::New,
        }
    }

    /// Marks it as seen. One that is too old is not noted.
    pub(super) fn insert(&mut self, index: u64) {
        let next = index + 1;
        if next > self.next {
            let ahead = u32::try_from(next - self.next).unwrap_or(u32::MAX);
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
            self.next = next;
        } else if self.next - next < WINDOW {
            self.seen |= 1 << (self.next - next);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_index_is_new_once() {
        let mut window = Window::default();
        assert_eq!((window.highest(), window.verdict(0)), (None, Verdict::New));
        window.insert(0);
        assert_eq!((window.highest(), window.verdict(0)), (Some(0), Verdict::Seen));
        window.insert(WINDOW);
        assert_eq!(window.verdict(0), Verdict::Old);
        assert_eq!(window.verdict(1), Verdict::New);
        assert_eq!(window.verdict(WINDOW), Verdict::Seen);
        window.insert(0xffff_ffff_ffff);
        assert_eq!(window.verdict(WINDOW), Verdict::Old);
        assert_eq!(window.verdict(0xffff_ffff_fffe), Verdict::New);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(indices in proptest::collection::vec(0u64..400, 0..300)) {
            let mut window = Window::default();
            let mut set = BTreeSet::new();
            for index in indices {
                let expected = match set.last() {
                    Some(highest) if index + WINDOW <= *highest => Verdict::Old,
                    _ if set.contains(&index) => Verdict::Seen,
                    _ => Verdict::New,
                };
                prop_assert_eq!(window.verdict(index), expected);
                window.insert(index);
                set.insert(index);
                prop_assert_eq!(window.highest(), set.last().copied());
            }
        }
    }
}
