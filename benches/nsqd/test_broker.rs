//! The test broker in a process of its own: this program, run again.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use async_nsq::test_server::Nsqd;

use crate::Result;
use crate::broker;

/// Set for the process that is the test broker.
const ROLE: &str = "ASYNC_NSQ_BENCH_TEST_BROKER";

pub(crate) fn is_wanted() -> bool {
    env::var_os(ROLE).is_some()
}

/// Starts it, in a process of its own so that it competes with the client as nsqd does.
pub(crate) fn start() -> Result<broker::Nsqd> {
    let mut child = Command::new(env::current_exe()?)
        .arg("--bench")
        .env(ROLE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().ok_or("no output of the test broker")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let (tcp, http) = line.trim().split_once(' ').ok_or("the test broker does not serve")?;
    Ok(broker::Nsqd::new(
        child,
        tcp.parse()?,
        http.parse()?,
        tempfile::tempdir()?,
    ))
}

/// Is the test broker until nobody needs it any more, which the end of its input tells.
pub(crate) fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let nsqd = runtime.block_on(Nsqd::builder().record_commands(0).max_queue_bytes(usize::MAX).start())?;
    println!("{} {}", nsqd.address(), nsqd.http_address());
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
