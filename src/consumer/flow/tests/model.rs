//! Random histories of a modelled cluster of nsqds, and what holds after each event of every one of them.
//!
//! A history that breaks a rule is made as short as it can be and printed as a test, to be pasted at the end of this
//! file. A run plays more than a million events, all strategies of backoff together.

mod history;
mod nsqd;
#[rustfmt::skip]
mod pasted;
mod world;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;
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

type Rule = fn(&Setup, &[Event]);

/// A history that breaks a rule, as short as it can be.
struct Broken {
    reason: String,
    setup: Setup,
    events: Vec<Event>,
}

impl Broken {
    /// Leaves out whatever is not needed: proptest does that before it makes values small, and not again after it.
    fn shorten(&mut self, rule: Rule) {
        let mut length = self.events.len() / 2;
        while length > 0 {
            let before = self.events.len();
            let mut from = 0;
            while from < self.events.len() {
                let mut shorter = self.events.clone();
                shorter.drain(from..(from + length).min(shorter.len()));
                match breaks(rule, &self.setup, &shorter) {
                    Some(reason) => (self.reason, self.events) = (reason, shorter),
                    None => from += length,
                }
            }
            if length > 1 || self.events.len() == before {
                length /= 2;
            }
        }
    }
}

/// What `rule` says against this history.
fn breaks(rule: Rule, setup: &Setup, events: &[Event]) -> Option<String> {
    let panic = quietly(|| catch_unwind(AssertUnwindSafe(|| rule(setup, events)))).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.unwrap_or_else(|| (*panic.downcast_ref::<&str>().unwrap_or(&"it panics")).to_owned()))
}

/// Runs what panics on purpose, many times over, without a word of it.
fn quietly<R>(run: impl FnOnce() -> R) -> R {
    thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = take_hook();
        set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                hook(panic);
            }
        }));
    });
    let was_quiet = QUIET.replace(true);
    let result = run();
    QUIET.set(was_quiet);
    result
}

/// Looks for a history that makes `rule` panic. Returns how many events it has played in vain.
fn search(pace: Pace, histories: u32, longest: usize, rule: Rule) -> Result<usize, Broken> {
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
    let result = quietly(|| {
        TestRunner::new(config).run(&histories, |(setup, events)| {
            rule(&setup, &events);
            played.fetch_add(events.len(), Ordering::Relaxed);
            Ok(())
        })
    });
    match result {
        Ok(()) => Ok(played.into_inner()),
        Err(TestError::Fail(reason, (setup, events))) => {
            let mut broken = Broken {
                reason: reason.to_string(),
                setup,
                events,
            };
            broken.shorten(rule);
            Err(broken)
        }
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
    assert!(broken.events.len() <= 6, "{:?}", broken.events);
    for left_out in 0..broken.events.len() {
        let mut events = broken.events.clone();
        events.remove(left_out);
        assert_eq!(breaks(no_nsqd_is_ever_told_to_stop, &broken.setup, &events), None);
    }
    let again = breaks(no_nsqd_is_ever_told_to_stop, &broken.setup, &broken.events);
    assert_eq!(again, Some(broken.reason));
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
