//! Which seeds are run, and what is told of them.

use std::time::Instant;

/// How many parts the seeds are divided into, each a test of its own, so that they run side by side.
const PARTS: u64 = 4;

const SEEDS: u64 = 200;

/// What is told of a run that went well.
pub struct Outcome {
    pub summary: String,
    pub digest: u64,
    pub events: u64,
    pub story: Option<Vec<String>>,
}

/// Runs a seed, keeping its whole story if asked to. The error tells what was broken, and what happened before.
pub type Run = fn(u64, bool) -> Result<Outcome, String>;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable}={value:?} is no number")),
    )
}

fn check(run: Run, seed: u64, keep_story: bool) -> Outcome {
    run(seed, keep_story).unwrap_or_else(|failure| {
        panic!("{failure}\nto see this again: SIMULATION_SEED={seed} cargo test --test simulation -- --nocapture\n")
    })
}

fn check_and_tell(run: Run, seed: u64, keep_story: bool) {
    let began = Instant::now();
    let outcome = check(run, seed, keep_story);
    for line in outcome.story.iter().flatten() {
        println!("{line}");
    }
    println!(
        "seed {seed}: {}; {} events, digest {:016x}; took {:?}",
        outcome.summary,
        outcome.events,
        outcome.digest,
        began.elapsed()
    );
}

/// Runs one of the parts, which are counted from 1.
pub fn run_part(part: u64, run: Run) {
    let is_mine = |seed: &u64| seed % PARTS == part - 1;
    if let Some(seed) = number("SIMULATION_SEED") {
        if is_mine(&seed) {
            check_and_tell(run, seed, true);
        }
        return;
    }
    let seeds = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    for seed in (0..seeds).filter(is_mine) {
        check_and_tell(run, seed, false);
    }
}

/// Without this a failing seed could not be looked at again.
pub fn compare_runs(run: Run) {
    for seed in [1, 2, 3] {
        let (first, second) = (check(run, seed, true), check(run, seed, true));
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
