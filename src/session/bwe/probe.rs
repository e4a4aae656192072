//! Probes: a few packets sent faster than the media needs, to learn whether the link would carry a higher layer.

use std::num::NonZeroU8;
use std::time::Duration;

use super::history::{ClusterId, Report};
use crate::units::{Bitrate, Instant};

/// The first probe, from an estimate that is a guess (libwebrtc's first_exponential_probe_scale; each success then
/// doubles, which is its second one, 6).
const FIRST_SCALE: u64 = 3;
/// A link that carries the estimate may carry twice of it.
const SCALE: u64 = 2;
/// In percent of what the goal needs. protocol.md §5.8 has 1.1 times the layer's cost, but the up-switch wants 1.15
/// times: it would never come. This is on top of that 1.15, because a probe may measure 10 % less than it sent.
const MARGIN_PERCENT: u64 = 120;

/// libwebrtc takes 15 ms and 5 packets. Jitter of 15 ms would stretch that to half its rate, and a link that carries the
/// next layer would not show it. At twice a link's rate it makes a queue of as long.
const CLUSTER_TIME: Duration = Duration::from_millis(40);
const CLUSTER_PACKETS_MIN: u32 = 5;
/// A probe that is not out by then was not sent as ordered.
const SENDING_TIME_MAX: Duration = Duration::from_millis(500);
/// Besides a round trip, for its feedback.
const FEEDBACK_TIME_MAX: Duration = Duration::from_secs(1);
/// RTX of what was sent, or padding.
const PACKET_BYTES: u16 = 290;

/// After a probe that found what it looked for, or that says nothing of the link, since feedback was lost or something let all
/// of it go at once; the estimate has to show first.
const INTERVAL_AFTER_SUCCESS: Duration = Duration::from_millis(500);
/// After one that did not (libwebrtc's alr_probing_interval). A link that grows at the wrong moment is found two probes
/// later, which leaves the up-switch its time within 20 s.
const INTERVAL_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// A measurement counts with so much of its packets (libwebrtc).
const ARRIVED_PACKETS_MIN: u32 = 4;
const ARRIVED_PERCENT_MIN: u64 = 80;
/// Faster by so much than it was sent: something on the way held it up and let it go.
const COMPRESSION_MAX: f64 = 2.0;
/// Slower than this, as a part of what was sent, the link was full: then a little less than it carried is taken, so that
/// the queue drains (libwebrtc).
const FULL_FACTOR: f64 = 0.9;
const FULL_USE: f64 = 0.95;

/// What the viewer could use, see [`Allocator::goal`](super::Allocator::goal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// The estimate that the next higher layer takes.
    pub next: Bitrate,
    /// That the highest one takes.
    pub top: Bitrate,
}

/// Send a packet now, of about so many bytes, and record it with this cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeOrder {
    pub bytes: u16,
    pub cluster: ClusterId,
}

pub(super) struct Prober {
    goal: Option<Goal>,
    state: State,
    /// Until a probe has failed or the top is reached: we know nothing of the link yet.
    first: bool,
    probes: u8,
    result: Option<Bitrate>,
}

enum State {
    Idle { not_before: Instant },
    Sending(Cluster),
    Waiting { cluster: Cluster, until: Instant },
}

struct Cluster {
    id: ClusterId,
    rate: Bitrate,
    started: Instant,
    packets: u32,
    bytes: u64,
    reported: u32,
    arrivals: Arrivals,
}

impl Prober {
    pub fn new() -> Prober {
        Prober { goal: None, state: State::Idle { not_before: Instant::ZERO }, first: true, probes: 0, result: None }
    }

    pub fn set_goal(&mut self, goal: Option<Goal>) {
        self.goal = goal;
    }

    /// See [`Bwe::poll_probe`](super::Bwe::poll_probe). `stable`: a probe may begin.
    pub fn poll(&mut self, now: Instant, estimate: Bitrate, stable: bool, round_trip: Duration) -> Option<ProbeOrder> {
        if let State::Idle { not_before } = self.state {
            let rate = self.wanted(estimate).filter(|_| stable && now >= not_before)?;
            self.begin(now, rate);
        }
        let State::Sending(cluster) = &mut self.state else { return None };
        if cluster.is_out() {
            self.wait(now + round_trip + FEEDBACK_TIME_MAX);
            return None;
        }
        if now < cluster.next_due() {
            return None;
        }
        cluster.count(PACKET_BYTES);
        Some(ProbeOrder { bytes: PACKET_BYTES, cluster: cluster.id })
    }

