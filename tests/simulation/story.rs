//! What happened, in one order for the whole cluster, and what it broke.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::Hasher;
use std::time::Duration;

/// How many of the last events a failure shows.
const SHOWN: usize = 250;

#[derive(Debug, Default)]
pub struct Story {
    digest: DefaultHasher,
    last: VecDeque<String>,
    /// The time outside of the hosts.
    pub clock: Duration,
    /// Everything, for a run that is compared with another.
    pub complete: Option<Vec<String>>,
    pub events: u64,
    violations: Vec<String>,
}

impl Story {
    pub fn note(&mut self, event: fmt::Arguments<'_>) {
        let line = format!("{:>9.3} {event}", self.now().as_secs_f64());
        self.digest.write(line.as_bytes());
        self.events += 1;
        if let Some(complete) = &mut self.complete {
            complete.push(line.clone());
        }
        if self.last.len() == SHOWN {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    pub fn broken(&mut self, promise: fmt::Arguments<'_>) {
        self.note(format_args!("BROKEN: {promise}"));
        if self.violations.len() < 10 {
            self.violations
                .push(format!("at {:.3} s: {promise}", self.now().as_secs_f64()));
        }
    }

    /// # Errors
    /// What was broken so far.
    pub fn judge(&self) -> Result<(), String> {
        if self.violations.is_empty() {
            return Ok(());
        }
        Err(self.violations.join("\n"))
    }

    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// The last events.
    pub fn text(&self) -> String {
        self.last.iter().map(|line| format!("{line}\n")).collect()
    }

    fn now(&self) -> Duration {
        turmoil::sim_elapsed().unwrap_or(self.clock)
    }
}
