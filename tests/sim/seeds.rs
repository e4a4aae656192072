//! Scenarios of fixed seeds: those that found something once, and some that did not. `scripts/sim-sweep` plays new ones.

use manycast::sim::scenario::Scenario;
use manycast::sim::{alike, parting, play};

/// What each of them found, before it was mended.
const FOUND: [(u64, &str); 11] = [
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
];

fn check(seed: u64) {
    let scenario = Scenario::from_seed(seed);
    if let Err(finding) = play(&scenario) {
        panic!("{scenario}{finding}replay: scripts/sim-sweep --seed {seed}");
    }
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

#[test]
fn a_seed_is_a_run_whatever_happens_in_it() {
    for seed in [16, 48, 72, 280] {
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
