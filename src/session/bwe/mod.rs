//! Sender-side congestion control for one viewer: how much the link carries, and which layer fits.
//!
//! ```text
//! each copy ──► record ──► SendHistory
//! transport-wide feedback ──► Estimator ──► estimate ──► Allocator ──► layer
//! REMB, receiver reports  ──►     ▲                          │
//!                                 └── Prober ◄──── goal ─────┘
//!                                       └──► poll_probe: padding to send
//! ```
//!
//! Google congestion control (draft-ietf-rmcat-gcc-02) with what libwebrtc does otherwise today. Ours, because the one
//! crate that has it without a runtime (goog_cc 0.1) declares no licence, and str0m keeps its own to itself.
//!
//! Bytes are those of UDP payloads throughout, of media, RTX and padding alike.

mod allocator;
mod capacity;
mod estimator;
mod groups;
mod history;
#[cfg(test)]
mod link;
mod loss;
mod probe;
mod rate;
mod throughput;
mod trend;

use std::time::Duration;

use crate::units::{Bitrate, Instant};
use crate::wire::transport_cc::TransportFeedback;
use estimator::Estimator;
use history::SendHistory;
use probe::Prober;

pub use allocator::{Allocator, Conditions, Layer, Limit};
pub use history::ClusterId;
pub use probe::{Goal, ProbeOrder};

/// Audio with its headers.
pub const ESTIMATE_MIN: Bitrate = Bitrate::from_bps(30_000);
/// No layer costs more. What is forged cannot raise it further.
pub const ESTIMATE_MAX: Bitrate = Bitrate::from_bps(100_000_000);

/// Feedback comes every 50 to 100 ms. After this long without, and then each [`UNHEARD_STEP`], the link is given less.
const UNHEARD_AFTER: Duration = Duration::from_secs(2);
const UNHEARD_STEP: Duration = Duration::from_secs(1);

/// The congestion control of one viewer. About 18 kB, and nothing is allocated after construction.
pub struct Bwe {
    history: SendHistory,
    estimator: Estimator,
    prober: Prober,
    transport_cc: bool,
    goal: Option<Goal>,
    /// When what was sent has gone unheard for too long.
    unheard_at: Instant,
    /// Something was sent since that last happened.
    sent_since: bool,
}

impl Bwe {
    /// `start`: the estimate until something is known. `transport_cc`: negotiated; without it only loss and REMB count, and
    /// nothing is probed.
    pub fn new(start: Bitrate, transport_cc: bool) -> Bwe {
        Bwe {
            history: SendHistory::new(),
            estimator: Estimator::new(start, transport_cc),
            prober: Prober::new(),
            transport_cc,
            goal: None,
            unheard_at: Instant::FAR_FUTURE,
            sent_since: false,
        }
    }

    /// The transport-wide sequence number for a packet that leaves now. `probe`: what [`Bwe::poll_probe`] ordered.
    pub fn record(&mut self, now: Instant, bytes: u16, probe: Option<ClusterId>) -> u16 {
        let cluster = probe.or_else(|| self.prober.join(bytes));
        if self.unheard_at == Instant::FAR_FUTURE {
            self.unheard_at = now + UNHEARD_AFTER;
        }
        self.sent_since = true;
        self.history.record(now, bytes, cluster)
    }

    /// What it says of packets that are unknown, or known already, is ignored.
    pub fn handle_feedback(&mut self, now: Instant, feedback: &TransportFeedback) {
        let mut news = false;
        for status in feedback.statuses() {
            let Some(report) = self.history.report(status) else { continue };
            news = true;
            let arrival_micros = self.estimator.add(&report);
            self.prober.handle_report(now, &report, arrival_micros);
        }
        if news {
            self.unheard_at = Instant::FAR_FUTURE;
            let probed = self.prober.take_result();
            self.estimator.end_feedback(now, probed, self.useful());
        }
    }

    /// An upper bound from the receiver, until the next one.
    pub fn handle_remb(&mut self, bitrate: Bitrate) {
        self.estimator.handle_remb(bitrate);
    }

    /// `fraction`, 0 to 1, of a receiver report. Ignored with transport-wide feedback, which counts by itself.
    pub fn handle_loss(&mut self, now: Instant, fraction: f64) {
        self.estimator.handle_loss(now, fraction, self.useful());
    }

    /// What could be used, from [`Allocator::goal`]; `None`: nothing more than now.
    pub fn set_goal(&mut self, goal: Option<Goal>) {
        self.goal = goal;
        self.prober.set_goal(goal.filter(|_| self.transport_cc));
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.prober.handle_timeout(now);
        if now < self.unheard_at {
            return;
        }
        // Of a publisher that pauses nothing is heard, and that says nothing of the link.
        if !std::mem::take(&mut self.sent_since) {
            self.unheard_at = Instant::FAR_FUTURE;
            return;
        }
        self.unheard_at = now + UNHEARD_STEP;
        self.estimator.handle_unheard(now);
    }

    /// Until `None`: a packet to send now beside the media. Media alone fills a probe, too.
    pub fn poll_probe(&mut self, now: Instant) -> Option<ProbeOrder> {
        let (estimate, round_trip) = (self.estimate(), self.round_trip());
        self.prober.poll(now, estimate, self.estimator.is_stable(now), round_trip)
    }

    /// For [`Bwe::handle_timeout`] and [`Bwe::poll_probe`]. It may be past while a probe waits for a stable link: then
    /// the next feedback is soon enough.
    pub fn next_timeout(&self) -> Instant {
        self.unheard_at.min(self.prober.next_timeout(self.estimate()))
    }

    /// What may be sent in all.
    pub fn estimate(&self) -> Bitrate {
        self.estimator.estimate()
    }

    /// 0 to 1, of about the last second.
    pub fn loss(&self) -> f64 {
        self.estimator.loss()
    }

    /// Zero until the first feedback; with what the receiver waits before it tells.
    pub fn round_trip(&self) -> Duration {
        self.estimator.round_trip()
    }

    /// Without transport-wide feedback the estimate grows no further than this: nothing measures it.
    fn useful(&self) -> Bitrate {
        self.goal.map_or(self.estimate(), |goal| goal.top)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_says_nothing_of_the_link() {
        let start = Bitrate::from_bps(1_000_000);
        let mut bwe = Bwe::new(start, true);
        let mut now = Instant::ZERO;
        let mut pass = |bwe: &mut Bwe, seconds: u32, sends: bool| {
            for _ in 0..10 * seconds {
                now += Duration::from_millis(100);
                if sends {
                    bwe.record(now, 1000, None);
                }
                bwe.handle_timeout(now);
            }
            bwe.estimate().as_bps()
        };
        bwe.record(Instant::ZERO, 1000, None);
        // Nobody has heard of the last packet; that counts once.
        assert_eq!(pass(&mut bwe, 30, false), 800_000);
        let unheard = pass(&mut bwe, 10, true);
        assert!((100_000..200_000).contains(&unheard), "{unheard}");
    }
}
