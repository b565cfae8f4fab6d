//! The messages that wait, and the workers that wait for some.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use super::Pace;
use super::run::Run;
use super::spares::Spares;
use crate::consumer::link::Command;

/// The most that one worker takes at once: more than a read brings of small messages. What takes it long it shares.
const LARGEST_TAKE: usize = 1024;

/// Workers that have grown back to more than this many messages at once have no use for company any more.
const EAGER_TAKE: usize = 4;

/// A worker that waits keeps room for so many messages, and for so many answers.
pub(super) const SMALL: usize = 16;

/// How many emptied queues are kept for the answers of the next workers.
const SPARE_ANSWERS: usize = 4;

#[derive(Debug)]
pub(super) struct State {
    pub(super) runs: VecDeque<Run>,
    /// What workers have emptied, for whoever is next: with one for each worker, memory would grow by and by.
    pub(super) spares: Spares,
    pub(super) spare_answers: Vec<Vec<Command>>,
    /// The workers that wait for messages, the last to come first to go: it is the likeliest to be warm.
    pub(super) idle: Vec<(usize, Waker)>,
    /// Whether each worker is listed there.
    pub(super) listed: Vec<bool>,
    /// How many messages a worker takes; adapts to how handlers behave.
    pub(super) limit: usize,
    /// Handlers keep their threads busy: a worker that leaves messages behind wakes the next one before it begins.
    /// (Where handlers wait, the wait itself wakes the next one, for less.)
    pub(super) eager: bool,
    /// How many workers are at work on quick messages, so that they soon come back for more.
    pub(super) returning: usize,
    /// Whether any worker has taken messages since the last look.
    pub(super) moved: bool,
    pub(super) closed: bool,
}

impl State {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            runs: VecDeque::new(),
            spares: Spares::default(),
            spare_answers: Vec::new(),
            idle: Vec::new(),
            listed: vec![false; workers],
            limit: 1,
            eager: false,
            returning: 0,
            moved: false,
            closed: false,
        }
    }

    /// A worker waits for messages, perhaps once more.
    pub(super) fn list(&mut self, worker: usize, waker: &Waker) {
        if std::mem::replace(&mut self.listed[worker], true) {
            if let Some((_, listed)) = self.idle.iter_mut().find(|(idle, _)| *idle == worker) {
                listed.clone_from(waker);
            }
        } else {
            self.idle.push((worker, waker.clone()));
        }
    }

    /// A worker has come, perhaps by itself, so that it is still listed.
    pub(super) fn unlist(&mut self, worker: usize) {
        if std::mem::replace(&mut self.listed[worker], false) {
            self.idle.retain(|(idle, _)| *idle != worker);
        }
    }

    /// A worker to wake.
    pub(super) fn pop_idle(&mut self) -> Option<(usize, Waker)> {
        let next = self.idle.pop();
        if let Some((worker, _)) = next {
            self.listed[worker] = false;
        }
        next
    }

    /// Takes from the run that came first as much as a worker is to take. `taken` is what the worker has emptied. Returns
    /// whether there was anything.
    pub(super) fn take_run(&mut self, taken: &mut Option<Run>) -> bool {
        match self.runs.front_mut() {
            Some(front) if front.messages.len() > self.limit => {
                let mut messages = taken.take().map(|run| run.messages).unwrap_or_default();
                if messages.capacity() == 0 {
                    messages = self.spares.pop().unwrap_or_default();
                }
                messages.extend(front.messages.drain(..self.limit));
                *taken = Some(Run {
                    link: Arc::clone(&front.link),
                    delivered_at: front.delivered_at,
                    messages,
                });
                true
            }
            Some(_) => {
                let emptied = std::mem::replace(taken, self.runs.pop_front());
                self.spares.keep(emptied.map(|run| run.messages).unwrap_or_default());
                true
            }
            None => {
                if let Some(run) = taken.as_mut().filter(|run| run.messages.capacity() > SMALL) {
                    self.spares.keep(std::mem::take(&mut run.messages));
                }
                false
            }
        }
    }

    /// A worker has handed over its answers, and this is the room that they had.
    pub(super) fn keep_answers(&mut self, emptied: Vec<Command>) {
        if emptied.capacity() > 0 && self.spare_answers.len() < SPARE_ANSWERS {
            self.spare_answers.push(emptied);
        }
    }

    /// A worker is through with a group that went at this pace.
    pub(super) fn adapt(&mut self, pace: Pace) {
        self.limit = match pace {
            Pace::Quick => (self.limit * 2).min(LARGEST_TAKE),
            Pace::Waited => (self.limit / 2).max(1),
            Pace::Busy => 1,
        };
        self.eager = match pace {
            Pace::Quick => self.eager && self.limit <= EAGER_TAKE,
            Pace::Waited => false,
            Pace::Busy => true,
        };
    }

    /// Gives back what a burst has made the queues grow to.
    pub(super) fn shrink(&mut self) {
        (self.spares, self.spare_answers) = (Spares::default(), Vec::new());
        if self.runs.is_empty() {
            self.runs = VecDeque::new();
        }
    }
}
