//! The byte stream of a connection with its two buffers.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::client::Link;
use crate::protocol::{Frame, encode_frame};
use crate::transport::BoxIo;

/// How much is read at once.
const READ_CHUNK: usize = 64 * 1024;

/// The least room that a read gets; with less left in the buffer, a new one is begun.
const LEAST_READ: usize = 4 * 1024;

pub(super) struct Wire {
    io: BoxIo,
    pub(super) input: BytesMut,
    pub(super) out: BytesMut,
    unflushed: bool,
    pub(super) eof: bool,
}

impl Wire {
    pub(super) fn new(io: BoxIo) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            out: BytesMut::new(),
            unflushed: false,
            eof: false,
        }
    }

    pub(super) fn put(&mut self, frame: &Frame) {
        encode_frame(frame, &mut self.out);
    }

    pub(super) fn has_output(&self) -> bool {
        self.unflushed || !self.out.is_empty()
    }

    /// Writes what is there to write and, if `needed` is given, reads: room for that many bytes in all is made. Returns
    /// once anything has moved. A frozen connection moves nothing.
    pub(super) async fn transfer(&mut self, needed: Option<usize>, link: &Link) -> io::Result<()> {
        if let Some(needed) = needed {
            if self.input.capacity() - self.input.len() < LEAST_READ {
                self.input
                    .reserve(READ_CHUNK.max(needed.saturating_sub(self.input.len())));
            }
        }
        let read = needed.is_some() && !self.eof;
        poll_fn(|cx| {
            if link.is_frozen() {
                return Poll::Pending;
            }
            let wrote = self.poll_write(cx)?.is_ready();
            if read {
                if let Poll::Ready(count) = pin!(self.io.read_buf(&mut self.input)).poll(cx)? {
                    self.eof = count == 0;
                    return Poll::Ready(Ok(()));
                }
            }
            if wrote { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    /// Ready once something that waited has been written and flushed in full.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() && !self.unflushed {
            return Poll::Pending;
        }
        while !self.out.is_empty() {
            match Pin::new(&mut *self.io).poll_write(cx, &self.out)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(count) => self.out.advance(count),
                Poll::Pending => return Poll::Pending,
            }
            self.unflushed = true;
        }
        let flushed = Pin::new(&mut *self.io).poll_flush(cx)?;
        self.unflushed = flushed.is_pending();
        flushed.map(Ok)
    }

    /// Writes everything and ends the stream.
    pub(super) async fn finish(&mut self, link: &Link) -> io::Result<()> {
        while link.is_frozen() {
            link.wake.notified().await;
        }
        self.io.write_all_buf(&mut self.out).await?;
        self.io.shutdown().await
    }
}