    /// Media that leaves while a probe does is part of it, since it takes its share of the link. Returns the cluster.
    pub fn join(&mut self, bytes: u16) -> Option<ClusterId> {
        let State::Sending(cluster) = &mut self.state else { return None };
        cluster.count(bytes);
        Some(cluster.id)
    }

    /// Feedback on a packet. `arrival_micros`: see [`Estimator::add`](super::estimator::Estimator::add).
    pub fn handle_report(&mut self, now: Instant, report: &Report, arrival_micros: Option<i64>) {
        let (State::Sending(cluster) | State::Waiting { cluster, .. }) = &mut self.state else { return };
        if report.cluster != Some(cluster.id) {
            return;
        }
        cluster.reported += u32::from(!report.was_missing);
        if let Some(arrival_micros) = arrival_micros {
            cluster.arrivals.add(report.sent, arrival_micros, report.bytes);
        }
        if let State::Waiting { cluster, .. } = &self.state
            && cluster.reported >= cluster.packets
        {
            self.evaluate(now);
        }
    }

    /// The bitrate that a probe has measured since the last call.
    pub fn take_result(&mut self) -> Option<Bitrate> {
        self.result.take()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        match &self.state {
            State::Sending(cluster) if now >= cluster.started + SENDING_TIME_MAX => {
                self.state = State::Idle { not_before: now + INTERVAL_AFTER_FAILURE };
            }
            State::Waiting { until, .. } if now >= *until => self.evaluate(now),
            _ => {}
        }
    }

    /// When [`Prober::poll`] may give an order, or [`Prober::handle_timeout`] has something to do.
    pub fn next_timeout(&self, estimate: Bitrate) -> Instant {
        match &self.state {
            State::Idle { not_before } if self.wanted(estimate).is_some() => *not_before,
            State::Idle { .. } => Instant::FAR_FUTURE,
            State::Sending(cluster) => cluster.next_due().min(cluster.started + SENDING_TIME_MAX),
            State::Waiting { until, .. } => *until,
        }
    }

    /// The rate of the next probe, if one is of use.
    fn wanted(&self, estimate: Bitrate) -> Option<Bitrate> {
        let goal = self.goal?;
        let (needed, scale) = match (self.first, self.probes) {
            (true, 0) => (goal.top, FIRST_SCALE),
            (true, _) => (goal.top, SCALE),
            (false, _) => (goal.next, SCALE),
        };
        let with_margin = needed.as_bps().saturating_mul(MARGIN_PERCENT) / 100;
        let rate = with_margin.min(estimate.as_bps().saturating_mul(scale));
        (estimate < needed).then_some(Bitrate::from_bps(rate))
    }

    fn begin(&mut self, now: Instant, rate: Bitrate) {
        self.probes = self.probes.checked_add(1).unwrap_or(1);
        let id = ClusterId(NonZeroU8::new(self.probes).unwrap_or(NonZeroU8::MIN));
        let arrivals = Arrivals::default();
        self.state = State::Sending(Cluster { id, rate, started: now, packets: 0, bytes: 0, reported: 0, arrivals });
    }

    fn wait(&mut self, until: Instant) {
        self.state = match std::mem::replace(&mut self.state, State::Idle { not_before: until }) {
            State::Sending(cluster) => State::Waiting { cluster, until },
            other => other,
        };
    }

    fn evaluate(&mut self, now: Instant) {
        let State::Waiting { cluster, .. } = &self.state else { return };
        let measured = cluster.arrivals.bitrate(cluster.bytes);
        let found = measured.is_some_and(|m| m.as_bps() as f64 >= FULL_FACTOR * cluster.rate.as_bps() as f64);
        self.first &= found && self.goal.is_some_and(|goal| cluster.rate < goal.top);
        self.result = measured;
        let says_nothing = measured.is_none()
            && (cluster.reported < cluster.packets || cluster.arrivals.are_compressed(cluster.bytes));
        let pause = if found || says_nothing { INTERVAL_AFTER_SUCCESS } else { INTERVAL_AFTER_FAILURE };
        self.state = State::Idle { not_before: now + pause };
    }
}

