//! A scenario: all that one seed decides, drawn before anything happens, so that a finding can be cut down by hand.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::client::Source;
use super::network::{Bottleneck, Path};
use crate::units::Bitrate;

/// Names a client within its scenario.
pub type Who = u16;

/// What happens when.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub shards: u16,
    /// In order.
    pub deeds: Vec<(Duration, Deed)>,
    /// Then everybody leaves.
    pub ends: Duration,
}

/// One thing that happens. Deeds of a client that is not there, or no more, are left out.
#[derive(Clone, Copy, Debug)]
pub enum Deed {
    Publish {
        who: Who,
        stream: u8,
        source: Source,
        path: Path,
    },
    Watch {
        who: Who,
        stream: u8,
        path: Path,
    },
    /// Says goodbye.
    Leave(Who),
    /// Dies without a word.
    Kill(Who),
    /// DELETE on its URL.
    Delete(Who),
    /// A NAT gives it another address.
    Rebind(Who),
    RestartIce(Who),
    /// Its network becomes another one.
    Reroute {
        who: Who,
        path: Path,
    },
    /// Its decoder asks for keyframes, so many times in a row.
    Ask {
        who: Who,
        times: u8,
    },
    /// Says what its path carries (REMB).
    Bound {
        who: Who,
        bitrate: Bitrate,
    },
    /// POST to its layer URL.
    Wish {
        who: Who,
        layer: u8,
    },
    /// Datagrams from where nobody is.
    Strangers(u8),
    RotateCertificate,
}

/// Seeds below draw what they drew when some of them found something; from here on they draw all that there is.
const ROUGH_FROM: u64 = 10_000;

const STREAMS_MAX: u8 = 3;
const VIEWERS_MAX: u16 = 7;

impl Scenario {
    pub fn from_seed(seed: u64) -> Scenario {
        // Its own generator: what is drawn here and what the world draws do not shift each other.
        let mut draw = Draw { rng: StdRng::seed_from_u64(seed ^ 0x5ce4_a510), people: 0, deeds: Vec::new() };
        let shards = draw.rng.random_range(1..=4);
        let ends = draw.between(6_000, 20_000);
        let streams = draw.rng.random_range(1..=STREAMS_MAX);
        for stream in 0..streams {
            draw.publishers(stream, ends);
        }
        for _ in 0..draw.rng.random_range(1..=VIEWERS_MAX) {
            let stream = draw.rng.random_range(0..streams);
            draw.viewer(stream, ends);
        }
        for _ in 0..draw.rng.random_range(0..3) {
            let datagrams = draw.rng.random();
            draw.at(Duration::ZERO, ends, Deed::Strangers(datagrams));
        }
        if draw.rng.random_bool(0.1) {
            draw.at(Duration::ZERO, ends, Deed::RotateCertificate);
        }
        if seed >= ROUGH_FROM {
            draw.roughen(ends);
        }
        draw.deeds.sort_by_key(|(at, _)| *at);
        Scenario { seed, shards, deeds: draw.deeds, ends }
    }

    /// One stream over clean paths: what viewers get of it does not depend on shards.
    pub fn calm(seed: u64) -> Scenario {
        let mut draw = Draw { rng: StdRng::seed_from_u64(seed ^ 0xca11), people: 0, deeds: Vec::new() };
        let ends = draw.between(4_000, 8_000);
        let source = Source { layers: 1, ..draw.source(0) };
        let who = draw.new_who();
        draw.deeds.push((Duration::ZERO, Deed::Publish { who, stream: 0, source, path: Path::CLEAN }));
        for _ in 0..draw.rng.random_range(1..=VIEWERS_MAX) {
            let who = draw.new_who();
            draw.at(Duration::from_secs(1), ends, Deed::Watch { who, stream: 0, path: Path::CLEAN });
        }
        draw.deeds.sort_by_key(|(at, _)| *at);
        Scenario { seed, shards: 1, deeds: draw.deeds, ends }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {} shards, {:?}", self.seed, self.shards, self.ends)?;
        self.deeds.iter().try_for_each(|(at, deed)| writeln!(f, "{at:>10.1?} {deed:?}"))
    }
}

struct Draw {
    rng: StdRng,
    people: Who,
    deeds: Vec<(Duration, Deed)>,
}

impl Draw {
    fn new_who(&mut self) -> Who {
        self.people += 1;
        self.people - 1
    }

