//! The machine that was measured on.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::available_parallelism;

use serde::Serialize;

use crate::system_calls;

/// No path and no name of a host.
#[derive(Serialize)]
pub(crate) struct Machine {
    processors: usize,
    model: String,
    kernel: String,
    nsqd: String,
    go: String,
    rust: String,
    /// What counted the system calls.
    system_calls: &'static str,
}

impl Machine {
    pub(crate) fn describe(nsqd: &Path) -> Self {
        Self {
            processors: available_parallelism().map_or(0, usize::from),
            model: model().unwrap_or_else(unknown),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| unknown(), |text| text.trim().into()),
            nsqd: says(Command::new(nsqd).arg("--version")),
            go: says(Command::new("go").arg("version")),
            rust: says(Command::new("rustc").arg("--version")),
            system_calls: system_calls::tool_name(),
        }
    }

    /// As sentences under the table.
    pub(crate) fn lines(&self) -> String {
        format!(
            "{} processors ({}), Linux {}, everything on loopback; {}; {}; {}. System calls counted by {}.",
            self.processors, self.model, self.kernel, self.nsqd, self.go, self.rust, self.system_calls
        )
    }
}

/// Puts this process, and all that it starts from now on, before others that want a processor. Whoever may not do that
/// measures all the same, and needs a machine that is quiet.
pub(crate) fn put_first() {
    let process = std::process::id().to_string();
    let renice = Command::new("renice")
        .args(["-n", "-10", "-p", &process])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !renice.is_ok_and(|status| status.success()) {
        eprintln!("renice does not work here: other programs will disturb the measurements");
    }
}

fn unknown() -> String {
    "unknown".into()
}

fn model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The first line that a program prints.
fn says(command: &mut Command) -> String {
    let output = command.output().ok();
    let line = output.and_then(|output| Some(String::from_utf8(output.stdout).ok()?.lines().next()?.to_owned()));
    line.unwrap_or_else(unknown)
}
