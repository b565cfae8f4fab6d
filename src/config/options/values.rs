//! The options that were set, each in the type of the setter that it stands for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::protocol::Secret;

/// All of them, by whom they concern. `None` was not set.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Values {
    pub(crate) connection: ConnectionValues,
    pub(crate) tls: TlsValues,
    pub(crate) discovery: DiscoveryValues,
    pub(crate) consumer: ConsumerValues,
    pub(crate) producer: ProducerValues,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ConnectionValues {
    pub(crate) local_address: Option<SocketAddr>,
    pub(crate) dial_timeout: Option<Duration>,
    pub(crate) handshake_timeout: Option<Duration>,
    /// `Some(None)` is no heartbeats.
    pub(crate) heartbeat_interval: Option<Option<Duration>>,
    pub(crate) max_msg_size: Option<usize>,
    pub(crate) client_id: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) user_agent: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) zone: Option<String>,
    /// -1 is no buffer.
    pub(crate) output_buffer_size: Option<i64>,
    pub(crate) output_buffer_timeout: Option<Duration>,
    /// Zero is nsqd's own.
    pub(crate) msg_timeout: Option<Duration>,
    pub(crate) snappy: Option<bool>,
    pub(crate) deflate: Option<bool>,
    pub(crate) deflate_level: Option<u8>,
    /// Empty is none.
    pub(crate) auth_secret: Option<Secret>,
    pub(crate) allow_plaintext_auth: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TlsValues {
    pub(crate) on: Option<bool>,
    pub(crate) root_ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) server_name: Option<String>,
    /// No older version than 1.3.
    pub(crate) only_tls13: Option<bool>,
    pub(crate) skip_verify: Option<bool>,
    /// Whether the program allows `skip_verify`.
    pub(crate) skip_verify_allowed: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DiscoveryValues {
    pub(crate) poll_interval: Option<Duration>,
    pub(crate) poll_jitter: Option<f64>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) max_nsqds: Option<usize>,
    pub(crate) max_answer: Option<usize>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ConsumerValues {
    /// 0 is all messages.
    pub(crate) sample_rate: Option<u8>,
    pub(crate) max_in_flight: Option<u32>,
    pub(crate) concurrency: Option<u32>,
    pub(crate) max_attempts: Option<u16>,
    pub(crate) default_requeue_delay: Option<Duration>,
    pub(crate) max_requeue_delay: Option<Duration>,
    pub(crate) full_jitter: Option<bool>,
    pub(crate) backoff_multiplier: Option<Duration>,
    pub(crate) max_backoff_duration: Option<Duration>,
    pub(crate) low_rdy_idle_timeout: Option<Duration>,
    pub(crate) low_rdy_timeout: Option<Duration>,
    pub(crate) rdy_redistribute_interval: Option<Duration>,
    pub(crate) handler_timeout: Option<Duration>,
    pub(crate) keep_alive: Option<bool>,
    pub(crate) create_topic_and_channel: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ProducerValues {
    pub(crate) publish_timeout: Option<Duration>,
    pub(crate) max_pending_messages: Option<u32>,
    pub(crate) max_pending_bytes: Option<u32>,
    pub(crate) max_body_size: Option<usize>,
    pub(crate) max_req_timeout: Option<Duration>,
    pub(crate) batching: Option<bool>,
    pub(crate) linger: Option<Duration>,
    pub(crate) linger_messages: Option<usize>,
    pub(crate) copies: Option<usize>,
    pub(crate) quorum: Option<usize>,
    pub(crate) accept_fewer_copies: Option<bool>,
    pub(crate) at_least_once: Option<bool>,
}

/// Sets what is given.
pub(crate) fn put<F: From<T>, T: Clone>(field: &mut F, given: &Option<T>) {
    if let Some(value) = given {
        *field = value.clone().into();
    }
}
