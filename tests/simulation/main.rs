//! A whole cluster (three nsqds, two nsqlookupds, five consumers, a publisher) in a simulated network, with crashes,
//! restarts, partitions, slow links and everything else that a seed comes up with. See `run.rs` for a life's phases and
//! `checks.rs` for what is checked at each step.
//!
//! ```sh
//! cargo test --test simulation                                            # 200 seeds
//! SIMULATION_SEEDS=5000 cargo test --test simulation                      # more of them
//! SIMULATION_SEED=17 cargo test --test simulation -- --nocapture          # one again
//! ```
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests may fail them, and a run that is looked at tells of itself"
)]

mod checks;
mod cluster;
mod journal;
mod plan;
mod run;
mod wire;

use std::time::Instant;

use self::run::{Outcome, run};

/// How many parts the seeds are divided into, each a test of its own, so that they run side by side.
const PARTS: u64 = 4;

const SEEDS: u64 = 200;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable}={value:?} is no number")),
    )
}

fn check(seed: u64, keep_story: bool) -> Outcome {
    run(seed, keep_story).unwrap_or_else(|failure| {
        panic!("{failure}\nto see this again: SIMULATION_SEED={seed} cargo test --test simulation -- --nocapture\n")
    })
}

fn tell(seed: u64, outcome: &Outcome, took: std::time::Duration) {
    println!(
        "seed {seed}: {} faults, {} messages confirmed ({} lost with a killed nsqd), recovered in {:?} of {:?}; RDY rose {} times, \
         {} failures backed off, {} times a probe was out, longest without RDY {:?}; {} events, digest {:016x}; \
         took {took:?}",
        outcome.faults,
        outcome.confirmed,
        outcome.excused,
        outcome.recovery,
        outcome.virtual_time,
        outcome.raises,
        outcome.failures,
        outcome.probes,
        outcome.longest_without_rdy,
        outcome.events,
        outcome.digest,
    );
}

fn run_part(part: u64) {
    if let Some(seed) = number("SIMULATION_SEED") {
        if seed % PARTS == part {
            let began = Instant::now();
            let outcome = check(seed, true);
            for line in outcome.story.iter().flatten() {
                println!("{line}");
            }
            tell(seed, &outcome, began.elapsed());
        }
        return;
    }
    let seeds = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    for seed in (0..seeds).filter(|seed| seed % PARTS == part) {
        let began = Instant::now();
        let outcome = check(seed, false);
        tell(seed, &outcome, began.elapsed());
    }
}

#[test]
fn c2_c3_c4_c7_clusters_recover_from_whatever_a_seed_comes_up_with_part_1() {
    run_part(0);
}

#[test]
fn c2_c3_c4_c7_clusters_recover_from_whatever_a_seed_comes_up_with_part_2() {
    run_part(1);
}

#[test]
fn c2_c3_c4_c7_clusters_recover_from_whatever_a_seed_comes_up_with_part_3() {
    run_part(2);
}

#[test]
fn c2_c3_c4_c7_clusters_recover_from_whatever_a_seed_comes_up_with_part_4() {
    run_part(3);
}

/// Without this a failing seed could not be looked at again.
#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3] {
        let (first, second) = (check(seed, true), check(seed, true));
        let (first_story, second_story) = (first.story.unwrap(), second.story.unwrap());
        let differs = first_story.iter().zip(&second_story).position(|(a, b)| a != b);
        if let Some(at) = differs {
            panic!(
                "seed {seed} differs at event {at}:\n{}\n---\n{}",
                first_story[at.saturating_sub(5)..=at].join("\n"),
                second_story[at.saturating_sub(5)..=at].join("\n")
            );
        }
        assert_eq!((first.digest, first.events), (second.digest, second.events));
    }
}
