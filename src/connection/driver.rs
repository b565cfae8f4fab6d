//! The only loop that touches a connection's socket.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::time::Instant;

use super::handshake::Established;
use super::liveness::Liveness;
use super::lost::lost;
use super::meter::Meter;
use super::read_buffer::ReadBuffer;
use super::write_buffer::WriteBuffer;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::protocol::{self, ErrorCode, Frame, FrameDecoder, Message, command};
use crate::transport::BoxIo;

/// Turns before the driver lets other tasks run. At 64 KiB a read this is some 2 MiB, about a millisecond's work: long
/// enough to make the pass through the scheduler cheap, short enough that a busy connection does not hold a thread.
const TURNS_PER_POLL: usize = 32;

/// Commands are encoded only while fewer bytes than this wait for the socket. More would only move the wait from the
/// role's bounded queue into memory of the driver's.
const WRITE_HIGH_WATER: usize = 256 * 1024;

/// What a role did when asked for commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// Commands were appended.
    Commands,
    /// There are none, and the role has arranged to be woken.
    Nothing,
    /// Some wait, and more are about to join them: ask again after other tasks have had a pass.
    SoonMore,
    /// There are none and never will be: the connection may end once everything is written.
    Finished,
}

/// What a connection is for.
///
/// The driver calls [`poll_commands`](Self::poll_commands) first in each turn, then writes, then reads and hands over
/// each frame, and [`frames_end`](Self::frames_end) after the last frame of a read.
pub(crate) trait Role: Unpin {
    /// Appends the commands that wait.
    fn poll_commands(&mut self, cx: &mut Context<'_>, out: &mut WriteBuffer) -> Queued;

    /// A response that is not a heartbeat.
    fn handle_response(&mut self, data: Bytes) -> Result<()>;

    /// An error frame. An error returned from here ends the connection, as nsqd does after a fatal code.
    fn handle_error(&mut self, code: ErrorCode, text: &str) -> Result<()>;

    /// A message.
    fn handle_message(&mut self, message: Message) -> Result<()>;

    /// All frames of one read have been handed over.
    fn frames_end(&mut self);

    /// Whether an answer is missing for which nobody waits at this time or later.
    fn is_overdue(&self, _at: Instant) -> bool {
        false
    }

    /// The connection has gone quiet: memory that a burst has claimed can be given back.
    fn shrink(&mut self) {}
}

/// Drives one connection until it ends: `Ok` when the role has finished, an error when the connection was lost.
///
/// Each turn has three duties in a fixed order: encode what is queued, write what the socket takes, read and decode
/// what is there. What is queued while a turn runs leaves with the next turn's single write. Nothing here ever waits
/// for a handler or a caller, which is what promise C1 rests on.
#[must_use = "a connection lives only while its driver is polled"]
pub(crate) struct Driver<R> {
    io: BoxIo,
    address: Arc<str>,
    role: R,
    decoder: FrameDecoder,
    read: ReadBuffer,
    write: WriteBuffer,
    needs_flush: bool,
    // One flag however many heartbeats arrive, and it stands until there is room to write: a peer cannot make the
    // answers pile up.
    owes_nop: bool,
    // A heartbeat was among what was read last.
    heartbeat: bool,
    finished: bool,
    // A write has failed: what is read from here on are the peer's last words.
    dying: bool,
    liveness: Liveness,
    meter: Meter,
    // Frames that came with the handshake's last answer have to be looked at before the first read.
    unread: bool,
}

impl<R: Role> Driver<R> {
    pub(crate) fn new(connection: Established, role: R) -> Self {
        Self {
            io: connection.io,
            address: connection.address,
            role,
            decoder: connection.decoder,
            unread: !connection.unread.is_empty(),
            read: ReadBuffer::new(connection.unread),
            write: WriteBuffer::default(),
            needs_flush: false,
            owes_nop: false,
            heartbeat: false,
            finished: false,
            dying: false,
            liveness: Liveness::new(connection.heartbeat_interval),
            meter: connection.meter,
        }
    }

    /// The role and what was written, once the connection has ended.
    pub(crate) fn into_role(self) -> (R, WriteBuffer) {
        (self.role, self.write)
    }

