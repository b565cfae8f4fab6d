//! A client by hand: commands out, frames in, nothing on its own.

use std::collections::VecDeque;
use std::time::Duration;

use async_nsq::protocol::{Command, Frame, FrameDecoder, FrameError, HEARTBEAT, MAGIC, Message};
use async_nsq::transport::{BoxIo, Connector};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// What came next.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    Frame(Frame),
    Closed,
    /// What came is no frame.
    Malformed(FrameError),
    /// Nothing, within the time.
    Nothing,
}

pub(crate) struct RawClient {
    io: BoxIo,
    decoder: FrameDecoder,
    input: BytesMut,
    frames: VecDeque<Result<Frame, FrameError>>,
}

impl RawClient {
    /// Connects, and sends nothing.
    pub(crate) async fn connect(connector: &impl Connector, address: &str) -> Self {
        Self::over(connector.connect(address).await.unwrap())
    }

    /// Takes a connection as it is.
    pub(crate) fn over(io: BoxIo) -> Self {
        Self {
            io,
            decoder: FrameDecoder::default(),
            input: BytesMut::new(),
            frames: VecDeque::new(),
        }
    }

    /// Sends bytes. A peer that has closed already is found out by what comes back.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.io.write_all(bytes).await;
    }

    /// Ends the stream towards the broker.
    pub(crate) async fn shutdown(&mut self) {
        self.io.shutdown().await.unwrap();
    }

    pub(crate) async fn next(&mut self, limit: Duration) -> Event {
        let next = async {
            loop {
                if let Some(frame) = self.frames.pop_front() {
                    return frame.map_or_else(Event::Malformed, Event::Frame);
                }
                match self.io.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => return Event::Closed,
                    Ok(_) => {
                        let frames = self.decoder.decode(&mut self.input);
                        self.frames.extend(frames);
                    }
                }
            }
        };
        timeout(limit, next).await.unwrap_or(Event::Nothing)
    }

    /// Connects and sends the magic.
    pub(crate) async fn open(connector: &impl Connector, address: &str) -> Self {
        let mut client = Self::connect(connector, address).await;
        client.send_bytes(MAGIC).await;
        client
    }

    pub(crate) async fn send(&mut self, command: Command) {
        let mut bytes = BytesMut::new();
        command.encode(&mut bytes);
        self.send_bytes(&bytes).await;
    }

    /// The next frame but heartbeats, which are answered.
    pub(crate) async fn frame(&mut self) -> Frame {
        loop {
            match self.next(Duration::from_secs(3600)).await {
                Event::Frame(Frame::Response(text)) if text == HEARTBEAT => self.send(Command::Nop).await,
                Event::Frame(frame) => return frame,
                other => panic!("{other:?} instead of a frame"),
            }
        }
    }

    pub(crate) async fn message(&mut self) -> Message {
        match self.frame().await {
            Frame::Message(message) => message,
            other => panic!("{other:?} instead of a message"),
        }
    }

    /// Sends a command that is answered by a response of this text.
    pub(crate) async fn ask(&mut self, command: Command, answer: &'static str) {
        self.send(command).await;
        assert_eq!(
            self.frame().await,
            Frame::Response(Bytes::from_static(answer.as_bytes()))
        );
    }

    pub(crate) async fn subscribe(&mut self, topic: &str, channel: &str, rdy: u32) {
        let (topic, channel) = (topic.to_owned(), channel.to_owned());
        self.ask(Command::Sub { topic, channel }, "OK").await;
        self.send(Command::Rdy { count: rdy }).await;
    }

    pub(crate) async fn assert_silent(&mut self, time: Duration) {
        assert_eq!(self.next(time).await, Event::Nothing);
    }
}
