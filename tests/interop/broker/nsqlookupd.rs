//! nsqlookupd: the directory of the nsqds.

use std::{
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
};

use hyper::StatusCode;
use serde_json::Value;

use super::{
    http::{Answer, query_value},
    process::Process,
};

/// How to start an nsqlookupd.
#[must_use = "nothing runs before `start`"]
pub(crate) struct Builder {
    binary: PathBuf,
    flags: Vec<String>,
}

impl Builder {
    pub(super) fn new(binary: &Path) -> Self {
        Self {
            binary: binary.to_path_buf(),
            flags: vec!["--broadcast-address=127.0.0.1".into()],
        }
    }

    /// One more command-line flag. Later flags win, over the defaults of this harness too.
    pub(crate) fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Starts nsqlookupd and returns when it serves.
    pub(crate) async fn start(self) -> Nsqlookupd {
        let Self { binary, flags } = self;
        Nsqlookupd(Process::start("nsqlookupd", &binary, |_| flags).await)
    }
}

/// A running nsqlookupd. Its life (addresses, `terminate`, `kill`, `start_again`, plain HTTP) is that of its [`Process`].
///
/// It keeps nothing on disk. An nsqd notices a restart when it next talks to it: with its next topic or channel, or with
/// its ping, every 15 seconds.
pub(crate) struct Nsqlookupd(Process);

impl Nsqlookupd {
    /// The answer of `/lookup`: `channels` and `producers`; `None` while the topic is unknown.
    pub(crate) async fn lookup(&self, topic: &str) -> Option<Value> {
        let path = format!("/lookup?topic={}", query_value(topic));
        let Answer { status, body } = self.get(&path).await;
        match status {
            StatusCode::OK => Some(serde_json::from_slice(&body).expect("nsqlookupd answers JSON")),
            StatusCode::NOT_FOUND => None,
            _ => panic!("nsqlookupd {path}: {status} {}", String::from_utf8_lossy(&body)),
        }
    }

    /// The nsqds that have a topic, as `broadcast_address:tcp_port`; none while the topic is unknown.
    pub(crate) async fn producers(&self, topic: &str) -> Vec<String> {
        let answer = self.lookup(topic).await.unwrap_or_default();
        let producers = answer["producers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let address = |nsqd: &Value| Some(format!("{}:{}", nsqd["broadcast_address"].as_str()?, nsqd["tcp_port"]));
        producers
            .iter()
            .map(|nsqd| address(nsqd).expect("a broadcast address"))
            .collect()
    }

    /// Creates a topic that no nsqd has; no change if it exists.
    pub(crate) async fn create_topic(&self, topic: &str) {
        self.post_ok(&format!("/topic/create?topic={}", query_value(topic)), "")
            .await;
    }
}

impl Deref for Nsqlookupd {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.0
    }
}

impl DerefMut for Nsqlookupd {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.0
    }
}