    /// One turn. `Ready(Ok)` if it moved anything, so that another one is worth while.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<Turn>> {
        let mut moved = false;
        match self.encode(cx) {
            Queued::Commands => moved = true,
            Queued::Nothing => {}
            Queued::SoonMore => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Queued::Finished => self.finished = true,
        }
        match self.write_out(cx) {
            Ok(wrote) => moved |= wrote,
            Err(error) => return Poll::Ready(Err(self.last_words(cx, error))),
        }
        if self.finished && self.write.is_empty() && !self.needs_flush {
            return Poll::Ready(Ok(Turn::Finished));
        }
        moved |= self.read_in(cx)?;
        if moved {
            Poll::Ready(Ok(Turn::Moved))
        } else {
            Poll::Pending
        }
    }

    fn encode(&mut self, cx: &mut Context<'_>) -> Queued {
        let full = self.write.len() >= WRITE_HIGH_WATER;
        if self.owes_nop && !full {
            self.owes_nop = false;
            command::nop(self.write.bytes());
        }
        if self.finished {
            return Queued::Finished;
        }
        if full {
            // The socket wakes the driver when it takes more.
            return Queued::Nothing;
        }
        self.role.poll_commands(cx, &mut self.write)
    }

    /// Writes until all is out or the stream is full. Returns whether it took anything.
    fn write_out(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        let mut moved = false;
        let mut blocked = false;
        while !self.write.is_empty() {
            let taken = self.meter.taken();
            match Pin::new(&mut self.io).poll_write(cx, self.write.unwritten()) {
                Poll::Ready(Ok(0)) => return Err(self.lost(Step::Write, io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    self.write.advance(count);
                    self.needs_flush = true;
                    moved = true;
                }
                Poll::Ready(Err(error)) => {
                    if self.meter.taken() != taken {
                        self.write.tear();
                    }
                    return Err(self.lost(Step::Write, error));
                }
                Poll::Pending => {
                    blocked = true;
                    break;
                }
            }
        }
        if self.needs_flush && !blocked {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.needs_flush = false,
                Poll::Ready(Err(error)) => return Err(self.lost(Step::Write, error)),
                Poll::Pending => blocked = true,
            }
        }
        // A stream with a buffer of its own takes bytes although the peer takes none.
        if self.meter.has_moved() || !blocked {
            self.liveness.handle_write();
        }
        if blocked {
            self.liveness.handle_write_blocked();
        }
        Ok(moved)
    }

    /// A write has failed. What the peer has sent before that still counts: answers, and why it closes. Messages do
    /// not: no answer to them could leave, and nsqd gives them to somebody else.
    fn last_words(&mut self, cx: &mut Context<'_>, failure: Error) -> Error {
        self.dying = true;
        for _ in 0..TURNS_PER_POLL {
            match self.read_in(cx) {
                Ok(true) => {}
                Err(error) if error.kind() != ErrorKind::ConnectionLost => return error,
                Ok(false) | Err(_) => break,
            }
        }
        failure
    }

    /// Reads once and hands the frames over. Returns whether anything came.
    fn read_in(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        if std::mem::take(&mut self.unread) {
            self.hand_over()?;
            return Ok(true);
        }
        self.read.make_room(self.decoder.missing());
        let (count, room) = match poll_read(&mut self.io, self.read.bytes(), cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok((0, _))) => {
                return Err(
                    Error::new(ErrorKind::ConnectionLost, Step::Read, "the peer closed the connection")
                        .at(&self.address),
                );
            }
            Poll::Ready(Ok(read)) => read,
            Poll::Ready(Err(error)) => return Err(self.lost(Step::Read, error)),
        };
        self.liveness.handle_read();
        self.read.handle_read(count, room);
        self.hand_over()?;
        if std::mem::take(&mut self.heartbeat) && self.read.handle_heartbeat() {
            self.write.shrink();
            self.role.shrink();
        }
        Ok(true)
    }

    fn hand_over(&mut self) -> Result<()> {
        let frames = self.decoder.decode(self.read.bytes());
        let result = self.hand_over_each(frames);
        self.role.frames_end();
        result.map_err(|error| error.at(&self.address))
    }

    fn hand_over_each(&mut self, frames: protocol::Frames) -> Result<()> {
        for frame in frames {
            let frame = frame.map_err(|source| Error::new(ErrorKind::Protocol, Step::Read, source.to_string()))?;
            match frame {
                Frame::Message(_) if self.dying => {}
                Frame::Message(message) => self.role.handle_message(message)?,
                Frame::Response(data) if data == protocol::HEARTBEAT => {
                    tracing::trace!(nsqd = %self.address, "heartbeat");
                    (self.owes_nop, self.heartbeat) = (true, true);
                }
                Frame::Response(data) => self.role.handle_response(data)?,
                Frame::Error(text) => {
                    let text = protocol::shown(&text);
                    self.role.handle_error(ErrorCode::of(&text), &text)?;
                }
            }
        }
        Ok(())
    }

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let role = &self.role;
        let dead = ready!(self.liveness.poll_expired(cx, |now| role.is_overdue(now)));
        Poll::Ready(Err(dead.at(&self.address)))
    }

    fn lost(&self, step: Step, source: io::Error) -> Error {
        lost(step, source).at(&self.address)
    }
}

