//! A broker for tests: nsqd's TCP protocol and nsqlookupd's `/lookup`, within the process.
//!
//! [`Nsqd`] behaves as nsqd 1.3.0 does, byte for byte where a client can see it: the order in which a command is
//! checked, the texts of its errors, RDY as a window, timeouts and redelivery, heartbeats. It listens on a free
//! loopback port, so that clients of any language can be tested against it, or within a
//! [`MemoryNetwork`](crate::transport::MemoryNetwork), where no kernel is involved and tokio's paused clock works:
//! a test of an hour's delay takes milliseconds.
//!
//! A test sees what the broker sees ([`Nsqd::stats`], [`Nsqd::commands`]), waits for a state instead of sleeping
//! ([`Nsqd::wait_for`]), and makes the broker misbehave ([`Nsqd::faults`]).
//!
//! ```
//! use async_nsq::test_server::Nsqd;
//! use async_nsq::transport::{Connector, MemoryNetwork};
//! use tokio::io::AsyncWriteExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let network = MemoryNetwork::new();
//! let nsqd = Nsqd::builder().start_in(&network, "nsqd:4150").await?;
//!
//! // What is tested: here a client by hand.
//! let mut client = network.connector().connect("nsqd:4150").await?;
//! client.write_all(b"  V2PUB events\n\0\0\0\x05hello").await?;
//!
//! nsqd.wait_for(|stats| stats.topic("events").is_some_and(|topic| topic.message_count == 1)).await?;
//! assert_eq!(nsqd.drain("events", "audit")?, ["hello"]);
//! # Ok(())
//! # }
//! ```
//!
//! # Where it differs from nsqd
//!
//! - TLS, snappy and deflate are answered `false`, AUTH is disabled, and there is no HTTP interface.
//! - Timers are exact: nsqd looks for timeouts and delays that have passed every 100 ms only, and may take five
//!   seconds to notice a new channel.
//! - Messages are written as soon as the connection takes them; `output_buffer_size` and `output_buffer_timeout` are
//!   checked and confirmed, but nothing is held back.
//! - Everything is in memory. Past [`max_queue_bytes`](NsqdBuilder::max_queue_bytes) a publish fails as nsqd's does
//!   with a full disk.
//! - The messages of one MPUB may not exceed `max-body-size` in sum. nsqd checks what the command states, not what it
//!   reads.

mod auth;
mod flags;
#[allow(dead_code, unused_imports, reason = "nsqd's own HTTP side will use the rest")]
mod http;
mod json;
mod listener;
mod lookupd;
mod nsqd;
mod record;
mod server;
mod tls;

pub use auth::{AuthFaults, AuthRequest, AuthServer, AuthWaitError, Grant, Permission};
pub use flags::FlagError;
pub use lookupd::{
    Lookupd, LookupdBuilder, LookupdCommand, LookupdFaults, LookupdNode, LookupdProducer, LookupdRequest, LookupdState,
    LookupdTopic, LookupdWaitError,
};
pub use nsqd::{
    AcceptFaults, ActiveFault, ChannelStats, ClientStats, CommandFaults, Encryption, Faults, Feature, FrameFaults,
    FrameKind, Nsqd, NsqdBuilder, Received, Stats, TopicStats, WaitError,
};
pub use tls::{ClientAuth, ServerTls, TlsRequired};

/// The version of nsqd and nsqlookupd that is reimplemented.
const VERSION: &str = "1.3.0";
