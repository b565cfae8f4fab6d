//! A broker for tests: nsqd, nsqlookupd and the auth server, within the process.
//!
//! [`Nsqd`] behaves as nsqd 1.3.0 does, byte for byte where a client can see it: the order in which a command is
//! checked, the texts of its errors, RDY as a window, timeouts and redelivery, heartbeats, the output buffer, TLS,
//! snappy and deflate, AUTH, and the whole HTTP interface. [`Lookupd`] is nsqlookupd by TCP and HTTP, and
//! [`AuthServer`] decides who may do what. One table of some hundred exchanges runs against them and against the real
//! daemons, and clients of other languages run against them unmodified.
//!
//! They listen on free loopback ports, or within a [`MemoryNetwork`](crate::transport::MemoryNetwork), where no kernel is
//! involved and tokio's paused clock works: a test of an hour's delay takes milliseconds. Streams of a transport of your
//! own are served by [`Nsqd::serve`].
//!
//! A test sees what the broker sees ([`Nsqd::stats`], [`Nsqd::commands`]), waits for a state instead of sleeping
//! ([`Nsqd::wait_for`]), and makes the broker misbehave ([`Nsqd::faults`]). The [`guide`] has three complete tests.
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
//! # What it is not
//!
//! It is not a database. There is no disk queue: everything is in memory, in one process, and gone with it. Past
//! [`max_queue_bytes`](NsqdBuilder::max_queue_bytes) a publish fails as nsqd's does with a full disk. A queue above
//! `mem-queue-size` keeps its order, where nsqd's, which is partly on disk then, does not; only ephemeral ones drop what
//! exceeds it.
//!
//! # Where it differs from nsqd
//!
//! - Timers are exact. nsqd looks for timeouts and delays that have passed every 100 ms only, and may take five
//!   seconds to notice a new channel; [`coarse_timers`](NsqdBuilder::coarse_timers) does so, too.
//! - TLS is 1.2 and 1.3. A real nsqd takes 1.0 and 1.1 as well, unless it is told otherwise.
//! - The messages of one MPUB, by TCP or HTTP, may not exceed `max-body-size` in sum. nsqd checks what is stated, not
//!   what it reads.
//! - Sampling is by a generator with a fixed seed, so that it is the same in each run.
//! - In `/stats` all figures of memory are 0 and no latencies are measured; `/debug/pprof` has only empty profiles.
//! - Consumers of a channel get messages in turn, where nsqd gives them to whoever is quickest.

mod auth;
mod flags;
pub mod guide;
mod http;
mod json;
mod listener;
mod lookupd;
mod nsqd;
mod record;
mod server;
mod tls;

use std::time::Duration;

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

/// No duration is longer than this: a century, which any clock can add.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