enum Turn {
    Moved,
    Finished,
}

impl<R: Role> Future for Driver<R> {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let driver = &mut *self;
        for _ in 0..TURNS_PER_POLL {
            match driver.turn(cx)? {
                Poll::Ready(Turn::Moved) => {}
                Poll::Ready(Turn::Finished) => {
                    // The peer closes its side too; whether this one arrives makes no difference to it.
                    let _unimportant = Pin::new(&mut driver.io).poll_shutdown(cx);
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => return driver.poll_expired(cx),
            }
        }
        cx.waker().wake_by_ref();
        // A peer that never pauses may still take nothing.
        driver.poll_expired(cx)
    }
}

/// Reads into the free part of `buffer`. Returns the count and the room there was.
fn poll_read(io: &mut BoxIo, buffer: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<(usize, usize)>> {
    let room = buffer.capacity() - buffer.len();
    // The future holds nothing between polls, so making a new one each time loses nothing.
    let read = pin!(io.read_buf(buffer));
    read.poll(cx).map_ok(|count| (count, room))
}

#[cfg(test)]
#[cfg(feature = "deflate")]
mod tests {
    use bytes::BufMut;
    use tokio::io::{AsyncRead, ReadBuf};

    use super::*;
    use crate::transport::compressed::{Codec, Compressed};

    /// Takes so many bytes, and then breaks.
    struct Breaks(usize);

    impl AsyncRead for Breaks {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Breaks {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let count = self.0.min(bytes.len());
            self.0 -= count;
            Poll::Ready(if count == 0 {
                Err(io::ErrorKind::BrokenPipe.into())
            } else {
                Ok(count)
            })
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Has one thing to send.
    struct Sends(Vec<u8>);

    impl Role for Sends {
        fn poll_commands(&mut self, _: &mut Context<'_>, out: &mut WriteBuffer) -> Queued {
            if self.0.is_empty() {
                return Queued::Nothing;
            }
            out.bytes().put_slice(&std::mem::take(&mut self.0));
            Queued::Commands
        }

        fn handle_response(&mut self, _: Bytes) -> Result<()> {
            Ok(())
        }

        fn handle_error(&mut self, _: ErrorCode, _: &str) -> Result<()> {
            Ok(())
        }

        fn handle_message(&mut self, _: Message) -> Result<()> {
            Ok(())
        }

        fn frames_end(&mut self) {}
    }

    /// What was written and what may have left, of 60,000 bytes to a stream that breaks after `room`.
    async fn broken_after(room: usize, compressed: bool) -> (u64, u64) {
        let mut random = fastrand::Rng::with_seed(1);
        let meter = Meter::default();
        let io = meter.measure(Box::new(Breaks(room)));
        let io: BoxIo = if compressed {
            Box::new(Compressed::new(io, Codec::deflate(6), BytesMut::new()))
        } else {
            io
        };
        let connection = Established {
            io,
            meter,
            address: Arc::from("nsqd:4150"),
            decoder: FrameDecoder::new(1024),
            unread: BytesMut::new(),
            negotiated: Arc::default(),
            heartbeat_interval: None,
        };
        let role = Sends(std::iter::repeat_with(|| random.u8(..)).take(60_000).collect());
        let mut driver = Driver::new(connection, role);
        assert_eq!((&mut driver).await.unwrap_err().step(), Some(Step::Write));
        let (_, write) = driver.into_role();
        (write.written(), write.may_have_left())
    }

    #[tokio::test]
    async fn p1_what_a_failed_write_may_have_sent_is_not_taken_for_unsent() {
        // A plain stream tells what it has taken, and a codec that takes nothing has sent nothing.
        assert_eq!(broken_after(10_000, false).await, (10_000, 10_000));
        assert_eq!(broken_after(0, true).await, (0, 0));
        // What the codec was handed is partly out when it says that it has failed.
        assert_eq!(broken_after(10_000, true).await, (0, 60_000));
    }
}
