//! The estimate: the delay-based rate, bounded by loss and by what the receiver says (REMB).

use std::time::Duration;

use super::groups::Groups;
use super::history::Report;
use super::loss::LossBound;
use super::rate::{Measured, RateControl};
use super::throughput::Throughput;
use super::trend::{Trend, Usage};
use super::{ESTIMATE_MAX, ESTIMATE_MIN};
use crate::units::{Bitrate, Instant};
use crate::wire::transport_cc::{ARRIVAL_WRAP_TICKS, TICK_MICROS};

/// The queue's history is worth nothing after so long a silence (libwebrtc's kStreamTimeOut).
const STALE: Duration = Duration::from_secs(2);
/// Without word of what was sent (see [`super::UNHEARD_AFTER`]), this much is kept.
const UNHEARD_FACTOR: f64 = 0.8;
/// After a decrease the queue drains, and what is measured then is the past.
const SETTLE: Duration = Duration::from_secs(1);
/// Above it, probing would only add to the trouble.
const PROBING_LOSS_MAX: f64 = 0.10;
/// A round trip is no longer than what feedback can be late.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(3);

/// ```text
/// arrivals ──► groups ──► trend ──► rate ──┐
///    │                                ▲    ├──► the least of them
///    ├──► throughput ─────────────────┘    │
///    └──► loss ────────────────────────────┤
/// REMB ────────────────────────────────────┘
/// ```
pub(super) struct Estimator {
    /// With transport-wide feedback the rate counts; without, loss and REMB alone.
    transport_cc: bool,
    last_arrival_ticks: Option<i64>,
    groups: Groups,
    trend: Trend,
    acked: Throughput,
    sent: Throughput,
    rate: RateControl,
    loss: LossBound,
    remb: Bitrate,
    /// What the receiver said last.
    word: Bitrate,
    round_trip: Duration,
    last_feedback: Option<Instant>,
    tally: Tally,
}

/// Of the feedback at hand.
#[derive(Default)]
struct Tally {
    arrived: u32,
    lost: u32,
    found: u32,
    newest_sent: Option<Instant>,
}

impl Estimator {
    pub fn new(start: Bitrate, transport_cc: bool) -> Estimator {
        let start_bps = start.as_bps() as f64;
        Estimator {
            transport_cc,
            last_arrival_ticks: None,
            groups: Groups::default(),
            trend: Trend::new(),
            acked: Throughput::default(),
            sent: Throughput::default(),
            rate: RateControl::new(start_bps),
            // As a bound on the rate it begins to count with the first high loss.
            loss: LossBound::new(if transport_cc { ESTIMATE_MAX.as_bps() as f64 } else { start_bps }),
            remb: ESTIMATE_MAX,
            word: ESTIMATE_MAX,
            round_trip: Duration::ZERO,
            last_feedback: None,
            tally: Tally::default(),
        }
    }

    pub fn estimate(&self) -> Bitrate {
        let rate = if self.transport_cc { self.rate.bps() } else { f64::INFINITY };
        Bitrate::from_bps(rate.min(self.loss.bps()) as u64).min(self.remb).clamp(ESTIMATE_MIN, ESTIMATE_MAX)
    }

    /// 0 to 1, of about the last second.
    pub fn loss(&self) -> f64 {
        self.loss.fraction()
    }

    pub fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// No queue grows, nothing drains, little is lost: a probe would measure the link.
    pub fn is_stable(&self, now: Instant) -> bool {
        self.trend.usage() == Usage::Normal
            && self.rate.last_decrease().is_none_or(|last| now - last >= SETTLE)
            && self.loss() <= PROBING_LOSS_MAX
    }

    /// One packet of the feedback at hand, in the order of sending; [`Estimator::end_feedback`] comes after the last.
    /// Returns its arrival in µs of the receiver's clock.
    pub fn add(&mut self, report: &Report) -> Option<i64> {
        let Some(ticks) = report.arrival_ticks else {
            self.tally.lost += 1;
            return None;
        };
        self.tally.arrived += 1;
        self.tally.found += u32::from(report.was_missing);
        self.tally.newest_sent = self.tally.newest_sent.max(Some(report.sent));
        let ticks = self.unwrap(ticks);
        let arrival_micros = ticks.saturating_mul(TICK_MICROS);
        self.acked.add(arrival_micros, report.bytes);
        self.sent.add((report.sent.as_nanos() / 1000).cast_signed(), report.bytes);
        // A probe is meant to be faster than the link, every few seconds: it makes a queue for an instant, which is no
        // overuse. libwebrtc, which probes rarely, does not set it apart.
        if report.cluster.is_none()
            && let Some(variation) = self.groups.add(report.sent, ticks)
        {
            self.trend.add(&variation);
        }
        Some(arrival_micros)
    }

