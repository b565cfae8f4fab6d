//! What an outcome means for a publish that could go to another nsqd: done, elsewhere, or again after a pause. Pure.
//!
//! ```text
//!                  ┌───────────── not sent: elsewhere at once ◀─┐
//!                  ▼                                            │
//!   choose ─▶ submit ─▶ outcome ─ Ok, rejected ─────────────────┼──▶ done
//!     │ ▲                 │                                     │
//!     │ └── any nsqd is   └─ unknown: at least once? time left? ┤ no
//!     ▼     connected        budget? ── yes: a pause, then choose
//!   wait ── the deadline passes ───────────────────────────────────▶ done
//! ```
//!
//! Once an attempt is *unknown*, the message may be in a queue, and whatever later attempts bring but `Ok`, the publish
//! stays *unknown*.

use std::error::Error as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::pipeline::Manner;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::protocol::ErrorCode;

/// The longest pause before the first repetition; each further one may be twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What to do next with a publish.
#[derive(Debug)]
pub(super) enum Next {
    Done(Result<()>),
    /// Nothing has reached nsqd: another one may have it now.
    Elsewhere,
    /// It may be repeated, but not before this has passed.
    After(Duration),
}

/// What has become of one publish, or of one copy of it, so far.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    at_least_once: bool,
    pauses: u32,
    /// An attempt that nsqd may have acted on.
    unknown: Option<Error>,
    /// The last attempt's failure.
    last: Option<Error>,
    alone: bool,
}

impl Attempts {
    pub(super) fn new(at_least_once: bool) -> Self {
        Self {
            at_least_once,
            ..Self::default()
        }
    }

    /// How to make the next attempt. What was in a refused batch shares no command with other publishes any more: the guilty
    /// message is still among them, and would have the next nsqd refuse all of them again.
    pub(super) fn manner(&self, stays: bool) -> Manner {
        Manner {
            alone: self.alone,
            stays,
            urgent: self.pauses > 0 || self.last.is_some() || self.unknown.is_some(),
            may_have_arrived: self.may_have_arrived(),
        }
    }

    /// Whether an attempt was made that nsqd may have acted on.
    pub(super) fn may_have_arrived(&self) -> bool {
        self.unknown.is_some()
    }

    /// An attempt has ended with `left` until the deadline. `draw` is a random number from zero up to one.
    pub(super) fn handle_outcome(&mut self, outcome: Result<()>, left: Duration, budget: &Budget, draw: f64) -> Next {
        let Err(error) = outcome else {
            return Next::Done(Ok(()));
        };
        match error.kind() {
            ErrorKind::NotSent if !left.is_zero() => {
                self.alone |= was_in_a_refused_batch(&error);
                self.last = Some(error);
                Next::Elsewhere
            }
            ErrorKind::Unknown => {
                let first = self.unknown.get_or_insert(error).clone();
                let pause = self.pause(draw);
                if self.at_least_once && pause < left && budget.withdraw() {
                    self.last = None;
                    Next::After(pause)
                } else {
                    Next::Done(Err(first))
                }
            }
            _ => Next::Done(Err(self.truth(error))),
        }
    }

    /// How long to wait before nsqds are asked again that have just failed.
    pub(super) fn pause(&mut self, draw: f64) -> Duration {
        let step = FIRST_PAUSE.saturating_mul(1 << self.pauses.min(10)).min(LONGEST_PAUSE);
        self.pauses = self.pauses.saturating_add(1);
        // Never none at all: two that fail at once must not take turns for ever.
        step.mul_f64(draw.clamp(0.05, 1.0))
    }

    /// No attempt is under way and none will be: `error`, which is *not sent*, unless an earlier attempt may have arrived.
    pub(super) fn give_up(&mut self, error: Error) -> Error {
        let error = match (self.last.take(), error.source()) {
            (Some(last), None) => error.because(last),
            _ => error,
        };
        self.truth(error)
    }

    fn truth(&mut self, error: Error) -> Error {
        match self.unknown.take() {
            Some(first) if first.kind() == error.kind() => first,
            Some(_first) => Error::new(
                ErrorKind::Unknown,
                Step::Publish,
                "the message may have arrived with the first attempt, and was not published by a later one",
            )
            .because(error),
            None => error,
        }
    }
}

fn was_in_a_refused_batch(error: &Error) -> bool {
    matches!(error.code(), Some(ErrorCode::BadMessage | ErrorCode::BadBody))
}

/// How many publishes may be repeated: a tenth of them, and some in advance, so that an outage is not answered with twice
/// the load.
#[derive(Debug)]
pub(super) struct Budget {
    /// In tenths of a repetition.
    saved: AtomicU64,
}

impl Budget {
    const PRICE: u64 = 10;
    /// What a producer begins with: what may be unanswered at once when its first nsqd dies.
    const ADVANCE: u64 = 1_000 * Self::PRICE;
    /// What can be saved: as much as is pending at one nsqd by default.
    const MOST: u64 = 10_000 * Self::PRICE;

    pub(super) fn new() -> Self {
        Self {
            saved: AtomicU64::new(Self::ADVANCE),
        }
    }

