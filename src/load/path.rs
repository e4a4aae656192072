//! The emulated path between a viewer and the server: it loses and delays datagrams, either way.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::units::Instant;

/// Datagrams on their way. Filling this means 80 ms of 100,000 packets/s with the largest delay; what does not fit is
/// lost and counted.
const QUEUE_DATAGRAMS: usize = 100_000;

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToViewer,
    ToServer,
}

/// A datagram that has been on its way long enough.
#[derive(Debug)]
pub(super) struct Delivery {
    pub viewer: usize,
    pub way: Way,
    pub remote: SocketAddr,
    pub data: Vec<u8>,
}

/// All viewers' paths. The delay is the same for all, so a queue is in order of time.
pub(super) struct Path {
    loss: f64,
    delay: Duration,
    rng: StdRng,
    queue: VecDeque<(Instant, Delivery)>,
    lost: u64,
    overflowed: u64,
}

impl Path {
    /// `loss`: 0 to 1.
    pub fn new(loss: f64, delay: Duration, seed: u64) -> Path {
        let rng = StdRng::seed_from_u64(seed);
        Path { loss, delay, rng, queue: VecDeque::new(), lost: 0, overflowed: 0 }
    }

    /// Whether datagrams go through at once: then none needs to be copied.
    pub fn is_direct(&self) -> bool {
        self.delay.is_zero()
    }

    /// Whether this datagram is lost.
    pub fn loses(&mut self) -> bool {
        let lost = self.loss > 0.0 && self.rng.random_bool(self.loss);
        self.lost += u64::from(lost);
        lost
    }

    /// Takes a datagram that was not lost.
    pub fn push(&mut self, now: Instant, viewer: usize, way: Way, remote: SocketAddr, data: &[u8]) {
        if self.queue.len() >= QUEUE_DATAGRAMS {
            self.overflowed += 1;
            return;
        }
        let delivery = Delivery { viewer, way, remote, data: data.to_vec() };
        self.queue.push_back((now + self.delay, delivery));
    }

    /// The next datagram that has arrived.
    pub fn poll(&mut self, now: Instant) -> Option<Delivery> {
        self.queue.pop_front_if(|(at, _)| *at <= now).map(|(_, delivery)| delivery)
    }

    pub fn next_timeout(&self) -> Instant {
        self.queue.front().map_or(Instant::FAR_FUTURE, |(at, _)| *at)
    }

    /// Datagrams that were lost on purpose.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Datagrams for which the emulation had no room.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_one_run() {
        let run = |seed| {
            let mut path = Path::new(0.1, Duration::ZERO, seed);
            (0..1000).map(|_| path.loses()).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let lost = run(1).into_iter().filter(|lost| *lost).count();
        assert!((60..140).contains(&lost), "{lost} of 1000");
    }

    #[test]
    fn a_datagram_arrives_after_the_delay() {
        let mut path = Path::new(0.0, Duration::from_millis(20), 1);
        let remote = SocketAddr::from(([127, 0, 0, 1], 9));
        path.push(Instant::ZERO, 3, Way::ToServer, remote, b"x");
        assert!(path.poll(Instant::from_nanos(19_999_999)).is_none());
        let delivery = path.poll(path.next_timeout()).unwrap();
        assert_eq!((delivery.viewer, delivery.way, &delivery.data[..]), (3, Way::ToServer, &b"x"[..]));
    }
}
