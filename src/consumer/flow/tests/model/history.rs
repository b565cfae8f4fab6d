//! What can happen, how it is made up, and how it is printed.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;
use crate::backoff::{Backoff, Exponential, FullJitter, Off};

pub(super) const MAX_CONNECTIONS: usize = 8;

/// What is set before the first event. Times are short, so that a history of some hundred events meets every deadline.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) max_in_flight: u32,
    pub(super) pace: Pace,
    pub(super) max_backoff_ms: u64,
    pub(super) low_rdy_idle_ms: u64,
    pub(super) low_rdy_ms: u64,
    pub(super) redistribute_ms: u64,
    pub(super) seed: u64,
}

impl Setup {
    pub(super) fn options(&self) -> FlowOptions {
        FlowOptions {
            max_in_flight: self.max_in_flight,
            max_backoff_duration: Duration::from_millis(self.max_backoff_ms),
            low_rdy_idle_timeout: Duration::from_millis(self.low_rdy_idle_ms),
            low_rdy_timeout: Duration::from_millis(self.low_rdy_ms),
            rdy_redistribute_interval: Duration::from_millis(self.redistribute_ms),
        }
    }
}

/// The strategy of backoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    Exponential,
    FullJitter,
    Off,
    Custom,
}

impl Pace {
    pub(super) fn strategy(self) -> Box<dyn Backoff> {
        let multiplier = Duration::from_millis(100);
        match self {
            Self::Exponential => Box::new(Exponential::new(multiplier)),
            Self::FullJitter => Box::new(FullJitter::new(multiplier)),
            Self::Off => Box::new(Off),
            Self::Custom => Box::new(Custom),
        }
    }
}

/// Linear, with an upper half that is drawn.
#[derive(Debug)]
struct Custom;

impl Backoff for Custom {
    fn delay(&self, attempt: u32, jitter: f64) -> Duration {
        let full = Duration::from_millis(300).saturating_mul(attempt);
        full / 2 + (full / 2).mul_f64(jitter)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Connect {
        max_rdy_count: u32,
        busy: bool,
    },
    Close {
        which: usize,
    },
    Closing {
        which: usize,
    },
    /// An nsqd reads the next command.
    Read {
        which: usize,
    },
    Deliver {
        which: usize,
        count: usize,
    },
    Receive {
        which: usize,
        count: usize,
    },
    /// A handler ends and its message is answered.
    Answer {
        which: usize,
        outcome: Outcome,
    },
    /// An nsqd refuses a FIN: a failure that is no answer.
    Refuse,
    /// nsqd takes the oldest messages back; the handlers keep what they have.
    Expire {
        which: usize,
        count: usize,
    },
    SetMaxInFlight(u32),
    SetPaused(bool),
    Pass {
        ms: u64,
    },
}

pub(super) fn setup(pace: Pace) -> impl Strategy<Value = Setup> {
    let times = (
        // The proportions of the defaults, and others.
        prop_oneof![4 => Just(2000), 1 => Just(0), 1 => Just(300), 1 => Just(20_000)],
        prop_oneof![4 => Just(2000), 1 => Just(1000), 1 => Just(5000)],
        prop_oneof![4 => Just(6000), 1 => Just(1000), 1 => Just(2500)],
        prop_oneof![4 => Just(1000), 1 => Just(5000), 1 => Just(250)],
    );
    let max_in_flight = prop_oneof![1 => Just(1), 2 => 1..30u32];
    (max_in_flight, times, any::<u64>()).prop_map(move |(max_in_flight, times, seed)| Setup {
        max_in_flight,
        pace,
        max_backoff_ms: times.0,
        low_rdy_idle_ms: times.1,
        low_rdy_ms: times.2,
        redistribute_ms: times.3,
        seed,
    })
}

/// Drawn as numbers and then decoded: a choice of a dozen strategies takes longer to draw than an event to play.
pub(super) fn event() -> impl Strategy<Value = Event> {
    (0..61u32, 0..MAX_CONNECTIONS, 1..20usize, 0..3000u32).prop_map(|(kind, which, count, number)| match kind {
        0..3 => Event::Connect {
            max_rdy_count: if number % 8 < 6 { 2500 } else { number / 8 % 6 },
            busy: number % 2 == 1,
        },
        3..13 => Event::Read { which },
        13..23 => Event::Deliver { which, count },
        23..33 => Event::Receive { which, count },
        33..48 => Event::Answer {
            which,
            outcome: match number % 8 {
                0..6 => Success,
                6 => Failure,
                _ => FailureWithoutBackoff,
            },
        },
        48..52 => Event::Pass {
            ms: u64::from(number) + 1,
        },
        52..54 => Event::Close { which },
        54 => Event::Closing { which },
        55 => Event::Refuse,
        56..58 => Event::Expire { which, count },
        58 => Event::SetMaxInFlight(match number % 3 {
            0 => number / 3 % 30,
            1 => 1,
            _ => 0,
        }),
        _ => Event::SetPaused(number % 5 == 4),
    })
}

/// A test that plays this history with `function`, and says what was wrong with it.
pub(super) fn as_test(function: &str, setup: &Setup, events: &[Event], reason: &str) -> String {
    let mut text = String::from("\n");
    for line in reason.lines() {
        let _strings_take_all = writeln!(text, "/// {line}");
    }
    text.push_str("#[test]\n#[rustfmt::skip]\nfn a_history_that_broke_a_rule() {\n");
    let setup = format!("{setup:?}").replace("pace: ", "pace: Pace::");
    let _strings_take_all = writeln!(text, "    let setup = {setup};\n    let events = [");
    for event in events {
        let _strings_take_all = writeln!(text, "        Event::{event:?},");
    }
    let _strings_take_all = writeln!(text, "    ];\n    {function}(&setup, &events);\n}}");
    text
}
