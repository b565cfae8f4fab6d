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

use crate::Result;
use crate::watchdog::Watchdog;

const DEADLINE: Duration = Duration::from_secs(20);

/// Looks for nsqd in `$NSQD`, then in `target/brokers` under the root of the crate, then on `$PATH`.
pub(crate) fn find(root: &Path) -> Option<PathBuf> {
    if let Some(explicit) = env::var_os("NSQD") {
        return Some(PathBuf::from(explicit));
    }
    let file = format!("nsqd{}", env::consts::EXE_SUFFIX);
    let built = root.join("target/brokers");
    let path = env::var_os("PATH").unwrap_or_default();
    std::iter::once(built)
        .chain(env::split_paths(&path))
        .map(|directory| directory.join(&file))
        .find(|candidate| candidate.is_file())
}

/// A running nsqd that keeps all messages in memory. Dropping it kills it, and so does the end of this program however it
/// comes.
pub(crate) struct Nsqd {
    child: Child,
    // Called off before the process is killed: then nobody kills another that has got its number.
    watchdog: Option<Watchdog>,
    tcp: SocketAddr,
    http: SocketAddr,
    topics: Cell<u32>,
    // Removed after the process is gone: fields are dropped after `drop`.
    _directory: TempDir,
}

impl Nsqd {
    pub(crate) fn start(binary: &Path, options: &[String]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let log = directory.path().join("nsqd.log");
        let mut child = Command::new(binary)
            .arg(format!("--data-path={}", directory.path().display()))
            .args(["--tcp-address=127.0.0.1:0", "--http-address=127.0.0.1:0"])
            // Served where there is a certificate, and at a fixed port by default.
            .arg("--https-address=127.0.0.1:0")
            .arg("--mem-queue-size=2000000")
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .map_err(|error| format!("{} does not run: {error}", binary.display()))?;
        match wait_for_addresses(&mut child, &log) {
            Ok((tcp, http)) => Ok(Self::new(child, tcp, http, directory)),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// What serves as nsqd already.
    pub(crate) fn new(child: Child, tcp: SocketAddr, http: SocketAddr, directory: TempDir) -> Self {
        Self {
            watchdog: Watchdog::over_process(child.id()),
            child,
            tcp,
            http,
            topics: Cell::new(0),
            _directory: directory,
        }
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
        self.request(&format!("POST /topic/delete?topic={topic}")).map(drop)
    }

    /// What nsqd answers on its HTTP port to a method and path.
    pub(crate) fn request(&self, request: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.http)?;
        write!(stream, "{request} HTTP/1.0\r\nContent-Length: 0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.0 200") => Ok(body.to_owned()),
            _ => Err(format!("nsqd refused {request}: {answer}").into()),
        }
    }
}

impl Drop for Nsqd {
    fn drop(&mut self) {
        self.watchdog = None;
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
