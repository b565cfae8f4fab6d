//! Counts the system calls of a program from outside, with `perf` or else `strace`, whichever works here.
//!
//! Both count the program's start too. `perf` hardly disturbs; `strace` stops the program at each call, which changes
//! how much it sends at once: read its figures as ±50 %.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::NamedTempFile;

use crate::Result;

/// What counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tool {
    Perf,
    Strace,
}

/// Where the count will be when the program has ended.
pub(crate) struct Counter(Option<(Tool, NamedTempFile)>);

/// The same command, counted if that is possible.
pub(crate) fn count(command: &Command) -> Result<(Command, Counter)> {
    let Some(tool) = tool() else {
        return Ok((same(Command::new(command.get_program()), command), Counter(None)));
    };
    let file = NamedTempFile::new()?;
    let mut counted = start(tool, &file);
    counted.arg(command.get_program());
    Ok((same(counted, command), Counter(Some((tool, file)))))
}

/// The name of the tool, for the report.
pub(crate) fn tool_name() -> &'static str {
    match tool() {
        Some(Tool::Perf) => "perf",
        Some(Tool::Strace) => "strace",
        None => "nothing: neither perf nor strace may count here",
    }
}

/// Whether the counts are the program's own, and not what counting has made of them.
pub(crate) fn are_exact() -> bool {
    tool() == Some(Tool::Perf)
}

impl Counter {
    pub(crate) fn read(&self) -> Option<u64> {
        let (tool, file) = self.0.as_ref()?;
        parse(*tool, &fs::read_to_string(file.path()).ok()?)
    }
}

fn same(mut to: Command, from: &Command) -> Command {
    to.args(from.get_args());
    to
}

fn tool() -> Option<Tool> {
    static TOOL: OnceLock<Option<Tool>> = OnceLock::new();
    *TOOL.get_or_init(|| [Tool::Perf, Tool::Strace].into_iter().find(|tool| works(*tool)))
}

fn works(tool: Tool) -> bool {
    let Ok(file) = NamedTempFile::new() else { return false };
    let done = start(tool, &file)
        .arg("true")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    done && fs::read_to_string(file.path()).is_ok_and(|text| parse(tool, &text).is_some())
}

fn start(tool: Tool, file: &NamedTempFile) -> Command {
    let mut command = match tool {
        Tool::Perf => Command::new("perf"),
        Tool::Strace => Command::new("strace"),
    };
    command.args(match tool {
        Tool::Perf => ["stat", "-x,", "-eraw_syscalls:sys_enter", "-o"],
        Tool::Strace => ["-c", "-f", "-q", "-o"],
    });
    command.arg(file.path());
    command
}

/// The total in what the tool has written.
fn parse(tool: Tool, text: &str) -> Option<u64> {
    match tool {
        // COUNT,UNIT,raw_syscalls:sys_enter,...
        Tool::Perf => text
            .lines()
            .find(|line| line.contains("raw_syscalls"))?
            .split(',')
            .next()?
            .parse()
            .ok(),
        // PERCENT SECONDS MICROSECONDS CALLS [ERRORS] total
        Tool::Strace => text
            .lines()
            .find(|line| line.trim_end().ends_with("total"))?
            .split_whitespace()
            .nth(3)?
            .parse()
            .ok(),
    }
}
