//! The NSQ client for Rust services.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backoff;
pub mod protocol;

pub mod transport;

mod config;
mod connection;
mod consumer;
mod discovery;
mod error;
mod name;
mod producer;

pub use config::ConnectionConfig;
pub use consumer::{
    BoxError, Consumer, ConsumerBuilder, ConsumerReport, ConsumerStats, Handler, HandlerError, Message,
};
pub use error::{Culprit, Error, ErrorKind, Result, Step};
pub use name::{Channel, Topic};
pub use producer::{Producer, ProducerBuilder, ProducerReport};
