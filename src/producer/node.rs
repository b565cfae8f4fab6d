//! The task that keeps a producer connected to its nsqd.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::batch::{Encoding, Turns};
use super::bell::Bell;
use super::phase::{Phase, PhaseWatch};
use super::pipeline::{Entry, Pipeline, Taken};
use crate::backoff::Reconnect;
use crate::config::ConnectionConfig;
use crate::connection::{Driver, Established, Negotiated, Queued, Role, WriteBuffer, open};
use crate::error::{Error, ErrorKind, Result, Step};
use crate::protocol::{self, ErrorCode, Message};

/// How often a turn is put off for callers that were just woken. They come back within microseconds; those that do
/// not are not waited for.
const MOST_YIELDS: u8 = 4;

/// What is known of the connection.
#[derive(Clone, Debug)]
pub(super) enum Link {
    Connecting,
    Connected(Arc<Negotiated>),
    Lost(Error),
    /// The task has ended and every publish is resolved.
    Ended(Leftover),
}

/// What a producer's end left unconfirmed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leftover {
    pub(super) not_sent: usize,
    pub(super) unknown: usize,
}

impl Leftover {
    pub(super) fn add(&mut self, other: Self) {
        self.not_sent += other.not_sent;
        self.unknown += other.unknown;
    }
}

pub(super) struct Node {
    pub(super) config: ConnectionConfig,
    pub(super) encoding: Encoding,
    pub(super) address: Arc<str>,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) phase: PhaseWatch,
    pub(super) link: watch::Sender<Link>,
    /// What a pool is told.
    pub(super) notices: Option<Notices>,
    /// There is reason to believe that an attempt would succeed now.
    pub(super) dial_soon: Arc<Notify>,
}

/// What the lanes of a pool have to tell, without saying which of them.
#[derive(Clone, Debug)]
pub(super) struct Notices {
    /// A connection was made, for those who wait until any nsqd has one; or nothing is to be waited for any more.
    pub(super) up: Arc<Bell>,
    /// A connection was lost.
    pub(super) lost: watch::Sender<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Also when the task is dropped with its runtime: no caller is left waiting (P3).
        let ended = Error::new(ErrorKind::NotSent, Step::Publish, "the producer has ended");
        let leftover = self.pipeline.end(ended);
        self.link.send_if_modified(|link| {
            let early = !matches!(link, Link::Ended(_));
            if early {
                *link = Link::Ended(leftover);
            }
            early
        });
    }
}

impl Node {
    /// Connects, and connects again whenever the connection is lost, until the producer is shut down.
    pub(super) async fn run(mut self) {
        let mut reconnect = Reconnect::new(fastrand::u64(..));
        let mut leftover = Leftover::default();
        while !self.is_over() {
            let opened = tokio::select! {
                biased;
                () = over(&mut self.phase, &self.pipeline) => break,
                opened = open(&self.config, &self.address, None) => opened,
            };
            let error = match opened {
                Ok(connection) => {
                    reconnect.handle_connected(Instant::now().into_std());
                    let end = self.publish_over(connection, &mut leftover).await;
                    reconnect.handle_lost(Instant::now().into_std());
                    match end {
                        // The role has finished: nothing is pending.
                        Ok(()) => break,
                        Err(error) => {
                            if let Some(notices) = &self.notices {
                                notices.lost.send_replace(());
                            }
                            error
                        }
                    }
                }
                Err(error) => {
                    if !error.is_retryable() {
                        reconnect.handle_refused();
                    }
                    error
                }
            };
            // What ends a connection with a refusal is the same nsqd; otherwise it may come back with other limits.
            if error.kind() != ErrorKind::Rejected {
                self.pipeline.forget_limits();
            }
            if self.is_over() {
                break;
            }
            let delay = reconnect.next_delay();
            tracing::warn!(
                nsqd = %self.address, error = &error as &dyn StdError, retry_in = ?delay, "producer is not connected"
            );
            // In this order: in a pool the second has publishes look for another nsqd than this one.
            self.link.send_replace(Link::Lost(error.clone()));
            self.pipeline.set_unreachable(Some(error));
            tokio::select! {
                biased;
                () = over(&mut self.phase, &self.pipeline) => {}
                () = self.dial_soon.notified() => {}
                () = sleep(delay) => {}
            }
        }
        leftover.add(
            self.pipeline
                .fail_waiting("the producer was shut down before it could be sent"),
        );
        tracing::debug!(nsqd = %self.address, ?leftover, "producer ended");
        self.link.send_replace(Link::Ended(leftover));
    }

