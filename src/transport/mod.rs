//! Byte streams to a peer: how a connection is opened and what it runs over.
//!
//! The layers above know a stream as anything that reads and writes bytes ([`Io`]), so TCP, an in-memory pipe and
//! whatever a [`Connector`] of your own opens are the same to them.
#![cfg_attr(
    all(feature = "snappy", feature = "deflate"),
    doc = "
[`snappy`] and [`deflate`] are the two compressions of which IDENTIFY can grant one. They know no stream: bytes go in and
bytes come out, however they arrive and within the room that the caller gives."
)]

mod connector;
mod memory;
mod tcp;
#[cfg(feature = "tls")]
pub(crate) mod tls;

#[cfg(any(feature = "snappy", feature = "deflate"))]
pub(crate) mod compressed;
#[cfg(feature = "snappy")]
mod crc32c;
#[cfg(feature = "deflate")]
#[cfg_attr(docsrs, doc(cfg(feature = "deflate")))]
pub mod deflate;
#[cfg(feature = "snappy")]
#[cfg_attr(docsrs, doc(cfg(feature = "snappy")))]
pub mod snappy;

/// What a TLS handshake has agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsSession {
    /// The version, such as `TLSv1_3`.
    pub version: String,
    /// The cipher suite, such as `TLS13_AES_256_GCM_SHA384`.
    pub cipher: String,
}

pub use connector::{BoxIo, Connecting, Connector, Io};
pub use memory::{MemoryConnector, MemoryListener, MemoryNetwork};
pub use tcp::TcpConnector;
