//! What the broker has received, as far back as it is told to remember.

use std::collections::VecDeque;

use bytes::Bytes;

use super::stats::Received;
use crate::protocol::Command;

/// How many bytes the record may hold on to.
const MAX_BYTES: usize = 64 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Record {
    capacity: usize,
    commands: VecDeque<Received>,
    bytes: usize,
}

impl Record {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            commands: VecDeque::new(),
            bytes: 0,
        }
    }

    pub(super) fn is_off(&self) -> bool {
        self.capacity == 0
    }

    pub(super) fn push(&mut self, received: Received) {
        self.bytes += body_bytes(&received.command);
        self.commands.push_back(received);
        while self.commands.len() > self.capacity || self.bytes > MAX_BYTES {
            let Some(oldest) = self.commands.pop_front() else {
                return;
            };
            self.bytes -= body_bytes(&oldest.command);
        }
    }

    pub(super) fn all(&self) -> Vec<Received> {
        self.commands.iter().cloned().collect()
    }

    pub(super) fn find(&self, wanted: impl FnMut(&&Received) -> bool) -> Option<Received> {
        self.commands.iter().find(wanted).cloned()
    }

    pub(super) fn clear(&mut self) {
        self.commands.clear();
        self.bytes = 0;
    }
}

fn body_bytes(command: &Command) -> usize {
    match command {
        Command::Identify { body } | Command::Pub { body, .. } | Command::Dpub { body, .. } => body.len(),
        Command::Auth { secret } => secret.reveal().len(),
        // Each body of an MPUB is an allocation's handle as well.
        Command::Mpub { bodies, .. } => bodies.iter().map(|body| body.len() + size_of::<Bytes>()).sum(),
        _ => 0,
    }
}