impl Cluster {
    fn count(&mut self, bytes: u16) {
        self.packets += 1;
        self.bytes += u64::from(bytes);
    }

    fn is_out(&self) -> bool {
        self.packets >= CLUSTER_PACKETS_MIN && self.time_of_bytes() >= CLUSTER_TIME
    }

    /// When the rate allows the next packet.
    fn next_due(&self) -> Instant {
        self.started + self.time_of_bytes()
    }

    fn time_of_bytes(&self) -> Duration {
        Duration::from_nanos(self.bytes.saturating_mul(8_000_000_000) / self.rate.as_bps().max(1))
    }
}

/// What has arrived of a cluster.
#[derive(Default)]
struct Arrivals {
    packets: u32,
    bytes: u64,
    sent: Option<Span<Instant>>,
    arrived: Option<Span<i64>>,
}

/// From the first packet, whose bytes an arrival does not measure, to the last one, whose bytes a sending does not.
#[derive(Clone, Copy)]
struct Span<T> {
    first: T,
    first_bytes: u16,
    last: T,
    last_bytes: u16,
}

impl<T: Ord + Copy> Span<T> {
    fn add(span: Option<Span<T>>, at: T, bytes: u16) -> Option<Span<T>> {
        let mut span = span.unwrap_or(Span { first: at, first_bytes: bytes, last: at, last_bytes: bytes });
        if at < span.first {
            (span.first, span.first_bytes) = (at, bytes);
        }
        if at >= span.last {
            (span.last, span.last_bytes) = (at, bytes);
        }
        Some(span)
    }
}

impl Arrivals {
    fn add(&mut self, sent: Instant, arrival_micros: i64, bytes: u16) {
        self.packets += 1;
        self.bytes += u64::from(bytes);
        self.sent = Span::add(self.sent, sent, bytes);
        self.arrived = Span::add(self.arrived, arrival_micros, bytes);
    }

    fn suffice(&self, sent_bytes: u64) -> bool {
        self.packets >= ARRIVED_PACKETS_MIN && self.bytes * 100 >= sent_bytes * ARRIVED_PERCENT_MIN
    }

    /// All has come, but at once.
    fn are_compressed(&self, sent_bytes: u64) -> bool {
        let (Some(sent), Some(arrived)) = (self.sent, self.arrived) else { return false };
        let arrival_seconds = arrived.last.saturating_sub(arrived.first) as f64 / 1e6;
        self.suffice(sent_bytes) && COMPRESSION_MAX * arrival_seconds < (sent.last - sent.first).as_secs_f64()
    }

    /// The rate that the link has shown; `None` when too little arrived, or in no order that says anything.
    fn bitrate(&self, sent_bytes: u64) -> Option<Bitrate> {
        let (sent, arrived) = (self.sent?, self.arrived?);
        if !self.suffice(sent_bytes) || self.are_compressed(sent_bytes) {
            return None;
        }
        let arrival_micros = u64::try_from(arrived.last.saturating_sub(arrived.first)).ok()?;
        let send_bps = bps(self.bytes - u64::from(sent.last_bytes), sent.last - sent.first)?;
        let arrival_bps = bps(self.bytes - u64::from(arrived.first_bytes), Duration::from_micros(arrival_micros))?;
        let shown =
            if arrival_bps < FULL_FACTOR * send_bps { FULL_USE * arrival_bps } else { send_bps.min(arrival_bps) };
        Some(Bitrate::from_bps(shown as u64))
    }
}

