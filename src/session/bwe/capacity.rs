//! What the link carried when it was last found full: near that, the rate grows with care (libwebrtc's
//! `link_capacity_estimator.cc`; the draft's average of R_hat and its deviation, §5.5).

/// How much one overuse or one probe counts (libwebrtc).
const OVERUSE_WEIGHT: f64 = 0.05;
const PROBE_WEIGHT: f64 = 0.5;
/// Of the normalised variance in kbit/s: where it starts, and its limits (libwebrtc).
const VARIANCE_MIN: f64 = 0.4;
const VARIANCE_MAX: f64 = 2.5;
/// Beyond so many standard deviations it is another link.
const DEVIATIONS: f64 = 3.0;

#[derive(Debug)]
pub(super) struct LinkCapacity {
    kbps: Option<f64>,
    variance: f64,
}

impl LinkCapacity {
    pub fn new() -> LinkCapacity {
        LinkCapacity { kbps: None, variance: VARIANCE_MIN }
    }

    pub fn bps(&self) -> Option<f64> {
        self.kbps.map(|kbps| kbps * 1e3)
    }

    pub fn overused_at(&mut self, bps: f64) {
        if self.kbps.is_some_and(|kbps| bps / 1e3 < kbps - self.reach(kbps)) {
            self.kbps = None;
        }
        self.average(bps / 1e3, OVERUSE_WEIGHT);
    }

    pub fn probed(&mut self, bps: f64) {
        self.average(bps / 1e3, PROBE_WEIGHT);
    }

    /// Forgets a capacity that `bps` has surpassed.
    pub fn carried(&mut self, bps: f64) {
        if self.kbps.is_some_and(|kbps| bps / 1e3 > kbps + self.reach(kbps)) {
            self.kbps = None;
        }
    }

    fn reach(&self, kbps: f64) -> f64 {
        DEVIATIONS * (self.variance * kbps).sqrt()
    }

    fn average(&mut self, sample_kbps: f64, weight: f64) {
        let kbps = self.kbps.map_or(sample_kbps, |kbps| (1.0 - weight) * kbps + weight * sample_kbps);
        let error = kbps - sample_kbps;
        let variance = (1.0 - weight) * self.variance + weight * error * error / kbps.max(1.0);
        self.variance = variance.clamp(VARIANCE_MIN, VARIANCE_MAX);
        self.kbps = Some(kbps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_is_kept_near_it_and_forgotten_far_from_it() {
        let mut capacity = LinkCapacity::new();
        capacity.overused_at(1e6);
        capacity.carried(1.05e6);
        assert_eq!(capacity.bps(), Some(1e6));
        capacity.carried(1.2e6);
        assert_eq!(capacity.bps(), None);
        capacity.overused_at(1e6);
        capacity.overused_at(5e5);
        assert_eq!(capacity.bps(), Some(5e5), "not the average of two links");
    }
}
