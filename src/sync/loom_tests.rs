//! Every interleaving of producers and consumer, as far as C11 allows stale reads.
//!
//! Seen to fail without either fence of `Inbox` and with the emptiness check before the flag (deadlock: the consumer
//! waits for ever), and without the exchange (more bells than sleeps).

use std::sync::atomic::{AtomicUsize, Ordering};

use loom::sync::{Arc, Notify};
use loom::thread;

use super::{Inbox, MustRing};

struct Shard {
    inbox: Inbox<(usize, usize)>,
    /// As the eventfd: a ring that comes before the wait ends it.
    bell: Notify,
    // Std's, which loom does not see: counting must not order anything, nor cost states.
    bells: AtomicUsize,
    sleeps: AtomicUsize,
}

impl Shard {
    fn new(capacity: usize) -> Arc<Shard> {
        Arc::new(Shard {
            inbox: Inbox::with_capacity(capacity),
            bell: Notify::new(),
            bells: AtomicUsize::new(0),
            sleeps: AtomicUsize::new(0),
        })
    }

    fn ring(&self, must: MustRing) {
        if must.0 {
            self.bells.fetch_add(1, Ordering::Relaxed);
            self.bell.notify();
        }
    }

    /// Takes `count` messages, sleeping as the driver does.
    fn consume(&self, count: usize) -> Vec<(usize, usize)> {
        let mut taken = Vec::new();
        loop {
            while let Some(message) = self.inbox.pop() {
                taken.push(message);
            }
            if taken.len() == count {
                return taken;
            }
            // Counted before: who rings must find the sleep that it ends.
            self.sleeps.fetch_add(1, Ordering::Relaxed);
            if self.inbox.prepare_to_sleep() {
                self.bell.wait();
                self.inbox.woke();
            } else {
                thread::yield_now();
            }
        }
    }
}

/// `producers` threads push `each` messages; the consumer gets all of them, in each producer's order, with no more
/// bells than attempts to sleep. A lost wake-up is a deadlock, which loom reports.
fn check(producers: usize, each: usize, ring_at_the_end: bool) {
    let mut model = loom::model::Builder::new();
    // Two threads are run in every way there is; three would take hours, so a run switches away from a thread that
    // could go on three times at most. Lost wake-ups need one or two.
    model.preemption_bound = (producers > 1).then_some(3);
    model.check(move || {
        let shard = Shard::new(producers * each);
        let threads: Vec<_> = (0..producers)
            .map(|producer| {
                let shard = shard.clone();
                thread::spawn(move || {
                    let mut owed = MustRing(false);
                    for i in 0..each {
                        let must = shard.inbox.push((producer, i)).expect("there is room for all");
                        if ring_at_the_end {
                            owed.0 |= must.0;
                        } else {
                            shard.ring(must);
                        }
                    }
                    shard.ring(owed);
                })
            })
            .collect();
        let taken = shard.consume(producers * each);
        for thread in threads {
            thread.join().expect("a producer");
        }
        for producer in 0..producers {
            let order: Vec<_> = taken.iter().filter(|m| m.0 == producer).map(|m| m.1).collect();
            assert_eq!(order, (0..each).collect::<Vec<_>>());
        }
        assert!(shard.bells.load(Ordering::Relaxed) <= shard.sleeps.load(Ordering::Relaxed));
    });
}

#[test]
fn no_wake_up_is_lost_with_one_producer() {
    check(1, 2, false);
}

#[test]
fn no_wake_up_is_lost_with_two_producers() {
    check(2, 1, false);
}

#[test]
fn a_bell_may_ring_at_the_end_of_the_turn() {
    check(1, 2, true);
}

#[test]
fn a_full_inbox_refuses_and_loses_nothing_it_took() {
    loom::model(|| {
        let inbox = Arc::new(Inbox::with_capacity(1));
        let producer = {
            let inbox = inbox.clone();
            thread::spawn(move || (0..2).filter(|&i| inbox.push(i).is_ok()).collect::<Vec<_>>())
        };
        let mut taken: Vec<i32> = inbox.pop().into_iter().collect();
        let accepted = producer.join().expect("the producer");
        while let Some(message) = inbox.pop() {
            taken.push(message);
        }
        assert!(!accepted.is_empty() && accepted[0] == 0, "an empty inbox takes a message");
        assert_eq!(taken, accepted);
    });
}