    /// Publishes over a connection until it is lost or the producer has ended.
    async fn publish_over(&mut self, connection: Established, leftover: &mut Leftover) -> Result<()> {
        tracing::info!(
            nsqd = %self.address, version = protocol::shown(connection.negotiated.identify.version.as_bytes()),
            tls = connection.negotiated.tls.is_some(), "producer connected"
        );
        self.pipeline.set_unreachable(None);
        self.pipeline.traffic.handle_connected();
        self.link
            .send_replace(Link::Connected(Arc::clone(&connection.negotiated)));
        if let Some(notices) = &self.notices {
            notices.up.ring();
        }
        let role = PublishRole::new(Arc::clone(&self.pipeline), self.encoding.clone());
        let mut driver = Driver::new(connection, role);
        let end = tokio::select! {
            biased;
            () = self.phase.stopping() => Err(Error::new(
                ErrorKind::Shutdown, Step::Publish, "the producer was shut down before nsqd answered",
            )),
            end = &mut driver => end,
        };
        let (role, written) = driver.into_role();
        if let Err(error) = &end {
            leftover.unknown += role.connection_lost(written.may_have_left(), error, self.phase.now());
        }
        end
    }

    fn is_over(&self) -> bool {
        self.phase.is_stopping(Instant::now()) || (self.phase.now() == Phase::Draining && self.pipeline.is_finished())
    }
}

/// Ready once a node without a connection has no reason to make one.
async fn over(phase: &mut PhaseWatch, pipeline: &Pipeline) {
    tokio::select! {
        biased;
        () = phase.stopping() => {}
        () = pipeline.finished() => {}
    }
}

/// What a producer's connection does: sends what waits and resolves it by the answers, which come in order.
struct PublishRole {
    pipeline: Arc<Pipeline>,
    encoding: Encoding,
    turns: Turns,
    /// How many publishes are likely to wait in a moment: those that wait and those whose callers were just woken.
    expected: usize,
    yields: u8,
    wakers: Vec<Waker>,
    /// nsqd refused a command and acts on nothing behind it, so that can be sent again.
    refused: bool,
    /// What was refused for no fault of its own, to be sent again.
    apart: Vec<Entry>,
    /// Wakes the driver when a batch has lingered long enough.
    linger: Option<Pin<Box<Sleep>>>,
}

impl PublishRole {
    fn new(pipeline: Arc<Pipeline>, mut encoding: Encoding) -> Self {
        encoding.max_body_size = encoding.max_body_size.min(pipeline.learnt().body_size);
        Self {
            pipeline,
            encoding,
            turns: Turns::default(),
            expected: 0,
            yields: 0,
            wakers: Vec::new(),
            refused: false,
            apart: Vec::new(),
            linger: None,
        }
    }

    /// Has the driver woken at this time. Ready if it has come.
    fn poll_lingered(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.linger.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(cx)
    }

    /// A batch was refused because of one of its messages, or of its size. Returns whether others than the guilty ones
    /// are to be sent again.
    fn take_apart(&mut self, refusal: &Error, text: &str) -> bool {
        let learnt = self.pipeline.learn(text);
        if self.turns.oldest().len() < 2 {
            return false;
        }
        let refused = self.turns.take_oldest();
        let (mut guilty, mut rest): (Vec<_>, Vec<_>) = refused
            .into_iter()
            .partition(|entry| learnt.is_some_and(|limits| limits.exceeds_msg_size(&entry.payload)));
        let one_is_to_blame = refusal.code() == Some(ErrorCode::BadMessage) || learnt.is_none();
        if guilty.is_empty() && one_is_to_blame {
            // A batch is all or nothing, and only one of its messages is to blame: sent apart, it will be found.
            rest.iter_mut().for_each(|entry| entry.alone = true);
        }
        self.pipeline
            .resolve(&mut guilty, &Err(refusal.clone()), &mut self.wakers);
        self.apart = rest;
        true
    }

    fn resolve(&mut self, outcome: &Result<()>) -> Result<()> {
        let (pipeline, wakers) = (&self.pipeline, &mut self.wakers);
        match self
            .turns
            .answered(|entries| pipeline.resolve(entries, outcome, wakers))
        {
            Some(waiting) => {
                self.expected = waiting;
                Ok(())
            }
            None => Err(Error::new(
                ErrorKind::Protocol,
                Step::Read,
                "an answer came although nothing was asked",
            )),
        }
    }

    /// Resolves or puts back what was unanswered. Returns how many publishes the end of the producer leaves unknown.
    fn connection_lost(mut self, written: u64, error: &Error, phase: Phase) -> usize {
        // After a fatal refusal nsqd reads no further, so nothing behind the refused command was acted on.
        let mut lost = self.turns.lost(if self.refused { 0 } else { written });
        let unknown = self.pipeline.left_unknown(&lost.unknown, phase);
        let (mut pings, mut publishes): (Vec<_>, Vec<_>) =
            lost.unknown.drain(..).partition(|entry| entry.step() == Step::Ping);
        for (step, entries) in [(Step::Publish, &mut publishes), (Step::Ping, &mut pings)] {
            let outcome = if error.kind() == ErrorKind::Shutdown {
                Error::new(
                    ErrorKind::Unknown,
                    step,
                    "the producer was shut down before nsqd answered; the message may have arrived",
                )
            } else {
                Error::new(
                    ErrorKind::Unknown,
                    step,
                    "the connection ended before nsqd answered; the message may have arrived",
                )
                .because(error.clone())
            };
            self.pipeline.resolve(entries, &Err(outcome), &mut self.wakers);
        }
        self.apart.append(&mut lost.unsent);
        self.pipeline.put_back(self.apart);
        self.pipeline.refuse_oversized();
        self.wakers.drain(..).for_each(Waker::wake);
        unknown
    }
}

