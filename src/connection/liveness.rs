//! Whether the peer is still there.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::error::{Error, ErrorKind, Step};

/// How many heartbeat intervals a peer may be silent, or take nothing of what is written. nsqd allows its clients as
/// many.
const INTERVALS: u32 = 2;

/// Where there are no heartbeats: the interval after which a peer that takes nothing, or does not answer, is dead all the
/// same. nsqd's default.
const INTERVAL_WITHOUT: Duration = Duration::from_secs(30);

/// Declares a peer dead that is silent for two heartbeat intervals, or that takes no byte for as long (promise N1). A peer
/// that sends heartbeats but no answers is dead too, two intervals after the last caller has stopped waiting for one.
///
/// The timer is not moved at each read: when it fires it looks at what has happened since and sleeps on. So a busy
/// connection pays a clock read per socket read, and the timer wheel is touched once per interval.
pub(super) struct Liveness {
    allowed: Duration,
    /// Whether the peer has anything to say when there is nothing to answer.
    heartbeats: bool,
    last_read: Instant,
    blocked_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl Liveness {
    /// `None` is no heartbeats: silence alone says nothing then.
    pub(super) fn new(heartbeat_interval: Option<Duration>) -> Self {
        let now = Instant::now();
        let allowed = heartbeat_interval.unwrap_or(INTERVAL_WITHOUT) * INTERVALS;
        Self {
            allowed,
            heartbeats: heartbeat_interval.is_some(),
            last_read: now,
            blocked_since: None,
            timer: Box::pin(sleep_until(now + allowed)),
        }
    }

    pub(super) fn handle_read(&mut self) {
        self.last_read = Instant::now();
    }

    pub(super) fn handle_write(&mut self) {
        self.blocked_since = None;
    }

    pub(super) fn handle_write_blocked(&mut self) {
        self.blocked_since.get_or_insert_with(Instant::now);
    }

    /// Ready with the reason once the peer is to be taken for dead.
    ///
    /// `overdue` tells whether an answer is missing for which nobody waited any more at the given time, two intervals ago.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>, overdue: impl Fn(Instant) -> bool) -> Poll<Error> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.heartbeats && now >= self.last_read + self.allowed {
                return Poll::Ready(Error::new(
                    ErrorKind::ConnectionLost,
                    Step::Heartbeat,
                    format!("nothing was heard for {:?}, two heartbeat intervals", self.allowed),
                ));
            }
            if now.checked_sub(self.allowed).is_some_and(&overdue) {
                return Poll::Ready(Error::new(
                    ErrorKind::ConnectionLost,
                    Step::Read,
                    "the peer lives, but does not answer what was sent long ago",
                ));
            }
            let mut next = if self.heartbeats { self.last_read } else { now } + self.allowed;
            if let Some(since) = self.blocked_since {
                if now >= since + self.allowed {
                    return Poll::Ready(Error::new(
                        ErrorKind::ConnectionLost,
                        Step::Write,
                        format!("the peer took nothing for {:?}, two heartbeat intervals", self.allowed),
                    ));
                }
                next = next.min(since + self.allowed);
            }
            self.timer.as_mut().reset(next);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::advance;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    async fn expired(liveness: &mut Liveness) -> Option<Error> {
        poll_fn(|cx| match liveness.poll_expired(cx, |_| false) {
            Poll::Ready(error) => Poll::Ready(Some(error)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    #[tokio::test(start_paused = true)]
    async fn n1_two_silent_intervals_and_not_less() {
        let mut liveness = Liveness::new(Some(INTERVAL));
        for _ in 0..10 {
            advance(INTERVAL).await;
            liveness.handle_read();
            assert!(expired(&mut liveness).await.is_none());
        }
        advance(2 * INTERVAL - Duration::from_millis(5)).await;
        assert!(expired(&mut liveness).await.is_none());
        advance(Duration::from_millis(10)).await;
        let error = expired(&mut liveness).await.unwrap();
        assert_eq!(error.step(), Some(Step::Heartbeat));
    }

    #[tokio::test(start_paused = true)]
    async fn n1_without_heartbeats_silence_is_no_death_but_a_full_pipe_is() {
        let mut liveness = Liveness::new(None);
        for _ in 0..10 {
            advance(INTERVAL * 3).await;
            assert!(expired(&mut liveness).await.is_none());
        }
        liveness.handle_write_blocked();
        advance(INTERVAL * 2 - Duration::from_millis(5)).await;
        assert!(expired(&mut liveness).await.is_none());
        advance(Duration::from_millis(10)).await;
        assert_eq!(expired(&mut liveness).await.unwrap().step(), Some(Step::Write));
    }

    #[tokio::test(start_paused = true)]
    async fn n1_a_peer_that_sends_but_takes_nothing_is_dead_too() {
        let mut liveness = Liveness::new(Some(INTERVAL));
        liveness.handle_write_blocked();
        for _ in 0..3 {
            advance(INTERVAL / 2).await;
            liveness.handle_read();
            assert!(expired(&mut liveness).await.is_none());
        }
        liveness.handle_read();
        advance(INTERVAL).await;
        let error = expired(&mut liveness).await.unwrap();
        assert_eq!(error.step(), Some(Step::Write));
    }
}
