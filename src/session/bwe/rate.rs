//! The delay-based rate: down at once when a queue grows, up slowly when none does (draft-ietf-rmcat-gcc-02 §5.5;
//! libwebrtc's `aimd_rate_control.cc`).

use std::time::Duration;

use super::capacity::LinkCapacity;
use super::trend::Usage;
use super::{ESTIMATE_MAX, ESTIMATE_MIN};
use crate::units::Instant;

/// Of what arrives, so that the queue drains (the draft's beta).
const BACK_OFF: f64 = 0.85;
/// A second, far from the link's capacity (the draft's eta).
const GROWTH_PER_SECOND: f64 = 1.08;
const GROWTH_BPS_MIN: f64 = 1000.0;
/// The estimate stays below so much of what arrives: nothing is known of a rate that was not sent (the draft §5.5; the
/// constant is libwebrtc's).
const UNUSED_FACTOR: f64 = 1.5;
const UNUSED_BPS: f64 = 10_000.0;
/// Near the capacity, the rate grows by half a packet for each response time, which is a round trip and this (the draft's
/// §5.5; frames, packets and the least growth are libwebrtc's).
const RESPONSE: Duration = Duration::from_millis(100);
const FRAMES_PER_SECOND: f64 = 30.0;
const PACKET_BITS: f64 = 1200.0 * 8.0;
const NEAR_BPS_MIN: f64 = 4000.0;
/// Between two decreases one round trip passes, within limits, so that the first can show (libwebrtc).
const BACK_OFF_INTERVAL_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_INTERVAL_MAX: Duration = Duration::from_millis(200);
/// Longer silence is not credited (libwebrtc).
const STEP_MAX: Duration = Duration::from_secs(1);

/// Less than so much of the estimate in use: the application is the limit, not the link (libwebrtc's `alr_detector.cc`).
const LIMITED_FACTOR: f64 = 0.65;
/// Between two decreases for a queue that does not look like ours: by then what arrives is known better.
const LIMITED_INTERVAL: Duration = Duration::from_millis(500);
/// So much of what was sent arrives in the same time: no queue grows because of us. An overuse is noticed from a slope of
/// 2.5 % on.
const CARRIED_FACTOR: f64 = 0.95;

/// What is known of the link at one feedback.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    /// What arrives, in bit/s, and what the same packets were sent with. `None`: not known yet.
    pub acked_bps: Option<f64>,
    pub sent_bps: Option<f64>,
    /// What arrived at most for a moment, see [`Throughput::peak_bps`](super::throughput::Throughput::peak_bps).
    pub peak_bps: Option<f64>,
    pub round_trip: Duration,
}

#[derive(Debug)]
pub(super) struct RateControl {
    bps: f64,
    capacity: LinkCapacity,
    last_update: Option<Instant>,
    last_decrease: Option<Instant>,
}

impl RateControl {
    pub fn new(start_bps: f64) -> RateControl {
        RateControl { bps: start_bps, capacity: LinkCapacity::new(), last_update: None, last_decrease: None }
    }

    pub fn bps(&self) -> f64 {
        self.bps
    }

    pub fn last_decrease(&self) -> Option<Instant> {
        self.last_decrease
    }

    pub fn update(&mut self, now: Instant, usage: Usage, measured: &Measured) {
        let elapsed = self.last_update.map_or(Duration::ZERO, |last| (now - last).min(STEP_MAX));
        self.last_update = Some(now);
        match usage {
            Usage::Normal => self.increase(elapsed, measured),
            Usage::Over if self.may_decrease(now, measured) => self.decrease(now, measured),
            // While the queue drains nothing is known of the link.
            Usage::Over | Usage::Under => {}
        }
    }

    /// A probe has measured `bps`. `acked_bps`: what arrives besides.
    pub fn probed(&mut self, bps: f64, acked_bps: Option<f64>) {
        self.capacity.probed(bps);
        // A cluster is short, and jitter may stretch it: one alone does not take much away.
        let least = (BACK_OFF * self.bps).max(acked_bps.unwrap_or(0.0)).min(self.bps);
        self.set(bps.max(least));
    }

    /// Nothing has been heard for long although something was sent.
    pub fn unheard(&mut self, now: Instant, factor: f64) {
        self.last_decrease = Some(now);
        self.set(factor * self.bps);
    }

    fn increase(&mut self, elapsed: Duration, measured: &Measured) {
        let acked = measured.acked_bps.unwrap_or(self.bps);
        self.capacity.carried(acked);
        let limit = UNUSED_FACTOR * acked + UNUSED_BPS;
        // Above the limit it stays: that little is sent says nothing against the link.
        if self.bps >= limit {
            return;
        }
        let seconds = elapsed.as_secs_f64();
        let growth = match self.capacity.bps() {
            Some(_) => self.near_growth(measured.round_trip) * seconds,
            None => (self.bps * (GROWTH_PER_SECOND.powf(seconds) - 1.0)).max(GROWTH_BPS_MIN * seconds),
        };
        self.set((self.bps + growth).min(limit));
    }

