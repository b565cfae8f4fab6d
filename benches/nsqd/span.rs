//! What is measured.

use std::time::{Duration, Instant};

use cpu_time::ProcessTime;

/// A clock that has been started: the wall's, and this process's own.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    wall: Instant,
    cpu: ProcessTime,
}

/// What a number of messages took.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    messages: u64,
    wall: Duration,
    cpu: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            wall: Instant::now(),
            cpu: ProcessTime::now(),
        }
    }

    /// What has passed until now, for so many messages.
    pub(crate) fn stop(self, messages: u64) -> Span {
        Span {
            messages,
            wall: self.wall.elapsed(),
            cpu: self.cpu.elapsed(),
        }
    }
}

impl Span {
    pub(crate) fn messages_per_second(&self) -> f64 {
        self.messages as f64 / self.wall.as_secs_f64()
    }

    /// Microseconds of processor time per message, user and system.
    pub(crate) fn cpu_per_message(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.messages as f64
    }
}
