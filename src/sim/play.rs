//! Plays a scenario and judges what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use str0m::media::MediaKind;

use super::client::{Got, Habits, Source};
use super::network::Path;
use super::scenario::{Deed, Scenario, Who};
use super::{ClientId, World, oracle};
use crate::units::Instant;

/// A dead client's session ends after 30 s, and what control remembers of it after a minute more.
const AFTERMATH: Duration = Duration::from_secs(100);

/// ICE finds a changed address by its next checks; until then media goes where nobody is.
const REBINDING: Duration = Duration::from_secs(15);

/// Audio is 20 ms apart; a handshake's packets and a switch of publishers may take their time.
const AUDIO_SILENCE_MAX: Duration = Duration::from_secs(1);

/// From one frame to the next while a publisher that answers requests is there: two of the node's, a second apart.
const VIDEO_SILENCE_MAX: Duration = Duration::from_millis(1_500);

/// What a deaf publisher's keyframe interval is exceeded by at most.
const DEAF_SILENCE_MARGIN: Duration = Duration::from_secs(1);

/// How often it is looked whether anything piles up.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Of one viewer's gaps.
const GAPS_TOLD: usize = 3;

/// From one rendition to another timestamps go as much further than time at most, queues left out.
const LEAP_MAX: Duration = Duration::from_secs(1);

/// A run without a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Hash and length of the trace.
    pub trace: (u64, u64),
    /// By all viewers together, connected.
    pub watched: Duration,
    /// Packets of video and audio that each viewer got once it has played for 1.5 s: how far back its replay
    /// began may depend on microseconds.
    pub got: Vec<(usize, usize)>,
}

/// What ought not to be.
#[derive(Clone, Debug)]
pub struct Finding(pub Vec<String>);

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// # Errors
/// All that the oracles found.
pub fn play(scenario: &Scenario) -> Result<Outcome, Finding> {
    let mut play = Play::new(scenario);
    play.perform(scenario);
    play.judge();
    play.finish()
}

/// The first line in which the traces of two runs of a scenario part.
pub fn parting(scenario: &Scenario) -> Option<(String, String)> {
    let run = || {
        let mut play = Play::new(scenario);
        play.world.trace.keep_log();
        play.perform(scenario);
        play.world.trace
    };
    let (a, b) = (run(), run());
    a.log().iter().zip(b.log()).find(|(a, b)| a != b).map(|(a, b)| (a.clone(), b.clone()))
}

/// Whether viewers of a calm scenario got the same of it, on however many shards.
///
/// # Errors
/// Names what differs.
pub fn alike(one: &Outcome, other: &Outcome) -> Result<(), String> {
    // 20 µs from shard to shard may move a frame across the end of the run, and another one across a keyframe request.
    let near = |a: &(usize, usize), b: &(usize, usize)| a.0.abs_diff(b.0) <= 12 && a.1.abs_diff(b.1) <= 2;
    if one.got.len() == other.got.len() && one.got.iter().zip(&other.got).all(|(a, b)| near(a, b)) {
        return Ok(());
    }
    Err(format!("viewers got {:?} of video and audio, and on other shards {:?}", one.got, other.got))
}

struct Play {
    world: World,
    people: BTreeMap<Who, Person>,
    findings: Vec<String>,
}

struct Person {
    id: ClientId,
    stream: u8,
    /// As bad as it ever was.
    path: Path,
    /// `None`: a viewer.
    source: Option<Source>,
    /// When it went, by its own doing or by DELETE.
    gone: Option<Instant>,
    rebound: Vec<Instant>,
}

/// A time in which a stream had a publisher without faults of its own.
struct Turn {
    source: Source,
    from: Instant,
    until: Instant,
}

impl Play {
    fn new(scenario: &Scenario) -> Play {
        Play { world: World::new(scenario.seed, scenario.shards), people: BTreeMap::new(), findings: Vec::new() }
    }

    fn perform(&mut self, scenario: &Scenario) {
        for (at, deed) in &scenario.deeds {
            self.run_until(*at);
            self.act(*deed);
        }
        self.run_until(scenario.ends);
        self.clear();
    }

