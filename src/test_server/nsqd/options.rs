//! What an [`Nsqd`](super::Nsqd) is configured with: nsqd's flags.

use std::time::Duration;

use crate::protocol::CommandLimits;

#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) limits: CommandLimits,
    pub(super) msg_timeout: Duration,
    pub(super) max_msg_timeout: Duration,
    pub(super) heartbeat_interval: Duration,
    pub(super) max_heartbeat_interval: Duration,
    pub(super) mem_queue_size: usize,
    pub(super) max_queue_bytes: usize,
    pub(super) record: usize,
    pub(super) broadcast_address: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: CommandLimits::default(),
            msg_timeout: Duration::from_secs(60),
            max_msg_timeout: Duration::from_secs(15 * 60),
            heartbeat_interval: Duration::from_secs(30),
            max_heartbeat_interval: Duration::from_secs(60),
            mem_queue_size: 10_000,
            max_queue_bytes: 1024 * 1024 * 1024,
            record: 100_000,
            broadcast_address: None,
        }
    }
}
