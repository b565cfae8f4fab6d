//! The simulated network as the client's transport, with a tap: what a consumer writes and reads, in its order.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use async_nsq::protocol::{Frame, FrameDecoder};
use async_nsq::transport::{Connecting, Connector};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::TcpStream;

use crate::journal::{Journal, LinkId, Written};

/// Connects over the simulated network.
#[derive(Debug)]
pub struct Simulated;

impl Connector for Simulated {
    fn connect(&self, address: &str) -> Connecting {
        let address = address.to_owned();
        Box::pin(async move { Ok(Box::new(TcpStream::connect(address).await?) as _) })
    }
}

/// The connections of a host that may crash.
///
/// A runtime that is dropped drops its tasks in an order that no seed decides, and with them their connections. So before
/// a host crashes, its connections are cut in the order in which they were made, and it cannot make more.
#[derive(Debug, Default)]
pub struct Sockets(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    is_cut: bool,
    streams: Vec<Weak<Mutex<Option<TcpStream>>>>,
}

/// A connection of a host that may crash. After that it is silent for ever.
#[derive(Debug)]
pub struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Sockets {
    pub fn add(&self, stream: TcpStream) -> Socket {
        let mut open = lock(&self.0);
        let stream = Arc::new(Mutex::new((!open.is_cut).then_some(stream)));
        open.streams.retain(|stream| stream.strong_count() > 0);
        open.streams.push(Arc::downgrade(&stream));
        Socket(stream)
    }

    /// Cuts all, as the end of their process does.
    pub fn cut(&self) {
        let mut open = lock(&self.0);
        open.is_cut = true;
        for stream in open.streams.drain(..).filter_map(|stream| stream.upgrade()) {
            drop(lock(&stream).take());
        }
    }

    /// A new process.
    pub fn mend(&self) {
        *lock(&self.0) = Open::default();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *lock(&self.0) {
            Some(stream) => Pin::new(stream).poll_read(cx, buf),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *lock(&self.0) {
            Some(stream) => Pin::new(stream).poll_write(cx, buf),
            None => Poll::Pending,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *lock(&self.0) {
            Some(stream) => Pin::new(stream).poll_flush(cx),
            None => Poll::Pending,
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *lock(&self.0) {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Pending,
        }
    }
}

/// The same for a consumer, whose connections to nsqds are listened to.
#[derive(Debug)]
pub struct Tapped {
    pub consumer: usize,
    pub journal: Arc<Journal>,
    pub sockets: Arc<Sockets>,
}

impl Connector for Tapped {
    fn connect(&self, address: &str) -> Connecting {
        let (consumer, journal, address) = (self.consumer, Arc::clone(&self.journal), address.to_owned());
        let sockets = Arc::clone(&self.sockets);
        Box::pin(async move {
            let io = sockets.add(TcpStream::connect(address.clone()).await?);
            if !address.starts_with("nsqd") {
                return Ok(Box::new(io) as _);
            }
            let link = journal.opened(consumer, &address);
            Ok(Box::new(Tap {
                io,
                link,
                journal,
                written: BytesMut::new(),
                skip: 4,
                read: BytesMut::new(),
                frames: FrameDecoder::new(1 << 20),
            }) as _)
        })
    }
}

struct Tap {
    io: Socket,
    link: LinkId,
    journal: Arc<Journal>,
    written: BytesMut,
    /// Bytes to come that are no command line: the magic, and the body of IDENTIFY.
    skip: usize,
    read: BytesMut,
    frames: FrameDecoder,
}

impl Tap {
    fn note_written(&mut self, bytes: &[u8]) {
        self.written.extend_from_slice(bytes);
        loop {
            let skipped = self.skip.min(self.written.len());
            self.written.advance(skipped);
            self.skip -= skipped;
            let Some(end) = self.written.iter().position(|&byte| byte == b'\n') else {
                return;
            };
            let line = &self.written[..end];
            if line == b"IDENTIFY" {
                let Some(size) = self.written.get(end + 1..end + 5) else {
                    return;
                };
                self.skip = u32::from_be_bytes(size.try_into().unwrap()) as usize + 4;
            } else if let Some(command) = Written::parse(std::str::from_utf8(line).unwrap()) {
                self.journal.wrote(self.link, &command);
            }
            self.written.advance(end + 1);
        }
    }

    fn note_read(&mut self, bytes: &[u8]) {
        self.read.extend_from_slice(bytes);
        for frame in self.frames.decode(&mut self.read) {
            match frame.unwrap() {
                Frame::Message(message) => self.journal.delivered(self.link, &message),
                Frame::Error(text) => self.journal.refused(self.link, &String::from_utf8_lossy(&text)),
                _ => {}
            }
        }
    }
}

impl AsyncRead for Tap {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.note_read(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.note_written(&buf[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // After a cut the tasks are dropped in any order.
        let is_cut = lock(&self.io.0).is_none();
        self.journal.closed(self.link, is_cut);
    }
}
