//! Answers on their way from a worker to the connections that delivered the messages.

use std::sync::Arc;

use crate::consumer::link::{Command, Link};

/// What nsqd is told of a message, and the connection that delivered it.
#[derive(Debug)]
pub(in crate::consumer) struct Answer {
    pub(in crate::consumer) link: Arc<Link>,
    pub(in crate::consumer) command: Command,
}

/// Answers of one connection that are handed over together.
#[derive(Debug, Default)]
pub(in crate::consumer) struct Answers {
    link: Option<Arc<Link>>,
    commands: Vec<Command>,
}

impl Answers {
    pub(in crate::consumer) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    pub(in crate::consumer) fn len(&self) -> usize {
        self.commands.len()
    }

    /// Gives back what a burst has made it grow to, and lets go of a connection that may be long gone.
    pub(in crate::consumer) fn shrink(&mut self) {
        if self.commands.is_empty() {
            *self = Self::default();
        }
    }

    /// Adds one; those of another connection are handed over. Returns whether that has woken a driver.
    pub(in crate::consumer) fn push(&mut self, answer: Answer) -> bool {
        let mut woken = false;
        // Messages of one read lie side by side, so this changes rarely.
        if self.link.as_ref().is_none_or(|link| !Arc::ptr_eq(link, &answer.link)) {
            woken = self.hand_over();
            self.link = Some(answer.link);
        }
        self.commands.push(answer.command);
        woken
    }

    /// Returns whether a driver was asleep and has been woken.
    pub(in crate::consumer) fn hand_over(&mut self) -> bool {
        match &self.link {
            Some(link) if !self.commands.is_empty() => link.send_all(&mut self.commands),
            _ => false,
        }
    }
}
