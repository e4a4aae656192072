//! A bounded queue from many threads to one that sleeps, and who has to wake it.
//!
//! ```text
//!  producer                                consumer
//!  push                                    sleeping = true
//!  fence                                   fence
//!  sleeping? -> take it: ring the bell     queue empty? -> sleep, until something rings
//! ```
//!
//! The two fences order "I wrote mine" before "I read yours" on both sides, so at least one of them sees the other:
//! either the consumer finds the message, or the producer finds the sleeper. Whoever takes `sleeping` rings, so there
//! is one bell per sleep however many push.

use super::primitives::{AtomicBool, Ordering, Queue, fence};

/// Messages for one shard from its peers. `T` per push; order is kept per producer.
#[derive(Debug)]
pub struct Inbox<T> {
    queue: Queue<T>,
    sleeping: AtomicBool,
}

/// Whether the producer owes the consumer a ring of its doorbell. It may be paid at the end of the producer's turn,
/// once for all messages of that turn, but it must be paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a consumer that is not rung sleeps on"]
pub struct MustRing(pub bool);

impl<T> Inbox<T> {
    /// Room for `messages`. Filling it means that the consumer is stuck or far behind.
    pub fn with_capacity(messages: usize) -> Inbox<T> {
        Inbox { queue: Queue::new(messages), sleeping: AtomicBool::new(false) }
    }

    /// Any thread.
    ///
    /// # Errors
    /// The message, when the inbox is full. Nobody needs to be rung then: a consumer with messages does not sleep.
    pub fn push(&self, message: T) -> Result<MustRing, T> {
        self.queue.push(message)?;
        // The queue's own orderings would do today, but they are not part of its contract.
        fence(Ordering::SeqCst);
        // Reading first keeps the flag's cache line shared while the consumer is awake. An exchange that fails writes
        // nothing; a swap would put a `false` of ours among the consumer's values.
        let asleep = self.sleeping.load(Ordering::Relaxed)
            && self.sleeping.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        Ok(MustRing(asleep))
    }

    /// The consumer.
    pub fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// The consumer, before it waits. False: something is there, do not wait; else wait for the doorbell (and for
    /// whatever else) and call [`Inbox::woke`].
    #[must_use]
    pub fn prepare_to_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.queue.is_empty() {
            return true;
        }
        // A producer may have taken the flag already; its bell then ends some later wait for nothing.
        self.sleeping.store(false, Ordering::Relaxed);
        false
    }

    /// The consumer, after a wait: from here on nobody needs to ring.
    pub fn woke(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_push_to_a_sleeper_must_ring() {
        let inbox = Inbox::with_capacity(4);
        assert_eq!(inbox.push(1), Ok(MustRing(false)));
        assert!(!inbox.prepare_to_sleep());
        assert_eq!(inbox.pop(), Some(1));
        assert!(inbox.prepare_to_sleep());
        assert_eq!(inbox.push(2), Ok(MustRing(true)));
        assert_eq!(inbox.push(3), Ok(MustRing(false)));
        inbox.woke();
        assert_eq!(inbox.push(4), Ok(MustRing(false)));
        assert_eq!([inbox.pop(), inbox.pop(), inbox.pop(), inbox.pop()], [Some(2), Some(3), Some(4), None]);
    }

    #[test]
    fn a_full_inbox_gives_the_message_back() {
        let inbox = Inbox::with_capacity(1);
        assert_eq!(inbox.push('a'), Ok(MustRing(false)));
        assert_eq!(inbox.push('b'), Err('b'));
    }
}