    /// In bit/s per second: half a packet, of the size that frames of this rate are cut into, for each response time.
    fn near_growth(&self, round_trip: Duration) -> f64 {
        let frame_bits = self.bps / FRAMES_PER_SECOND;
        let packet_bits = frame_bits / (frame_bits / PACKET_BITS).ceil().max(1.0);
        (0.5 * packet_bits / (round_trip + RESPONSE).as_secs_f64()).max(NEAR_BPS_MIN)
    }

    fn may_decrease(&self, now: Instant, measured: &Measured) -> bool {
        let interval = measured.round_trip.clamp(BACK_OFF_INTERVAL_MIN, BACK_OFF_INTERVAL_MAX);
        self.last_decrease.is_none_or(|last| now - last >= interval)
    }

    fn decrease(&mut self, now: Instant, measured: &Measured) {
        let before = self.last_decrease.replace(now);
        let Some(acked) = measured.acked_bps else {
            return self.set(self.bps / 2.0);
        };
        let carried = measured.sent_bps.is_none_or(|sent| acked >= CARRIED_FACTOR * sent);
        if carried && acked < LIMITED_FACTOR * self.bps {
            // Jitter, a keyframe, or somebody else's queue. libwebrtc falls to what arrives here too, and must probe its
            // way back; a viewer of a low layer would never see another. When the queue is ours, later reports say so.
            if before.is_some_and(|before| now - before < LIMITED_INTERVAL) {
                self.last_decrease = before;
                return;
            }
            return self.set(BACK_OFF * self.bps);
        }
        // While a queue grows the link is full, and shows what it carries: for a keyframe's 100 ms only, when a viewer has
        // just gone up from a layer that never filled it.
        let acked = acked.max(measured.peak_bps.unwrap_or(0.0));
        self.capacity.carried(acked);
        let full = BACK_OFF * acked;
        let to = if full < self.bps { full } else { BACK_OFF * self.capacity.bps().unwrap_or(acked) };
        self.capacity.overused_at(acked);
        self.set(to.min(self.bps));
    }

    fn set(&mut self, bps: f64) {
        self.bps = bps.clamp(ESTIMATE_MIN.as_bps() as f64, ESTIMATE_MAX.as_bps() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Measured =
        Measured { acked_bps: Some(1e6), sent_bps: Some(1.2e6), peak_bps: None, round_trip: Duration::from_millis(50) };

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn overuse_backs_off_from_what_arrives_once_a_round_trip() {
        let mut rate = RateControl::new(1.2e6);
        rate.update(at(0), Usage::Over, &FULL);
        assert_eq!(rate.bps(), 8.5e5);
        rate.update(at(40), Usage::Over, &Measured { acked_bps: Some(5e5), ..FULL });
        assert_eq!(rate.bps(), 8.5e5);
        rate.update(at(50), Usage::Over, &Measured { acked_bps: Some(5e5), ..FULL });
        assert_eq!(rate.bps(), 4.25e5);
    }

    #[test]
    fn far_from_the_capacity_it_grows_by_a_factor_and_near_it_by_packets() {
        let grown = |rate: &mut RateControl, from: u64| {
            let before = rate.bps();
            for n in 0..=20 {
                rate.update(at(from + 50 * n), Usage::Normal, &FULL);
            }
            rate.bps() - before
        };
        let mut rate = RateControl::new(1e6);
        assert!((70_000.0..90_000.0).contains(&grown(&mut rate, 0)));
        rate.update(at(2000), Usage::Over, &FULL);
        let near = grown(&mut rate, 2000);
        assert!((20_000.0..35_000.0).contains(&near), "{near}");
    }

    #[test]
    fn a_keyframes_queue_is_judged_by_its_peak() {
        let keyframe = |peak_bps| Measured { acked_bps: Some(6e5), peak_bps: Some(peak_bps), ..FULL };
        let mut rate = RateControl::new(2.1e6);
        rate.update(at(0), Usage::Over, &keyframe(2.2e6));
        assert_eq!(rate.bps(), 1.87e6);
        rate.update(at(1000), Usage::Over, &keyframe(3e6));
        assert_eq!(rate.bps(), 1.87e6, "the link carries more, whatever it did before");
    }

    #[test]
    fn what_is_not_sent_neither_raises_nor_lowers_it() {
        let little = Measured { acked_bps: Some(1e5), sent_bps: Some(1e5), ..FULL };
        let mut rate = RateControl::new(1.5e5);
        for n in 0..1000 {
            rate.update(at(50 * n), Usage::Normal, &little);
        }
        assert_eq!(rate.bps(), 1.6e5);
        rate.probed(2e6, little.acked_bps);
        for n in 1000..2000 {
            rate.update(at(50 * n), Usage::Normal, &little);
        }
        assert_eq!(rate.bps(), 2e6);
        rate.update(at(100_000), Usage::Over, &little);
        assert_eq!(rate.bps(), 1.7e6, "all that is sent arrives: no queue of ours");
    }

    #[test]
    fn one_slow_probe_does_not_take_much_away() {
        let mut rate = RateControl::new(2e6);
        rate.probed(1e5, Some(1e6));
        assert_eq!(rate.bps(), 1.7e6);
    }
}
