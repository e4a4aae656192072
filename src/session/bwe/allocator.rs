//! Which layer a viewer gets: the rules of going down soon and up late.

use std::time::Duration;

use super::probe::Goal;
use crate::units::{Bitrate, Instant};

/// All factors in percent of a layer's cost. A first layer, or the one to fall to, must fit with a little to spare.
const FIT_PERCENT: u64 = 110;
const DOWN_PERCENT: u64 = 85;
const UP_PERCENT: u64 = 115;
/// Of the packets; more is a link that is full, whatever the estimate says.
const LOSS_MAX: f64 = 0.10;

/// An estimate may dip for a feedback or three.
const DOWN_HOLD: Duration = Duration::from_millis(300);
/// A keyframe, which an up-switch begins with, counts in its layer's cost for a second (`forward::pacer::Meter`): what is too
/// much for a cost that has risen may be too much for no longer than that.
const COST_DOWN_HOLD: Duration = Duration::from_millis(1300);
/// A keyframe that overflows a short queue loses more than a tenth of a second's packets; a full link goes on to.
const LOSS_DOWN_HOLD: Duration = Duration::from_secs(1);
/// Loss is counted over 200 packets, which a low layer takes two seconds for: until then it is that of before the last step
/// down. The estimate falls with it meanwhile.
const LOSS_HOLD: Duration = Duration::from_secs(5);
/// How long an estimate must be high enough; doubled by each up-switch that failed, until one does not.
const UP_HOLD_MIN: Duration = Duration::from_secs(3);
const UP_HOLD_MAX: Duration = Duration::from_secs(60);
/// After a step down (mediasoup's conservative time).
const CONSERVATIVE: Duration = Duration::from_secs(10);
/// How long an estimate must be high enough for the lowest layer to be whole again.
const WHOLE_HOLD: Duration = Duration::from_secs(3);
/// An up-switch that is taken back within so long has failed.
const TRIAL: Duration = Duration::from_secs(20);

/// One layer of a stream, as it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// In UDP payload bytes, as the estimate is.
    pub cost: Bitrate,
    /// It has sent something of late, for its pace.
    pub active: bool,
}

/// What the viewer asks for; numbers are ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    #[default]
    None,
    /// This one or a lower.
    UpTo(usize),
    /// This one whatever the estimate says, while it is active.
    Pinned(usize),
}

/// Everything that a choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Conditions<'a> {
    /// By rank: costs ascend.
    pub layers: &'a [Layer],
    /// Served first.
    pub audio: Bitrate,
    pub estimate: Bitrate,
    /// 0 to 1.
    pub loss: f64,
    pub limit: Limit,
}

/// The choice for one viewer and stream. Call [`Allocator::choose`] every 100 ms or so.
#[derive(Debug)]
pub struct Allocator {
    current: Option<usize>,
    /// Since when the estimate is too low for the current layer.
    low_since: Option<Instant>,
    /// The estimate that it took when there last was as much.
    needed_before: Bitrate,
    /// Since when more is lost than [`LOSS_MAX`].
    loss_since: Option<Instant>,
    /// The highest layer that the estimate has allowed ever since.
    candidate: Option<(usize, Instant)>,
    hold: Duration,
    last_up: Option<Instant>,
    last_down: Option<Instant>,
    thinned: Thinned,
}

/// Whether even the lowest layer is too much, and nothing but its temporal base is sent.
#[derive(Debug, Default)]
struct Thinned {
    /// Since when it is.
    since: Option<Instant>,
    /// Since when the estimate has been for the other.
    wavering: Option<Instant>,
}

impl Default for Allocator {
    fn default() -> Allocator {
        Allocator {
            current: None,
            low_since: None,
            needed_before: Bitrate::from_bps(0),
            loss_since: None,
            candidate: None,
            hold: UP_HOLD_MIN,
            last_up: None,
            last_down: None,
            thinned: Thinned::default(),
        }
    }
}

