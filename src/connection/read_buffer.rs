//! Where a connection reads into: large when messages pour in, small when they do not.

use bytes::BytesMut;

const SMALLEST: usize = 8 * 1024;
const LARGEST: usize = 64 * 1024;

/// How many retired buffers wait for their slices to be dropped. Handlers that keep bodies for longer make further
/// buffers be allocated, which is theirs to bound.
const SPARES: usize = 4;

/// After this many reads in a row that brought little, the buffer shrinks. nsqd's heartbeats alone reach it.
const SMALL_READS: u8 = 3;

/// A read buffer whose allocations are used again once all messages sliced from them are gone.
///
/// The size doubles when a read fills the buffer and falls back to the smallest after [`SMALL_READS`] small reads, so
/// a busy connection reads hundreds of messages with one system call and an idle one holds 8 KiB.
#[derive(Debug)]
pub(super) struct ReadBuffer {
    current: BytesMut,
    size: usize,
    small_reads: u8,
    spares: Vec<BytesMut>,
}

impl ReadBuffer {
    /// A buffer that begins with what was read already.
    pub(super) fn new(unread: BytesMut) -> Self {
        Self {
            current: unread,
            size: SMALLEST,
            small_reads: 0,
            spares: Vec::new(),
        }
    }

    /// The bytes read and not yet decoded, to be read into and decoded from.
    pub(super) fn bytes(&mut self) -> &mut BytesMut {
        &mut self.current
    }

    /// Makes room for a read: at least a quarter of the size, and for all that the next frame is known to lack.
    pub(super) fn make_room(&mut self, missing: usize) {
        let free = self.current.capacity() - self.current.len();
        if free >= (self.size / 4).max(missing) {
            return;
        }
        let wanted = self.size.max(self.current.len() + missing);
        // The buffer itself serves again if nothing refers to its old content any more.
        if wanted <= LARGEST && self.current.try_reclaim(wanted - self.current.len()) {
            return;
        }
        let mut next = self.spare(wanted);
        next.extend_from_slice(&self.current);
        let mut retired = std::mem::replace(&mut self.current, next);
        retired.clear();
        if self.spares.len() < SPARES && self.size > SMALLEST && wanted <= LARGEST {
            self.spares.push(retired);
        }
    }

    fn spare(&mut self, wanted: usize) -> BytesMut {
        let reusable = self.spares.iter_mut().position(|spare| spare.try_reclaim(wanted));
        match reusable {
            Some(index) => self.spares.swap_remove(index),
            None => BytesMut::with_capacity(wanted),
        }
    }

    /// Adapts the size to a read of `count` bytes that had room for `room`.
    pub(super) fn handle_read(&mut self, count: usize, room: usize) {
        if count >= room {
            self.small_reads = 0;
            if self.size < LARGEST {
                self.size *= 2;
                // They are of the old size.
                self.spares.clear();
            }
        } else if count < self.size / 8 {
            self.small_reads = self.small_reads.saturating_add(1);
        } else {
            self.small_reads = 0;
        }
    }

    /// Falls back to the smallest size if the connection has gone quiet. Returns whether it did.
    pub(super) fn shrink(&mut self) -> bool {
        if self.small_reads < SMALL_READS || self.size == SMALLEST || !self.current.is_empty() {
            return false;
        }
        *self = Self::new(BytesMut::new());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(buffer: &mut ReadBuffer) {
        buffer.make_room(0);
        let full = buffer.bytes().capacity();
        let room = full - buffer.bytes().len();
        buffer.bytes().resize(full, 7);
        buffer.handle_read(room, room);
    }

    #[test]
    fn full_reads_grow_it_and_small_ones_shrink_it() {
        let mut buffer = ReadBuffer::new(BytesMut::new());
        for _ in 0..8 {
            fill(&mut buffer);
            buffer.bytes().clear();
        }
        assert_eq!(buffer.size, LARGEST);
        for _ in 0..SMALL_READS {
            assert!(!buffer.shrink());
            buffer.handle_read(15, 1000);
        }
        assert!(buffer.shrink());
        buffer.make_room(0);
        assert!(buffer.bytes().capacity() <= 2 * SMALLEST);
    }

    #[test]
    fn an_incomplete_frame_moves_along() {
        let mut buffer = ReadBuffer::new(BytesMut::from(&b"abc"[..]));
        buffer.make_room(1_000_000);
        assert_eq!(&buffer.bytes()[..], b"abc");
        assert!(buffer.bytes().capacity() >= 1_000_003);
    }

    #[test]
    fn an_allocation_serves_again_once_its_slices_are_gone() {
        let mut buffer = ReadBuffer::new(BytesMut::new());
        for _ in 0..8 {
            fill(&mut buffer);
            buffer.bytes().clear();
        }
        buffer.make_room(0);
        buffer.bytes().resize(LARGEST, 1);
        let slice = buffer.bytes().split_to(LARGEST - 10).freeze();
        let first = slice.as_ptr();
        // While the slice lives, another allocation is used.
        buffer.make_room(0);
        assert_ne!(buffer.bytes().as_ptr(), first);
        drop(slice);
        buffer.bytes().resize(LARGEST, 1);
        let second = buffer.bytes().split_to(LARGEST - 10).freeze();
        buffer.make_room(0);
        assert_eq!(buffer.bytes().as_ptr(), first);
        drop(second);
    }
}
