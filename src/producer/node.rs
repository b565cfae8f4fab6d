//! The task that keeps a producer connected to its nsqd.

use std::sync::Arc;
use std::task::{Context, Waker};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::batch::{Encoding, Turns};
use super::pipeline::{Entry, Pipeline, Taken};
use crate::backoff::Reconnect;
use crate::config::ConnectionConfig;
use crate::connection::{Driver, Queued, Role, WriteBuffer, open};
use crate::error::{Error, ErrorKind, Result, Step};
use crate::protocol::{self, ErrorCode, Message};

/// How often a turn is put off for callers that were just woken. They come back within microseconds; those that do
/// not are not waited for.
const MOST_YIELDS: u8 = 4;

/// How far a producer has been shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Running,
    /// Nothing further is accepted; what is pending goes on.
    Draining,
    /// What is still pending is to be resolved at once.
    Stopping,
}

/// What is known of the connection.
#[derive(Clone, Debug)]
pub(super) enum Link {
    Connecting,
    Connected,
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

pub(super) struct Node {
    pub(super) config: ConnectionConfig,
    pub(super) encoding: Encoding,
    pub(super) address: Arc<str>,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) link: watch::Sender<Link>,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Also when the task is dropped with its runtime: no caller is left waiting (P3).
        self.pipeline
            .end(Error::new(ErrorKind::NotSent, Step::Publish, "the producer has ended"));
    }
}

impl Node {
    /// Connects, and connects again whenever the connection is lost, until the producer is shut down.
    pub(super) async fn run(mut self) {
        let mut reconnect = Reconnect::new(fastrand::u64(..));
        let mut leftover = Leftover::default();
        while !self.is_over() {
            let mut phase = self.phase.clone();
            let opened = tokio::select! {
                biased;
                () = stopping(&mut phase) => break,
                opened = open(&self.config, &self.address, None) => opened,
            };
            let error = match opened {
                Ok(connection) => {
                    tracing::info!(nsqd = %self.address, "producer connected");
                    reconnect.handle_connected(Instant::now().into_std());
                    self.pipeline.set_unreachable(None);
                    self.link.send_replace(Link::Connected);
                    let role = PublishRole::new(Arc::clone(&self.pipeline), self.encoding.clone());
                    let mut driver = Driver::new(connection, role);
                    let end = tokio::select! {
                        biased;
                        () = stopping(&mut phase) => Err(Error::new(
                            ErrorKind::Shutdown, Step::Publish, "the producer was shut down before nsqd answered",
                        )),
                        end = &mut driver => end,
                    };
                    let (role, written) = driver.into_role();
                    match end {
                        // The role has finished: nothing is pending.
                        Ok(()) => break,
                        Err(error) => {
                            let unknown = role.connection_lost(written.written(), &error);
                            if *self.phase.borrow() != Phase::Running {
                                leftover.unknown += unknown;
                            }
                            reconnect.handle_lost(Instant::now().into_std());
                            error
                        }
                    }
                }
                Err(error) => error,
            };
            if self.is_over() {
                break;
            }
            let delay = reconnect.next_delay();
            tracing::warn!(nsqd = %self.address, %error, retry_in = ?delay, "producer is not connected");
            self.pipeline.set_unreachable(Some(error.clone()));
            self.link.send_replace(Link::Lost(error));
            tokio::select! {
                biased;
                () = stopping(&mut phase) => {}
                () = sleep(delay) => {}
            }
        }
        leftover.not_sent = self
            .pipeline
            .fail_waiting("the producer was shut down before it could be sent");
        tracing::debug!(nsqd = %self.address, ?leftover, "producer ended");
        self.link.send_replace(Link::Ended(leftover));
    }

    fn is_over(&mut self) -> bool {
        let phase = *self.phase.borrow_and_update();
        phase == Phase::Stopping || (phase == Phase::Draining && self.pipeline.is_finished())
    }
}

async fn stopping(phase: &mut watch::Receiver<Phase>) {
    // The sender lives as long as any handle of the producer; without handles nobody waits for anything.
    let _all_handles_gone = phase.wait_for(|phase| *phase == Phase::Stopping).await;
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
    /// The messages of a refused batch, to be sent again one by one.
    apart: Vec<Entry>,
}

impl PublishRole {
    fn new(pipeline: Arc<Pipeline>, encoding: Encoding) -> Self {
        Self {
            pipeline,
            encoding,
            turns: Turns::default(),
            expected: 0,
            yields: 0,
            wakers: Vec::new(),
            refused: false,
            apart: Vec::new(),
        }
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

    /// Resolves or puts back what was unanswered. Returns how many publishes stay unknown.
    fn connection_lost(mut self, written: u64, error: &Error) -> usize {
        // After a fatal refusal nsqd reads no further, so nothing behind the refused command was acted on.
        let mut lost = self.turns.lost(if self.refused { 0 } else { written });
        let unknown = lost.unknown.len();
        let outcome = Err(Error::new(
            ErrorKind::Unknown,
            Step::Publish,
            "the connection ended before nsqd answered; the message may have arrived",
        )
        .because(error.clone()));
        self.pipeline.resolve(&mut lost.unknown, &outcome, &mut self.wakers);
        self.apart.append(&mut lost.unsent);
        self.pipeline.put_back(self.apart);
        self.wakers.drain(..).for_each(Waker::wake);
        unknown
    }
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
                self.turns.encode(&self.encoding, out);
                Queued::Commands
            }
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
                format!("an answer is {:?} instead of OK", data.escape_ascii().to_string()),
            ));
        }
        self.resolve(&Ok(()))
    }

    fn handle_error(&mut self, code: ErrorCode, text: &str) -> Result<()> {
        let refusal = Error::rejected(Step::Publish, text);
        self.refused = code.is_fatal();
        let about_one_message = matches!(code, ErrorCode::BadMessage | ErrorCode::BadBody);
        if about_one_message && self.turns.oldest_len().is_some_and(|len| len > 1) {
            // A batch is all or nothing, and only one of its messages is to blame: sent apart, it will be found.
            self.apart = self.turns.take_oldest();
            self.apart.iter_mut().for_each(|entry| entry.alone = true);
        } else if !self.turns.is_empty() {
            self.resolve(&Err(refusal.clone()))?;
        }
        if code.is_fatal() { Err(refusal) } else { Ok(()) }
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

    fn shrink(&mut self) {
        self.turns.shrink();
        self.wakers = Vec::new();
    }
}