impl Allocator {
    /// The rank of the layer to send from its next keyframe on; `None` when no layer is active.
    pub fn choose(&mut self, now: Instant, conditions: &Conditions) -> Option<usize> {
        if let Limit::Pinned(rank) = conditions.limit
            && conditions.is_active(rank)
        {
            self.switch(Some(rank));
        } else if !self.current.is_some_and(|rank| conditions.is_allowed(rank)) {
            // The first choice, or what was chosen has gone: that says nothing of the link.
            self.switch(conditions.fitting());
        } else if let Some(lower) = self.down(now, conditions) {
            self.fell(now);
            self.switch(Some(lower));
        } else if let Some(higher) = self.up(now, conditions) {
            self.last_up = Some(now);
            self.switch(Some(higher));
        }
        if self.last_up.take_if(|up| now - *up >= TRIAL).is_some() {
            self.hold = UP_HOLD_MIN;
        }
        self.thin(now, conditions);
        self.current
    }

    /// Whether even the lowest layer is too much: then its temporal base is to be sent, where it has one.
    pub fn is_thinned(&self) -> bool {
        self.thinned.since.is_some()
    }

    fn thin(&mut self, now: Instant, conditions: &Conditions) {
        let is_lowest = conditions.allowed().next() == self.current;
        let Some(current) = self.current.filter(|rank| is_lowest && conditions.limit != Limit::Pinned(*rank)) else {
            self.thinned = Thinned::default();
            return;
        };
        let full = conditions.loss > LOSS_MAX;
        let full_anew = full && self.loss_is_new(now);
        let Thinned { since, wavering } = &mut self.thinned;
        let (wavers, hold) = match since {
            None if full_anew => (true, LOSS_DOWN_HOLD),
            None => (conditions.estimate < conditions.audio_and(DOWN_PERCENT, current), DOWN_HOLD),
            Some(since) if now - *since < CONSERVATIVE => (false, WHOLE_HOLD),
            Some(_) => (!full && conditions.estimate >= conditions.audio_and(UP_PERCENT, current), WHOLE_HOLD),
        };
        *wavering = wavering.or(Some(now)).filter(|_| wavers);
        if wavering.is_some_and(|at| now - at >= hold) {
            *wavering = None;
            *since = if since.is_some() { None } else { Some(now) };
        }
    }

    /// What a probe should look for; `None` when there is nothing higher, or it may not be chosen soon.
    pub fn goal(&self, now: Instant, conditions: &Conditions) -> Option<Goal> {
        if matches!(conditions.limit, Limit::Pinned(_)) || now + self.hold < self.not_up_before() {
            return None;
        }
        let current = self.current?;
        let needed = |rank| conditions.audio_and(UP_PERCENT, rank);
        let must_be_whole = self.is_thinned() && conditions.estimate < needed(current);
        let mut higher = conditions.allowed().filter(|rank| *rank > current || *rank == current && must_be_whole);
        let next = higher.next()?;
        Some(Goal { next: needed(next), top: needed(higher.next_back().unwrap_or(next)) })
    }

    fn down(&mut self, now: Instant, conditions: &Conditions) -> Option<usize> {
        let current = self.current?;
        let lower = conditions.allowed().rfind(|rank| *rank < current)?;
        self.loss_since = self.loss_since.or(Some(now)).filter(|_| conditions.loss > LOSS_MAX);
        let loses = self.loss_since.is_some_and(|since| now - since >= LOSS_DOWN_HOLD);
        if loses && self.loss_is_new(now) {
            return Some(lower.min(conditions.fitting()?));
        }
        let needed = conditions.audio_and(DOWN_PERCENT, current);
        if conditions.estimate >= needed {
            self.low_since = None;
            self.needed_before = needed;
            return None;
        }
        let since = *self.low_since.get_or_insert(now);
        let hold = if conditions.estimate >= self.needed_before { COST_DOWN_HOLD } else { DOWN_HOLD };
        if now - since < hold {
            return None;
        }
        Some(lower.min(conditions.fitting()?))
    }

    fn up(&mut self, now: Instant, conditions: &Conditions) -> Option<usize> {
        let current = self.current?;
        let allowed_now = conditions
            .allowed()
            .rfind(|rank| *rank > current && conditions.estimate >= conditions.audio_and(UP_PERCENT, *rank))
            .filter(|_| conditions.loss <= LOSS_MAX);
        self.candidate = match (self.candidate, allowed_now) {
            (_, None) => None,
            (None, Some(rank)) => Some((rank, now)),
            (Some((before, since)), Some(rank)) => Some((before.min(rank), since)),
        };
        let (rank, since) = self.candidate?;
        (now - since >= self.hold && now >= self.not_up_before()).then_some(rank)
    }

