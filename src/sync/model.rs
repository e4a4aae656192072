//! `crossbeam_queue::ArrayQueue` as loom can run it: the same algorithm with the same orderings, in loom's atomics.
//!
//! A mutex in its place would hide what the inbox must get right by itself: locking orders the queue against the
//! `sleeping` flag, which a lock-free queue does not.

use std::sync::Mutex;

use loom::sync::atomic::{AtomicUsize, Ordering, fence};

/// Positions count up without wrapping: no model run is long enough.
#[derive(Debug)]
pub(super) struct Queue<T> {
    slots: Box<[Slot<T>]>,
    head: AtomicUsize,
    tail: AtomicUsize,
}

#[derive(Debug)]
struct Slot<T> {
    /// `2 * position` when free for that position, one more when it holds that position's value.
    stamp: AtomicUsize,
    /// Loom does not see this mutex, so it orders nothing in the model. The stamp says who may use the slot; if two
    /// threads ever meet here, the model is wrong and the `expect` says so.
    value: Mutex<Option<T>>,
}

const EXCLUSIVE: &str = "the stamp gives the slot to one thread";

impl<T> Queue<T> {
    pub(super) fn new(capacity: usize) -> Queue<T> {
        let slot = |i| Slot { stamp: AtomicUsize::new(2 * i), value: Mutex::new(None) };
        Queue { slots: (0..capacity).map(slot).collect(), head: AtomicUsize::new(0), tail: AtomicUsize::new(0) }
    }

    pub(super) fn push(&self, value: T) -> Result<(), T> {
        loop {
            let tail = self.tail.load(Ordering::Relaxed);
            let slot = &self.slots[tail % self.slots.len()];
            let stamp = slot.stamp.load(Ordering::Acquire);
            if stamp == 2 * tail {
                if self.tail.compare_exchange(tail, tail + 1, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                    *slot.value.try_lock().expect(EXCLUSIVE) = Some(value);
                    slot.stamp.store(2 * tail + 1, Ordering::Release);
                    return Ok(());
                }
            } else if stamp < 2 * tail {
                fence(Ordering::SeqCst);
                if self.head.load(Ordering::Relaxed) + self.slots.len() == tail {
                    return Err(value);
                }
            }
            loom::thread::yield_now();
        }
    }

    /// One consumer, so no race for the head.
    pub(super) fn pop(&self) -> Option<T> {
        let head = self.head.load(Ordering::Relaxed);
        let slot = &self.slots[head % self.slots.len()];
        if slot.stamp.load(Ordering::Acquire) != 2 * head + 1 {
            return None;
        }
        self.head.store(head + 1, Ordering::SeqCst);
        let value = slot.value.try_lock().expect(EXCLUSIVE).take();
        slot.stamp.store(2 * (head + self.slots.len()), Ordering::Release);
        value
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head.load(Ordering::SeqCst) == self.tail.load(Ordering::SeqCst)
    }
}
