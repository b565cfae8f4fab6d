//! Listens to what a consumer and nsqds say to each other, to tell the messages that crossed a lowered RDY.

use std::collections::{HashMap, HashSet};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_nsq::protocol::{Frame, FrameDecoder};
use async_nsq::transport::{BoxIo, Connecting, Connector, TcpConnector};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How long after a message has come in a lower RDY may be written that the consumer had decided on before: its
/// connections write when it is their turn.
const DECIDED_BEFORE: Duration = Duration::from_secs(1);

/// The messages in flight that nsqd may have sent before it read a lower RDY: those that came in when as many were in
/// flight as RDY allows, and those on whose heels RDY was lowered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Crossed(Arc<Mutex<Ids>>);

#[derive(Debug, Default)]
struct Ids {
    in_flight: HashSet<String>,
    /// How many there were at once.
    most: usize,
}

impl Ids {
    fn add(&mut self, id: &str) {
        self.in_flight.insert(id.to_owned());
        self.most = self.most.max(self.in_flight.len());
    }
}

impl Crossed {
    pub(crate) fn in_flight(&self) -> usize {
        self.0.lock().unwrap().in_flight.len()
    }

    pub(crate) fn most(&self) -> usize {
        self.0.lock().unwrap().most
    }
}

/// Connects by TCP, and listens to nsqds.
#[derive(Debug)]
pub(crate) struct Tapping {
    tcp: TcpConnector,
    nsqlookupds: Vec<String>,
    crossed: Crossed,
}

impl Tapping {
    pub(crate) fn new(nsqlookupds: impl IntoIterator<Item = String>) -> (Crossed, Self) {
        let crossed = Crossed::default();
        let tapping = Self {
            tcp: TcpConnector::default(),
            nsqlookupds: nsqlookupds.into_iter().collect(),
            crossed: crossed.clone(),
        };
        (crossed, tapping)
    }
}

impl Connector for Tapping {
    fn connect(&self, address: &str) -> Connecting {
        if self.nsqlookupds.iter().any(|nsqlookupd| nsqlookupd == address) {
            return self.tcp.connect(address);
        }
        let (connecting, crossed) = (self.tcp.connect(address), self.crossed.clone());
        Box::pin(async move {
            let tap = Tap {
                io: connecting.await?,
                crossed,
                rdy: 0,
                in_flight: HashMap::new(),
                written: BytesMut::new(),
                skip: 4,
                read: BytesMut::new(),
                frames: FrameDecoder::new(1 << 20),
            };
            Ok(Box::new(tap) as BoxIo)
        })
    }
}

struct Tap {
    io: BoxIo,
    crossed: Crossed,
    rdy: usize,
    /// When each message has come in.
    in_flight: HashMap<String, Instant>,
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
            let line = String::from_utf8_lossy(&self.written[..end]).into_owned();
            if line == "IDENTIFY" {
                let Some(size) = self.written.get(end + 1..end + 5) else {
                    return;
                };
                self.skip = u32::from_be_bytes(size.try_into().unwrap()) as usize + 4;
            }
            self.written.advance(end + 1);
            self.note_command(&line);
        }
    }

    fn note_command(&mut self, line: &str) {
        let mut crossed = self.crossed.0.lock().unwrap();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["RDY", rdy] => {
                let rdy = rdy.parse().unwrap();
                if std::mem::replace(&mut self.rdy, rdy) > rdy {
                    let late = self.in_flight.iter().filter(|(_, at)| at.elapsed() < DECIDED_BEFORE);
                    late.for_each(|(id, _)| crossed.add(id));
                }
            }
            ["FIN", id] | ["REQ", id, _] => {
                self.in_flight.remove(id);
                crossed.in_flight.remove(id);
            }
            _ => {}
        }
    }

    fn note_read(&mut self, bytes: &[u8]) {
        self.read.extend_from_slice(bytes);
        for frame in self.frames.decode(&mut self.read) {
            let Frame::Message(message) = frame.unwrap() else {
                continue;
            };
            let id = message.id.to_string();
            if self.in_flight.len() >= self.rdy {
                self.crossed.0.lock().unwrap().add(&id);
            }
            self.in_flight.insert(id, Instant::now());
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