    fn run_until(&mut self, at: Duration) {
        let at = Instant::ZERO + at;
        while at > self.world.now() {
            self.world.run_for(at.since(self.world.now()).min(LOOK_INTERVAL));
            if let (Err(what), true) = (self.world.nothing_piles_up(), self.findings.is_empty()) {
                self.find(what);
            }
        }
    }

    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Publish { who, stream, source, path } => {
                let result = self.world.try_publish(&name_of(stream), source, path, Habits::NONE);
                self.come(who, stream, path, Some(source), result);
            }
            Deed::Watch { who, stream, path } => {
                let result = self.world.try_watch(&name_of(stream), path, Habits::NONE);
                // Where nothing is live there is nothing to watch.
                if result.is_ok() || self.is_live(stream) {
                    self.come(who, stream, path, None, result);
                }
            }
            Deed::Strangers(datagrams) => self.inject_noise(datagrams),
            Deed::RotateCertificate => self.world.rotate_certificate(),
            Deed::Leave(who) => self.go(who, World::leave),
            Deed::Kill(who) => self.go(who, World::kill),
            // 404 says that the node let it go before.
            Deed::Delete(who) => self.go(who, |world, id| _ = world.delete(id)),
            Deed::Rebind(who) => {
                let now = self.world.now();
                let Some(id) = self.present(who) else { return };
                self.world.rebind(id);
                self.people.entry(who).and_modify(|p| p.rebound.push(now));
            }
            Deed::RestartIce(who) => self.restart_ice(who),
            Deed::Reroute { who, path } => {
                let Some(id) = self.present(who) else { return };
                let path = Path { bottleneck: self.world.path(id).bottleneck, ..path };
                self.world.set_path(id, path);
                self.people.entry(who).and_modify(|p| p.path = p.path.worst(&path));
            }
            Deed::Ask { who, times } => {
                let Some(id) = self.present(who) else { return };
                for _ in 0..times {
                    self.world.request_keyframe(id);
                    self.world.run_for(Duration::from_millis(3));
                }
            }
            Deed::Bound { who, bitrate } => {
                let Some(id) = self.present(who) else { return };
                self.world.request_remb(id, bitrate);
            }
            Deed::Wish { who, layer } => {
                let Some(id) = self.present(who) else { return };
                let status = self.world.wish(id, layer);
                if status >= 500 {
                    self.find(format!("client {who}: a wish for layer {layer} is answered {status}"));
                }
            }
        }
    }

    fn come(&mut self, who: Who, stream: u8, path: Path, source: Option<Source>, result: Result<ClientId, String>) {
        match result {
            Ok(id) => {
                let person = Person { id, stream, path, source, gone: None, rebound: Vec::new() };
                self.people.insert(who, person);
            }
            Err(refused) => self.find(format!("client {who} is refused: {refused}")),
        }
    }

    fn go(&mut self, who: Who, how: impl FnOnce(&mut World, ClientId)) {
        let now = self.world.now();
        let Some(person) = self.people.get_mut(&who).filter(|p| p.gone.is_none()) else { return };
        person.gone = Some(now);
        let id = person.id;
        how(&mut self.world, id);
    }

    fn restart_ice(&mut self, who: Who) {
        let Some(id) = self.present(who) else { return };
        if self.world.client(id).connected_at.is_none() || self.world.client(id).closed {
            return;
        }
        if let Err(refused) = self.world.try_restart_ice(id) {
            // It may not have heard that its session is over.
            if self.people.get(&who).is_some_and(|p| !p.path.loses()) {
                self.find(format!("client {who} cannot restart ICE: {refused}"));
            }
            self.go(who, World::kill);
        }
    }

    /// The client, if it has come and not gone.
    fn present(&self, who: Who) -> Option<ClientId> {
        self.people.get(&who).filter(|p| p.gone.is_none()).map(|p| p.id)
    }

    /// A publisher has been connected for a while.
    fn is_live(&self, stream: u8) -> bool {
        let now = self.world.now();
        self.turns(stream).iter().any(|t| t.from + Duration::from_secs(1) < now && now < t.until)
    }

    fn inject_noise(&mut self, datagrams: u8) {
        for n in 0..u32::from(datagrams) {
            let from = ([203, 0, 113, n as u8], 4000).into();
            // STUN, DTLS, RTP and RTCP by their first bytes.
            let first = [[0, 1], [22, 254], [0x80, 96], [0x81, 205]][n as usize % 4];
            let noise = (0..n * 7).map(|i| (i.wrapping_mul(n).wrapping_mul(2_654_435_761) >> 24) as u8);
            self.world.inject(from, first.into_iter().chain(noise).collect());
        }
    }

    /// Everybody leaves.
    fn clear(&mut self) {
        let all: Vec<Who> = self.people.keys().copied().collect();
        for who in all {
            self.go(who, World::leave);
        }
        self.world.run_for(AFTERMATH);
    }

    fn judge(&mut self) {
        let world = &mut self.world;
        let counters = world.counters();
        let suppressed: u64 = counters.iter().map(|c| c.str0m_media_suppressed).sum();
        self.findings.extend(oracle::conservation(&counters, world.rtp_sent()).err());
        self.findings.extend(oracle::hand_overs(&counters).err());
        self.findings.extend(world.nothing_is_left().err());
        if suppressed > 0 {
            self.findings.push(format!("str0m wanted to send {suppressed} packets beside us"));
        }
        if world.sent_to_strangers() > 0 {
            self.findings.push(format!("{} datagrams went to strangers", world.sent_to_strangers()));
        }
        let found: Vec<String> = self
            .people
            .iter()
            .filter(|(_, p)| p.source.is_none())
            .flat_map(|(who, p)| self.judge_viewer(p).into_iter().map(move |f| format!("viewer {who}: {f}")))
            .collect();
        self.findings.extend(found);
    }

    fn judge_viewer(&self, viewer: &Person) -> Vec<String> {
        let got = self.world.client(viewer.id).got();
        let undisturbed = !viewer.path.loses() && viewer.rebound.is_empty();
        let whole = undisturbed && self.publishers(viewer.stream).all(|p| !p.path.loses() && p.rebound.is_empty());
        let mut findings = Vec::new();
        for kind in [MediaKind::Audio, MediaKind::Video] {
            let judged = oracle::judge(got, kind);
            findings.extend(judged.faults.iter().cloned());
            if judged.leap > LEAP_MAX + viewer.path.queueing() {
                findings.push(format!("{kind} leaps by {:?} at a switch", judged.leap));
            }
            // Where packets overtake each other, media comes before DTLS is up, and is lost on the client.
            let in_order = viewer.path.jitter == Duration::ZERO;
            if undisturbed && in_order && judged.packets > 0 && !judged.starts_whole {
                findings.push(format!("{kind} does not start on a keyframe"));
            }
            let settled = oracle::judge(&self.settled(viewer, kind), kind);
            for (a, b) in settled.gaps.iter().filter(|(a, _)| whole && !self.came_too_late(got, a)).take(GAPS_TOLD) {
                findings.push(format!("{kind} never came over clean paths between {a:?} and {b:?}"));
            }
            if !viewer.path.loses() {
                findings.extend(self.silences(viewer, got, kind));
            }
        }
        findings
    }

    /// What a viewer got, less what was under way when it left, and what came in its first second where packets overtake
    /// each other; or on their way to the node, which may have had what follows the viewer's first audio before the viewer came.
    fn settled(&self, viewer: &Person, kind: MediaKind) -> Vec<Got> {
        let second = Duration::from_secs(1);
        let client = self.world.client(viewer.id);
        let of_kind = || client.got().iter().filter(|g| g.kind == kind);
        let overtakes = |p: &Person| p.path.jitter > Duration::ZERO;
        let unsettled = match kind {
            _ if overtakes(viewer) => second,
            MediaKind::Audio => self.publishers(viewer.stream).map(|p| p.path.jitter).max().unwrap_or_default(),
            MediaKind::Video => Duration::ZERO,
        };
        let connected = client.connected_at.filter(|_| !unsettled.is_zero());
        let begun = connected.map_or(Instant::ZERO, |at| at + unsettled + 2 * viewer.path.delay);
        let before = of_kind().filter(|g| g.at < begun).map(|g| g.seq).max();
        let leaves = viewer.gone.unwrap_or(Instant::FAR_FUTURE);
        let until = of_kind().filter(|g| g.at + second < leaves).map(|g| g.seq).max();
        of_kind().filter(|g| Some(g.seq) > before && Some(g.seq) <= until).copied().collect()
    }

    /// Whether what is missing behind a packet had been overtaken, and came when the node took no more of it: the publisher was
    /// gone or taken over, or the viewer had another layer by then.
    fn came_too_late(&self, got: &[Got], a: &Got) -> bool {
        let who = a.stamp.source as Who;
        let Some(publisher) = self.people.get(&who).filter(|p| p.path.overtaking() > Duration::ZERO) else {
            return false;
        };
        let sent = |packet, layer| self.world.client(publisher.id).sent_at(a.kind, layer, packet);
        let Some(missing) = sent(a.stamp.packet + 1, a.stamp.layer) else { return false };
        let arrives = |p: &Person, sent| sent + p.path.delay;
        let successors = self.people.range(who + 1..).map(|(_, p)| p).filter(|p| p.stream == publisher.stream);
        let taken_over = successors
            .filter(|p| p.source.is_some())
            .filter_map(|p| Some(arrives(p, self.world.client(p.id).connected_at?)));
        let next = got.iter().filter(|g| g.kind == a.kind && g.seq > a.seq && g.stamp.layer != a.stamp.layer);
        let next = next.min_by_key(|g| g.seq).filter(|g| g.stamp.source == a.stamp.source);
        let switched = next.and_then(|g| sent(g.stamp.packet, g.stamp.layer)).map(|sent| arrives(publisher, sent));
        let taken_until = taken_over.chain(publisher.gone).chain(switched).min();
        taken_until.is_some_and(|until| arrives(publisher, missing) + publisher.path.overtaking() >= until)
    }

    /// Times without packets that are longer than they may be.
    fn silences(&self, viewer: &Person, got: &[Got], kind: MediaKind) -> Vec<String> {
        let Some(connected) = self.world.client(viewer.id).connected_at else { return Vec::new() };
        let until = viewer.gone.unwrap_or(Instant::FAR_FUTURE);
        let mut findings = Vec::new();
        for turn in self.turns(viewer.stream) {
            let Some(limit) = silence_max(&turn.source, kind) else { continue };
            let mut disturbed: Vec<Instant> = viewer.rebound.clone();
            disturbed.extend(self.publishers(viewer.stream).flat_map(|p| p.rebound.iter().copied()));
            let from = turn.from.max(connected);
            let until =
                disturbed.iter().filter(|at| **at + REBINDING > from).min().copied().unwrap_or(until).min(until);
            let arrivals = got.iter().filter(|g| g.kind == kind).map(|g| g.at);
            let (longest, since) = oracle::longest_silence(arrivals, from, turn.until.min(until));
            if longest > limit {
                let publisher = turn.source.id;
                findings.push(format!(
                    "{kind} of publisher {publisher} is silent for {longest:?} from {since:?}, {limit:?} is allowed"
                ));
            }
        }
        findings
    }

    fn publishers(&self, stream: u8) -> impl Iterator<Item = &Person> {
        self.people.values().filter(move |p| p.stream == stream && p.source.is_some())
    }

    /// Turns of the stream's publishers whose path loses nothing; each ends when the next one is connected.
    fn turns(&self, stream: u8) -> Vec<Turn> {
        let all: Vec<(&Person, Instant)> =
            self.publishers(stream).filter_map(|p| Some((p, self.world.client(p.id).connected_at?))).collect();
        let mut turns = Vec::new();
        for (n, (person, from)) in all.iter().enumerate() {
            let next = all[n + 1..].iter().map(|(_, at)| *at).min().unwrap_or(Instant::FAR_FUTURE);
            let until = person.gone.unwrap_or(Instant::FAR_FUTURE).min(next);
            if let Some(source) = person.source.filter(|_| !person.path.loses() && *from < until) {
                turns.push(Turn { source, from: *from, until });
            }
        }
        turns
    }

    fn find(&mut self, what: String) {
        self.findings.push(format!("{:?}: {what}", self.world.now().since(Instant::ZERO)));
    }

    fn finish(self) -> Result<Outcome, Finding> {
        if !self.findings.is_empty() {
            return Err(Finding(self.findings));
        }
        let viewers: Vec<&Person> = self.people.values().filter(|p| p.source.is_none()).collect();
        let watched = viewers.iter().filter_map(|p| Some(p.gone?.since(self.world.client(p.id).connected_at?))).sum();
        let count = |p: &Person, kind| {
            let client = self.world.client(p.id);
            let begun = client.connected_at.unwrap_or(Instant::FAR_FUTURE).as_nanos().saturating_add(1_500_000_000);
            client.got().iter().filter(|g| g.kind == kind && g.at.as_nanos() >= begun).count()
        };
        let got = viewers.iter().map(|p| (count(p, MediaKind::Video), count(p, MediaKind::Audio))).collect();
        Ok(Outcome { trace: (self.world.trace.hash(), self.world.trace.lines()), watched, got })
    }
}

fn name_of(stream: u8) -> String {
    format!("s{stream}")
}

/// How long a viewer may wait for a packet of such a publisher; `None`: it may be none at all.
fn silence_max(source: &Source, kind: MediaKind) -> Option<Duration> {
    if kind == MediaKind::Audio {
        return source.audio.then_some(AUDIO_SILENCE_MAX);
    }
    let interval = Duration::from_secs(1) * source.keyframe_interval / source.frames_per_second;
    Some(if source.answers_pli { VIDEO_SILENCE_MAX } else { interval + DEAF_SILENCE_MARGIN })
}
