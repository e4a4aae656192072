//! The simulated network: every datagram is lost, doubled or delayed as the seed decides.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

/// How bad a path is, each way.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Probability, 0 to 1.
    pub loss: f64,
    pub duplication: f64,
    pub delay: Duration,
    /// Added to the delay, uniformly: packets overtake each other.
    pub jitter: Duration,
}

impl Path {
    pub const CLEAN: Path =
        Path { loss: 0.0, duplication: 0.0, delay: Duration::from_millis(1), jitter: Duration::ZERO };

    /// 5 % loss, 20 ms each way, some reordering.
    pub const LOSSY: Path =
        Path { loss: 0.05, duplication: 0.01, delay: Duration::from_millis(20), jitter: Duration::from_millis(3) };

    /// Delays of the copies that arrive: none, one or two.
    pub(super) fn deliver(&self, rng: &mut StdRng) -> impl Iterator<Item = Duration> + use<> {
        let lost = self.loss > 0.0 && rng.random_bool(self.loss);
        let twice = !lost && self.duplication > 0.0 && rng.random_bool(self.duplication);
        let copies = if lost { 0 } else { 1 + usize::from(twice) };
        let delays: Vec<Duration> = (0..copies)
            .map(|_| self.delay + Duration::from_nanos(rng.random_range(0..=self.jitter.as_nanos() as u64)))
            .collect();
        delays.into_iter()
    }
}
