//! The simulated network: every datagram is lost, doubled or delayed as the seed decides.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::units::{Bitrate, Instant};

/// How bad a path is, each way.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Probability, 0 to 1.
    pub loss: f64,
    pub duplication: f64,
    pub delay: Duration,
    /// Added to the delay, uniformly: packets overtake each other.
    pub jitter: Duration,
    /// Where datagrams to the client wait for each other; `None`: nowhere.
    pub bottleneck: Option<Bottleneck>,
}

/// A link that carries so much, behind a queue that drops what does not fit.
#[derive(Clone, Copy, Debug)]
pub struct Bottleneck {
    pub rate: Bitrate,
    pub queue_bytes: u64,
}

impl Bottleneck {
    /// How long a datagram that comes now takes to get through, if it fits. `drained`: when the queue is empty.
    pub(super) fn pass(&self, now: Instant, bytes: u64, drained: &mut Instant) -> Option<Duration> {
        let time_of = |bytes: u64| Duration::from_nanos(bytes * 8_000_000_000 / self.rate.as_bps().max(1));
        let through = drained.since(now) + time_of(bytes);
        if through > time_of(self.queue_bytes) {
            return None;
        }
        *drained = now + through;
        Some(through)
    }
}

impl Path {
    pub const CLEAN: Path =
        Path { loss: 0.0, duplication: 0.0, delay: Duration::from_millis(1), jitter: Duration::ZERO, bottleneck: None };

    /// 5 % loss, 20 ms each way, some reordering.
    pub const LOSSY: Path = Path {
        loss: 0.05,
        duplication: 0.01,
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(3),
        bottleneck: None,
    };

    /// 20 ms each way, so much of it, and a queue of 100 kB.
    pub const fn narrow(rate: Bitrate) -> Path {
        let bottleneck = Some(Bottleneck { rate, queue_bytes: 100_000 });
        Path { delay: Duration::from_millis(20), bottleneck, ..Path::CLEAN }
    }

    /// Delays of the copies that arrive: none, one or two.
    pub(super) fn deliver(&self, rng: &mut StdRng) -> impl Iterator<Item = Duration> + use<> {
        let lost = self.loss > 0.0 && rng.random_bool(self.loss);
        let twice = !lost && self.duplication > 0.0 && rng.random_bool(self.duplication);
        let copies = if lost { 0 } else { 1 + usize::from(twice) };
        let mut delays = [self.delay; 2];
        for delay in &mut delays[..copies] {
            *delay += Duration::from_nanos(rng.random_range(0..=self.jitter.as_nanos() as u64));
        }
        delays.into_iter().take(copies)
    }
}
