//! The NSQ client for Rust services: publish to and consume from [nsqd](https://nsq.io) on tokio, with discovery
//! through nsqlookupd, and a test broker to test services without one.
//!
//! # Publish
//! ```
//! # #[cfg(feature = "test-server")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use async_nsq::Producer;
//!
//! # let nsqd = async_nsq::test_server::Nsqd::start().await?;
//! # let address = nsqd.address();
//! let producer = Producer::connect(address).await?; // "127.0.0.1:4150"
//! producer.publish("orders", r#"{"id":1}"#).await?;
//! producer.publish_many("orders", ["two", "three"]).await?;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "test-server"))]
//! # fn main() {}
//! ```
//!
//! # Consume
//! ```
//! # #[cfg(feature = "test-server")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use async_nsq::{BoxError, Consumer, Message};
//!
//! # let lookupd = async_nsq::test_server::Lookupd::start().await?;
//! # let lookupd = lookupd.address();
//! let consumer = Consumer::builder("orders", "billing")
//!     .lookupd(lookupd) // "127.0.0.1:4161", or .nsqd("127.0.0.1:4150")
//!     .max_in_flight(200)
//!     .start(|message: Message| async move {
//!         println!("{:?}", message.body()); // Ok finishes the message, an error requeues it
//!         Ok::<(), BoxError>(())
//!     })
//!     .await?;
//! consumer.shutdown(Duration::from_secs(30)).await;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "test-server"))]
//! # fn main() {}
//! ```
//!
//! # What it guarantees
//! * `Ok` from a publish means that nsqd answered OK. An error is *invalid*, *rejected*, *not sent* or *unknown*
//!   ([`ErrorKind`]), and every publish ends within its deadline.
//! * Dropping a publish shifts nobody's answer; one bad message fails alone.
//! * Memory is bounded: by what may be pending, by `max_in_flight`, and by limits on all that a peer controls.
//! * Reading, heartbeats and answers never wait for a handler. Each message is answered once.
//! * TLS asked for is TLS or an error, certificates are verified, secrets are shown nowhere and travel only over TLS, unless
//!   a call says otherwise.
//! * Connections are replaced when they break or fall silent, for ever, with delays from 100 ms to 60 s.
//!
//! NSQ delivers *at least once* and in no particular order; handlers must bear a message that comes twice.
//!
//! # Feature flags
//! | flag | default | what it adds |
//! | --- | --- | --- |
//! | `tls-ring` | yes | TLS to nsqd and nsqlookupd, with the cryptography of ring |
//! | `tls-aws-lc-rs` | no | the same with aws-lc-rs, which goes first where both are on |
//! | `tls` | no | the same without cryptography: install a default in rustls, or give a complete configuration |
//! | `snappy`, `deflate` | yes | the compressions that nsqd offers: see [`Compression`] |
//! | `test-server` | no | module `test_server`: nsqd, nsqlookupd and an auth server within the process, for tests |
//!
//! Without any flag the crate is complete for connections in clear text, uncompressed.
//!
//! # Logs
//! The crate logs with [`tracing`], and a consumer's lines name its topic and channel:
//!
//! | level | what |
//! | --- | --- |
//! | `error` | a hook that panics, a dead letter that could not be published |
//! | `warn` | a connection lost or not made, an nsqlookupd that begins to fail, the pauses of a backoff; for each message: given up, refused by nsqd, its handler stopped; enqueued messages that were not published |
//! | `info` | connections made and closed, an nsqlookupd or handlers that do well again, a consumer's end with its report |
//! | `debug` | errors of handlers, duplicates that are skipped, nsqds found and gone |
//! | `trace` | heartbeats |
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backoff;
pub mod guide;
pub mod protocol;
#[cfg(feature = "test-server")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-server")))]
pub mod test_server;
pub mod transport;

mod config;
mod connection;
mod consumer;
mod discovery;
mod error;
mod name;
mod panics;
mod producer;

pub use config::{Compression, ConnectionConfig, DangerousOptions, LookupdConfig, OptionValue, Options};
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use config::{DangerousTls, TlsConfig, TlsVersion};
pub use connection::Negotiated;
pub use consumer::{
    AnswerRefused, Answering, BatchHandler, BatchOptions, BatchOutcome, BoxError, ConnectionStats, Consumer,
    ConsumerBuilder, ConsumerGroup, ConsumerGroupBuilder, ConsumerReport, ConsumerStats, ConsumerWatch, DuplicateStore,
    DuplicateWindow, GroupReport, GroupStats, Handler, HandlerError, MemberId, MemberReport, MemberStats, Message,
    MessageRef, MessageStream, NsqdStats, PauseReason, StoreFuture, TopicPattern,
};
pub use discovery::{LookupdStats, LookupdStatus, NsqdDiscovered};
pub use error::{Culprit, Error, ErrorKind, Result, Step};
pub use name::{Channel, Topic};
pub use producer::{
    LatencyHistogram, Producer, ProducerBuilder, ProducerNodeStats, ProducerReport, ProducerSink, ProducerStats,
    PublishFailure, RoutedMessage, RoutedNsqd, Router, Routing,
};

/// The version of rustls that [`TlsConfig::rustls`] takes its configuration from.
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use tokio_rustls::rustls;

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
