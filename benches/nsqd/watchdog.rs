//! Ends what a benchmark has started when the benchmark itself is ended, by whatever signal.

use std::process::{Child, Command, Stdio};

/// Waits for the end of its input, which comes when the benchmark is gone, and kills its first argument.
const SCRIPT: &str = "trap '' INT TERM HUP; read -r end; kill -s KILL -- \"$0\" 2>/dev/null";

/// A shell that outlives this program for just as long as it takes to kill another. Dropping it calls it off.
pub(crate) struct Watchdog(Child);

impl Watchdog {
    /// Watches over one process. `None` where there is no shell: then what a signal leaves behind stays.
    pub(crate) fn over_process(process: u32) -> Option<Self> {
        Self::over(&process.to_string())
    }

    /// Watches over the group that this process leads.
    pub(crate) fn over_group(leader: u32) -> Option<Self> {
        Self::over(&format!("-{leader}"))
    }

    fn over(target: &str) -> Option<Self> {
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, target])
            // Only this program holds the other end, and the system closes it for whoever is killed.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        shell.ok().map(Self)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
