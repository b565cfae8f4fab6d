//! A broker as a child process: its ports, its log, its life and death.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, SeekFrom},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Instant,
};

use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};

use super::{
    DEADLINE, POLL,
    http::{self, Answer},
};

/// A loopback port that stays the broker's over its restarts.
///
/// A socket that is bound with `SO_REUSEADDR` and never listens keeps Linux from handing the port to anyone who asks for
/// some free port, yet lets the broker, which names the port and sets the option too, bind and listen. While the broker
/// is down connections are refused as they should be. Other systems do not share ports that way: there the port is only
/// known to have been free, and [`Process::launch`] tries again when somebody else was faster.
struct Port {
    address: SocketAddr,
    _reservation: Option<TcpSocket>,
}

impl Port {
    fn reserve() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        Ok(Self {
            address: socket.local_addr()?,
            _reservation: cfg!(target_os = "linux").then_some(socket),
        })
    }
}

struct Ports {
    tcp: Port,
    http: Port,
}

impl Ports {
    fn reserve() -> Self {
        let port = || Port::reserve().expect("a free loopback port");
        Self {
            tcp: port(),
            http: port(),
        }
    }
}

/// An nsqd or nsqlookupd process that lives no longer than this value.
///
/// Dropping it kills the process and waits until it is gone; while a test panics, the end of its log is printed first.
pub(crate) struct Process {
    name: &'static str,
    binary: PathBuf,
    flags: Vec<String>,
    ports: Ports,
    directory: TempDir,
    child: Option<Child>,
}

