//! How an [`Nsqd`] is configured.

use std::io;
use std::time::Duration;

use super::Nsqd;
use super::options::Options;
use crate::test_server::listener::Door;
use crate::test_server::lookupd::{Lookupd, Registry};
use crate::transport::MemoryNetwork;

/// No duration is longer than this: a century, which any clock can add.
pub(super) const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Configures an [`Nsqd`]. The defaults are nsqd's.
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until it is started"]
pub struct NsqdBuilder {
    options: Options,
    lookupds: Vec<Registry>,
}

impl NsqdBuilder {
    /// How long a consumer may take to answer a message before it is delivered again, unless its IDENTIFY says
    /// otherwise. Default 60 s.
    pub fn msg_timeout(mut self, timeout: Duration) -> Self {
        self.options.msg_timeout = timeout.min(LONGEST);
        self
    }

    /// The longest message timeout that IDENTIFY can ask for and TOUCH can reach. Default 15 min.
    pub fn max_msg_timeout(mut self, timeout: Duration) -> Self {
        self.options.max_msg_timeout = timeout.min(LONGEST);
        self
    }

    /// The interval of heartbeats, unless IDENTIFY says otherwise. A client that sends nothing for twice as long is
    /// disconnected. Default 30 s. At least 1 ms.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.options.heartbeat_interval = interval.clamp(Duration::from_millis(1), LONGEST);
        self
    }

    /// The longest interval of heartbeats that IDENTIFY can ask for. Default 60 s.
    pub fn max_heartbeat_interval(mut self, interval: Duration) -> Self {
        self.options.max_heartbeat_interval = interval.min(LONGEST);
        self
    }

    /// The largest RDY. Default 2,500.
    pub fn max_rdy_count(mut self, count: u32) -> Self {
        self.options.limits.max_rdy_count = count;
        self
    }

    /// The largest message, in bytes. Default 1 MiB.
    pub fn max_msg_size(mut self, bytes: usize) -> Self {
        self.options.limits.max_msg_size = bytes;
        self
    }

    /// The largest body of IDENTIFY, AUTH and MPUB, in bytes. Default 5 MiB.
    pub fn max_body_size(mut self, bytes: usize) -> Self {
        self.options.limits.max_body_size = bytes;
        self
    }

    /// The longest delay of REQ, where longer ones are lowered to it, and of DPUB, where they are refused. Default 1 h.
    pub fn max_req_timeout(mut self, timeout: Duration) -> Self {
        self.options.limits.max_req_timeout = timeout.min(LONGEST);
        self
    }

    /// How many messages wait in an ephemeral topic or channel before further ones are dropped. Default 10,000.
    pub fn mem_queue_size(mut self, messages: usize) -> Self {
        self.options.mem_queue_size = messages;
        self
    }

    /// How much a topic or channel may hold, in bytes, before publishing to it fails with `E_PUB_FAILED` and the like.
    /// nsqd has no such limit but its disk. Default 1 GiB.
    pub fn max_queue_bytes(mut self, bytes: usize) -> Self {
        self.options.max_queue_bytes = bytes;
        self
    }

    /// How many received commands are kept for [`Nsqd::commands`]; older ones are forgotten. Their bodies may hold
    /// 64 MiB in all. 0 keeps none, which is faster. Default 100,000.
    pub fn record_commands(mut self, count: usize) -> Self {
        self.options.record = count;
        self
    }

    /// The host that nsqlookupd gives to clients. Default: the host of [`Nsqd::address`].
    pub fn broadcast_address(mut self, host: impl Into<String>) -> Self {
        self.options.broadcast_address = Some(host.into());
        self
    }

    /// Registers topics and channels with this nsqlookupd, at the moment they are created. Can be called several
    /// times.
    pub fn lookupd(mut self, lookupd: &Lookupd) -> Self {
        self.lookupds.push(lookupd.registry());
        self
    }

    /// Starts on a free loopback port.
    ///
    /// # Errors
    /// If no port can be opened.
    ///
    /// # Cancel safety
    /// Dropping the future before it is polled starts nothing; its first poll completes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start(self) -> io::Result<Nsqd> {
        self.start_at(Door::tcp()?)
    }

    /// Starts within a memory network, where clients reach it by
    /// [`MemoryNetwork::connector`](crate::transport::MemoryNetwork::connector). `address` is `host:port`, any host
    /// and any port.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if something listens there already, [`io::ErrorKind::InvalidInput`] if `address`
    /// is not `host:port`.
    ///
    /// # Cancel safety
    /// Dropping the future before it is polled starts nothing; its first poll completes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start_in(self, network: &MemoryNetwork, address: &str) -> io::Result<Nsqd> {
        self.start_at(Door::memory(network, address)?)
    }

    fn start_at(self, door: Door) -> io::Result<Nsqd> {
        Nsqd::open(self.options, door, self.lookupds)
    }
}
