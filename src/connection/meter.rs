//! Whether the peer takes what is written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::BoxIo;

/// Tells whether the stream at the bottom of a connection has taken anything.
///
/// TLS and compression have buffers of their own: they go on taking while the peer has long stopped.
#[derive(Debug, Default)]
pub(super) struct Meter {
    taken: Arc<AtomicU64>,
    seen: u64,
}

impl Meter {
    /// Puts the meter between `io` and what is going to be on top of it.
    pub(super) fn measure(&self, io: BoxIo) -> BoxIo {
        let taken = Arc::clone(&self.taken);
        Box::new(Metered { io, taken })
    }

    /// How many bytes it has taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether any byte was taken since the last call.
    pub(super) fn has_moved(&mut self) -> bool {
        let taken = self.taken();
        std::mem::replace(&mut self.seen, taken) != taken
    }
}

struct Metered {
    io: BoxIo,
    taken: Arc<AtomicU64>,
}

impl Metered {
    fn count(&self, written: usize) {
        self.taken.fetch_add(written as u64, Ordering::Relaxed);
    }
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.count(written);
        Poll::Ready(Ok(written))
    }

    // TLS writes its records by these.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?;
        self.count(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
