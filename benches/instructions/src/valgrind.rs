//! Runs this program under valgrind and reads what that has counted.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::Result;

/// The first argument of a run that is counted. The name of the case and the number of messages follow.
pub(crate) const RUN: &str = "run";

pub(crate) fn is_there() -> bool {
    Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Instructions per message.
pub(crate) fn count(case: &str, messages: u64) -> Result<f64> {
    let (once, twice) = (total(case, messages)?, total(case, 2 * messages)?);
    Ok((twice as f64 - once as f64) / messages as f64)
}

/// Where the profile of the case's last run is.
pub(crate) fn profile(case: &str) -> Result<PathBuf> {
    Ok(env::current_exe()?.with_file_name("callgrind").join(case))
}

fn total(case: &str, messages: u64) -> Result<u64> {
    let profile = profile(case)?;
    profile.parent().map_or(Ok(()), fs::create_dir_all)?;
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(env::current_exe()?)
        .args([RUN, case, &messages.to_string()])
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{case} failed under valgrind:\n{said}").into());
    }
    collected(&said).ok_or_else(|| format!("valgrind did not count {case}:\n{said}").into())
}

/// From the line `==PID== Collected : COUNT`.
fn collected(said: &str) -> Option<u64> {
    let (_, count) = said.split_once("Collected :")?;
    count.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_what_valgrind_says() {
        let said = "==17== Events    : Ir\n==17== Collected : 102405\n==17== \n==17== I   refs:      102,405\n";
        assert_eq!(collected(said), Some(102_405));
        assert_eq!(collected("==17== Events    : Ir\n"), None);
    }
}
