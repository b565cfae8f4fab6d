//! The level of backoff and its timer: when to pause, for how long, and when to try again.

use std::time::{Duration, Instant};

use super::{Outcome, later};
use crate::backoff::{Backoff, LONGEST_DRAW};

/// Where the consumer stands in its backoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No failure to recover from: everyone has its share.
    Normal,
    /// RDY is 0 everywhere until then.
    Waiting { until: Instant },
    /// The timer ran out: one connection has RDY 1, or gets it as soon as that is possible, and what becomes of its
    /// message decides.
    Probing,
}

/// Counts failures against successes; knows nothing of connections.
///
/// The level is 0 in [`Phase::Normal`] and only there.
#[derive(Debug)]
pub(super) struct BackoffState {
    strategy: Box<dyn Backoff>,
    /// Zero: never back off.
    max: Duration,
    level: u32,
    phase: Phase,
}

impl BackoffState {
    pub(super) fn new(strategy: Box<dyn Backoff>, max: Duration) -> Self {
        Self {
            strategy,
            max,
            level: 0,
            phase: Phase::Normal,
        }
    }

    pub(super) fn level(&self) -> u32 {
        self.level
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether this outcome would change anything now.
    pub(super) fn wants(&self, outcome: Outcome) -> bool {
        match self.phase {
            Phase::Normal => outcome == Outcome::Failure && self.level_after_failure() > 0,
            // One period, one verdict: a burst of failures is one step, not one for each message.
            Phase::Waiting { .. } => false,
            Phase::Probing => true,
        }
    }

    /// Returns whether the phase changed.
    pub(super) fn handle_outcome(&mut self, outcome: Outcome, jitter: f64, now: Instant) -> bool {
        if !self.wants(outcome) {
            return false;
        }
        self.level = match outcome {
            Outcome::Success => self.level - 1,
            Outcome::Failure => self.level_after_failure(),
            // It says nothing about the cause of the backoff, but it did use up the probe: wait and probe again.
            Outcome::FailureWithoutBackoff => self.level,
        };
        self.phase = if self.level == 0 {
            Phase::Normal
        } else {
            let delay = self.strategy.delay(self.level, jitter).min(self.max);
            Phase::Waiting {
                until: later(now, delay),
            }
        };
        true
    }

    /// Returns whether the phase changed.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Waiting { until } if now >= until => {
                self.phase = Phase::Probing;
                true
            }
            _ => false,
        }
    }

    /// One level up, unless that one would wait longer than the maximum or no longer than this one. The first level is
    /// always open and merely cut to the maximum, so that a long multiplier does not switch backoff off unseen.
    ///
    /// What counts is the longest delay of a level, never the drawn one: with jitter a short draw would let the level
    /// run away.
    fn level_after_failure(&self) -> u32 {
        let next = self.level.saturating_add(1);
        let longest = self.strategy.delay(next, LONGEST_DRAW);
        let useful = match self.level {
            0 => !longest.is_zero() && !self.max.is_zero(),
            level => longest <= self.max && longest > self.strategy.delay(level, LONGEST_DRAW),
        };
        if useful { next } else { self.level }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::{Exponential, FullJitter, Off};
    use Outcome::{Failure, FailureWithoutBackoff, Success};

    const TWO_MINUTES: Duration = Duration::from_secs(120);

    /// Feeds one outcome and lets the timer it started run out. Returns the wait.
    fn step(state: &mut BackoffState, outcome: Outcome, now: &mut Instant) -> Option<Duration> {
        state.handle_outcome(outcome, LONGEST_DRAW, *now);
        let Phase::Waiting { until } = state.phase() else {
            return None;
        };
        let wait = until - *now;
        *now = until;
        assert!(state.handle_timeout(*now));
        Some(wait)
    }

    fn seconds(state: &mut BackoffState, outcome: Outcome, count: usize) -> Vec<Option<u64>> {
        let mut now = Instant::now();
        (0..count)
            .map(|_| step(state, outcome, &mut now).map(|wait| wait.as_secs()))
            .collect()
    }

    #[test]
    fn c4_exponential_levels_are_those_of_go_nsq_up_and_down() {
        let mut state = BackoffState::new(Box::new(Exponential::default()), TWO_MINUTES);
        let up = seconds(&mut state, Failure, 8);
        assert_eq!(up, [2, 4, 8, 16, 32, 64, 64, 64].map(Some));
        assert_eq!(state.level(), 6);
        let down = seconds(&mut state, Success, 7);
        assert_eq!(down, [Some(32), Some(16), Some(8), Some(4), Some(2), None, None]);
        assert_eq!(state.level(), 0);
        assert_eq!(state.phase(), Phase::Normal);
    }

    #[test]
    fn c4_a_level_that_waits_exactly_the_maximum_is_reached() {
        let strategy = Exponential::new(Duration::from_secs(15));
        let mut state = BackoffState::new(Box::new(strategy), TWO_MINUTES);
        assert_eq!(seconds(&mut state, Failure, 4), [30, 60, 120, 120].map(Some));
    }

    #[test]
    fn c4_the_level_is_clamped_with_jitter_and_without_growth() {
        #[derive(Debug)]
        struct Constant;
        impl Backoff for Constant {
            fn delay(&self, _: u32, _: f64) -> Duration {
                Duration::from_secs(1)
            }
        }
        let mut constant = BackoffState::new(Box::new(Constant), TWO_MINUTES);
        seconds(&mut constant, Failure, 1000);
        assert_eq!(constant.level(), 1);

        let mut jitter = BackoffState::new(Box::new(FullJitter::default()), TWO_MINUTES);
        let now = Instant::now();
        for _ in 0..1000 {
            jitter.handle_outcome(Failure, 0.0, now);
            assert!(jitter.handle_timeout(now));
        }
        assert_eq!(jitter.level(), 6);

        let endless = Exponential::new(Duration::from_secs(1));
        let mut endless = BackoffState::new(Box::new(endless), Duration::MAX);
        seconds(&mut endless, Failure, 1000);
        assert_eq!(endless.level(), 64);
    }

    #[test]
    fn c4_a_multiplier_beyond_the_maximum_waits_the_maximum() {
        let strategy = Exponential::new(Duration::from_secs(3600));
        let mut state = BackoffState::new(Box::new(strategy), TWO_MINUTES);
        assert_eq!(seconds(&mut state, Failure, 3), [120, 120, 120].map(Some));
        assert_eq!(state.level(), 1);
    }

    #[test]
    fn c4_backoff_can_be_switched_off_three_ways() {
        let off: [(Box<dyn Backoff>, Duration); 3] = [
            (Box::new(Off), TWO_MINUTES),
            (Box::new(Exponential::new(Duration::ZERO)), TWO_MINUTES),
            (Box::new(Exponential::default()), Duration::ZERO),
        ];
        for (strategy, max) in off {
            let mut state = BackoffState::new(strategy, max);
            assert!(!state.wants(Failure));
            assert_eq!(seconds(&mut state, Failure, 3), [None, None, None]);
            assert_eq!(state.level(), 0);
        }
    }

    #[test]
    fn c4_outcomes_are_ignored_while_the_timer_runs() {
        let mut state = BackoffState::new(Box::new(Exponential::default()), TWO_MINUTES);
        let now = Instant::now();
        assert!(state.handle_outcome(Failure, 0.0, now));
        let phase = state.phase();
        for outcome in [Failure, Success, FailureWithoutBackoff] {
            assert!(!state.wants(outcome));
            assert!(!state.handle_outcome(outcome, 0.0, now + Duration::from_secs(1)));
        }
        assert!(!state.handle_timeout(now + Duration::from_millis(1999)));
        assert_eq!((state.level(), state.phase()), (1, phase));
    }

    #[test]
    fn c4_a_requeue_without_backoff_rearms_the_timer_of_the_same_level() {
        let mut state = BackoffState::new(Box::new(Exponential::default()), TWO_MINUTES);
        assert_eq!(seconds(&mut state, FailureWithoutBackoff, 1), [None]);
        assert_eq!(seconds(&mut state, Failure, 2), [2, 4].map(Some));
        assert_eq!(seconds(&mut state, FailureWithoutBackoff, 3), [4, 4, 4].map(Some));
        assert_eq!(state.level(), 2);
    }
}
