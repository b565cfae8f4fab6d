//! How long a handler may take: TOUCH while it waits, and its end once nsqd has taken the message back or its own time is
//! over.

use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::lease::Lease;
use crate::consumer::link::refusal::Watch;
use crate::consumer::link::{Command, Link};
use crate::consumer::work::panics::caught;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::protocol::MessageId;

/// A message is touched when this part of its `msg_timeout` has passed. Half leaves the other half for a TOUCH that is late,
/// because the task or the socket is held up, and costs nsqd no more than two heap operations per `msg_timeout`.
const TOUCH_AFTER: u32 = 2;

/// A TOUCH that could not be queued is tried again after this part of `msg_timeout`, so several times before it is too late.
const TRY_AGAIN_AFTER: u32 = 16;

/// When nsqd takes a message back that is never touched is not known if it says 0. This ends there at once.
const SHORTEST: Duration = Duration::from_millis(1);

/// What a handler may take.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::consumer) struct Patience {
    /// Whether its message is touched while it waits.
    pub(in crate::consumer) keep_alive: bool,
    /// How long it may go on after it first waits.
    pub(in crate::consumer) handler_timeout: Option<Duration>,
}

impl Patience {
    pub(in crate::consumer) fn is_unlimited(&self) -> bool {
        !self.keep_alive && self.handler_timeout.is_none()
    }

    /// For what is not the handler's doing.
    pub(in crate::consumer) fn without_timeout(self) -> Self {
        Self {
            handler_timeout: None,
            ..self
        }
    }
}

/// Why a future was not run to its end.
#[derive(Debug)]
pub(in crate::consumer) enum Cut {
    /// nsqd has taken the message back, or the connection has ended.
    Lost(Error),
    /// It took longer than this.
    TimedOut(Duration),
}

/// When nsqd takes a message back. All times are counted from the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consumer) struct Term {
    msg_timeout: Duration,
    /// However often it is touched.
    last: Duration,
    touched: Duration,
}

impl Term {
    fn new(msg_timeout: Duration, max_msg_timeout: Duration, touched: Duration) -> Self {
        let msg_timeout = msg_timeout.max(SHORTEST);
        Self {
            msg_timeout,
            // nsqd gives the first term whatever the maximum is.
            last: max_msg_timeout.max(msg_timeout),
            touched,
        }
    }

    /// When it takes the message back if it is not touched again.
    fn end(&self) -> Duration {
        self.touched.saturating_add(self.msg_timeout).min(self.last)
    }

    pub(in crate::consumer) fn left(&self, now: Duration) -> Duration {
        self.end().saturating_sub(now)
    }

    /// When it is to be touched; never again once that moves nothing.
    fn touch_at(&self) -> Option<Duration> {
        (self.end() < self.last).then(|| self.touched.saturating_add(self.msg_timeout / TOUCH_AFTER))
    }
}

/// What is to be done about a message while its handler waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Touch,
    /// nsqd has taken it back by now.
    Lost,
    /// The handler's own time is over.
    TimedOut,
    Nothing {
        until: Option<Duration>,
    },
}

/// Decides what is due: TOUCH in time, the end of the handler when it is lost. All times are counted from the delivery.
///
/// ```text
///            TOUCH at half of msg_timeout, again and again        max_msg_timeout, or no TOUCH in time
///  waiting ──────────────────────────────────────────────▶ waiting ──────────────────────────────────▶ Lost
///     │ handler_timeout                                       │ answered by hand: nobody touches any more
///     ▼                                                       ▼
///  TimedOut                                                waiting, for handler_timeout only
/// ```
#[derive(Debug)]
struct Vigil {
    /// Whether it is to be touched.
    kept: bool,
    /// When the handler's own time is over.
    over_at: Option<Duration>,
    /// No TOUCH before this: the last could not be sent.
    touch_not_before: Duration,
}

impl Vigil {
    fn new(patience: Patience, now: Duration) -> Self {
        Self {
            kept: patience.keep_alive,
            over_at: patience.handler_timeout.map(|timeout| now.saturating_add(timeout)),
            touch_not_before: Duration::ZERO,
        }
    }