/// Whether nsqd refused a command because it is exiting, or the topic is being deleted: then it has stored nothing of it.
///
/// It looks whether it is exiting before it stores the first message of a command. Only its disk queue says the same in
/// the middle of an MPUB, when nsqd closes it meanwhile, and nsqd has closed the connections by then.
fn was_exiting(code: ErrorCode, text: &str) -> bool {
    let failed_to_store = matches!(
        code,
        ErrorCode::PubFailed | ErrorCode::MpubFailed | ErrorCode::DpubFailed
    );
    failed_to_store && text.ends_with(" failed exiting")
}

impl Role for PublishRole {
    fn poll_commands(&mut self, cx: &mut Context<'_>, out: &mut WriteBuffer) -> Queued {
        if self.turns.is_full() {
            // The next answer brings the driver here again; until then callers need not wake it.
            return Queued::Nothing;
        }
        let expected = if self.yields < MOST_YIELDS { self.expected } else { 0 };
        match self.pipeline.take(expected, self.turns.scratch(), cx) {
            Taken::Entries => {
                self.expected = 0;
                self.yields = 0;
                let (batches, messages) = self.turns.encode(&self.encoding, out);
                self.pipeline.traffic.handle_sent(batches, messages);
                Queued::Commands
            }
            // Once the time has come, the next look finds that it has.
            Taken::Lingers(until) => match self.poll_lingered(until, cx) {
                Poll::Ready(()) => Queued::SoonMore,
                Poll::Pending => Queued::Nothing,
            },
            Taken::FewerThanExpected => {
                self.yields += 1;
                Queued::SoonMore
            }
            Taken::Nothing => Queued::Nothing,
            Taken::Closed => Queued::Finished,
        }
    }

    fn handle_response(&mut self, data: Bytes) -> Result<()> {
        if data != protocol::OK {
            return Err(Error::new(
                ErrorKind::Protocol,
                Step::Read,
                format!("an answer is {:?} instead of OK", protocol::shown(&data)),
            ));
        }
        self.resolve(&Ok(()))
    }

    fn handle_error(&mut self, code: ErrorCode, text: &str) -> Result<()> {
        if !code.is_fatal() {
            // They are about a message in flight, of which a producer has none: taken for the answer to a publish, one
            // would shift all that follow.
            return Err(Error::new(
                ErrorKind::Protocol,
                Step::Read,
                format!("{code} came, which answers nothing that a producer sends"),
            ));
        }
        // nsqd reads no further after a fatal refusal.
        self.refused = true;
        let oldest = self.turns.oldest();
        let refusal = Error::rejected(oldest.first().map_or(Step::Read, Entry::step), text);
        let about_one_message = matches!(code, ErrorCode::BadMessage | ErrorCode::BadBody);
        let answered = !oldest.is_empty();
        if about_one_message && self.take_apart(&refusal, text) {
            // The rest of the batch goes back to the queue when the connection has ended.
        } else if was_exiting(code, text) {
            // As if it had not left: it goes to the queue again, and from there to the next connection or another nsqd.
            self.apart = self.turns.take_oldest();
        } else if answered {
            // nsqd checks an MPUB as a whole, but then stores message by message: when its disk fails, what came before
            // the failed message stays.
            let outcome = if code == ErrorCode::MpubFailed {
                Error::new(
                    ErrorKind::Unknown,
                    Step::Publish,
                    "nsqd failed while it stored the messages, and may have stored some of them",
                )
                .because(refusal.clone())
            } else {
                refusal.clone()
            };
            self.resolve(&Err(outcome))?;
        }
        Err(refusal)
    }

    fn handle_message(&mut self, _message: Message) -> Result<()> {
        Err(Error::new(
            ErrorKind::Protocol,
            Step::Read,
            "a message came to a producer",
        ))
    }

    fn frames_end(&mut self) {
        if !self.wakers.is_empty() {
            self.expected += self.wakers.len();
            self.wakers.drain(..).for_each(Waker::wake);
        }
    }

    fn is_overdue(&self, at: Instant) -> bool {
        // Answers come in order, so without the oldest one none behind it can come.
        let oldest = self.turns.oldest();
        !oldest.is_empty() && self.pipeline.have_expired(oldest, at)
    }

    fn shrink(&mut self) {
        self.turns.shrink();
        self.wakers = Vec::new();
    }
}