impl Process {
    /// Starts `binary` with its two addresses and `flags`, which `flags` may override, and waits until it serves.
    /// `flags` is given the temporary directory that lives as long as the process value.
    pub(super) async fn start(name: &'static str, binary: &Path, flags: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut process = Self {
            name,
            binary: binary.to_path_buf(),
            flags: flags(directory.path()),
            ports: Ports::reserve(),
            directory,
            child: None,
        };
        process.launch(Ports::reserve).await;
        process
    }

    /// Where the broker speaks the NSQ protocol.
    pub(crate) fn tcp_address(&self) -> SocketAddr {
        self.ports.tcp.address
    }

    /// Where the broker speaks HTTP.
    pub(crate) fn http_address(&self) -> SocketAddr {
        self.ports.http.address
    }

    /// The id of the running process.
    pub(crate) fn id(&self) -> u32 {
        self.running().id()
    }

    /// All that the broker has logged since its first start.
    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).expect("the broker's log can be read");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Asks the broker to stop (SIGTERM), waits until it is gone and checks that it left in good order.
    pub(crate) async fn terminate(&mut self) {
        signal("TERM", self.id());
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.exit_status() {
                break status;
            }
            assert!(Instant::now() < deadline, "{} ignores SIGTERM", self.name);
            tokio::time::sleep(POLL).await;
        };
        self.child = None;
        assert!(status.success(), "{} answered SIGTERM with {status}", self.name);
    }

    /// Kills the broker (SIGKILL) and returns when it is gone. What it had only in memory is lost.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("the broker is running");
        child.kill().expect("a child can be killed");
        child.wait().expect("a killed child can be waited for");
    }

    /// Starts the broker again after [`terminate`](Self::terminate) or [`kill`](Self::kill): same ports, same flags, same
    /// data path.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.child.is_none(), "{} is still running", self.name);
        let Ports { tcp, http } = &self.ports;
        let (tcp, http) = (tcp.address, http.address);
        self.launch(|| panic!("somebody took {tcp} or {http} while the broker was down"))
            .await;
    }

    /// A GET request to the broker's HTTP API.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// A POST request to the broker's HTTP API.
    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.request(Method::POST, path, body.into()).await
    }

    /// A GET request that must succeed with JSON.
    pub(crate) async fn get_json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        self.assert_ok(path, &answer);
        serde_json::from_slice(&answer.body).expect("the broker answers JSON")
    }

    /// A POST request that must succeed.
    pub(crate) async fn post_ok(&self, path: &str, body: impl Into<Bytes>) {
        let answer = self.post(path, body).await;
        self.assert_ok(path, &answer);
    }

    fn assert_ok(&self, path: &str, answer: &Answer) {
        let Answer { status, body } = answer;
        assert_eq!(
            *status,
            StatusCode::OK,
            "{} {path}: {}",
            self.name,
            String::from_utf8_lossy(body)
        );
    }

    async fn request(&self, method: Method, path: &str, body: Bytes) -> Answer {
        match http::request(self.http_address(), method, path, body).await {
            Ok(answer) => answer,
            Err(error) => panic!(
                "{} at {} did not answer {path}: {error}",
                self.name,
                self.http_address()
            ),
        }
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join(format!("{}.log", self.name))
    }

    fn running(&self) -> &Child {
        self.child.as_ref().expect("the broker is running")
    }

    fn exit_status(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut().expect("the broker is running");
        child.try_wait().expect("a child can be waited for")
    }

    /// Starts the process until it gets its ports, and waits until it serves. `other_ports` says what to do when one of
    /// them turned out to be taken.
    async fn launch(&mut self, other_ports: impl Fn() -> Ports) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let log_start = self.spawn();
            while self.exit_status().is_none() {
                if self.serves().await {
                    return;
                }
                assert!(
                    Instant::now() < deadline,
                    "{} does not serve:\n{}",
                    self.name,
                    self.log()
                );
                tokio::time::sleep(POLL).await;
            }
            self.child = None;
            let log = self.log().split_off(log_start);
            let taken = log.contains("address already in use");
            assert!(
                taken && Instant::now() < deadline,
                "{} did not start:\n{log}",
                self.name
            );
            self.ports = other_ports();
        }
    }

    /// Starts the process once and says where in the log its story begins.
    fn spawn(&mut self) -> usize {
        let mut log = open_for_append(&self.log_path()).expect("a log file");
        let log_start = log.seek(SeekFrom::End(0)).expect("the log has an end");
        let child = Command::new(&self.binary)
            .arg(format!("--tcp-address={}", self.tcp_address()))
            .arg(format!("--http-address={}", self.http_address()))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not run: {error}", self.binary.display()));
        self.child = Some(child);
        usize::try_from(log_start).expect("a log that fits in memory")
    }

    async fn serves(&self) -> bool {
        let ping = http::request(self.http_address(), Method::GET, "/ping", Bytes::new()).await;
        // An nsqd that requires TLS of everybody refuses plain HTTP with 403, once it serves.
        let http = ping.is_ok_and(|answer| matches!(answer.status, StatusCode::OK | StatusCode::FORBIDDEN));
        http && TcpStream::connect(self.tcp_address()).await.is_ok()
    }
}

impl Drop for Process {
    #[expect(clippy::print_stderr, reason = "belongs to the output of the failed test")]
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only for a process that is gone already.
            _ = child.kill();
            _ = child.wait();
        }
        if thread::panicking() {
            let bytes = fs::read(self.log_path()).unwrap_or_default();
            let log = String::from_utf8_lossy(&bytes);
            let lines: Vec<_> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
            eprintln!(
                "--- the end of the log of {} at {}\n{end}",
                self.name, self.ports.tcp.address
            );
        }
    }
}

/// Enough to see what the broker did to the connections of the failed test.
const LOG_LINES_SHOWN: usize = 40;

fn open_for_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Sends a signal by the shell's builtin: std has none, and every system with signals has a shell.
fn signal(name: &str, process: u32) {
    let status = Command::new("sh")
        .args(["-c", r#"kill -s "$0" "$1""#, name, &process.to_string()])
        .status()
        .expect("sh runs");
    assert!(status.success(), "SIG{name} did not reach process {process}: {status}");
}