    fn due(&self, term: Term, now: Duration) -> Due {
        if self.kept && term.left(now).is_zero() {
            return Due::Lost;
        }
        if self.over_at.is_some_and(|over_at| over_at <= now) {
            return Due::TimedOut;
        }
        let touch_at = term
            .touch_at()
            .filter(|_| self.kept)
            .map(|at| at.max(self.touch_not_before));
        if touch_at.is_some_and(|at| at <= now) {
            return Due::Touch;
        }
        let end = self.kept.then(|| term.end());
        let until = [touch_at, end, self.over_at].into_iter().flatten().min();
        Due::Nothing { until }
    }

    /// The TOUCH that was due could not be sent.
    fn handle_not_touched(&mut self, term: Term, now: Duration) {
        self.touch_not_before = now.saturating_add((term.msg_timeout / TRY_AGAIN_AFTER).max(SHORTEST));
    }

    /// The message is answered.
    fn handle_answered(&mut self) {
        self.kept = false;
    }
}

/// A message in flight, for whoever touches it.
#[derive(Clone, Copy)]
pub(in crate::consumer) struct Grip<'a> {
    pub(in crate::consumer) link: &'a Arc<Link>,
    pub(in crate::consumer) id: MessageId,
    pub(in crate::consumer) delivered_at: Instant,
    /// When it was last touched, in milliseconds after the delivery.
    pub(in crate::consumer) touched_ms: &'a AtomicU32,
    /// Tells when it is answered, where that is somebody else's business.
    pub(in crate::consumer) lease: Option<&'a Lease>,
}

