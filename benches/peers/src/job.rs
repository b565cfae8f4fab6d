//! One measurement, as it is handed to the process that does it.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What is to be done, and with which nsqd. The Go program reads the same fields.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) nsqd: SocketAddr,
    /// More that a consumer takes from.
    pub(crate) other_nsqds: Vec<SocketAddr>,
    /// The callers are spread over these. A consumer takes from the first.
    pub(crate) topics: Vec<String>,
    /// How many are timed.
    pub(crate) messages: u64,
    /// Where the messages' bodies are, one in each line.
    pub(crate) bodies: PathBuf,
    /// The authority that nsqd's certificate is checked with. TLS if there is one.
    pub(crate) root_ca: Option<PathBuf>,
    pub(crate) compression: Compression,
    pub(crate) work: Work,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    /// Publishing batches, so many at once. A batch of one is a plain PUB.
    Publish { batch: usize, in_flight: u32 },
    /// Consuming what is queued.
    Consume { max_in_flight: u32 },
    /// Consuming what is queued, with so many handlers at once, which sleep at one message in so many.
    Sleep {
        max_in_flight: u32,
        handlers: u32,
        one_in: u64,
        microseconds: u64,
    },
    /// Consuming what is published meanwhile, so many messages a second.
    Latency {
        rate: u32,
        max_in_flight: u32,
        /// In milliseconds. The client's default if there is none.
        output_buffer_timeout: Option<u32>,
        /// For how many milliseconds one handler blocks its thread. Then all other messages are timed.
        block: Option<u64>,
    },
    /// Having connections with nothing to do, before and after so many messages to each at once. A consumer for each topic,
    /// with so many handlers.
    Idle {
        handlers: u32,
        burst: u32,
        /// In milliseconds.
        heartbeat_interval: u64,
    },
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Compression {
    None,
    Snappy,
    /// At level 6, nsqd's most and every client's default.
    Deflate,
}

impl Job {
    /// All nsqds, as clients want their addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = String> {
        self.nsqds().map(|nsqd| nsqd.to_string())
    }

    pub(crate) fn nsqds(&self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.nsqd).chain(self.other_nsqds.iter().copied())
    }

    /// One to each nsqd, for each topic that has a consumer.
    pub(crate) fn connections(&self) -> u64 {
        (self.topics.len() * self.nsqds().count()) as u64
    }
}
