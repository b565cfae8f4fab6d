//! Byte streams to a peer: how a connection is opened and what it runs over.
//!
//! The layers above know a stream as anything that reads and writes bytes ([`Io`]), so TCP, an in-memory pipe and
//! whatever a [`Connector`] of your own opens are the same to them.

mod connector;
mod memory;
mod tcp;

pub use connector::{BoxIo, Connecting, Connector, Io};
pub use memory::{MemoryConnector, MemoryListener, MemoryNetwork};
pub use tcp::TcpConnector;