impl Grip<'_> {
    fn now(&self) -> Duration {
        self.delivered_at.elapsed()
    }

    fn term(&self) -> Term {
        let touched = Duration::from_millis(u64::from(self.touched_ms.load(Ordering::Relaxed)));
        Term::new(self.link.msg_timeout, self.link.max_msg_timeout, touched)
    }

    /// How long nsqd waits from now on.
    pub(in crate::consumer) fn time_left(&self) -> Duration {
        self.term().left(self.now())
    }

    /// Tells if nsqd has stopped waiting for the answer that is about to be given.
    pub(in crate::consumer) fn note_if_late(&self) {
        if self.time_left().is_zero() {
            self.link.desk.note_late(self.link, self.id, self.now());
        }
    }

    pub(in crate::consumer) fn touch(&self) -> Result<()> {
        self.link.send(Command::Touch(self.id))?;
        let since = u32::try_from(self.now().as_millis()).unwrap_or(u32::MAX);
        self.touched_ms.store(since, Ordering::Relaxed);
        Ok(())
    }

    /// nsqd has taken the message back. The caller had the right to answer it.
    pub(in crate::consumer) fn lose(&self, error: &Error) {
        self.link.desk.lose(self.link, self.id, error, self.now());
    }

    fn is_answered(&self) -> bool {
        self.lease.is_some_and(Lease::is_claimed)
    }

    /// Why it is lost, by this host's clock.
    fn too_late(&self) -> Error {
        let term = self.term();
        let text = if term.end() < term.last {
            format!(
                "msg_timeout ({:?}) has passed and the message was not touched, because the task that does so was held up: \
                 nsqd has taken the message back and delivers it again",
                term.msg_timeout
            )
        } else {
            format!(
                "max_msg_timeout ({:?}) has passed since the delivery: nsqd has taken the message back, however often it was \
                 touched, and delivers it again",
                term.last
            )
        };
        Error::new(ErrorKind::TimedOut, Step::Handle, text).at(&self.link.address)
    }

    /// Runs a future and touches the message meanwhile. Without keep-alive the loss of the message ends nothing.
    pub(in crate::consumer) async fn keep<F: Future>(
        &self,
        patience: Patience,
        future: Pin<&mut F>,
    ) -> Result<F::Output, Cut> {
        let mut watch = patience.keep_alive.then(|| self.link.watch(self.id));
        let result = self.keep_watched(patience, future, async {
            match &mut watch {
                Some(watch) => watch.refused().await,
                None => pending().await,
            }
        });
        let result = result.await;
        let told = watch.and_then(|watch| watch.told());
        match (result, told) {
            // The future may have ended because it was told by itself.
            (Ok(_), Some(lost)) if !self.is_answered() => Err(Cut::Lost(lost)),
            (result, _) => result,
        }
    }

    async fn keep_watched<F: Future>(
        &self,
        patience: Patience,
        mut future: Pin<&mut F>,
        refused: impl Future<Output = Error>,
    ) -> Result<F::Output, Cut> {
        let mut vigil = Vigil::new(patience, self.now());
        let mut refused = pin!(refused);
        let mut timer = pin!(sleep_until(self.delivered_at));
        loop {
            if vigil.kept && self.is_answered() {
                vigil.handle_answered();
            }
            let now = self.now();
            let until = match vigil.due(self.term(), now) {
                Due::Nothing { until } => until,
                Due::Touch => {
                    if let Err(error) = self.touch() {
                        tracing::debug!(nsqd = %self.link.address, id = %self.id, %error, "not touched");
                        vigil.handle_not_touched(self.term(), now);
                    }
                    continue;
                }
                Due::Lost => {
                    let error = self.too_late();
                    self.link.lose(self.id, error.clone());
                    return Err(Cut::Lost(error));
                }
                Due::TimedOut => return Err(Cut::TimedOut(patience.handler_timeout.unwrap_or_default())),
            };
            // What is too far off for the clock never comes.
            let until = until.and_then(|until| self.delivered_at.checked_add(until));
            if let Some(until) = until {
                timer.as_mut().reset(until);
            }
            tokio::select! {
                biased;
                error = refused.as_mut(), if vigil.kept => {
                    if !self.is_answered() {
                        return Err(Cut::Lost(error));
                    }
                    vigil.handle_answered();
                }
                output = future.as_mut() => return Ok(output),
                () = timer.as_mut(), if until.is_some() => {}
            }
        }
    }

    /// [`keep`](Self::keep) for the consumer's own handlers. A future that is cut off is dropped. One whose message is lost
    /// is polled once more before, so that it can take note, and nothing is answered.
    pub(in crate::consumer) async fn attend<F: Future>(
        &self,
        patience: Patience,
        mut slot: Pin<&mut Option<F>>,
    ) -> Result<F::Output, Cut> {
        let mut running = pin!(poll_fn(|cx| poll_slot(slot.as_mut(), cx)));
        let result = self.keep(patience, running.as_mut()).await;
        if let Err(cut) = &result {
            if let Cut::Lost(error) = cut {
                // Before the last poll: it cannot answer any more.
                if self.lease.is_none_or(Lease::claim) {
                    self.lose(error);
                }
                poll_fn(|cx| Poll::Ready(running.as_mut().poll(cx).is_ready())).await;
            }
            let dropped = caught(|| {
                slot.set(None);
                Ok(())
            });
            if let Err(error) = dropped {
                tracing::debug!(nsqd = %self.link.address, id = %self.id, error = &*error as &dyn std::error::Error, "while being stopped");
            }
        }
        result
    }
}

/// Runs a future that is at work on several messages. Each of them is touched until it is answered or lost. The loss of some
/// ends nothing, and they are answered all the same: the future may have finished them, and nsqd may have delivered them
/// again on the same connection. The error is that it took longer than this.
pub(in crate::consumer) async fn keep_all<'a, F: Future>(
    patience: Patience,
    grips: impl Iterator<Item = Grip<'a>>,
    mut future: Pin<&mut F>,
) -> Result<F::Output, Duration> {
    let mut kept: Vec<Kept<'_>> = grips.filter(|_| patience.keep_alive).map(Kept::new).collect();
    let limit = patience.handler_timeout.unwrap_or(Duration::MAX);
    let over_at = Instant::now().checked_add(limit);
    let mut timer = pin!(sleep_until(Instant::now()));
    loop {
        let mut until = over_at;
        kept.retain_mut(|kept| {
            let due_again = kept.look_after();
            until = until.into_iter().chain(due_again).min();
            due_again.is_some()
        });
        if over_at.is_some_and(|over_at| over_at <= Instant::now()) {
            return Err(limit);
        }
        if let Some(until) = until {
            timer.as_mut().reset(until);
        }
        tokio::select! {
            biased;
            output = future.as_mut() => return Ok(output),
            () = timer.as_mut(), if until.is_some() => {}
        }
    }
}

