//! What is measured, in the process that is measured.

use std::fs;
use std::time::Instant;

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

use crate::allocations;
use crate::latency::Latency;
use crate::memory::Memory;

/// A clock that has been started: the wall's, and what this process has used.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    wall: Instant,
    // `None` where the system does not tell.
    usage: Option<Usage>,
    allocations: u64,
}

/// What a number of messages took. The Go program prints the same fields.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) messages: u64,
    pub(crate) seconds: f64,
    /// User and system time of all threads.
    pub(crate) cpu_seconds: f64,
    /// Context switches of all threads, given up or taken away.
    pub(crate) switches: i64,
    /// The high-water mark of the process's resident memory, from its start.
    pub(crate) peak_kib: u64,
    /// Calls of the allocator, where they were counted.
    #[serde(default)]
    pub(crate) allocations: u64,
    /// From publishing to handling, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) latency: Option<Latency>,
    /// Where that was the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Memory>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            allocations: allocations::counted(),
            usage: getrusage(UsageWho::RUSAGE_SELF).ok(),
            wall: Instant::now(),
        }
    }

    /// What has passed until now, for so many messages.
    pub(crate) fn stop(self, messages: u64) -> Span {
        let seconds = self.wall.elapsed().as_secs_f64();
        let now = getrusage(UsageWho::RUSAGE_SELF).ok();
        let passed = |value: fn(&Usage) -> i64| match (&self.usage, &now) {
            (Some(before), Some(now)) => value(now) - value(before),
            _ => 0,
        };
        let microseconds =
            passed(|usage| usage.user_time().num_microseconds() + usage.system_time().num_microseconds());
        Span {
            messages,
            seconds,
            cpu_seconds: microseconds as f64 / 1e6,
            switches: passed(|usage| usage.voluntary_context_switches() + usage.involuntary_context_switches()),
            allocations: allocations::counted() - self.allocations,
            // That of `getrusage` may be the launching process's.
            peak_kib: status_kib("VmHWM:").unwrap_or(0),
            latency: None,
            memory: None,
        }
    }
}

/// What the system says of this program's memory.
pub(crate) fn status_kib(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