    /// A publish begins.
    pub(super) fn deposit(&self) {
        // A full account needs no write, so publishes of several threads do not contend for it.
        if self.saved.load(Ordering::Relaxed) < Self::MOST {
            self.saved.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A publish is to be repeated. Returns whether it may be.
    pub(super) fn withdraw(&self) -> bool {
        let paid = |saved: u64| saved.checked_sub(Self::PRICE);
        self.saved
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const LEFT: Duration = Duration::from_secs(30);

    fn failed(kind: ErrorKind) -> Result<()> {
        Err(Error::new(kind, Step::Publish, "as the test says"))
    }

    fn empty() -> Budget {
        Budget {
            saved: AtomicU64::new(0),
        }
    }

    fn kind(next: Next) -> Option<ErrorKind> {
        match next {
            Next::Done(result) => result.err().map(|error| error.kind()),
            other => panic!("{other:?} is no end"),
        }
    }

    #[test]
    fn not_sent_goes_elsewhere_at_once_as_long_as_there_is_time() {
        let mut attempts = Attempts::new(false);
        for _ in 0..100 {
            let next = attempts.handle_outcome(failed(ErrorKind::NotSent), LEFT, &empty(), 0.5);
            assert!(matches!(next, Next::Elsewhere));
        }
        let next = attempts.handle_outcome(failed(ErrorKind::NotSent), Duration::ZERO, &empty(), 0.5);
        assert_eq!(kind(next), Some(ErrorKind::NotSent));
    }

    #[test]
    fn a_refusal_is_final_and_is_not_forgotten_by_an_earlier_attempt() {
        for final_kind in [ErrorKind::Rejected, ErrorKind::Invalid] {
            let next = Attempts::new(true).handle_outcome(failed(final_kind), LEFT, &Budget::new(), 0.5);
            assert_eq!(kind(next), Some(final_kind));
        }
    }

    #[test]
    fn unknown_is_repeated_only_if_asked_for_paid_for_and_in_time() {
        let unknown = || failed(ErrorKind::Unknown);
        let next = Attempts::new(true).handle_outcome(unknown(), LEFT, &Budget::new(), 0.5);
        assert!(matches!(next, Next::After(pause) if pause == FIRST_PAUSE / 2));
        for (at_least_once, budget, left) in [
            (false, Budget::new(), LEFT),
            (true, empty(), LEFT),
            (true, Budget::new(), FIRST_PAUSE / 2),
        ] {
            let next = Attempts::new(at_least_once).handle_outcome(unknown(), left, &budget, 0.5);
            assert_eq!(kind(next), Some(ErrorKind::Unknown));
        }
    }

    #[test]
    fn what_was_in_a_refused_batch_goes_on_alone() {
        let refusal = Error::rejected(Step::Publish, "E_BAD_MESSAGE MPUB message too big");
        let code = refusal.code();
        let behind = Error::new(ErrorKind::NotSent, Step::Publish, "lost").because(refusal);
        let mut attempts = Attempts::new(false);
        attempts.handle_outcome(Err(behind.clone()), LEFT, &empty(), 0.5);
        assert!(!attempts.manner(false).alone);
        attempts.handle_outcome(Err(behind.coded(code)), LEFT, &empty(), 0.5);
        assert!(attempts.manner(false).alone);
    }

    #[test]
    fn the_budget_is_a_tenth_and_an_advance() {
        let budget = Budget::new();
        let spent = (0..).take_while(|_| budget.withdraw()).count();
        assert_eq!(spent, 1_000);
        (0..99).for_each(|_| budget.deposit());
        assert_eq!((0..).take_while(|_| budget.withdraw()).count(), 9);
        (0..1_000_000).for_each(|_| budget.deposit());
        assert_eq!((0..).take_while(|_| budget.withdraw()).count(), 10_000);
    }

    #[test]
    fn pauses_grow_to_a_second_and_never_vanish() {
        let mut attempts = Attempts::new(true);
        let pauses: Vec<_> = (0..100).map(|_| attempts.pause(1.0)).collect();
        assert_eq!(
            (pauses[0], pauses[1], pauses[99]),
            (FIRST_PAUSE, 2 * FIRST_PAUSE, LONGEST_PAUSE)
        );
        assert!(attempts.pause(0.0) > Duration::from_millis(1));
    }

    proptest! {
        #[test]
        fn p2_no_later_attempt_takes_back_that_the_message_may_have_arrived(kinds in vec(0..3usize, 1..20)) {
            let kinds = kinds.into_iter().map(|n| [ErrorKind::Unknown, ErrorKind::NotSent, ErrorKind::Rejected][n]);
            let (mut attempts, budget, mut may_have_arrived) = (Attempts::new(true), Budget::new(), false);
            for kind in kinds {
                may_have_arrived |= kind == ErrorKind::Unknown;
                if let Next::Done(result) = attempts.handle_outcome(failed(kind), LEFT, &budget, 0.1) {
                    let told = result.unwrap_err().kind();
                    prop_assert_eq!(told == ErrorKind::Unknown, may_have_arrived);
                    return Ok(());
                }
            }
            let told = attempts.give_up(failed(ErrorKind::NotSent).unwrap_err()).kind();
            prop_assert_eq!(told == ErrorKind::Unknown, may_have_arrived);
        }
    }
}
