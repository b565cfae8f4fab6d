//! What an [`Nsqd`](super::Nsqd) is configured with: nsqd's flags, with nsqd's defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::protocol::CommandLimits;
use crate::test_server::tls::{ServerTls, TlsRequired};

#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) limits: CommandLimits,
    pub(super) node_id: u16,
    pub(super) msg_timeout: Duration,
    pub(super) max_msg_timeout: Duration,
    pub(super) heartbeat_interval: Duration,
    pub(super) max_heartbeat_interval: Duration,
    pub(super) output_buffer_timeout: Duration,
    pub(super) min_output_buffer_timeout: Duration,
    pub(super) max_output_buffer_timeout: Duration,
    pub(super) max_output_buffer_size: usize,
    /// 0 is no limit.
    pub(super) max_channel_consumers: usize,
    pub(super) snappy: bool,
    pub(super) deflate: bool,
    pub(super) max_deflate_level: u8,
    pub(super) tls: Option<ServerTls>,
    pub(super) tls_required: TlsRequired,
    pub(super) mem_queue_size: usize,
    pub(super) coarse_timers: bool,
    pub(super) broadcast_address: Option<String>,
    pub(super) broadcast_tcp_port: Option<u16>,
    pub(super) broadcast_http_port: Option<u16>,
    pub(super) auth_http_addresses: Vec<String>,
    pub(super) lookupd_tcp_addresses: Vec<String>,
    pub(super) http_client_connect_timeout: Duration,
    pub(super) http_client_request_timeout: Duration,
    /// Flags of nsqd as they were given: those that are accepted and mean nothing here, and those of files that are read
    /// once.
    pub(super) inert: BTreeMap<&'static str, String>,
    pub(super) max_queue_bytes: usize,
    pub(super) record: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: CommandLimits::default(),
            node_id: 1,
            msg_timeout: Duration::from_secs(60),
            max_msg_timeout: Duration::from_secs(15 * 60),
            heartbeat_interval: Duration::from_secs(30),
            max_heartbeat_interval: Duration::from_secs(60),
            output_buffer_timeout: Duration::from_millis(250),
            min_output_buffer_timeout: Duration::from_millis(25),
            max_output_buffer_timeout: Duration::from_secs(30),
            max_output_buffer_size: 64 * 1024,
            max_channel_consumers: 0,
            snappy: true,
            deflate: true,
            max_deflate_level: 6,
            tls: None,
            tls_required: TlsRequired::No,
            mem_queue_size: 10_000,
            coarse_timers: false,
            broadcast_address: None,
            broadcast_tcp_port: None,
            broadcast_http_port: None,
            auth_http_addresses: Vec::new(),
            lookupd_tcp_addresses: Vec::new(),
            http_client_connect_timeout: Duration::from_secs(2),
            http_client_request_timeout: Duration::from_secs(5),
            inert: BTreeMap::new(),
            max_queue_bytes: 1024 * 1024 * 1024,
            record: 100_000,
        }
    }
}