    fn fell(&mut self, now: Instant) {
        let failed = self.last_up.take().is_some();
        // A fall within the time of a fall is the same trouble; one by itself begins anew.
        let alone = self.last_down.is_none_or(|last| now - last >= CONSERVATIVE);
        if failed {
            self.hold = (2 * self.hold).min(UP_HOLD_MAX);
        } else if alone {
            self.hold = UP_HOLD_MIN;
        }
        self.last_down = Some(now);
    }

    fn switch(&mut self, to: Option<usize>) {
        if to != self.current {
            self.current = to;
            self.low_since = None;
            self.candidate = None;
        }
    }

    /// It is not that of before the last step down.
    fn loss_is_new(&self, now: Instant) -> bool {
        self.last_down.is_none_or(|last| now - last >= LOSS_HOLD)
    }

    fn not_up_before(&self) -> Instant {
        self.last_down.map_or(Instant::ZERO, |down| down + CONSERVATIVE)
    }
}

impl Conditions<'_> {
    fn is_active(&self, rank: usize) -> bool {
        self.layers.get(rank).is_some_and(|layer| layer.active)
    }

    fn is_allowed(&self, rank: usize) -> bool {
        let within = match self.limit {
            Limit::None => true,
            // When what was pinned is silent, the best below it stands in.
            Limit::UpTo(most) | Limit::Pinned(most) => rank <= most,
        };
        within && self.is_active(rank)
    }

    fn allowed(&self) -> impl DoubleEndedIterator<Item = usize> {
        (0..self.layers.len()).filter(|rank| self.is_allowed(*rank))
    }

    /// The highest layer that fits; the lowest when none does, or when none is allowed.
    fn fitting(&self) -> Option<usize> {
        let fits = |rank: &usize| self.audio_and(FIT_PERCENT, *rank) <= self.estimate;
        self.allowed()
            .rfind(fits)
            .or_else(|| self.allowed().next())
            .or_else(|| (0..self.layers.len()).find(|rank| self.is_active(*rank)))
    }

    /// What audio and `percent` of a layer take.
    fn audio_and(&self, percent: u64, rank: usize) -> Bitrate {
        let cost = self.layers.get(rank).map_or(0, |layer| layer.cost.as_bps());
        Bitrate::from_bps(self.audio.as_bps().saturating_add(cost.saturating_mul(percent) / 100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: [u64; 3] = [150_000, 500_000, 1_700_000];

    struct Viewer {
        allocator: Allocator,
        now: Instant,
        layers: [Layer; 3],
        loss: f64,
        limit: Limit,
    }

    impl Viewer {
        fn new() -> Viewer {
            let layers = COSTS.map(|bps| Layer { cost: Bitrate::from_bps(bps), active: true });
            Viewer { allocator: Allocator::default(), now: Instant::ZERO, layers, loss: 0.0, limit: Limit::None }
        }

        /// The choices over so long an estimate of so many kbit/s besides audio, without repetitions.
        fn during(&mut self, millis: u64, kbps: u64) -> Vec<usize> {
            let mut chosen: Vec<usize> = Vec::new();
            for _ in 0..=millis / 100 {
                let conditions = Conditions {
                    layers: &self.layers,
                    audio: Bitrate::from_bps(32_000),
                    estimate: Bitrate::from_bps(32_000 + kbps * 1000),
                    loss: self.loss,
                    limit: self.limit,
                };
                chosen.extend(self.allocator.choose(self.now, &conditions));
                self.now += Duration::from_millis(100);
            }
            chosen.dedup();
            chosen
        }
    }

    #[test]
    fn the_first_layer_is_the_highest_that_fits_or_the_lowest() {
        for (kbps, expected) in [(50, 0), (549, 0), (550, 1), (1869, 1), (1870, 2)] {
            assert_eq!(Viewer::new().during(0, kbps), [expected], "{kbps} kbit/s");
        }
    }

    #[test]
    fn down_comes_when_the_estimate_is_low_for_300_ms() {
        let mut viewer = Viewer::new();
        assert_eq!(viewer.during(1000, 2000), [2]);
        assert_eq!(viewer.during(5000, 1445), [2], "0.85 of the cost");
        assert_eq!(viewer.during(200, 1444), [2]);
        assert_eq!(viewer.during(200, 1445), [2], "it was low for less than 300 ms");
        assert_eq!(viewer.during(200, 1444), [2]);
        assert_eq!(viewer.during(100, 1444), [1]);
    }

    #[test]
    fn down_goes_as_far_as_it_must() {
        let mut viewer = Viewer::new();
        viewer.during(1000, 2000);
        assert_eq!(viewer.during(1000, 300), [2, 0]);
    }

    #[test]
    fn high_loss_is_a_step_down_after_a_second() {
        let mut viewer = Viewer::new();
        viewer.during(1000, 3000);
        viewer.loss = 0.11;
        assert_eq!(viewer.during(900, 3000), [2]);
        viewer.loss = 0.09;
        assert_eq!(viewer.during(1000, 3000), [2], "it was a keyframe");
        viewer.loss = 0.11;
        assert_eq!(viewer.during(1000, 3000), [2, 1]);
        assert_eq!(viewer.during(4800, 3000), [1], "the loss is of before");
        assert_eq!(viewer.during(100, 3000), [0], "5 s later");
    }

    #[test]
    fn up_takes_three_seconds_and_ten_after_a_fall() {
        let mut viewer = Viewer::new();
        viewer.during(0, 600);
        assert_eq!(viewer.during(2800, 1955), [1]);
        assert_eq!(viewer.during(200, 1955), [1, 2]);
        viewer.during(30_000, 2000);
        assert_eq!(viewer.during(500, 600), [2, 1]);
        assert_eq!(viewer.during(9500, 2000), [1]);
        assert_eq!(viewer.during(500, 2000), [1, 2]);
        assert_eq!(Viewer::new().during(9000, 1954), [2]);
        let mut viewer = Viewer::new();
        viewer.during(0, 600);
        assert_eq!(viewer.during(60_000, 1954), [1], "less than 1.15 of the cost");
    }

    #[test]
    fn each_failed_switch_doubles_the_wait_up_to_a_minute() {
        let mut viewer = Viewer::new();
        viewer.during(0, 600);
        let mut waits = Vec::new();
        for _ in 0..7 {
            let start = viewer.now;
            while viewer.during(0, 2000) == [1] {}
            waits.push((viewer.now - start).as_secs());
            while viewer.during(0, 600) == [2] {}
        }
        assert_eq!(waits, [3, 10, 12, 24, 48, 60, 60], "10 s after a fall at least");
    }

    #[test]
    fn a_switch_that_lasts_ends_the_long_waits() {
        let mut viewer = Viewer::new();
        viewer.during(0, 600);
        for _ in 0..3 {
            while viewer.during(0, 2000) == [1] {}
            while viewer.during(0, 600) == [2] {}
        }
        // 24 s by now.
        viewer.during(25_000, 2000);
        assert_eq!(viewer.during(TRIAL.as_millis() as u64, 2000), [2]);
        viewer.layers[2].active = false;
        assert_eq!(viewer.during(500, 2000), [1], "its publisher's doing");
        viewer.layers[2].active = true;
        assert_eq!(viewer.during(2800, 2000), [1]);
        assert_eq!(viewer.during(200, 2000), [1, 2]);
    }

    #[test]
    fn a_keyframe_is_no_reason_to_leave_its_layer() {
        let mut viewer = Viewer::new();
        let calm = viewer.layers[2].cost;
        viewer.during(0, 600);
        assert_eq!(viewer.during(3000, 2000), [1, 2]);
        // The one that the switch asked for, in the meter for a second.
        viewer.layers[2].cost = Bitrate::from_bps(4_000_000);
        assert_eq!(viewer.during(1000, 2000), [2]);
        viewer.layers[2].cost = calm;
        assert_eq!(viewer.during(1000, 2000), [2]);
        viewer.layers[2].cost = Bitrate::from_bps(4_000_000);
        assert_eq!(viewer.during(1100, 2000), [2]);
        assert_eq!(viewer.during(300, 2000), [2, 1], "it stays like that");

        let mut viewer = Viewer::new();
        viewer.during(1000, 2000);
        viewer.layers[2].cost = Bitrate::from_bps(4_000_000);
        assert_eq!(viewer.during(400, 1400), [2, 1], "too low for what it was, too");
    }

    #[test]
    fn a_pin_and_a_cap_are_kept_and_silent_layers_are_not_chosen() {
        let mut viewer = Viewer::new();
        viewer.limit = Limit::UpTo(1);
        assert_eq!(viewer.during(9000, 5000), [1]);
        viewer.limit = Limit::Pinned(2);
        assert_eq!(viewer.during(9000, 50), [2]);
        viewer.layers[2].active = false;
        assert_eq!(viewer.during(9000, 5000), [1]);
        viewer.layers[0].active = false;
        viewer.layers[1].active = false;
        viewer.allocator.current = None;
        assert!(viewer.during(1000, 5000).is_empty());
    }

    #[test]
    fn the_lowest_layer_is_thinned_when_even_that_is_too_much() {
        let mut viewer = Viewer::new();
        viewer.during(1000, 2000);
        // 0.85 of 150.
        viewer.during(5000, 128);
        assert!(!viewer.allocator.is_thinned());
        viewer.during(200, 127);
        assert!(!viewer.allocator.is_thinned());
        viewer.during(100, 127);
        assert!(viewer.allocator.is_thinned());
        assert_eq!(viewer.during(9_500, 400), [0], "not soon after");
        assert!(viewer.allocator.is_thinned());
        viewer.during(60_000, 172);
        assert!(viewer.allocator.is_thinned(), "less than 1.15 of the cost");
        viewer.during(3200, 173);
        assert!(!viewer.allocator.is_thinned());
        viewer.loss = 0.2;
        viewer.during(900, 173);
        assert!(!viewer.allocator.is_thinned());
        viewer.during(200, 173);
        assert!(viewer.allocator.is_thinned());
        // The loss is of before the step down.
        let mut fallen = Viewer::new();
        fallen.during(1000, 2000);
        fallen.loss = 0.5;
        assert_eq!(fallen.during(1000, 300), [2, 0]);
        fallen.during(3500, 300);
        assert!(!fallen.allocator.is_thinned());
        fallen.during(2500, 300);
        assert!(fallen.allocator.is_thinned());
        viewer.limit = Limit::Pinned(0);
        viewer.during(0, 50);
        assert!(!viewer.allocator.is_thinned(), "whatever the estimate says");
    }

    #[test]
    fn a_probe_looks_for_what_an_up_switch_needs() {
        let mut viewer = Viewer::new();
        let goal = |viewer: &Viewer, kbps: u64| {
            let layers = &viewer.layers;
            let (audio, estimate) = (Bitrate::from_bps(32_000), Bitrate::from_bps(32_000 + kbps * 1000));
            let conditions = Conditions { layers, audio, estimate, loss: 0.0, limit: viewer.limit };
            viewer.allocator.goal(viewer.now, &conditions).map(|g| (g.next.as_bps(), g.top.as_bps()))
        };
        assert_eq!(goal(&viewer, 200), None);
        viewer.during(0, 200);
        assert_eq!(goal(&viewer, 200), Some((607_000, 1_987_000)));
        viewer.during(4000, 2000);
        assert_eq!(goal(&viewer, 200), None, "at the top");
        viewer.during(500, 600);
        assert_eq!(goal(&viewer, 200), None, "not soon after a fall");
        viewer.during(13_000, 700);
        assert_eq!(goal(&viewer, 200), Some((1_987_000, 1_987_000)));
        let mut viewer = Viewer::new();
        viewer.during(1000, 100);
        viewer.during(13_000, 150);
        assert!(viewer.allocator.is_thinned());
        assert_eq!(goal(&viewer, 150), Some((204_500, 1_987_000)), "the lowest layer, whole");
        assert_eq!(goal(&viewer, 180), Some((607_000, 1_987_000)), "it will be");
    }
}
