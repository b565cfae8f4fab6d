//! What waits to be written, and how far writing has come.

use bytes::{Buf, BytesMut};

/// What an idle buffer may keep: enough for a few hundred acknowledgements.
const KEPT_CAPACITY: usize = 8 * 1024;

/// Commands encoded and not yet taken by the socket.
///
/// Positions count from the connection's first byte after the handshake, so that a role can tell which of its
/// commands have left entirely, which is what makes *not sent* a safe thing to say.
#[derive(Debug, Default)]
pub(crate) struct WriteBuffer {
    bytes: BytesMut,
    written: u64,
    /// A write has failed after some of it had left.
    torn: bool,
}

impl WriteBuffer {
    /// Where commands are appended.
    pub(crate) fn bytes(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// The position after the last byte appended.
    pub(crate) fn end(&self) -> u64 {
        self.written + self.bytes.len() as u64
    }

    /// The position up to which the socket has taken the bytes.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The position behind which nothing can have reached the peer.
    pub(crate) fn may_have_left(&self) -> u64 {
        if self.torn { self.end() } else { self.written }
    }

    /// A write has failed, but not before some of it had left: TLS and compression take a write whole and then pass it on in
    /// parts, so how much of it is out cannot be known.
    pub(super) fn tear(&mut self) {
        self.torn = true;
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn unwritten(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.written += count as u64;
    }

    /// Gives back what a burst has made it grow to.
    pub(super) fn shrink(&mut self) {
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT_CAPACITY {
            self.bytes = BytesMut::new();
        }
    }
}
