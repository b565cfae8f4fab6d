//! Random histories of a modelled cluster of nsqds, and what holds after each event of every one of them.
//!
//! A history that breaks a rule is made as short as it can be and printed as a test, to be pasted at the end of this
//! file. A run plays more than a million events, all strategies of backoff together.

mod history;
mod nsqd;
#[rustfmt::skip]
mod pasted;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestError, TestRunner};

use self::history::{Event, Pace, Setup, as_test, event, setup};
use self::world::World;
use super::*;

/// Plays a history that breaks whatever it can. C2, C3 and C4 are checked after each event.
fn play(setup: &Setup, events: &[Event]) -> World {
    let mut world = World::new(setup, Instant::now());
    events.iter().for_each(|&event| world.apply(event));
    world
}

/// Plays a history and lets everything be well from then on: nobody may starve, and backoff has to end.
fn play_and_calm_down(setup: &Setup, events: &[Event]) {
    play(setup, events).calm_down();
}

/// A history that breaks a rule, as short as it can be.
struct Broken {
    reason: String,
    setup: Setup,
    events: Vec<Event>,
}

/// Looks for a history that makes `rule` panic. Returns how many events it has played in vain.
fn search(pace: Pace, histories: u32, longest: usize, rule: fn(&Setup, &[Event])) -> Result<usize, Broken> {
    let config = ProptestConfig {
        cases: histories,
        // In a debug build the default generator takes longer than all the histories it makes.
        rng_algorithm: RngAlgorithm::XorShift,
        // The test that is printed keeps it.
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let played = AtomicUsize::new(0);
    let histories = (setup(pace), prop::collection::vec(event(), 1..longest));
    let result = TestRunner::new(config).run(&histories, |(setup, events)| {
        rule(&setup, &events);
        played.fetch_add(events.len(), Ordering::Relaxed);
        Ok(())
    });
    match result {
        Ok(()) => Ok(played.into_inner()),
        Err(TestError::Fail(reason, (setup, events))) => Err(Broken {
            reason: reason.to_string(),
            setup,
            events,
        }),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

/// A quarter of the million.
const EVENTS: usize = 250_000;

fn holds(pace: Pace) {
    const LONGEST: usize = 700;
    // A history is half as long on average, and a tenth more makes it certain.
    let histories = (EVENTS / (LONGEST / 2)) * 11 / 10;
    match search(pace, histories as u32, LONGEST, |setup, events| {
        drop(play(setup, events))
    }) {
        Ok(played) => assert!(played >= EVENTS, "only {played} events"),
        Err(broken) => panic!("{}", as_test("play", &broken.setup, &broken.events, &broken.reason)),
    }
}

#[test]
fn c2_c3_c4_hold_after_each_event_with_exponential_backoff() {
    holds(Pace::Exponential);
}

#[test]
fn c2_c3_c4_hold_after_each_event_with_full_jitter() {
    holds(Pace::FullJitter);
}

#[test]
fn c2_c3_c4_hold_after_each_event_with_backoff_off() {
    holds(Pace::Off);
}

#[test]
fn c2_c3_c4_hold_after_each_event_with_a_strategy_of_the_user_s() {
    holds(Pace::Custom);
}

#[test]
fn c3_c4_nobody_starves_and_nothing_stalls_after_any_history() {
    for pace in [Pace::Exponential, Pace::FullJitter, Pace::Off, Pace::Custom] {
        if let Err(broken) = search(pace, 50, 150, play_and_calm_down) {
            let name = "play_and_calm_down";
            panic!("{}", as_test(name, &broken.setup, &broken.events, &broken.reason));
        }
    }
}

#[test]
fn the_same_seed_and_history_give_the_same_commands() {
    let twice = |setup: &Setup, events: &[Event]| assert_eq!(play(setup, events).log(), play(setup, events).log());
    assert!(search(Pace::FullJitter, 20, 700, twice).is_ok());
}

/// A rule that does not hold.
fn no_nsqd_is_ever_told_to_stop(setup: &Setup, events: &[Event]) {
    let world = play(setup, events);
    assert!(world.log().iter().all(|&(_, rdy)| rdy > 0), "an nsqd was told to stop");
}

#[test]
fn a_history_that_breaks_a_rule_is_made_short_and_still_breaks_it() {
    let broken = search(Pace::Exponential, 1000, 300, no_nsqd_is_ever_told_to_stop).unwrap_err();
    assert!(broken.reason.contains("an nsqd was told to stop"), "{}", broken.reason);
    assert!(broken.events.len() <= 3, "{:?}", broken.events);
    let again = catch_unwind(AssertUnwindSafe(|| {
        no_nsqd_is_ever_told_to_stop(&broken.setup, &broken.events);
    }));
    assert!(again.is_err());
}

/// What is printed compiles, and is what was played: `pasted.rs` is such a text, pasted, and runs as a test.
#[test]
fn a_broken_history_is_printed_as_a_test_that_can_be_pasted() {
    let printed = as_test(
        "play_and_calm_down",
        &pasted::SETUP,
        &pasted::EVENTS,
        "C2: 7 of 5\nin two lines",
    );
    let pasted = include_str!("model/pasted.rs");
    assert!(pasted.contains(&printed), "this is not what was pasted:\n{printed}");
}
