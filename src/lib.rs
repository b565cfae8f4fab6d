//! The NSQ client for Rust services.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod protocol;
pub mod transport;

mod error;
mod name;

pub use error::{Culprit, Error, ErrorKind, Result, Step};
pub use name::{Channel, Topic};
