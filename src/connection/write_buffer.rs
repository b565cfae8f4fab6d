//! What waits to be written, and how far writing has come.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bodies from this length on are written from where they lie. Shorter ones are copied: a write of their own would cost
/// more than that.
const LARGE_BODY: usize = 64 * 1024;

/// Commands encoded and not yet taken by the socket.
///
/// Positions count from the connection's first byte after the handshake, so that a role can tell which of its
/// commands have left entirely, which is what makes *not sent* a safe thing to say.
#[derive(Debug, Default)]
pub(crate) struct WriteBuffer {
    /// What comes before `bytes`: large bodies, and what lies between them.
    before: VecDeque<Bytes>,
    before_len: usize,
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

    /// Appends a message's body and, before it, its length. A large one is not copied.
    pub(crate) fn put_body(&mut self, body: &Bytes) {
        self.bytes.put_u32(body.len() as u32);
        if body.len() < LARGE_BODY {
            self.bytes.put_slice(body);
            return;
        }
        let small = self.bytes.split().freeze();
        self.before_len += small.len() + body.len();
        self.before.extend([small, body.clone()]);
    }

    /// The position after the last byte appended.
    pub(crate) fn end(&self) -> u64 {
        self.written + self.len() as u64
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
        self.before_len + self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is to be written next, which may not be all.
    pub(super) fn unwritten(&self) -> &[u8] {
        self.before.front().map_or(&self.bytes, |part| part)
    }

    pub(super) fn advance(&mut self, count: usize) {
        self.written += count as u64;
        let Some(front) = self.before.front_mut() else {
            self.bytes.advance(count);
            return;
        };
        front.advance(count);
        self.before_len -= count;
        if front.is_empty() {
            self.before.pop_front();
        }
    }

    /// Gives back what a burst has made it grow to.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() {
            self.bytes = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes everything out, so much at a time.
    fn drain(buffer: &mut WriteBuffer, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while !buffer.is_empty() {
            let part = buffer.unwritten();
            let count = part.len().min(step);
            assert!(count > 0);
            out.extend_from_slice(&part[..count]);
            buffer.advance(count);
        }
        out
    }

    #[test]
    fn large_bodies_are_not_copied_and_everything_stays_in_order() {
        let large = Bytes::from(vec![7; LARGE_BODY]);
        let small = Bytes::from_static(b"small");
        let mut buffer = WriteBuffer::default();
        let mut expected = Vec::new();
        for body in [&small, &large, &large, &small] {
            buffer.bytes().put_slice(b"PUB t\n");
            buffer.put_body(body);
            expected.extend_from_slice(b"PUB t\n");
            expected.extend_from_slice(&(body.len() as u32).to_be_bytes());
            expected.extend_from_slice(body);
        }
        assert!(buffer.before.iter().any(|part| part.as_ptr() == large.as_ptr()));
        assert_eq!(buffer.len(), expected.len());
        assert_eq!(buffer.end(), expected.len() as u64);
        assert_eq!(drain(&mut buffer, 40_000), expected);
        assert_eq!(buffer.written(), expected.len() as u64);
        assert_eq!(buffer.end(), buffer.written());
        assert!(buffer.before.is_empty());
    }
}
