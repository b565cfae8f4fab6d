//! The far end of a connection, as simple as can be: its instructions count too. It answers what is asked and has so many
//! messages, all of which a consumer gets as fast as it answers them.

use std::io;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};

use async_nsq::protocol::{self, Frame, Message, MessageId, encode_frame};
use async_nsq::transport::{BoxIo, Connecting, Connector};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(crate) const BODY: &[u8] = &[b'x'; 200];

/// What a default nsqd answers to IDENTIFY, in short.
const IDENTITY: &[u8] = br#"{"max_rdy_count":2500,"version":"1.3.0","max_msg_timeout":900000}"#;

/// How many messages differ: more than are ever in flight.
const DIFFERENT: usize = 4096;

/// A frame's size and type, a message's timestamp, attempts, id and body.
const MESSAGE_LEN: u64 = 4 + 4 + 8 + 2 + 16 + BODY.len() as u64;

const FIN_LEN: usize = "FIN 0123456789abcdef\n".len();

pub(crate) fn message(number: usize) -> Message {
    let digits = format!("{number:016x}");
    Message {
        timestamp: 1_700_000_000_000_000_000,
        attempts: 1,
        id: MessageId::new(*digits.as_bytes().first_chunk().unwrap_or(&[b'0'; 16])),
        body: Bytes::from_static(BODY),
    }
}

static MESSAGES: LazyLock<Bytes> = LazyLock::new(|| {
    let mut wire = BytesMut::new();
    (0..DIFFERENT).for_each(|number| encode_frame(&Frame::Message(message(number)), &mut wire));
    wire.freeze()
});

/// Connects to an nsqd with so many messages.
#[derive(Debug)]
pub(crate) struct Nsqd {
    pub(crate) messages: u64,
}

impl Connector for Nsqd {
    fn connect(&self, _: &str) -> Connecting {
        let line = Line {
            messages: self.messages,
            ..Line::default()
        };
        Box::pin(async { Ok(Box::new(line) as BoxIo) })
    }
}

/// One connection. Counts are messages, except where they are bytes.
#[derive(Default)]
struct Line {
    messages: u64,
    rdy: u64,
    finished: u64,
    sent_bytes: u64,
    /// Answers to be read.
    answers: BytesMut,
    /// What was written and is not a whole command yet.
    written: Vec<u8>,
    reader: Option<Waker>,
}

impl Line {
    /// How many bytes of messages may be sent.
    fn sendable_bytes(&self) -> u64 {
        let messages = self.messages.min(self.finished + self.rdy);
        // What has been begun is sent to its end.
        let bytes = (messages * MESSAGE_LEN).max(self.sent_bytes.next_multiple_of(MESSAGE_LEN));
        bytes - self.sent_bytes
    }

    /// Carries out all whole commands.
    fn carry_out(&mut self) {
        let written = std::mem::take(&mut self.written);
        let mut rest = &written[..];
        while let Some(after) = self.command(rest) {
            rest = after;
        }
        let done = written.len() - rest.len();
        self.written = written;
        self.written.drain(..done);
    }

    /// Carries out the first command and returns what follows it; `None` if it has not come as a whole.
    fn command<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        if bytes.starts_with(b"FIN ") {
            let after = bytes.get(FIN_LEN..)?;
            self.finished += 1;
            return Some(after);
        }
        if let Some(after) = bytes.strip_prefix(protocol::MAGIC) {
            return Some(after);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (line, after) = (&bytes[..end], &bytes[end + 1..]);
        let mut words = line.split(|byte| *byte == b' ');
        let name = words.next()?;
        let after = match name {
            b"IDENTIFY" | b"PUB" | b"MPUB" => {
                let (size, body) = after.split_first_chunk()?;
                body.get(u32::from_be_bytes(*size) as usize..)?
            }
            _ => after,
        };
        match name {
            b"IDENTIFY" => self.answer(IDENTITY),
            b"SUB" | b"PUB" | b"MPUB" => self.answer(protocol::OK),
            b"RDY" => self.rdy = str::from_utf8(words.next()?).ok()?.parse().ok()?,
            b"CLS" => self.answer(protocol::CLOSE_WAIT),
            _ => {}
        }
        Some(after)
    }

    fn answer(&mut self, text: &'static [u8]) {
        encode_frame(&Frame::Response(Bytes::from_static(text)), &mut self.answers);
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.answers.is_empty() && self.sent_bytes.is_multiple_of(MESSAGE_LEN) {
            let len = self.answers.len().min(buffer.remaining());
            buffer.put_slice(&self.answers[..len]);
            self.answers.advance(len);
            return Poll::Ready(Ok(()));
        }
        let sendable = self.sendable_bytes() as usize;
        if sendable == 0 {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let start = self.sent_bytes as usize % MESSAGES.len();
        let piece = &MESSAGES[start..];
        let len = sendable.min(piece.len()).min(buffer.remaining());
        buffer.put_slice(&piece[..len]);
        self.sent_bytes += len as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written.extend_from_slice(bytes);
        self.carry_out();
        if (!self.answers.is_empty() || self.sendable_bytes() > 0)
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