    /// `probed`: what a probe has measured meanwhile. `useful`: more than that is never asked for.
    pub fn end_feedback(&mut self, now: Instant, probed: Option<Bitrate>, useful: Bitrate) {
        let tally = std::mem::take(&mut self.tally);
        if let Some(sent) = tally.newest_sent {
            self.round_trip = (now - sent).min(ROUND_TRIP_MAX);
        }
        if self.last_feedback.replace(now).is_some_and(|last| now - last > STALE) {
            self.groups = Groups::default();
            self.trend = Trend::new();
        }
        let measured = Measured {
            acked_bps: self.acked.bps(),
            sent_bps: self.sent.bps(),
            peak_bps: self.acked.peak_bps(),
            round_trip: self.round_trip,
        };
        match probed {
            Some(bitrate) if self.trend.usage() != Usage::Over => {
                self.rate.probed(bitrate.as_bps() as f64, measured.acked_bps);
                self.loss.probed(bitrate.as_bps() as f64);
            }
            _ => self.rate.update(now, self.trend.usage(), &measured),
        }
        self.loss.count(tally.arrived, tally.lost, tally.found);
        self.update_loss(now, useful);
    }

    /// A receiver report's fraction, 0 to 1: for viewers without transport-wide feedback, which counts better.
    pub fn handle_loss(&mut self, now: Instant, fraction: f64, useful: Bitrate) {
        if !self.transport_cc {
            self.loss.reported(fraction);
            self.update_loss(now, useful);
        }
    }

    /// Who does without transport-wide feedback measures what comes by itself, and says 1.5 times that at most, however wide its
    /// path is (libwebrtc). So a word that rises bounds nothing; one that falls tells of a queue.
    pub fn handle_remb(&mut self, bitrate: Bitrate) {
        let before = std::mem::replace(&mut self.word, bitrate);
        if self.transport_cc || bitrate < before {
            self.remb = bitrate;
        } else if bitrate > before {
            self.remb = ESTIMATE_MAX;
        }
    }

    pub fn handle_unheard(&mut self, now: Instant) {
        self.rate.unheard(now, UNHEARD_FACTOR);
    }

    fn update_loss(&mut self, now: Instant, useful: Bitrate) {
        let most = if self.transport_cc { ESTIMATE_MAX } else { useful };
        self.loss.update(now, self.estimate().as_bps() as f64, most.as_bps() as f64, self.round_trip);
    }

    /// Arrival times without their wrap: each is taken for the nearest to the one before.
    fn unwrap(&mut self, ticks: i64) -> i64 {
        let last = self.last_arrival_ticks.unwrap_or(ticks);
        let ahead = ticks.wrapping_sub(last).rem_euclid(ARRIVAL_WRAP_TICKS);
        let step = if ahead > ARRIVAL_WRAP_TICKS / 2 { ahead - ARRIVAL_WRAP_TICKS } else { ahead };
        let unwrapped = last.saturating_add(step);
        self.last_arrival_ticks = Some(unwrapped);
        unwrapped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Bitrate = Bitrate::from_bps(1_000_000);

    #[test]
    fn remb_is_a_bound_and_no_more() {
        let mut estimator = Estimator::new(START, true);
        estimator.handle_remb(Bitrate::from_bps(400_000));
        assert_eq!(estimator.estimate().as_bps(), 400_000);
        estimator.handle_remb(Bitrate::from_bps(u64::MAX));
        assert_eq!(estimator.estimate(), START);
        estimator.handle_remb(Bitrate::from_bps(0));
        assert_eq!(estimator.estimate(), ESTIMATE_MIN);
    }

    #[test]
    fn without_transport_feedback_a_word_that_rises_bounds_nothing() {
        let mut estimator = Estimator::new(START, false);
        let mut say = |kbps: u64| {
            estimator.handle_remb(Bitrate::from_bps(kbps * 1000));
            estimator.estimate().as_bps() / 1000
        };
        assert_eq!([400, 400, 430, 430].map(&mut say), [400, 400, 1000, 1000]);
        assert_eq!([360, 300, 320].map(&mut say), [360, 300, 1000]);
    }

    #[test]
    fn without_transport_feedback_reports_of_loss_decide() {
        let useful = Bitrate::from_bps(2_000_000);
        let mut estimator = Estimator::new(START, false);
        let mut now = Instant::ZERO;
        let mut report = |fraction, seconds: u32| {
            for _ in 0..seconds {
                now += Duration::from_secs(1);
                estimator.handle_loss(now, fraction, useful);
            }
            estimator.estimate().as_bps()
        };
        assert!((1_000_000..1_100_000).contains(&report(0.0, 2)));
        assert_eq!(report(0.0, 30), 2_000_000, "what is useful, and no more");
        assert_eq!(report(0.05, 5), 2_000_000);
        assert!((1_000_000..1_100_000).contains(&report(0.4, 4)));
    }

    #[test]
    fn arrival_times_go_on_across_the_wrap() {
        let mut estimator = Estimator::new(START, true);
        let start = ARRIVAL_WRAP_TICKS - 4;
        assert_eq!([start, 2, start - 1].map(|ticks| estimator.unwrap(ticks) - start), [0, 6, -1]);
    }
}
