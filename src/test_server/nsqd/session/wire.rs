//! The byte stream of a connection with its two buffers.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use super::super::client::Link;
use crate::protocol::{Frame, encode_frame};
use crate::transport::BoxIo;

/// How much is read at once: little from a connection that says little, so that ten thousand idle ones need no memory.
const LEAST_READ: usize = 2 * 1024;
const MOST_READ: usize = 128 * 1024;

/// The size of nsqd's buffer for a client that wants none.
const UNBUFFERED: usize = 1;

pub(super) struct Wire {
    io: BoxIo,
    pub(super) input: BytesMut,
    read_size: usize,
    out: BytesMut,
    /// How many bytes at the front of `out` may be written; what is behind waits for a flush, as in nsqd's buffer.
    released: usize,
    /// What a fault holds back until its time, in order: nothing may overtake it.
    delayed: VecDeque<(Instant, BytesMut)>,
    /// nsqd's output buffer for this connection.
    buffer_size: usize,
    /// Without a buffer, nsqd writes the size, the type and the data of a frame one after the other: the lengths of what is
    /// to be written, in order.
    pieces: VecDeque<usize>,
    unflushed: bool,
    /// Nothing is put any more.
    sealed: bool,
    pub(super) eof: bool,
}

impl Wire {
    pub(super) fn new(io: BoxIo, buffer_size: usize) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            read_size: LEAST_READ,
            out: BytesMut::new(),
            released: 0,
            delayed: VecDeque::new(),
            buffer_size,
            pieces: VecDeque::new(),
            unflushed: false,
            sealed: false,
            eof: false,
        }
    }

    pub(super) fn set_buffer_size(&mut self, bytes: usize) {
        self.buffer_size = bytes.max(1);
    }

    /// Hands the stream out, to be exchanged by [`set_io`](Self::set_io) for one that runs over it. What was read and not
    /// looked at is lost, as nsqd loses it.
    pub(super) fn take_io(&mut self) -> BoxIo {
        self.input.clear();
        std::mem::replace(&mut self.io, Box::new(tokio::io::empty()))
    }

    pub(super) fn set_io(&mut self, io: BoxIo) {
        self.io = io;
    }

    /// Appends a frame, which waits for a [`release`](Self::release).
    pub(super) fn put(&mut self, frame: &Frame) {
        if self.sealed {
            return;
        }
        let before = self.end().len();
        encode_frame(frame, self.end());
        let len = self.end().len() - before;
        let pieces = [4, 4, len - 8];
        if self.buffer_size == UNBUFFERED {
            // None is empty: that would be a write of nothing, again and again.
            self.pieces.extend(pieces.into_iter().filter(|piece| *piece > 0));
        }
        self.release_overflow(&pieces);
    }

    pub(super) fn put_bytes(&mut self, bytes: &[u8]) {
        if self.sealed {
            return;
        }
        self.end().extend_from_slice(bytes);
        if self.buffer_size == UNBUFFERED && !bytes.is_empty() {
            self.pieces.push_back(bytes.len());
        }
        self.release_overflow(&[bytes.len()]);
    }

    /// What was put until now is the last that is written.
    pub(super) fn seal(&mut self) {
        self.sealed = true;
    }

    pub(super) fn reserve(&mut self, bytes: usize) {
        self.end().reserve(bytes);
    }

    fn end(&mut self) -> &mut BytesMut {
        match self.delayed.back_mut() {
            Some((_, bytes)) => bytes,
            None => &mut self.out,
        }
    }

    /// From here on nothing is written before `due`.
    pub(super) fn delay(&mut self, due: Instant) {
        let earlier = self.delayed.back().map_or(due, |(earlier, _)| due.max(*earlier));
        self.delayed.push_back((earlier, BytesMut::new()));
    }

    /// When what is delayed may go on.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.delayed.front().map(|(due, _)| *due)
    }

    /// How long the last of what is delayed has to wait.
    pub(super) fn longest_delay(&self) -> Duration {
        let last = self.delayed.back();
        last.map_or(Duration::ZERO, |(due, _)| due.saturating_duration_since(Instant::now()))
    }

    /// Lets go what was delayed until now.
    pub(super) fn release_delayed(&mut self, now: Instant) {
        while self.next_due().is_some_and(|due| due <= now) {
            if let Some((_, bytes)) = self.delayed.pop_front() {
                self.out.unsplit(bytes);
                self.release();
            }
        }
    }

    /// Flushes nsqd's output buffer: all that is there may be written.
    pub(super) fn release(&mut self) {
        self.released = self.out.len();
    }

    /// What exceeds nsqd's output buffer leaves it: of the pieces that were put last, one that does not fit fills the buffer,
    /// which is written, and of a larger rest nothing is kept.
    fn release_overflow(&mut self, pieces: &[usize]) {
        if !self.delayed.is_empty() {
            return;
        }
        let mut held = self.held() - pieces.iter().sum::<usize>();
        for piece in pieces {
            held = match (held + piece).checked_sub(self.buffer_size) {
                None | Some(0) => held + piece,
                Some(rest) if held > 0 && rest <= self.buffer_size => rest,
                Some(_) => 0,
            };
        }
        self.released = self.out.len() - held;
    }

    /// How many bytes wait for a release.
    pub(super) fn held(&self) -> usize {
        self.out.len() - self.released
    }

    /// Passes a flush on to the stream below, also if there is nothing to write: deflate tells the peer of it.
    pub(super) fn flush_below(&mut self) {
        self.unflushed = true;
    }

    /// All bytes that wait, for whatever.
    pub(super) fn pending(&self) -> usize {
        self.out.len() + self.delayed.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    pub(super) fn has_output(&self) -> bool {
        self.unflushed || self.released > 0
    }

    /// Writes what is there to write and, if `needed` is given, reads: room for that many bytes in all is made. Returns
    /// once anything has moved. What is stalled does not move.
    pub(super) async fn transfer(&mut self, needed: Option<usize>, link: &Link) -> io::Result<()> {
        let read = needed.is_some() && !self.eof;
        if let (Some(needed), true) = (needed, read) {
            let missing = needed.saturating_sub(self.input.len());
            if self.input.capacity() - self.input.len() < missing.max(LEAST_READ / 2) {
                self.input.reserve(missing.max(self.read_size));
            }
        }
        poll_fn(|cx| {
            let wrote = !link.writes_are_stalled() && self.poll_write(cx, link)?.is_ready();
            if read && !link.reads_are_stalled() {
                let room = self.input.capacity() - self.input.len();
                if let Poll::Ready(count) = pin!(self.io.read_buf(&mut self.input)).poll(cx)? {
                    self.eof = count == 0;
                    self.adapt(count, room);
                    return Poll::Ready(Ok(()));
                }
            }
            if wrote { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    fn adapt(&mut self, count: usize, room: usize) {
        if count == room {
            self.read_size = (self.read_size * 2).min(MOST_READ);
        } else if count < self.read_size / 4 {
            self.read_size = (self.read_size / 2).max(LEAST_READ);
        }
    }

    /// Ready once something that waited has been written and flushed in full.
    fn poll_write(&mut self, cx: &mut Context<'_>, link: &Link) -> Poll<io::Result<()>> {
        if !self.has_output() {
            return Poll::Pending;
        }
        while self.released > 0 {
            let budget = usize::try_from(link.write_budget()).unwrap_or(usize::MAX);
            let piece = self
                .pieces
                .front()
                .map_or(self.released, |piece| self.released.min(*piece));
            let piece = piece.min(budget);
            if piece == 0 {
                break;
            }
            match Pin::new(&mut *self.io).poll_write(cx, &self.out[..piece])? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(count) => {
                    self.out.advance(count);
                    self.released -= count;
                    self.take_off_pieces(count);
                    link.spend(count);
                }
                Poll::Pending => return Poll::Pending,
            }
            self.unflushed = true;
        }
        let flushed = Pin::new(&mut *self.io).poll_flush(cx)?;
        if flushed.is_ready() && link.write_budget() == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        self.unflushed = flushed.is_pending();
        flushed.map(Ok)
    }

    fn take_off_pieces(&mut self, count: usize) {
        if let Some(piece) = self.pieces.front_mut() {
            *piece -= count;
            if *piece == 0 {
                self.pieces.pop_front();
            }
        }
    }

    /// Writes everything and ends the stream.
    pub(super) async fn finish(&mut self, link: &Link) -> io::Result<()> {
        self.flush(link).await?;
        self.io.shutdown().await
    }

    /// Writes everything, what is delayed at its time.
    pub(super) async fn flush(&mut self, link: &Link) -> io::Result<()> {
        self.release();
        loop {
            self.release_delayed(Instant::now());
            let due = self.next_due();
            let has_output = self.has_output();
            if due.is_none() && !has_output {
                return Ok(());
            }
            tokio::select! {
                biased;
                moved = self.transfer(None, link), if has_output => moved?,
                // Perhaps it is no longer stalled.
                () = link.wake.notified() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }
}