/// `None` for no time, or more than a second, which is no probe any more (libwebrtc).
fn bps(bytes: u64, time: Duration) -> Option<f64> {
    (!time.is_zero() && time <= Duration::from_secs(1)).then(|| bytes as f64 * 8.0 / time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOAL: Goal = Goal { next: Bitrate::from_bps(600_000), top: Bitrate::from_bps(2_000_000) };
    const ROUND_TRIP: Duration = Duration::from_millis(40);

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    /// Sends one probe from `from` ms on; what was sent, by ms.
    fn send(prober: &mut Prober, from: u64, estimate: u64) -> Vec<(u64, ProbeOrder)> {
        let mut orders = Vec::new();
        for millis in from..from + 400 {
            while let Some(order) = prober.poll(at(millis), Bitrate::from_bps(estimate), true, ROUND_TRIP) {
                orders.push((millis, order));
            }
        }
        orders
    }

    /// Tells of all of them, `gap_micros` apart.
    fn report(prober: &mut Prober, now: u64, orders: &[(u64, ProbeOrder)], gap_micros: i64) -> Option<u64> {
        for (n, (millis, order)) in orders.iter().enumerate() {
            let report = Report {
                sent: at(*millis),
                bytes: order.bytes,
                cluster: Some(order.cluster),
                arrival_ticks: Some(0),
                was_missing: false,
            };
            prober.handle_report(at(now), &report, Some(n as i64 * gap_micros));
        }
        prober.take_result().map(Bitrate::as_bps)
    }

    fn with_goal() -> Prober {
        let mut prober = Prober::new();
        prober.set_goal(Some(GOAL));
        prober
    }

    #[test]
    fn a_probe_measures_what_it_sent_or_what_the_link_let_through() {
        // 3 x 600 kbit/s: a packet each 1.3 ms.
        let mut prober = with_goal();
        let orders = send(&mut prober, 0, 600_000);
        assert_eq!(orders.len(), 32);
        let shown = report(&mut prober, 450, &orders, 1289).expect("a result");
        assert!((1_700_000..1_900_000).contains(&shown), "{shown}");

        let mut prober = with_goal();
        let orders = send(&mut prober, 0, 600_000);
        assert_eq!(report(&mut prober, 450, &orders, 2320), Some(950_000), "0.95 of 1 Mbit/s");
    }

    #[test]
    fn too_few_or_too_fast_arrivals_measure_nothing() {
        let mut prober = with_goal();
        let orders = send(&mut prober, 0, 600_000);
        assert_eq!(report(&mut prober, 450, &orders[..3], 1289), None);
        prober.handle_timeout(at(2000));
        assert_eq!(prober.take_result(), None);

        let mut prober = with_goal();
        let orders = send(&mut prober, 0, 600_000);
        assert_eq!(report(&mut prober, 450, &orders, 100), None);
    }

    #[test]
    fn the_first_probes_look_for_the_top_and_later_ones_for_the_next_layer() {
        let rate = |prober: &Prober, estimate| prober.wanted(Bitrate::from_bps(estimate)).map(Bitrate::as_bps);
        let mut prober = with_goal();
        assert_eq!(rate(&prober, 500_000), Some(1_500_000));
        assert_eq!(rate(&prober, 1_000_000), Some(2_400_000));
        prober.first = false;
        assert_eq!(rate(&prober, 300_000), Some(600_000));
        assert_eq!(rate(&prober, 500_000), Some(720_000));
        assert_eq!(rate(&prober, 600_000), None, "it would be enough");
        prober.set_goal(None);
        assert_eq!(rate(&prober, 100_000), None);
    }

    #[test]
    fn after_a_failure_five_seconds_pass() {
        let mut prober = with_goal();
        let orders = send(&mut prober, 0, 600_000);
        report(&mut prober, 450, &orders, 9600);
        assert!(send(&mut prober, 5000, 500_000).is_empty());
        assert!(!send(&mut prober, 5450, 500_000).is_empty());
    }

    #[test]
    fn a_probe_whose_feedback_was_lost_is_soon_repeated() {
        let mut prober = with_goal();
        let orders = send(&mut prober, 0, 600_000);
        report(&mut prober, 450, &orders[..3], 1289);
        prober.handle_timeout(at(1450));
        assert!(send(&mut prober, 1500, 500_000).is_empty());
        assert!(!send(&mut prober, 1950, 500_000).is_empty());
    }

    #[test]
    fn a_probe_that_comes_all_at_once_is_soon_repeated() {
        let mut prober = with_goal();
        let orders = send(&mut prober, 0, 600_000);
        assert_eq!(report(&mut prober, 450, &orders, 100), None);
        assert!(send(&mut prober, 500, 500_000).is_empty());
        assert!(!send(&mut prober, 950, 500_000).is_empty());
    }

    #[test]
    fn a_probe_that_cannot_leave_is_given_up() {
        let mut prober = with_goal();
        assert!(prober.poll(at(0), Bitrate::from_bps(600_000), true, ROUND_TRIP).is_some());
        prober.handle_timeout(at(499));
        assert!(prober.join(100).is_some());
        prober.handle_timeout(at(500));
        assert!(prober.join(100).is_none());
        assert!(prober.next_timeout(Bitrate::from_bps(500_000)) > at(5000));
    }
}
