//! A history that was printed, and the same as data: see `a_broken_history_is_printed_as_a_test_that_can_be_pasted`.

use super::*;

pub(super) const SETUP: Setup = Setup {
    max_in_flight: 5,
    pace: Pace::FullJitter,
    max_backoff_ms: 2000,
    low_rdy_idle_ms: 2000,
    low_rdy_ms: 6000,
    redistribute_ms: 1000,
    seed: 7,
};

pub(super) const EVENTS: [Event; 13] = [
    Event::Connect { max_rdy_count: 2500, busy: true },
    Event::Read { which: 0 },
    Event::Deliver { which: 0, count: 1 },
    Event::Receive { which: 0, count: 1 },
    Event::Answer { which: 0, outcome: FailureWithoutBackoff },
    Event::Refuse,
    Event::Pass { ms: 1500 },
    Event::SetMaxInFlight(3),
    Event::SetPaused(true),
    Event::Expire { which: 0, count: 2 },
    Event::SetPaused(false),
    Event::Closing { which: 0 },
    Event::Close { which: 0 },
];

/// C2: 7 of 5
/// in two lines
#[test]
#[rustfmt::skip]
fn a_history_that_broke_a_rule() {
    let setup = Setup { max_in_flight: 5, pace: Pace::FullJitter, max_backoff_ms: 2000, low_rdy_idle_ms: 2000, low_rdy_ms: 6000, redistribute_ms: 1000, seed: 7 };
    let events = [
        Event::Connect { max_rdy_count: 2500, busy: true },
        Event::Read { which: 0 },
        Event::Deliver { which: 0, count: 1 },
        Event::Receive { which: 0, count: 1 },
        Event::Answer { which: 0, outcome: FailureWithoutBackoff },
        Event::Refuse,
        Event::Pass { ms: 1500 },
        Event::SetMaxInFlight(3),
        Event::SetPaused(true),
        Event::Expire { which: 0, count: 2 },
        Event::SetPaused(false),
        Event::Closing { which: 0 },
        Event::Close { which: 0 },
    ];
    play_and_calm_down(&setup, &events);
}
