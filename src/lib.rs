//! The NSQ client for Rust services.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod protocol;

pub mod transport;

mod config;
mod connection;
mod error;
mod name;

pub use config::ConnectionConfig;
pub use error::{Culprit, Error, ErrorKind, Result, Step};
pub use name::{Channel, Topic};
