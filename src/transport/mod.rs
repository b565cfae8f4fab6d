//! Byte streams to a peer: how a connection is opened and what it runs over.
//!
//! The layers above know a stream as anything that reads and writes bytes ([`Io`]), so TCP, an in-memory pipe and
//! whatever a [`Connector`] of your own opens are the same to them.
#![cfg_attr(
    feature = "test-server",
    doc = "
[`snappy`] and [`deflate`] are the two compressions of which IDENTIFY can grant one. They know no stream: bytes go in and
bytes come out, however they arrive and within the room that the caller gives."
)]

mod connector;
mod memory;
mod tcp;
#[cfg(feature = "tls")]
pub(crate) mod tls;

#[cfg(feature = "test-server")]
pub(crate) mod compressed;
#[cfg(feature = "test-server")]
mod crc32c;
#[cfg(feature = "test-server")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-server")))]
pub mod deflate;
#[cfg(feature = "test-server")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-server")))]
pub mod snappy;

pub use connector::{BoxIo, Connecting, Connector, Io};
pub use memory::{MemoryConnector, MemoryListener, MemoryNetwork};
pub use tcp::TcpConnector;
