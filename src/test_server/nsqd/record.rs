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
    /// How many were recorded so far, those included that are forgotten.
    total: u64,
}

impl Record {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            commands: VecDeque::new(),
            bytes: 0,
            total: 0,
        }
    }

    pub(super) fn is_off(&self) -> bool {
        self.capacity == 0
    }

    pub(super) fn push(&mut self, received: Received) {
        self.bytes += body_bytes(&received.command);
        self.commands.push_back(received);
        self.total += 1;
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

    /// What was recorded after the first `seen`, as far as it is not forgotten, and how many were recorded in all.
    pub(super) fn since(&self, seen: u64) -> (Vec<Received>, u64) {
        let new = usize::try_from(self.total.saturating_sub(seen)).unwrap_or(usize::MAX);
        let known = self.commands.len().saturating_sub(new);
        (self.commands.iter().skip(known).cloned().collect(), self.total)
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
