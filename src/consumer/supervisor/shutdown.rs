//! How a consumer ends: stop delivery, give back what is not begun, let handlers end, write every answer, report.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::mailbox::Event;
use super::{Supervisor, pass_on};
use crate::consumer::link::{Command, Purpose};
use crate::consumer::state::{ConsumerReport, MessageRef};

/// Of the time for a shutdown, what is kept for writing the answers of handlers that used up the rest: a tenth, at
/// most this much.
const MOST_FOR_WRITING: Duration = Duration::from_secs(1);

/// How long a consumer that was dropped may take to write its answers, in the background.
const AFTER_DROP: Duration = Duration::from_secs(5);

/// The longest that nsqd lets a message be in flight, however often it is touched: `max-msg-timeout` is 15 min by default.
const LONGEST_PATIENCE: Duration = Duration::from_secs(3600);

impl Supervisor {
    /// Ends the consumer by `deadline`. Without one its handle was dropped, and handlers are stopped at once.
    pub(in crate::consumer) async fn shut_down(mut self, deadline: Option<Instant>) {
        let now = Instant::now();
        self.stop_delivery();
        let end = match deadline {
            Some(deadline) => {
                let time = deadline.saturating_duration_since(now);
                let handlers_until = deadline - (time / 10).min(MOST_FOR_WRITING);
                self.await_handlers(handlers_until).await;
                self.stop_handlers(deadline).await;
                deadline
            }
            None => {
                self.stop_handlers(now + AFTER_DROP).await;
                self.await_holders().await;
                Instant::now() + AFTER_DROP
            }
        };
        self.give_back_held();
        let unclosed = self.close_connections(end).await;
        self.publish_report(unclosed);
    }

    fn stop_delivery(&mut self) {
        self.discovery = None;
        for reins in self.nodes.values() {
            reins.leave.send_replace(true);
        }
        for known in self.links.values() {
            let _lost_with_its_connection = known.link.send(Command::StartClose);
        }
        for unstarted in self.shared.inbox.close() {
            let give_back = Command::give_back(unstarted.message.id, Purpose::Unstarted);
            let _lost_with_its_connection = unstarted.link.send(give_back);
        }
        self.give_back_parked();
    }

    /// Waits for the workers, which end once their handlers have, and for those who hold messages.
    async fn await_handlers(&mut self, until: Instant) {
        while !self.workers.is_empty() || self.shared.desk.holds_any() {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until) => break,
                _ended = self.workers.join_next(), if !self.workers.is_empty() => {}
                () = self.shared.desk.mailbox.arrived() => self.pass_answers_on(),
            }
        }
        self.pass_answers_on();
    }

    /// The consumer was dropped, but somebody may still hold messages of its own: they can be answered as long as any nsqd
    /// could wait for that.
    async fn await_holders(&mut self) {
        let patience = self.links.values().map(|known| known.link.max_msg_timeout).max();
        let until = Instant::now() + patience.unwrap_or_default().min(LONGEST_PATIENCE);
        while self.shared.desk.holds_any() {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until) => break,
                () = self.shared.desk.mailbox.arrived() => self.pass_answers_on(),
            }
        }
    }

    /// Stops the handlers that remain; their messages are given back. Those that cannot be stopped, because they block
    /// their threads, keep theirs until nsqd takes them back.
    async fn stop_handlers(&mut self, end: Instant) {
        self.workers.abort_all();
        let now = Instant::now();
        // Half of what is left: one that cannot be stopped must not take the time to write what the others have said.
        let until = now + end.saturating_duration_since(now) / 2;
        while let Ok(Some(_stopped)) = timeout_at(until, self.workers.join_next()).await {}
        self.pass_answers_on();
    }

    /// Gives back what waits for another delivery of the same message.
    fn give_back_parked(&self) {
        if let Some(duplicates) = &self.shared.desk.duplicates {
            duplicates.give_back(&self.shared.desk);
        }
    }

    /// Gives back what somebody holds; it can be answered by nobody else any more.
    fn give_back_held(&self) {
        // A message that a handler had when delivery stopped may have parked one since.
        self.give_back_parked();
        for held in self.shared.desk.take_held() {
            self.shared.desk.abandon(&held.link, held.id);
        }
    }

    /// Closes the connections once everything is written. Returns how many did not make it in time.
    async fn close_connections(&mut self, end: Instant) -> usize {
        for known in self.links.values() {
            let _lost_with_its_connection = known.link.send(Command::Close);
        }
        loop {
            tokio::select! {
                biased;
                ended = self.node_tasks.join_next() => {
                    if ended.is_none() {
                        break;
                    }
                }
                () = self.shared.desk.mailbox.arrived() => self.pass_answers_on(),
                () = tokio::time::sleep_until(end) => break,
            }
        }
        self.pass_answers_on();
        let unclosed = self.node_tasks.len();
        self.node_tasks.abort_all();
        unclosed
    }

    /// The flow has nothing to decide any more, so answers need not wait for it.
    fn pass_answers_on(&mut self) {
        for event in self.shared.desk.mailbox.take() {
            match event {
                Event::Handled {
                    link, answer, written, ..
                } => pass_on(&link, answer, written),
                Event::Refused(refused) => self.shared.desk.tell_refused(&refused),
                Event::Connected { link, .. } => {
                    link.leave();
                }
                Event::Lost {
                    link: Some(link),
                    unflushed,
                    ..
                } => {
                    self.broken += usize::from(unflushed);
                    self.retire(&link);
                }
                Event::Lost { .. } => {}
            }
        }
    }

    /// The messages whose handlers were stopped, those that nobody answered, and those whose handlers cannot be stopped.
    fn abandoned(&self) -> Vec<MessageRef> {
        let mut abandoned = std::mem::take(&mut *self.shared.desk.abandoned());
        for (connection, id) in self.shared.inbox.handling() {
            let known = self.links.get(&connection).map(|known| &known.link.address);
            if let Some(nsqd) = known.or_else(|| self.outlived.get(&connection)) {
                let still_running = MessageRef {
                    nsqd: Arc::clone(nsqd),
                    id,
                };
                // It may have been stopped at this very moment.
                if !abandoned.contains(&still_running) {
                    abandoned.push(still_running);
                }
            }
        }
        abandoned
    }

    fn publish_report(&self, unclosed: usize) {
        let counts = &self.shared.desk.counts;
        let report = ConsumerReport {
            finished: counts.finished.load(Ordering::Relaxed),
            requeued: counts.requeued.load(Ordering::Relaxed),
            given_up: counts.given_up.load(Ordering::Relaxed),
            duplicates: counts.duplicates.load(Ordering::Relaxed),
            returned: counts.returned.load(Ordering::Relaxed),
            timed_out: counts.timed_out.load(Ordering::Relaxed),
            handler_timeouts: counts.handler_timeouts.load(Ordering::Relaxed),
            refused: counts.refused.load(Ordering::Relaxed),
            unsent: counts.unsent.load(Ordering::Relaxed),
            abandoned: self.abandoned(),
            unflushed: unclosed + self.broken,
        };
        tracing::info!(?report, "consumer ended");
        self.state.send_modify(|state| {
            state.links.clear();
            state.report = Some(report);
        });
    }
}
