//! How long to wait after a failure: the strategies for a consumer's handlers, and the pace of reconnection.
//!
//! Everything here is arithmetic: no clock, no timer, and no random number that the caller did not hand in or seed.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest a strategy can ask for is asked with this draw: the largest number below one.
pub(crate) const LONGEST_DRAW: f64 = 1.0 - f64::EPSILON / 2.0;

/// How long a consumer pauses after a failure, by the number of failures in a row.
///
/// The consumer calls it with its backoff level, which is 1 after the first failure, one higher after each further
/// failure and one lower after each success. It also asks for the *longest* delay of a level (with `jitter` just below
/// one) and does not climb to a level that would wait longer than `max_backoff_duration`, or no longer than the level
/// before it: a level that adds nothing would only take one more success to leave.
///
/// ```
/// use std::time::Duration;
/// use async_nsq::backoff::Backoff;
///
/// /// A second more for each level.
/// #[derive(Debug)]
/// struct Linear;
///
/// impl Backoff for Linear {
///     fn delay(&self, attempt: u32, _jitter: f64) -> Duration {
///         Duration::from_secs(attempt.into())
///     }
/// }
///
/// assert_eq!(Linear.delay(3, 0.5), Duration::from_secs(3));
/// ```
pub trait Backoff: Send + Sync + fmt::Debug {
    /// The delay before try number `attempt`, counted from 1.
    ///
    /// `jitter` is a random number drawn by the caller, at least 0 and below 1; a strategy without randomness ignores
    /// it. An implementation must cope with any `attempt`, must not panic, and should not grow shorter as `attempt` or
    /// `jitter` grows. A strategy whose first delay is zero for every `jitter` switches backoff off.
    fn delay(&self, attempt: u32, jitter: f64) -> Duration;
}

impl<B: Backoff + ?Sized> Backoff for Box<B> {
    fn delay(&self, attempt: u32, jitter: f64) -> Duration {
        (**self).delay(attempt, jitter)
    }
}

impl<B: Backoff + ?Sized> Backoff for Arc<B> {
    fn delay(&self, attempt: u32, jitter: f64) -> Duration {
        (**self).delay(attempt, jitter)
    }
}

/// Doubles at each step: multiplier × 2^attempt.
///
/// With the default multiplier of 1 s: 2, 4, 8, 16, 32, 64 s and so on. A product too large for [`Duration`] becomes
/// [`Duration::MAX`]. A multiplier of zero switches backoff off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exponential {
    multiplier: Duration,
}

impl Exponential {
    /// Doubles from `multiplier`: the first delay is twice that.
    pub const fn new(multiplier: Duration) -> Self {
        Self { multiplier }
    }
}

impl Default for Exponential {
    /// A multiplier of 1 s.
    fn default() -> Self {
        Self::new(Duration::from_secs(1))
    }
}

impl Backoff for Exponential {
    fn delay(&self, attempt: u32, _jitter: f64) -> Duration {
        doubled(self.multiplier, attempt)
    }
}

/// A random time between zero and what [`Exponential`] would wait.
///
/// It spreads many consumers that failed at the same moment over the whole interval, at the price of some retries that
/// come almost at once. Default multiplier: 1 s. A multiplier of zero switches backoff off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullJitter {
    multiplier: Duration,
}

impl FullJitter {
    /// Draws from zero up to multiplier × 2^attempt.
    pub const fn new(multiplier: Duration) -> Self {
        Self { multiplier }
    }
}

impl Default for FullJitter {
    /// A multiplier of 1 s.
    fn default() -> Self {
        Self::new(Duration::from_secs(1))
    }
}

impl Backoff for FullJitter {
    fn delay(&self, attempt: u32, jitter: f64) -> Duration {
        scaled(doubled(self.multiplier, attempt), jitter)
    }
}

/// Never waits: a failed message is requeued and the consumer goes on at full speed.
///
/// Use it when one failing message says nothing about the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Off;

impl Backoff for Off {
    fn delay(&self, _attempt: u32, _jitter: f64) -> Duration {
        Duration::ZERO
    }
}

/// `base × 2^exponent`, or [`Duration::MAX`] where that does not fit.
fn doubled(base: Duration, exponent: u32) -> Duration {
    if base.is_zero() {
        return Duration::ZERO;
    }
    1u128
        .checked_shl(exponent)
        .and_then(|factor| base.as_nanos().checked_mul(factor))
        .and_then(|nanos| {
            let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
            Some(Duration::new(seconds, (nanos % 1_000_000_000) as u32))
        })
        .unwrap_or(Duration::MAX)
}

