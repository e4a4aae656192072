//! The simulated network: every datagram is lost, doubled or delayed as the seed decides.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::units::{Bitrate, Instant};
use crate::wire::classify::{Kind, classify};

/// In a queue: a flight is cut at some 1200.
const DTLS_BYTES: u64 = 1200;

/// How bad a path is, each way.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Probability, 0 to 1.
    pub loss: f64,
    pub duplication: f64,
    pub delay: Duration,
    /// Added to the delay, uniformly: packets overtake each other.
    pub jitter: Duration,
    /// Added to that of a publisher's packets that begin a keyframe, uniformly: what follows overtakes them.
    pub keyframes_late: Duration,
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
    pub(super) fn pass(&self, now: Instant, data: &[u8], drained: &mut Instant) -> Option<Duration> {
        // A signature's length is another one in each run.
        let bytes = if classify(data) == Some(Kind::Dtls) { DTLS_BYTES } else { data.len() as u64 };
        let through = drained.since(now) + self.time_of(bytes);
        if through > self.time_of(self.queue_bytes) {
            return None;
        }
        *drained = now + through;
        Some(through)
    }

    fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_nanos(bytes * 8_000_000_000 / self.rate.as_bps().max(1))
    }
}

impl Path {
    pub const CLEAN: Path = Path {
        loss: 0.0,
        duplication: 0.0,
        delay: Duration::from_millis(1),
        jitter: Duration::ZERO,
        keyframes_late: Duration::ZERO,
        bottleneck: None,
    };

    /// 5 % loss, 20 ms each way, some reordering.
    pub const LOSSY: Path = Path {
        loss: 0.05,
        duplication: 0.01,
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(3),
        ..Path::CLEAN
    };

    /// 20 ms each way, so much of it, and a queue of 100 kB.
    pub const fn narrow(rate: Bitrate) -> Path {
        let bottleneck = Some(Bottleneck { rate, queue_bytes: 100_000 });
        Path { delay: Duration::from_millis(20), bottleneck, ..Path::CLEAN }
    }

    /// Whether anything may get lost.
    pub fn loses(&self) -> bool {
        self.loss > 0.0 || self.bottleneck.is_some()
    }

    /// How long a packet may wait at the bottleneck.
    pub fn queueing(&self) -> Duration {
        self.bottleneck.map_or(Duration::ZERO, |b| b.time_of(b.queue_bytes))
    }

    /// How far packets may overtake each other.
    pub fn overtaking(&self) -> Duration {
        self.jitter + self.keyframes_late
    }

    /// As bad as both together: of a path that was the one and became the other. What is sent after it became a shorter one
    /// overtakes what was under way.
    pub fn worst(&self, other: &Path) -> Path {
        Path {
            loss: self.loss.max(other.loss),
            duplication: self.duplication.max(other.duplication),
            delay: self.delay.max(other.delay),
            jitter: self.jitter.max(other.jitter) + self.delay.abs_diff(other.delay),
            keyframes_late: self.keyframes_late.max(other.keyframes_late),
            bottleneck: if self.queueing() > other.queueing() { self.bottleneck } else { other.bottleneck },
        }
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
