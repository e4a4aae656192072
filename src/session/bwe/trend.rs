//! Whether a queue grows on the way: the slope of the delay over the last groups, against a threshold that adapts
//! (draft-ietf-rmcat-gcc-02 §5.3, §5.4; libwebrtc's `trendline_estimator.cc`, which replaced the draft's Kalman filter).

use super::groups::Variation;

/// Groups that the line is laid through, and how strongly the delay is smoothed before (libwebrtc).
const WINDOW_GROUPS: usize = 20;
const SMOOTHING: f64 = 0.9;

/// The slope in ms/ms is small; this and the count of groups, up to 60, bring it to the threshold's size (libwebrtc).
const GAIN: f64 = 4.0;
const GROUPS_COUNTED_MAX: u32 = 60;

/// How long and how often the slope must be over the threshold (libwebrtc; the draft's overuse_time_th).
const OVERUSE_MILLIS: f64 = 10.0;
const OVERUSE_GROUPS_MIN: u32 = 2;

/// The threshold: where it starts, its limits, and how fast it follows the slope up and down, per ms. It must follow a
/// competing TCP up quickly enough not to be starved. Start and limits are the draft's; for its K_u of 0.01 and K_d of
/// 0.00018, which fit the Kalman filter, libwebrtc has these.
const THRESHOLD_START: f64 = 12.5;
const THRESHOLD_MIN: f64 = 6.0;
const THRESHOLD_MAX: f64 = 600.0;
const FOLLOW_UP: f64 = 0.0087;
const FOLLOW_DOWN: f64 = 0.039;
/// A slope that exceeds the threshold by more is a sudden change of the route, which it does not follow (the draft §5.4).
const FOLLOW_REACH: f64 = 15.0;
const FOLLOW_MILLIS_MAX: f64 = 100.0;

/// The draft's signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Usage {
    #[default]
    Normal,
    /// A queue grows.
    Over,
    /// A queue shrinks.
    Under,
}

#[derive(Clone, Copy, Debug, Default)]
struct Point {
    arrival_millis: f64,
    delay_millis: f64,
}

#[derive(Debug)]
pub(super) struct Trend {
    /// The last points, the oldest at `oldest` once the ring is full.
    points: [Point; WINDOW_GROUPS],
    count: usize,
    oldest: usize,
    delay_millis: f64,
    smoothed_millis: f64,
    groups: u32,
    slope: f64,
    threshold: f64,
    /// `None`: under it.
    over: Option<Over>,
    last_arrival_millis: Option<f64>,
    usage: Usage,
}

#[derive(Clone, Copy, Debug)]
struct Over {
    millis: f64,
    groups: u32,
}

impl Trend {
    pub fn new() -> Trend {
        Trend {
            points: [Point::default(); WINDOW_GROUPS],
            count: 0,
            oldest: 0,
            delay_millis: 0.0,
            smoothed_millis: 0.0,
            groups: 0,
            slope: 0.0,
            threshold: THRESHOLD_START,
            over: None,
            last_arrival_millis: None,
            usage: Usage::Normal,
        }
    }

    pub fn usage(&self) -> Usage {
        self.usage
    }

    pub fn add(&mut self, variation: &Variation) {
        self.delay_millis += variation.arrival_delta_millis - variation.send_delta_millis;
        self.smoothed_millis = SMOOTHING * self.smoothed_millis + (1.0 - SMOOTHING) * self.delay_millis;
        self.groups = (self.groups + 1).min(GROUPS_COUNTED_MAX);
        self.push(Point { arrival_millis: variation.arrival_millis, delay_millis: self.smoothed_millis });
        let before = self.slope;
        if self.count == WINDOW_GROUPS {
            self.slope = slope(&self.points).unwrap_or(before);
        }
        self.detect(before, variation);
    }

    fn push(&mut self, point: Point) {
        self.points[self.oldest] = point;
        self.oldest = (self.oldest + 1) % WINDOW_GROUPS;
        self.count = (self.count + 1).min(WINDOW_GROUPS);
    }