    fn between(&mut self, low_ms: u64, high_ms: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(low_ms..=high_ms))
    }

    /// At some time from `low` to `high`; returns it.
    fn at(&mut self, low: Duration, high: Duration, deed: Deed) -> Duration {
        let at = self.between(low.as_millis() as u64, high.max(low).as_millis() as u64);
        self.deeds.push((at, deed));
        at
    }

    /// Everybody who publishes the stream, one after the other.
    fn publishers(&mut self, stream: u8, ends: Duration) {
        let mut at = self.between(0, 1_000);
        while at < ends {
            let who = self.new_who();
            let source = self.source(u32::from(who));
            let path = self.path();
            self.deeds.push((at, Deed::Publish { who, stream, source, path }));
            let stays = self.between(500, 12_000);
            let until = at + stays;
            self.disturb(who, at, until.min(ends));
            let away = self.between(0, 6_000);
            at = match self.rng.random_range(0..4) {
                // Somebody takes over.
                0 => until,
                1 => self.end(until, away, Deed::Kill(who)),
                2 => self.end(until, away, Deed::Leave(who)),
                _ => self.end(until, away, Deed::Delete(who)),
            };
        }
    }

    /// It ends then; returns when the next one comes.
    fn end(&mut self, at: Duration, away: Duration, deed: Deed) -> Duration {
        self.deeds.push((at, deed));
        at + away
    }

    fn viewer(&mut self, stream: u8, ends: Duration) {
        let (who, path) = (self.new_who(), self.path());
        let joins = self.at(Duration::from_millis(500), ends, Deed::Watch { who, stream, path });
        let mut until = ends;
        if self.rng.random_bool(0.4) {
            let deed = [Deed::Leave(who), Deed::Kill(who), Deed::Delete(who)][self.rng.random_range(0..3)];
            until = self.at(joins, ends, deed);
        }
        self.disturb(who, joins, until);
        if self.rng.random_bool(0.3) {
            let times = self.rng.random_range(1..=200);
            self.at(joins, until, Deed::Ask { who, times });
        }
        for _ in 0..self.rng.random_range(0..3) {
            let layer = self.rng.random_range(0..3);
            self.at(joins, until, Deed::Wish { who, layer });
        }
    }

    fn disturb(&mut self, who: Who, from: Duration, until: Duration) {
        if self.rng.random_bool(0.15) {
            self.at(from, until, Deed::Rebind(who));
        }
        if self.rng.random_bool(0.15) {
            self.at(from, until, Deed::RestartIce(who));
        }
    }

    /// What publishers' encoders and everybody's networks do besides.
    fn roughen(&mut self, ends: Duration) {
        let mut deeds = std::mem::take(&mut self.deeds);
        for (at, deed) in &mut deeds {
            let who = match deed {
                Deed::Publish { who, source, path, .. } => {
                    if self.rng.random_bool(0.25) {
                        path.keyframes_late = self.between(10, 250);
                    }
                    if self.rng.random_bool(0.1) {
                        source.clock_jump = Some((self.rng.random_range(1..300), self.clock_jump()));
                    }
                    *who
                }
                Deed::Watch { who, path, .. } => {
                    if self.rng.random_bool(0.1) {
                        path.bottleneck = Some(self.bottleneck());
                    }
                    *who
                }
                _ => continue,
            };
            if self.rng.random_bool(0.1) {
                let path = self.path();
                self.at(*at, ends, Deed::Reroute { who, path });
            }
        }
        self.deeds.append(&mut deeds);
        self.bind(ends);
    }

    /// Some viewers say every second, for a while, that their paths carry so much.
    fn bind(&mut self, ends: Duration) {
        let viewers: Vec<(Duration, Who)> = self
            .deeds
            .iter()
            .filter_map(|(at, deed)| match deed {
                Deed::Watch { who, .. } => Some((*at, *who)),
                _ => None,
            })
            .collect();
        for (joins, who) in viewers {
            if !self.rng.random_bool(0.3) {
                continue;
            }
            let bitrate = Bitrate::from_bps(self.rng.random_range(50_000..5_000_000));
            let first = self.between(joins.as_millis() as u64, ends.as_millis() as u64);
            let seconds = self.rng.random_range(1..10);
            self.deeds.extend((0..seconds).map(|n| (first + Duration::from_secs(n), Deed::Bound { who, bitrate })));
        }
    }

    /// A second at least, ahead or back.
    fn clock_jump(&mut self) -> u32 {
        let seconds = [self.rng.random_range(1..20), self.rng.random_range(1..47_000)][self.rng.random_range(0..2)];
        if self.rng.random() { seconds * 90_000 } else { (seconds * 90_000).wrapping_neg() }
    }

    fn bottleneck(&mut self) -> Bottleneck {
        let rate = Bitrate::from_bps(self.rng.random_range(200_000..10_000_000));
        Bottleneck { rate, queue_bytes: self.rng.random_range(10_000..200_000) }
    }

    fn source(&mut self, id: u32) -> Source {
        let answers_pli = self.rng.random_bool(0.6);
        let layers = if self.rng.random_bool(0.3) { 3 } else { 1 };
        let often = self.rng.random_range(15..=150);
        Source {
            id,
            frames_per_second: [15, 25, 30, 60][self.rng.random_range(0..4)],
            packets_per_frame: if layers > 1 { 1 } else { self.rng.random_range(1..=6) },
            bytes_per_packet: self.rng.random_range(60..=1_150),
            keyframe_interval: if answers_pli && self.rng.random_bool(0.5) { 0 } else { often },
            answers_pli,
            layers,
            audio: self.rng.random_bool(0.9),
            ..Source::default()
        }
    }

    fn path(&mut self) -> Path {
        let delay = self.between(1, 80);
        match self.rng.random_range(0..8) {
            0 => Path::LOSSY,
            1 => Path { loss: self.rng.random_range(0.0..0.15), delay, ..Path::CLEAN },
            // Overtaking.
            2 => Path { delay, jitter: self.between(1, 30), ..Path::CLEAN },
            3 => Path { duplication: self.rng.random_range(0.0..0.3), delay, ..Path::CLEAN },
            4 => Path { delay, ..Path::CLEAN },
            _ => Path::CLEAN,
        }
    }
}
