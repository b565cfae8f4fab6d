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
mod hosts;
mod journal;
mod network;
mod outages;
mod plan;
mod producers;
mod run;
mod seeds;
mod story;
mod wire;

use self::seeds::{compare_runs, run_part};

#[test]
fn c2_c3_c4_c7_clusters_recover_from_whatever_a_seed_comes_up_with_part_1() {
    run_part(1, run::run);
}

#[test]
fn c2_c3_c4_c7_clusters_recover_from_whatever_a_seed_comes_up_with_part_2() {
    run_part(2, run::run);
}

#[test]
fn c2_c3_c4_c7_clusters_recover_from_whatever_a_seed_comes_up_with_part_3() {
    run_part(3, run::run);
}

#[test]
fn c2_c3_c4_c7_clusters_recover_from_whatever_a_seed_comes_up_with_part_4() {
    run_part(4, run::run);
}

#[test]
fn the_same_seed_is_the_same_run() {
    compare_runs(run::run);
}

#[test]
fn p1_p2_p3_p4_p6_producers_tell_the_truth_whatever_a_seed_comes_up_with_part_1() {
    run_part(1, producers::run);
}

#[test]
fn p1_p2_p3_p4_p6_producers_tell_the_truth_whatever_a_seed_comes_up_with_part_2() {
    run_part(2, producers::run);
}

#[test]
fn p1_p2_p3_p4_p6_producers_tell_the_truth_whatever_a_seed_comes_up_with_part_3() {
    run_part(3, producers::run);
}

#[test]
fn p1_p2_p3_p4_p6_producers_tell_the_truth_whatever_a_seed_comes_up_with_part_4() {
    run_part(4, producers::run);
}

#[test]
fn the_same_seed_is_the_same_run_of_producers() {
    compare_runs(producers::run);
}
