//! What one worker has taken.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::run::Run;
use super::state::State;
use crate::consumer::flow::ConnectionId;
use crate::consumer::work::answers::Answers;
use crate::protocol::MessageId;

/// What one worker has taken and not begun, and the answers that it has not handed over. Both are kept where they can
/// be taken from a worker whose handler blocks its thread.
#[derive(Debug, Default)]
pub(super) struct Group {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
pub(super) struct Taken {
    /// What is left of a run, or was of the last.
    pub(super) run: Option<Run>,
    pub(super) answers: Answers,
    /// Whether the worker counts among those that return.
    pub(super) returning: bool,
    /// The message that the worker is handling.
    pub(super) handling: Option<(ConnectionId, MessageId)>,
    /// Likewise, if it handles several at once.
    pub(super) batch: Vec<(ConnectionId, MessageId)>,
    /// Whether the handler is being polled, so that it has the thread.
    pub(super) polled: bool,
    /// Whether it was found not to have moved.
    pub(super) stuck: bool,
    /// Whether the worker has taken a message, or polled its handler, since the last look.
    pub(super) moved: bool,
}

impl Group {
    pub(super) fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    pub(super) fn shrink(&mut self) {
        if let Some(run) = self.run.as_mut().filter(|run| run.messages.is_empty()) {
            run.messages = VecDeque::new();
        }
        self.answers.shrink();
    }

    pub(super) fn holds_any(&self) -> bool {
        !(self.answers.is_empty() && self.run.as_ref().is_none_or(|run| run.messages.is_empty()))
    }

    /// The part of the run that is not begun.
    pub(super) fn take_rest(&mut self) -> Option<Run> {
        let run = self.run.as_mut().filter(|run| !run.messages.is_empty())?;
        Some(Run {
            link: Arc::clone(&run.link),
            delivered_at: run.delivered_at,
            messages: std::mem::take(&mut run.messages),
        })
    }

    pub(super) fn give_back_to(&mut self, state: &mut State) {
        // If it was a part, the worker keeps its room for the next.
        if let (Some(run), Some(front)) = (&mut self.run, state.runs.front_mut()) {
            if run.is_part_of(front) {
                return front.prepend(run);
            }
        }
        if let Some(rest) = self.take_rest() {
            state.runs.push_front(rest);
        }
    }

    pub(super) fn set_returning(&mut self, state: &mut State, returning: bool) {
        if std::mem::replace(&mut self.returning, returning) != returning {
            if returning {
                state.returning += 1;
            } else {
                state.returning -= 1;
            }
        }
    }
}
