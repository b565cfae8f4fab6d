//! Where a connection reads into: large when messages pour in, small when they do not.

use bytes::BytesMut;

const SMALLEST: usize = 8 * 1024;
const LARGEST: usize = 64 * 1024;

/// How many retired buffers wait for their slices to be dropped. Handlers that keep bodies for longer make further
/// buffers be allocated, which is theirs to bound.
const SPARES: usize = 4;

/// A read buffer whose allocations are used again once all messages sliced from them are gone.
///
/// The size doubles when a read fills the buffer, and falls back to the smallest once so little comes between two of nsqd's
/// heartbeats that the smallest would do. So a busy connection reads hundreds of messages with one system call and an
/// idle one holds 8 KiB. (A few small reads in a row say nothing: they come under full load, too.)
#[derive(Debug)]
pub(super) struct ReadBuffer {
    current: BytesMut,
    size: usize,
    /// What has come since the last heartbeat.
    read: usize,
    spares: Vec<BytesMut>,
}

impl ReadBuffer {
    /// A buffer that begins with what was read already.
    pub(super) fn new(unread: BytesMut) -> Self {
        Self {
            current: unread,
            size: SMALLEST,
            read: 0,
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
        // With room for the beginning of a frame besides: nsqd writes 64 KiB at once, and a little less room than that would
        // cost a second read each time.
        let wanted = (self.size + self.size / 8).max(self.current.len() + missing);
        // The buffer itself serves again if nothing refers to its old content any more.
        if missing <= LARGEST && self.current.try_reclaim(wanted - self.current.len()) {
            return;
        }
        let mut next = self.spare(wanted);
        next.extend_from_slice(&self.current);
        let mut retired = std::mem::replace(&mut self.current, next);
        retired.clear();
        if self.spares.len() < SPARES && missing <= LARGEST {
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
        self.read = self.read.saturating_add(count);
        if count >= room && self.size < LARGEST {
            self.size *= 2;
            // They are of the old size.
            self.spares.clear();
        }
    }

    /// A heartbeat has come. Falls back to the smallest size if nearly nothing else has since the last one. Returns
    /// whether the connection is that quiet.
    pub(super) fn handle_heartbeat(&mut self) -> bool {
        let quiet = std::mem::take(&mut self.read) < SMALLEST && self.current.is_empty();
        if quiet && self.size > SMALLEST {
            *self = Self::new(BytesMut::new());
        } else if quiet {
            self.spares = Vec::new();
        }
        quiet
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
    fn full_reads_grow_it_and_a_quiet_heartbeat_interval_shrinks_it() {
        let mut buffer = ReadBuffer::new(BytesMut::new());
        for _ in 0..8 {
            fill(&mut buffer);
            buffer.bytes().clear();
        }
        assert_eq!(buffer.size, LARGEST);
        assert!(!buffer.handle_heartbeat(), "it was busy before this one");
        for _ in 0..100 {
            buffer.handle_read(15, 1000);
        }
        assert_eq!(buffer.size, LARGEST);
        assert!(buffer.handle_heartbeat());
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
    fn what_nsqd_writes_at_once_fits_behind_the_beginning_of_a_frame() {
        let mut buffer = ReadBuffer::new(BytesMut::new());
        for _ in 0..8 {
            fill(&mut buffer);
            buffer.bytes().clear();
        }
        for leftover in [1, 200, 5000] {
            buffer.bytes().resize(LARGEST, 1);
            let messages = buffer.bytes().split_to(LARGEST - leftover);
            buffer.make_room(30);
            assert_eq!(buffer.bytes().len(), leftover);
            assert!(buffer.bytes().capacity() - leftover >= LARGEST);
            drop(messages);
            buffer.bytes().clear();
        }
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
