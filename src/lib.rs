//! The NSQ client for Rust services.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod protocol;
#[cfg(feature = "test-server")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-server")))]
pub mod test_server;
pub mod transport;

mod error;
mod name;

pub use error::{Culprit, Error, ErrorKind, Result, Step};
pub use name::{Channel, Topic};
