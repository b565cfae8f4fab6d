//! Answers on their way from a worker to the connections that delivered the messages.

use std::sync::Arc;

use crate::consumer::link::{Command, Link};

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

    /// Room for answers, if there is none. It is empty.
    pub(in crate::consumer) fn put_room(&mut self, room: impl FnOnce() -> Option<Vec<Command>>) {
        if self.commands.capacity() == 0 {
            self.commands = room().unwrap_or_default();
        }
    }

    /// Takes the room once all is handed over, if it is for more than so many.
    pub(in crate::consumer) fn take_large_room(&mut self, small: usize) -> Vec<Command> {
        if self.commands.capacity() > small {
            std::mem::take(&mut self.commands)
        } else {
            Vec::new()
        }
    }

    /// Adds one; those of another connection are handed over. Returns whether that has woken a driver.
    #[inline]
    pub(in crate::consumer) fn push(&mut self, link: &Arc<Link>, command: Command) -> bool {
        let mut woken = false;
        // Messages of one read lie side by side, so this changes rarely.
        if self.link.as_ref().is_none_or(|last| !Arc::ptr_eq(last, link)) {
            woken = self.hand_over();
            self.link = Some(Arc::clone(link));
        }
        self.commands.push(command);
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
