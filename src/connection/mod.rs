//! A connection to one nsqd: opened by the [`handshake`], then owned by one [`Driver`] until it ends.
//!
//! What the connection is *for* is a [`Role`]: the producer's encodes publishes and resolves their answers, the
//! consumer's hands messages over and encodes their answers. The driver moves bytes and answers heartbeats.

mod driver;
mod handshake;
mod liveness;
mod lost;
mod meter;
mod read_buffer;
mod write_buffer;

pub(crate) use driver::{Driver, Queued, Role};
pub use handshake::Negotiated;
pub(crate) use handshake::{Established, open};
pub(crate) use write_buffer::WriteBuffer;
