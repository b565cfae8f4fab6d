//! How a consumer ends: stop delivery, give back what is not begun, let handlers end, write every answer, report.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::link::Command;
use super::mailbox::Event;
use super::state::ConsumerReport;
use super::supervisor::Supervisor;

/// Of the time for a shutdown, what is kept for writing the answers of handlers that used up the rest: a tenth, at
/// most this much.
const MOST_FOR_WRITING: Duration = Duration::from_secs(1);

/// How long a consumer that was dropped may take to write its answers, in the background.
const AFTER_DROP: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Ends the consumer by `deadline`. Without one its handle was dropped, and handlers are stopped at once.
    pub(super) async fn shut_down(mut self, deadline: Option<Instant>) {
        let now = Instant::now();
        let (handlers_until, end) = match deadline {
            Some(deadline) => {
                let time = deadline.saturating_duration_since(now);
                (deadline - (time / 10).min(MOST_FOR_WRITING), deadline)
            }
            None => (now, now + AFTER_DROP),
        };
        self.stop_delivery();
        self.await_handlers(handlers_until).await;
        let still_running = self.stop_handlers(end).await;
        let unclosed = self.close_connections(end).await;
        self.publish_report(still_running, unclosed);
    }

    fn stop_delivery(&mut self) {
        self.discovery = None;
        for leave in self.nodes.values() {
            leave.send_replace(true);
        }
        for known in self.links.values() {
            let _lost_with_its_connection = known.link.send(Command::StartClose);
        }
        for unstarted in self.shared.inbox.close() {
            self.shared.counts.returned.fetch_add(1, Ordering::Relaxed);
            // Not begun, so no attempt of ours was spent: another consumer may have it at once.
            let _lost_with_its_connection = unstarted.link.send(Command::Requeue {
                id: unstarted.message.id,
                delay_ms: 0,
            });
        }
    }

    /// Waits for the workers, which end once their handlers have.
    async fn await_handlers(&mut self, until: Instant) {
        while !self.workers.is_empty() {
            tokio::select! {
                _ended = self.workers.join_next() => {}
                () = self.shared.mailbox.arrived() => self.pass_answers_on(),
                () = tokio::time::sleep_until(until) => break,
            }
        }
        self.pass_answers_on();
    }

    /// Stops the handlers that remain; their messages are given back. Returns how many could not be stopped, because
    /// they block their threads.
    async fn stop_handlers(&mut self, end: Instant) -> usize {
        self.workers.abort_all();
        let now = Instant::now();
        // Half of what is left: one that cannot be stopped must not take the time to write what the others have said.
        let until = now + end.saturating_duration_since(now) / 2;
        while let Ok(Some(_stopped)) = timeout_at(until, self.workers.join_next()).await {}
        self.pass_answers_on();
        self.shared.inbox.handling()
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
                () = self.shared.mailbox.arrived() => self.pass_answers_on(),
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
        for event in self.shared.mailbox.take() {
            match event {
                Event::Handled { link, answer, .. } => {
                    let _lost_with_its_connection = link.send(answer);
                }
                Event::Connected { link, .. } => {
                    link.leave();
                }
                Event::Lost {
                    link: Some(link),
                    unflushed,
                    ..
                } => {
                    self.broken += usize::from(unflushed);
                    self.links.remove(&link.id);
                    self.state.send_modify(|state| state.retire(&link));
                }
                Event::Lost { .. } => {}
            }
        }
    }

    fn publish_report(&self, still_running: usize, unclosed: usize) {
        let counts = &self.shared.counts;
        let report = ConsumerReport {
            finished: counts.finished.load(Ordering::Relaxed),
            requeued: counts.requeued.load(Ordering::Relaxed),
            given_up: counts.given_up.load(Ordering::Relaxed),
            returned: counts.returned.load(Ordering::Relaxed),
            abandoned: counts.abandoned.load(Ordering::Relaxed) + still_running as u64,
            unflushed: unclosed + self.broken,
        };
        tracing::info!(?report, "consumer ended");
        self.state.send_modify(|state| {
            state.links.clear();
            state.report = Some(report);
        });
    }
}