/// `full × fraction`, never more than `full`, whatever the fraction is.
fn scaled(full: Duration, fraction: f64) -> Duration {
    // A product that is no duration comes from a fraction that is not in [0, 1): not a number, negative or huge.
    Duration::try_from_secs_f64(full.as_secs_f64() * fraction)
        .unwrap_or(if fraction > 0.0 { full } else { Duration::ZERO })
        .min(full)
}

/// When to dial one nsqd again (N2).
///
/// The delays double from 200 ms to 60 s, and each is drawn between half and all of its step: the first is 100 to
/// 200 ms, the tenth and all later ones 30 to 60 s. Half is kept so that a dead nsqd is never hammered, half is drawn
/// so that a fleet that lost the same nsqd does not come back as one. There is no last attempt.
///
/// The sequence starts over only once a connection has lasted [`Reconnect::HEALTHY_AFTER`]: an nsqd that accepts
/// and drops connections in a loop is backed off from like one that refuses them.
#[derive(Debug)]
pub(crate) struct Reconnect {
    attempt: u32,
    connected_at: Option<Instant>,
    rng: fastrand::Rng,
}

impl Reconnect {
    /// A connection that lived this long was healthy, and its loss is a new story.
    ///
    /// It must outlast the usual ways to die young: a refused handshake (nsqd allows 5 s for TLS), a refused SUB, a
    /// process that crashes while it loads its queues. An nsqd that dies just after this period is dialled every 10 s,
    /// which harms nobody.
    pub(crate) const HEALTHY_AFTER: Duration = Duration::from_secs(10);

    const FIRST_STEP: Duration = Duration::from_millis(200);
    const LAST_STEP: Duration = Duration::from_secs(60);

    /// Its step is 6.4 s.
    const ATTEMPT_AFTER_REFUSAL: u32 = 5;

