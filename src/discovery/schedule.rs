//! When to ask nsqlookupd again. Pure: no clock, seeded randomness.

use std::time::Duration;

/// The first delay of the fast polls, and the least time between the starts of two rounds.
const SHORTEST: Duration = Duration::from_secs(1);

/// The delays between the rounds.
///
/// They are 1 s, 2 s, 4 s and so on up to the interval, and begin anew with whatever changes: nsqds found, missing or
/// dropped, an nsqlookupd that begins to fail or recovers. Nsqds seldom appear alone (a topic spreads over all of them
/// within seconds), so one that has just been found is a reason to look again soon. Each delay is shortened at random, so
/// that many clients that started together do not stay together: `delay × (1 − jitter × random / 2)`, with `random`
/// uniform in `[0, 1)`.
#[derive(Debug)]
pub(super) struct PollSchedule {
    interval: Duration,
    jitter: f64,
    next: Duration,
    random: fastrand::Rng,
}

impl PollSchedule {
    /// `jitter` is within 0 and 1.
    pub(super) fn new(interval: Duration, jitter: f64, seed: u64) -> Self {
        Self {
            interval,
            jitter,
            next: SHORTEST.min(interval),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The delay after a round; `changed` says that it found things other than the round before.
    pub(super) fn after_round(&mut self, changed: bool) -> Duration {
        if changed {
            self.next = SHORTEST.min(self.interval);
        }
        let delay = self.next;
        self.next = delay.saturating_mul(2).min(self.interval);
        delay.mul_f64(1.0 - self.jitter * self.random.f64() / 2.0)
    }

    /// The delay of a round that is wanted soon, given how long ago the last one began: spread over one second, because
    /// the loss of one nsqd is seen by all of its clients at once.
    pub(super) fn soon(&mut self, since_last_round: Duration) -> Duration {
        let shortest = SHORTEST.min(self.interval);
        let spread = shortest.mul_f64(self.random.f64());
        spread.max(shortest.saturating_sub(since_last_round))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn seconds(delays: impl IntoIterator<Item = Duration>) -> Vec<u64> {
        delays.into_iter().map(|delay| delay.as_secs()).collect()
    }

    #[test]
    fn n5_first_polls_are_fast_and_slow_down_to_the_interval() {
        let mut schedule = PollSchedule::new(MINUTE, 0.0, 1);
        let delays = seconds((0..8).map(|_| schedule.after_round(false)));
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        // Whatever changes begins with fast polls again.
        assert_eq!(
            seconds([true, false, false, true].map(|changed| schedule.after_round(changed))),
            [1, 2, 4, 1]
        );
    }

    #[test]
    fn n5_no_delay_exceeds_a_short_interval() {
        let interval = Duration::from_millis(10);
        let mut schedule = PollSchedule::new(interval, 0.0, 1);
        assert_eq!(schedule.after_round(false), interval);
        assert_eq!(schedule.after_round(false), interval);
        assert!(schedule.soon(Duration::ZERO) <= interval);
    }

    #[test]
    fn n5_jitter_shortens_by_at_most_half_its_share_and_follows_the_seed() {
        let mut schedule = PollSchedule::new(MINUTE, 0.3, 7);
        let mut twin = PollSchedule::new(MINUTE, 0.3, 7);
        // Up to the interval.
        (0..6).for_each(|_| assert_eq!(schedule.after_round(false), twin.after_round(false)));
        let delays: Vec<_> = (0..1000).map(|_| schedule.after_round(false)).collect();
        assert!(
            delays
                .iter()
                .all(|&delay| delay > MINUTE.mul_f64(0.85) && delay <= MINUTE)
        );
        assert!(delays.iter().any(|&delay| delay < MINUTE.mul_f64(0.9)));
        assert!(delays.iter().any(|&delay| delay > MINUTE.mul_f64(0.95)));
        assert!(delays.iter().all(|&delay| delay == twin.after_round(false)));
    }

    #[test]
    fn n5_soon_is_within_a_second_and_not_within_a_second_of_the_last_round() {
        let mut schedule = PollSchedule::new(MINUTE, 0.3, 7);
        for _ in 0..1000 {
            assert!(schedule.soon(MINUTE) < SHORTEST);
            assert_eq!(schedule.soon(Duration::ZERO), SHORTEST);
            let delay = schedule.soon(Duration::from_millis(400));
            assert!(delay >= Duration::from_millis(600) && delay < SHORTEST, "{delay:?}");
        }
    }
}