/// One of several messages that are touched.
struct Kept<'a> {
    grip: Grip<'a>,
    vigil: Vigil,
    watch: Watch,
}

impl<'a> Kept<'a> {
    fn new(grip: Grip<'a>) -> Self {
        let patience = Patience {
            keep_alive: true,
            handler_timeout: None,
        };
        Self {
            vigil: Vigil::new(patience, grip.now()),
            watch: grip.link.watch(grip.id),
            grip,
        }
    }

    /// Does what is due. Returns when to do that again, or `None` once the message is answered or lost.
    fn look_after(&mut self) -> Option<Instant> {
        let Self { grip, vigil, watch } = self;
        if grip.is_answered() || watch.told().is_some() {
            return None;
        }
        let mut due = vigil.due(grip.term(), grip.now());
        if due == Due::Touch {
            if let Err(error) = grip.touch() {
                tracing::debug!(nsqd = %grip.link.address, id = %grip.id, %error, "not touched");
                vigil.handle_not_touched(grip.term(), grip.now());
            }
            due = vigil.due(grip.term(), grip.now());
        }
        let until = match due {
            Due::Lost => {
                grip.link.lose(grip.id, grip.too_late());
                return None;
            }
            Due::Nothing { until } => until.unwrap_or_default(),
            Due::Touch | Due::TimedOut => Duration::ZERO,
        };
        // Not sooner, so that many messages that came one after the other are touched together.
        let pause = (grip.term().msg_timeout / TRY_AGAIN_AFTER).max(SHORTEST);
        grip.delivered_at.checked_add(until.max(grip.now() + pause))
    }
}