    pub(crate) fn new(seed: u64) -> Self {
        Self {
            attempt: 0,
            connected_at: None,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// The wait before the next attempt. Each call is one attempt more, so call it once per attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let step = doubled(Self::FIRST_STEP, self.attempt).min(Self::LAST_STEP);
        self.attempt = self.attempt.saturating_add(1);
        step / 2 + scaled(step / 2, self.rng.f64())
    }

    /// The nsqd was reached and there is no agreement with it: a secret, a certificate or an option is wrong. That does
    /// not change within milliseconds, and each attempt costs nsqd a handshake, and its auth server a question. The next
    /// delay is 3 s at least.
    pub(crate) fn handle_refused(&mut self) {
        self.attempt = self.attempt.max(Self::ATTEMPT_AFTER_REFUSAL);
    }

    /// The connection is ready for use: the handshake is over.
    pub(crate) fn handle_connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// The connection, or the attempt to make one, came to its end.
    pub(crate) fn handle_lost(&mut self, now: Instant) {
        let lived = self
            .connected_at
            .take()
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if lived >= Self::HEALTHY_AFTER {
            self.attempt = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn exponential_waits_the_times_go_nsq_waits() {
        let strategy = Exponential::default();
        let seconds: Vec<u64> = (1..=7).map(|level| strategy.delay(level, 0.3).as_secs()).collect();
        assert_eq!(seconds, [2, 4, 8, 16, 32, 64, 128]);
        assert_eq!(
            Exponential::new(Duration::from_millis(3)).delay(4, 0.0),
            Duration::from_millis(48)
        );
    }

    #[test]
    fn full_jitter_draws_from_zero_up_to_the_exponential_delay() {
        let strategy = FullJitter::default();
        for attempt in 0..40 {
            let full = Exponential::default().delay(attempt, 0.0);
            assert_eq!(strategy.delay(attempt, 0.0), Duration::ZERO);
            assert_eq!(strategy.delay(attempt, 0.25), full / 4);
            assert!(strategy.delay(attempt, LONGEST_DRAW) <= full);
            assert!(strategy.delay(attempt, LONGEST_DRAW) > full.mul_f64(0.999));
        }
    }

    #[test]
    fn no_attempt_multiplier_or_draw_overflows() {
        let multipliers = [
            Duration::ZERO,
            Duration::from_nanos(1),
            SECOND,
            Duration::from_secs(3600),
            Duration::MAX,
        ];
        let draws = [
            0.0,
            0.5,
            LONGEST_DRAW,
            1.0,
            2.0,
            -1.0,
            f64::NAN,
            f64::INFINITY,
            f64::MAX,
        ];
        let attempts = (0..200).chain([u32::MAX - 1, u32::MAX]);
        for attempt in attempts {
            for multiplier in multipliers {
                let full = Exponential::new(multiplier).delay(attempt, 0.0);
                assert!(full >= multiplier);
                for draw in draws {
                    assert!(FullJitter::new(multiplier).delay(attempt, draw) <= full);
                }
            }
        }
        assert_eq!(Exponential::default().delay(u32::MAX, 0.0), Duration::MAX);
        assert_eq!(Exponential::new(Duration::ZERO).delay(u32::MAX, 0.0), Duration::ZERO);
        assert_eq!(FullJitter::new(Duration::ZERO).delay(7, 0.9), Duration::ZERO);
    }

    #[test]
    fn off_never_waits() {
        assert_eq!(Off.delay(1, 0.9), Duration::ZERO);
        assert_eq!(Off.delay(u32::MAX, LONGEST_DRAW), Duration::ZERO);
    }

    #[test]
    fn a_shared_or_boxed_strategy_is_a_strategy() {
        let shared: Arc<dyn Backoff> = Arc::new(Exponential::default());
        let boxed: Box<dyn Backoff> = Box::new(Arc::clone(&shared));
        assert_eq!(boxed.delay(3, 0.0), shared.delay(3, 0.0));
    }

    #[test]
    fn n2_reconnection_doubles_from_100_ms_to_60_s_and_never_gives_up() {
        for seed in 0..100 {
            let mut reconnect = Reconnect::new(seed);
            let now = Instant::now();
            let mut step = Duration::from_millis(200);
            for attempt in 0..1000 {
                let delay = reconnect.next_delay();
                assert!(delay >= step / 2 && delay <= step, "attempt {attempt}: {delay:?}");
                reconnect.handle_lost(now);
                step = (step * 2).min(Duration::from_secs(60));
            }
        }
    }

    #[test]
    fn n2_a_refusal_is_not_hammered_and_does_not_shorten_the_delay_either() {
        let mut reconnect = Reconnect::new(3);
        reconnect.handle_refused();
        let first = reconnect.next_delay();
        assert!(
            first >= Duration::from_millis(3200) && first <= Duration::from_millis(6400),
            "{first:?}"
        );
        for _ in 0..10 {
            reconnect.handle_refused();
            assert!(reconnect.next_delay() > first);
        }
        assert!(reconnect.next_delay() >= Duration::from_secs(30));
    }

    #[test]
    fn n2_reconnection_is_spread_by_the_seed_and_repeats_for_a_seed() {
        let first = |seed| Reconnect::new(seed).next_delay();
        assert_eq!(first(1), first(1));
        let spread: std::collections::BTreeSet<Duration> = (0..50).map(first).collect();
        assert!(spread.len() > 40);
    }

    #[test]
    fn n2_reconnection_starts_over_only_after_a_healthy_period() {
        let mut reconnect = Reconnect::new(7);
        let mut now = Instant::now();
        // It accepts and drops, again and again: the pace must slow down all the same.
        for _ in 0..20 {
            now += reconnect.next_delay();
            reconnect.handle_connected(now);
            now += Reconnect::HEALTHY_AFTER - Duration::from_millis(1);
            reconnect.handle_lost(now);
        }
        assert!(reconnect.next_delay() >= Duration::from_secs(30));
        reconnect.handle_connected(now);
        now += Reconnect::HEALTHY_AFTER;
        reconnect.handle_lost(now);
        assert!(reconnect.next_delay() <= Duration::from_millis(200));
        assert!(
            reconnect.next_delay() > Duration::from_millis(199),
            "one clean loss forgives once, not for ever"
        );
    }

    #[test]
    fn n2_a_clock_that_seems_to_stand_still_is_no_healthy_period() {
        let mut reconnect = Reconnect::new(7);
        let now = Instant::now() + Duration::from_secs(60);
        for _ in 0..20 {
            reconnect.next_delay();
        }
        reconnect.handle_connected(now);
        reconnect.handle_lost(now - Duration::from_secs(30));
        assert!(reconnect.next_delay() >= Duration::from_secs(30));
    }
}
