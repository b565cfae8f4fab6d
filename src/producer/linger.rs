//! When a batch leaves that is asked to wait for more. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::ends_at;

/// How long a batch waits for company, and how much of it is enough.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linger {
    pub(super) delay: Duration,
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// What waits to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// When the oldest of it was published.
    pub(super) since: Instant,
    pub(super) messages: usize,
    pub(super) bytes: usize,
    /// Something in it gains nothing from waiting, or somebody waits for it.
    pub(super) urgent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    Now,
    At(Instant),
}

impl Linger {
    pub(super) fn departure(&self, waiting: &Waiting, now: Instant) -> Departure {
        let at = ends_at(waiting.since, self.delay);
        if now >= at || self.is_enough(waiting) {
            Departure::Now
        } else {
            Departure::At(at)
        }
    }

    /// Whether it leaves whatever the time is.
    pub(super) fn is_enough(&self, waiting: &Waiting) -> bool {
        waiting.urgent || waiting.messages >= self.messages || waiting.bytes >= self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_leaves_with_the_first_of_time_number_size_and_urgency() {
        let since = Instant::now();
        let (before, after) = (since + Duration::from_millis(9), since + Duration::from_millis(10));
        let linger = Linger {
            delay: Duration::from_millis(10),
            messages: 3,
            bytes: 100,
        };
        let few = Waiting {
            since,
            messages: 2,
            bytes: 99,
            urgent: false,
        };
        assert_eq!(linger.departure(&few, since), Departure::At(after));
        assert_eq!(linger.departure(&few, before), Departure::At(after));
        assert_eq!(linger.departure(&few, after), Departure::Now);
        for enough in [
            Waiting { messages: 3, ..few },
            Waiting { bytes: 100, ..few },
            Waiting { urgent: true, ..few },
        ] {
            assert_eq!(linger.departure(&enough, since), Departure::Now);
        }
        // Longer than the clock can tell.
        let delay = Duration::MAX;
        assert_ne!(Linger { delay, ..linger }.departure(&few, since), Departure::Now);
    }
}
