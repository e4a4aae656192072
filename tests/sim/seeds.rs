//! Scenarios of fixed seeds: those that found something once, and some that did not. `scripts/sim-sweep` plays new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use manycast::sim::client::Source;
use manycast::sim::scenario::{Deed, Scenario};
use manycast::sim::{Path, alike, parting, play};

/// What each of them found, before it was mended.
const FOUND: [(u64, &str); 19] = [
    (55, "the past of a stream, handed to another viewer's shard, lacked what had been overtaken on its way"),
    (68, "a layer's keyframe lacked packets that had overtaken its first one"),
    (70, "a new publisher's keyframe lacked packets that had overtaken its first one"),
    (121, "picture ids jumped where a new publisher's keyframe ended a replay"),
    (217, "a keyframe before which nothing was kept lacked packets that had overtaken its first one"),
    (396, "a replay that reached the present left out what it had overtaken"),
    (749, "a keyframe that a replay had overtaken began a new numbering behind its own packets"),
    (986, "and turned the viewer's time back"),
    (2840, "a keyframe that came before the past lacked a packet that came with it"),
    (3126, "a replay at the pace of a thin path did not keep up with a track that had grown"),
    (4856, "a replay that had sent everything let the present pile up"),
    (10_002, "a publisher's clock that jumped was seen to jump"),
    (10_104, "a viewer was started with the picture of a publisher that was replaced"),
    (10_279, "a publisher's clock that went back was seen to go back"),
    (10_345, "an RTP clock that had jumped put all later captures into the past"),
    (42_957, "a viewer that began with the last picture of a publisher that was away saw the next one leap"),
    (
        43_955,
        "the oracle took repairs for prompt, of a layer that had come as repairs alone, and what followed for a leap",
    ),
    (48_692, "a clock that jumped by a second was not noticed after packets that had overtaken each other"),
    (62_185, "the layer that a viewer fell back to was shown later by as long as it had been silent"),
];

fn check(seed: u64) {
    let scenario = Scenario::from_seed(seed);
    if let Err(finding) = play(&scenario) {
        panic!("{scenario}{finding}replay: scripts/sim-sweep --seed {seed}");
    }
}

/// What happens in a scenario, by name.
fn fates(scenario: &Scenario) -> Vec<&'static str> {
    let mut fates = vec![["1 shard", "2 shards", "3 shards", "4 shards"][usize::from(scenario.shards) - 1]];
    let of_path = |path: &Path| {
        let fates = [
            (path.loss > 0.0).then_some("loss"),
            (path.duplication > 0.0).then_some("duplication"),
            (path.jitter > Duration::ZERO).then_some("reordering"),
            (path.keyframes_late > Duration::ZERO).then_some("late keyframes"),
            path.bottleneck.map(|_| "a queue"),
        ];
        fates.into_iter().flatten()
    };
    let of_source = |source: &Source| {
        let fates = [
            source.clock_jump.map(|_| "a clock that jumps"),
            (source.layers > 1).then_some("simulcast"),
            (!source.answers_pli).then_some("a deaf publisher"),
            (!source.audio).then_some("no audio"),
        ];
        fates.into_iter().flatten()
    };
    let mut publishers = BTreeSet::new();
    for (_, deed) in &scenario.deeds {
        match deed {
            Deed::Publish { who, stream, source, path } => {
                publishers.insert(who);
                fates.extend((publishers.len() > 1 && *stream == 0).then_some("another publisher"));
                fates.extend(of_path(path).chain(of_source(source)));
            }
            Deed::Watch { path, .. } => fates.extend(of_path(path)),
            Deed::Leave(who) if publishers.contains(who) => fates.push("a publisher leaves"),
            Deed::Kill(who) if publishers.contains(who) => fates.push("a publisher crashes"),
            Deed::Delete(who) if publishers.contains(who) => fates.push("a publisher is deleted"),
            Deed::Leave(_) => fates.push("a viewer leaves"),
            Deed::Kill(_) => fates.push("a viewer crashes"),
            Deed::Delete(_) => fates.push("a viewer is deleted"),
            Deed::Rebind(_) => fates.push("another address"),
            Deed::RestartIce(_) => fates.push("ICE restarts"),
            Deed::Reroute { path, .. } => {
                fates.push("another path");
                fates.extend(of_path(path));
            }
            Deed::Ask { .. } => fates.push("keyframes are asked for"),
            Deed::Bound { .. } => fates.push("a bound is told"),
            Deed::Wish { .. } => fates.push("a layer is asked for"),
            Deed::Strangers(_) => fates.push("strangers"),
            Deed::RotateCertificate => fates.push("another certificate"),
        }
    }
    fates
}

#[test]
fn each_fate_is_met_by_many_seeds() {
    let mut met: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for seed in 10_000..10_200 {
        for fate in fates(&Scenario::from_seed(seed)) {
            met.entry(fate).or_default().insert(seed);
        }
    }
    let seeds: BTreeMap<&str, usize> = met.into_iter().map(|(fate, seeds)| (fate, seeds.len())).collect();
    assert_eq!(seeds.len(), 28, "{seeds:?}");
    assert!(seeds.values().all(|seeds| *seeds >= 15), "of 200: {seeds:?}");
}

#[test]
fn what_was_found_once_is_not_found_again() {
    FOUND.iter().for_each(|(seed, _)| check(*seed));
}

#[test]
fn twelve_seeds_are_sound() {
    (1..=12).for_each(check);
}

#[test]
fn twelve_other_seeds_are_sound() {
    (13..=24).for_each(check);
}

/// From 10 000 on seeds draw everything there is.
#[test]
fn ten_rough_seeds_are_sound() {
    (10_003..10_013).for_each(check);
}

#[test]
fn a_seed_is_a_run_whatever_happens_in_it() {
    for seed in [16, 48, 72, 280, 3000, 3000, 3000, 10_104, 40_334, 40_334, 44_366, 44_366] {
        let scenario = Scenario::from_seed(seed);
        let runs = [play(&scenario).map_err(|f| f.0), play(&scenario).map_err(|f| f.0)];
        assert_eq!(runs[0], runs[1], "seed {seed}: {:?}", parting(&scenario));
    }
}

#[test]
fn viewers_of_a_calm_stream_get_the_same_on_four_shards() {
    for seed in 1..=6 {
        let one = Scenario::calm(seed);
        let four = Scenario { shards: 4, ..one.clone() };
        let (a, b) = (play(&one).expect("sound"), play(&four).expect("sound"));
        alike(&a, &b).unwrap_or_else(|e| panic!("{one}{e}"));
    }
}
