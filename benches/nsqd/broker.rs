//! The nsqd to measure with.

use std::cell::Cell;
use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Result, test_broker};

const DEADLINE: Duration = Duration::from_secs(20);

/// Looks for nsqd in `$NSQD`, then in `target/brokers`, then on `$PATH`.
pub(crate) fn find() -> Option<PathBuf> {
    if let Some(explicit) = env::var_os("NSQD") {
        return Some(PathBuf::from(explicit));
    }
    let file = format!("nsqd{}", env::consts::EXE_SUFFIX);
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/brokers");
    let path = env::var_os("PATH").unwrap_or_default();
    std::iter::once(built)
        .chain(env::split_paths(&path))
        .map(|directory| directory.join(&file))
        .find(|candidate| candidate.is_file())
}

/// A running nsqd that keeps all messages in memory. Dropping it kills it.
pub(crate) struct Nsqd {
    child: Child,
    tcp: SocketAddr,
    http: SocketAddr,
    topics: Cell<u32>,
    // Removed after the process is gone: fields are dropped after `drop`.
    _directory: TempDir,
}

impl Nsqd {
    pub(crate) fn start(binary: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let log = directory.path().join("nsqd.log");
        let mut child = Command::new(binary)
            .arg(format!("--data-path={}", directory.path().display()))
            .args(["--tcp-address=127.0.0.1:0", "--http-address=127.0.0.1:0"])
            .arg("--mem-queue-size=2000000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .map_err(|error| format!("{} does not run: {error}", binary.display()))?;
        match wait_for_addresses(&mut child, &log) {
            Ok((tcp, http)) => Ok(Self {
                child,
                tcp,
                http,
                topics: Cell::new(0),
                _directory: directory,
            }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// The test broker, in a process of its own so that it competes with the client as nsqd does.
    pub(crate) fn start_test_broker() -> Result<Self> {
        let (child, tcp, http) = test_broker::spawn()?;
        Ok(Self {
            child,
            tcp,
            http,
            topics: Cell::new(0),
            _directory: tempfile::tempdir()?,
        })
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn tcp_address(&self) -> SocketAddr {
        self.tcp
    }

    /// The name of a topic that does not exist yet.
    pub(crate) fn new_topic(&self) -> String {
        self.topics.set(self.topics.get() + 1);
        format!("bench_{}", self.topics.get())
    }

    /// Deletes a topic with all that is queued, so that each run finds nsqd's memory empty.
    pub(crate) fn delete_topic(&self, topic: &str) -> Result<()> {
        let mut stream = TcpStream::connect(self.http)?;
        write!(
            stream,
            "POST /topic/delete?topic={topic} HTTP/1.0\r\nContent-Length: 0\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.0 200") {
            Ok(())
        } else {
            Err(format!("nsqd did not delete {topic}: {answer}").into())
        }
    }
}

impl Drop for Nsqd {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// nsqd chooses its ports and writes them to its log.
fn wait_for_addresses(child: &mut Child, log: &Path) -> Result<(SocketAddr, SocketAddr)> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let text = fs::read_to_string(log)?;
        if let (Some(tcp), Some(http)) = (listening(&text, "TCP: "), listening(&text, "HTTP: ")) {
            return Ok((tcp, http));
        }
        if child.try_wait()?.is_some() || Instant::now() > deadline {
            return Err(format!("nsqd does not serve:\n{text}").into());
        }
        sleep(Duration::from_millis(10));
    }
}

fn listening(log: &str, what: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once(&format!("{what}listening on "))?;
    // A line that is not complete yet would give an incomplete port.
    rest.split_once('\n')?.0.trim().parse().ok()
}
