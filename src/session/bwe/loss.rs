//! The loss-based bound: down above 10 % of loss, up below 2 %, kept between (draft-ietf-rmcat-gcc-02 §6).

use std::time::Duration;

use super::{ESTIMATE_MAX, ESTIMATE_MIN};
use crate::units::Instant;

const LOW_LOSS: f64 = 0.02;
const HIGH_LOSS: f64 = 0.10;
/// libwebrtc's; the draft has 5 % for each report.
const GROWTH_PER_SECOND: f64 = 1.08;
/// What a keyframe loses in a short queue is over by then; what a full link loses is not.
const HIGH_HOLD: Duration = Duration::from_secs(1);
/// Between decreases, besides a round trip: the loss of before the last one is still on its way (libwebrtc).
const DECREASE_INTERVAL: Duration = Duration::from_millis(300);
const STEP_MAX: Duration = Duration::from_secs(1);
/// For so long a packet counts, while enough others do.
const MEMORY_SECONDS: f64 = 1.0;
/// With so many 5 % of random loss hardly ever reads as 10 %, which is three deviations; with the 80 packets that a low
/// layer has in a second, twice a minute.
const PACKETS_REMEMBERED: f64 = 200.0;
/// Even when there are fewer.
const MEMORY_SECONDS_MAX: f64 = 4.0;
const PACKETS_MIN: f64 = 60.0;

#[derive(Debug)]
pub(super) struct LossBound {
    bps: f64,
    /// Packets that count, by their age.
    lost: f64,
    reported: f64,
    /// What the last receiver report said, of a viewer without transport-wide feedback.
    report: Option<f64>,
    last_update: Option<Instant>,
    high_since: Option<Instant>,
    last_decrease: Option<Instant>,
}

impl LossBound {
    pub fn new(start_bps: f64) -> LossBound {
        LossBound {
            bps: start_bps,
            lost: 0.0,
            reported: 0.0,
            report: None,
            last_update: None,
            high_since: None,
            last_decrease: None,
        }
    }

    pub fn bps(&self) -> f64 {
        self.bps
    }

    /// 0 to 1, of the last second or, when little is sent, four; 0 while too little is known.
    pub fn fraction(&self) -> f64 {
        self.known().unwrap_or(0.0)
    }

    fn known(&self) -> Option<f64> {
        let counted = (self.reported >= PACKETS_MIN).then(|| (self.lost / self.reported).clamp(0.0, 1.0));
        self.report.or(counted)
    }

    /// Feedback has told of packets. `found`: those of the lost ones that it had called missing before.
    pub fn count(&mut self, arrived: u32, lost: u32, found: u32) {
        self.lost = (self.lost + f64::from(lost) - f64::from(found)).max(0.0);
        // A packet that was missing has been counted.
        self.reported += f64::from(arrived) + f64::from(lost) - f64::from(found);
        self.reported = self.reported.max(self.lost);
    }

    /// A receiver report. It replaces what was counted.
    pub fn reported(&mut self, fraction: f64) {
        self.report = Some(fraction.clamp(0.0, 1.0));
    }

    /// A probe has measured `bps`: when little was lost besides, it is not the link's load that loses.
    pub fn probed(&mut self, bps: f64) {
        if self.fraction() <= HIGH_LOSS {
            self.bps = self.bps.max(bps);
        }
    }

    /// `estimate_bps`: what is in force, from which a decrease begins. `most_bps`: beyond that growth is of no use.
    pub fn update(&mut self, now: Instant, estimate_bps: f64, most_bps: f64, round_trip: Duration) {
        let elapsed = self.last_update.map_or(Duration::ZERO, |last| (now - last).min(STEP_MAX)).as_secs_f64();
        self.last_update = Some(now);
        let fraction = self.fraction();
        self.high_since = self.high_since.or(Some(now)).filter(|_| fraction > HIGH_LOSS);
        if let Some(since) = self.high_since {
            if now - since >= HIGH_HOLD
                && self.last_decrease.is_none_or(|last| now - last >= DECREASE_INTERVAL + round_trip)
            {
                self.last_decrease = Some(now);
                self.bps = (self.bps.min(estimate_bps) * (1.0 - 0.5 * fraction)).max(ESTIMATE_MIN.as_bps() as f64);
            }
        } else if self.known().is_some_and(|fraction| fraction < LOW_LOSS) && self.bps < most_bps {
            let most_bps = most_bps.min(ESTIMATE_MAX.as_bps() as f64);
            self.bps = (self.bps * GROWTH_PER_SECOND.powf(elapsed)).min(most_bps);
        }
        let enough = self.reported > PACKETS_REMEMBERED;
        let faded = (-elapsed / if enough { MEMORY_SECONDS } else { MEMORY_SECONDS_MAX }).exp();
        self.lost *= faded;
        self.reported *= faded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bound after 10 s of feedback every 50 ms, each on 20 packets.
    fn after(lost: impl Fn(u64) -> u32) -> f64 {
        let mut loss = LossBound::new(1e6);
        for n in 0..200 {
            loss.count(20 - lost(n), lost(n), 0);
            loss.update(Instant::from_nanos(n * 50_000_000), loss.bps(), 1e7, Duration::from_millis(50));
        }
        loss.bps()
    }

    #[test]
    fn it_grows_below_two_percent_holds_to_ten_and_falls_above() {
        let grown = after(|_| 0);
        assert!((2.0e6..2.3e6).contains(&grown), "8 % a second: {grown}");
        assert_eq!(after(|_| 1), 1e6);
        assert!(after(|_| 4) < 1e5);
    }

    #[test]
    fn one_bad_report_is_no_loss() {
        assert!(after(|n| if n == 100 { 8 } else { 0 }) > 1.8e6);
    }

    #[test]
    fn a_probe_lifts_it_while_loss_is_not_high() {
        let after_probe = |lost| {
            let mut loss = LossBound::new(1e6);
            loss.count(100 - lost, lost, 0);
            loss.probed(2e6);
            loss.bps()
        };
        assert_eq!(after_probe(5), 2e6);
        assert_eq!(after_probe(15), 1e6);
    }

    #[test]
    fn what_comes_late_was_not_lost() {
        let mut loss = LossBound::new(1e6);
        loss.count(50, 50, 0);
        loss.count(50, 0, 50);
        assert_eq!(loss.fraction(), 0.0);
        assert_eq!(loss.reported, 100.0);
    }
}
