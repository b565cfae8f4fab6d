//! The NSQ client for Rust services.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod protocol;

pub mod transport;

mod backoff;
mod config;
mod connection;
mod error;
mod name;
mod producer;

pub use config::ConnectionConfig;
pub use error::{Culprit, Error, ErrorKind, Result, Step};
pub use name::{Channel, Topic};
pub use producer::{Producer, ProducerBuilder, ProducerReport};