/// Polls a future that can be dropped where it lies.
pub(in crate::consumer) fn poll_slot<F: Future>(slot: Pin<&mut Option<F>>, cx: &mut Context<'_>) -> Poll<F::Output> {
    match slot.as_pin_mut() {
        Some(future) => future.poll(cx),
        None => Poll::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumer::flow::ConnectionId;
    use crate::protocol::ErrorCode;

    const SECOND: Duration = Duration::from_secs(1);

    const KEPT: Patience = Patience {
        keep_alive: true,
        handler_timeout: None,
    };

    fn until(until: Duration) -> Due {
        Due::Nothing { until: Some(until) }
    }

    #[test]
    fn a_message_is_touched_at_half_of_its_time_until_that_moves_nothing() {
        let vigil = Vigil::new(KEPT, Duration::ZERO);
        let mut term = Term::new(10 * SECOND, 22 * SECOND, Duration::ZERO);
        let mut touched = Vec::new();
        let mut now = Duration::ZERO;
        loop {
            match vigil.due(term, now) {
                Due::Touch => {
                    term.touched = now;
                    touched.push(now.as_secs());
                }
                Due::Nothing { until: Some(until) } => {
                    assert!(until > now);
                    now = until;
                }
                due => break assert_eq!(due, Due::Lost),
            }
        }
        assert_eq!(touched, [5, 10, 15]);
        assert_eq!(now, 22 * SECOND);
    }

    #[test]
    fn a_touch_by_hand_puts_the_next_one_off() {
        let vigil = Vigil::new(KEPT, Duration::ZERO);
        let mut term = Term::new(10 * SECOND, 100 * SECOND, Duration::ZERO);
        assert_eq!(vigil.due(term, 5 * SECOND), Due::Touch);
        term.touched = 4 * SECOND;
        assert_eq!(vigil.due(term, 5 * SECOND), until(9 * SECOND));
    }

    #[test]
    fn a_touch_that_could_not_be_sent_is_tried_again_in_time() {
        let mut vigil = Vigil::new(KEPT, Duration::ZERO);
        let term = Term::new(16 * SECOND, 100 * SECOND, Duration::ZERO);
        let mut now = 8 * SECOND;
        let mut tries = 0;
        while vigil.due(term, now) == Due::Touch {
            tries += 1;
            vigil.handle_not_touched(term, now);
            match vigil.due(term, now) {
                Due::Nothing { until: Some(until) } => now = until,
                due => panic!("{due:?}"),
            }
        }
        assert_eq!((tries, now, vigil.due(term, now)), (8, 16 * SECOND, Due::Lost));
    }

    #[test]
    fn a_task_that_comes_too_late_does_not_touch_what_nsqd_has_taken_back() {
        let vigil = Vigil::new(KEPT, Duration::ZERO);
        let term = Term::new(10 * SECOND, 100 * SECOND, Duration::ZERO);
        assert_eq!(vigil.due(term, 10 * SECOND), Due::Lost);
    }

    #[test]
    fn the_first_term_is_given_whatever_the_maximum_is_and_no_touch_shortens_it() {
        let vigil = Vigil::new(KEPT, Duration::ZERO);
        let term = Term::new(10 * SECOND, SECOND, Duration::ZERO);
        assert_eq!(vigil.due(term, 5 * SECOND), until(10 * SECOND));
        assert_eq!(term.left(4 * SECOND), 6 * SECOND);
    }

    #[test]
    fn whatever_nsqd_grants_something_ends_the_wait_or_the_time_moves_on() {
        for granted in [0, 1, 2, u64::MAX].map(Duration::from_millis) {
            for most in [0, 1, u64::MAX].map(Duration::from_millis) {
                let term = Term::new(granted, most, Duration::ZERO);
                let now = 3 * SHORTEST;
                match Vigil::new(KEPT, Duration::ZERO).due(term, now) {
                    Due::Nothing { until } => assert!(until > Some(now)),
                    due => assert_eq!(due, Due::Lost),
                }
            }
        }
    }

    #[test]
    fn a_handlers_own_time_counts_from_its_first_wait_and_goes_on_once_it_has_answered() {
        let patience = Patience {
            keep_alive: true,
            handler_timeout: Some(30 * SECOND),
        };
        let mut vigil = Vigil::new(patience, 2 * SECOND);
        let term = Term::new(60 * SECOND, 100 * SECOND, Duration::ZERO);
        assert_eq!(vigil.due(term, 2 * SECOND), until(30 * SECOND));
        assert_eq!(vigil.due(term, 30 * SECOND), Due::Touch);
        vigil.handle_answered();
        assert_eq!(vigil.due(term, 30 * SECOND), until(32 * SECOND));
        assert_eq!(vigil.due(term, 32 * SECOND), Due::TimedOut);
        assert_eq!(
            Vigil::new(Patience::default(), SECOND).due(term, 900 * SECOND),
            Due::Nothing { until: None }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn c5_a_future_that_ends_in_the_moment_its_message_is_lost_has_lost_it_unless_it_has_answered() {
        for answered in [false, true] {
            let link = Link::new(ConnectionId(1), Arc::from("nsqd:4150"), Arc::default(), Arc::default());
            let link = Arc::new(link);
            let lease = Lease::new(Arc::clone(&link), Instant::now());
            let grip = lease.grip(MessageId::new(*b"0d1a2b3c4d5e6f70"));
            let ending = poll_fn(|_| {
                if answered {
                    lease.claim();
                }
                let text = "E_TOUCH_FAILED TOUCH 0d1a2b3c4d5e6f70 failed ID not in flight";
                link.refused(ErrorCode::TouchFailed, text);
                Poll::Ready(())
            });
            let kept = grip.keep(KEPT, pin!(ending)).await;
            match kept {
                Ok(()) => assert!(answered),
                Err(Cut::Lost(error)) => assert!(!answered && error.code() == Some(ErrorCode::TouchFailed)),
                Err(cut) => panic!("{cut:?}"),
            }
        }
    }
}