    fn detect(&mut self, slope_before: f64, variation: &Variation) {
        let size = self.slope * f64::from(self.groups) * GAIN;
        if size > self.threshold {
            let over = match self.over {
                Some(Over { millis, groups }) => {
                    Over { millis: millis + variation.send_delta_millis, groups: groups + 1 }
                }
                // It has been over the threshold since somewhere between the groups.
                None => Over { millis: variation.send_delta_millis / 2.0, groups: 1 },
            };
            self.over = Some(over);
            if over.millis > OVERUSE_MILLIS && over.groups >= OVERUSE_GROUPS_MIN && self.slope >= slope_before {
                self.over = Some(Over { millis: 0.0, groups: 0 });
                self.usage = Usage::Over;
            }
        } else {
            self.over = None;
            self.usage = if size < -self.threshold { Usage::Under } else { Usage::Normal };
        }
        self.adapt(size.abs(), variation.arrival_millis);
    }

    fn adapt(&mut self, size: f64, arrival_millis: f64) {
        let last = self.last_arrival_millis.replace(arrival_millis).unwrap_or(arrival_millis);
        if size > self.threshold + FOLLOW_REACH {
            return;
        }
        let speed = if size < self.threshold { FOLLOW_DOWN } else { FOLLOW_UP };
        let elapsed = (arrival_millis - last).clamp(0.0, FOLLOW_MILLIS_MAX);
        let followed = self.threshold + speed * (size - self.threshold) * elapsed;
        self.threshold = followed.clamp(THRESHOLD_MIN, THRESHOLD_MAX);
    }
}

/// Of the line with the least squares; `None` when all points arrived at once.
fn slope(points: &[Point]) -> Option<f64> {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|p| p.arrival_millis).sum::<f64>() / count;
    let mean_y = points.iter().map(|p| p.delay_millis).sum::<f64>() / count;
    let (mut numerator, mut denominator) = (0.0, 0.0);
    for p in points {
        let x = p.arrival_millis - mean_x;
        numerator += x * (p.delay_millis - mean_y);
        denominator += x * x;
    }
    (denominator > 0.0).then(|| numerator / denominator)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups 20 ms apart, each delayed by so much more than the one before it.
    fn after(groups: usize, more_millis: impl Fn(usize) -> f64) -> Trend {
        let mut trend = Trend::new();
        let mut arrival_millis = 0.0;
        for n in 0..groups {
            let arrival_delta_millis = 20.0 + more_millis(n);
            arrival_millis += arrival_delta_millis;
            trend.add(&Variation { arrival_millis, send_delta_millis: 20.0, arrival_delta_millis });
        }
        trend
    }

    #[test]
    fn a_growing_queue_is_overuse_and_a_shrinking_one_underuse() {
        assert_eq!(after(40, |_| 0.0).usage(), Usage::Normal);
        assert_eq!(after(40, |_| 2.0).usage(), Usage::Over);
        assert_eq!(after(40, |_| -2.0).usage(), Usage::Under);
    }

    #[test]
    fn jitter_is_no_overuse() {
        let trend = after(200, |n| if n % 2 == 0 { 8.0 } else { -8.0 });
        assert_eq!(trend.usage(), Usage::Normal);
    }

    #[test]
    fn overuse_takes_more_than_one_group() {
        let overused = (21..40).find(|n| after(*n, |at| if at < 20 { 0.0 } else { 30.0 }).usage() == Usage::Over);
        assert!(overused.is_some_and(|n| (22..30).contains(&n)), "{overused:?}");
    }

    #[test]
    fn the_threshold_stays_within_its_limits() {
        assert_eq!(after(2000, |_| 0.0).threshold, THRESHOLD_MIN);
        let wild = after(20_000, |n| if n / 40 % 2 == 0 { 1.6 } else { -1.6 });
        assert!((THRESHOLD_MIN..=THRESHOLD_MAX).contains(&wild.threshold), "{}", wild.threshold);
    }
}
