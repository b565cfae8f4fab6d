//! A scripted nsqd: the far end of a connection, played by the test frame by frame.
//!
//! It knows just enough of the protocol to read commands and encode frames, and does nothing by itself: each answer,
//! delay, cut and lie is the test's. Everything runs in memory, so that a paused clock works.
#![allow(dead_code, unreachable_pub, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_nsq::protocol::{self, Frame, Message, MessageId, encode_frame};
use async_nsq::transport::{BoxIo, MemoryListener, MemoryNetwork};
use async_nsq::{ConnectionConfig, Producer, ProducerBuilder};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// What a default nsqd answers to IDENTIFY, in short.
pub const IDENTIFY_ANSWER: &[u8] = br#"{"max_rdy_count":2500,"version":"1.3.0","max_msg_timeout":900000}"#;

/// Virtual time after which a command that did not come is taken never to come.
const NEVER: Duration = Duration::from_secs(3600);

/// An address that accepts connections and leaves them to the test.
pub struct ScriptedNsqd {
    network: MemoryNetwork,
    listener: MemoryListener,
}

impl ScriptedNsqd {
    pub const ADDRESS: &'static str = "nsqd:4150";

    pub fn start() -> Self {
        Self::start_in(&MemoryNetwork::new())
    }

    /// Starts at the same address of a network whose last listener is gone.
    pub fn start_in(network: &MemoryNetwork) -> Self {
        Self {
            network: network.clone(),
            listener: network.listen(Self::ADDRESS).unwrap(),
        }
    }

    /// Refuses connections from now on.
    pub fn stop(self) -> MemoryNetwork {
        self.network
    }

    pub fn network(&self) -> &MemoryNetwork {
        &self.network
    }

    pub fn connection(&self) -> ConnectionConfig {
        ConnectionConfig::new().connector(self.network.connector())
    }

    pub fn producer(&self) -> ProducerBuilder {
        Producer::builder().nsqd(Self::ADDRESS).connection(self.connection())
    }

    /// A connected producer and the other end of its connection.
    pub async fn connect(&mut self) -> (Producer, Peer) {
        self.connect_with(self.producer()).await
    }

    pub async fn connect_with(&mut self, builder: ProducerBuilder) -> (Producer, Peer) {
        let (producer, peer) = tokio::join!(builder.connect(), self.accept());
        (producer.unwrap(), peer)
    }

    /// The next connection, before anything was read from it.
    pub async fn accept_raw(&mut self) -> Peer {
        Peer::new(self.listener.accept().await)
    }

    /// The next connection, with the handshake done.
    pub async fn accept(&mut self) -> Peer {
        let mut peer = self.accept_raw().await;
        peer.handshake().await;
        peer
    }
}

/// A command as nsqd reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Identify(Bytes),
    Auth(Bytes),
    Pub { topic: String, body: Bytes },
    Mpub { topic: String, bodies: Vec<Bytes> },
    Dpub { topic: String, delay_ms: u64, body: Bytes },
    Sub { topic: String, channel: String },
    Rdy(u64),
    Fin(String),
    Req { id: String, delay_ms: u64 },
    Touch(String),
    Cls,
    Nop,
}

impl Command {
    pub fn publish(topic: &str, body: impl Into<Bytes>) -> Self {
        Self::Pub {
            topic: topic.to_owned(),
            body: body.into(),
        }
    }

    pub fn publish_many<const N: usize>(topic: &str, bodies: [&'static str; N]) -> Self {
        Self::Mpub {
            topic: topic.to_owned(),
            bodies: bodies.into_iter().map(Bytes::from).collect(),
        }
    }

    pub fn publish_deferred(topic: &str, delay_ms: u64, body: &'static str) -> Self {
        Self::Dpub {
            topic: topic.to_owned(),
            delay_ms,
            body: body.into(),
        }
    }

    /// The bodies that it publishes.
    pub fn bodies(&self) -> Vec<Bytes> {
        match self {
            Self::Pub { body, .. } | Self::Dpub { body, .. } => vec![body.clone()],
            Self::Mpub { bodies, .. } => bodies.clone(),
            _ => Vec::new(),
        }
    }

    /// Takes one command off the front of `bytes`; `None` if it is not there entirely.
    ///
    /// Panics on anything that nsqd would not understand.
    pub fn parse(bytes: &mut BytesMut) -> Option<Self> {
        let line_len = bytes.iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8(bytes[..line_len].to_vec()).expect("a command line is text");
        let words: Vec<&str> = line.split(' ').collect();
        let mut end = line_len + 1;
        let body = if matches!(words[0], "IDENTIFY" | "AUTH" | "PUB" | "MPUB" | "DPUB") {
            let size: [u8; 4] = bytes.get(end..end + 4)?.try_into().unwrap();
            let from = end + 4;
            end = from + u32::from_be_bytes(size) as usize;
            Bytes::copy_from_slice(bytes.get(from..end)?)
        } else {
            Bytes::new()
        };
        let command = match words[..] {
            ["IDENTIFY"] => Self::Identify(body),
            ["AUTH"] => Self::Auth(body),
            ["PUB", topic] => Self::publish(topic, body),
            ["MPUB", topic] => Self::Mpub {
                topic: topic.to_owned(),
                bodies: split_mpub(body),
            },
            ["DPUB", topic, delay] => Self::Dpub {
                topic: topic.to_owned(),
                delay_ms: delay.parse().unwrap(),
                body,
            },
            ["SUB", topic, channel] => Self::Sub {
                topic: topic.to_owned(),
                channel: channel.to_owned(),
            },
            ["RDY", count] => Self::Rdy(count.parse().unwrap()),
            ["FIN", id] => Self::Fin(id.to_owned()),
            ["REQ", id, delay] => Self::Req {
                id: id.to_owned(),
                delay_ms: delay.parse().unwrap(),
            },
            ["TOUCH", id] => Self::Touch(id.to_owned()),
            ["CLS"] => Self::Cls,
            ["NOP"] => Self::Nop,
            _ => panic!("nsqd would not understand {line:?}"),
        };
        bytes.advance(end);
        Some(command)
    }
}

fn split_mpub(mut body: Bytes) -> Vec<Bytes> {
    let count = body.get_u32();
    let bodies = (0..count)
        .map(|_| {
            let len = body.get_u32() as usize;
            body.split_to(len)
        })
        .collect();
    assert!(body.is_empty(), "an MPUB states its size");
    bodies
}

/// nsqd's end of one connection. Dropping it closes the connection.
pub struct Peer {
    io: BoxIo,
    read: BytesMut,
    first: First,
    /// Commands that came before the answer to the first message.
    kept: VecDeque<Command>,
}

/// The first message of a consumer's connection. Until it has come, the consumer asks for one at a time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    /// It is the test's business.
    Others,
    /// It goes out at the first RDY.
    Due,
    /// It is on its way, or being handled.
    Sent,
}

/// The identifier of the message that [`Peer::sends_the_first_message`] is about.
pub const FIRST_ID: &[u8; 16] = b"the-first-one-..";

impl Peer {
    pub fn new(io: BoxIo) -> Self {
        Self {
            io,
            read: BytesMut::new(),
            first: First::Others,
            kept: VecDeque::new(),
        }
    }

    /// Has it answer the first RDY, which is 1, with a message, and keep both that and the FIN to itself: what the test
    /// reads begins with the RDY of a connection that has shown that it delivers.
    pub fn sends_the_first_message(&mut self) {
        self.first = First::Due;
    }

    /// Reads the magic and IDENTIFY, and grants what a default nsqd grants.
    pub async fn handshake(&mut self) {
        self.read_identify().await;
        self.respond(IDENTIFY_ANSWER).await;
    }

    /// Reads the magic and the IDENTIFY that follows it.
    pub async fn read_identify(&mut self) -> Bytes {
        let mut magic = [0; 4];
        self.io.read_exact(&mut magic).await.unwrap();
        assert_eq!(&magic, protocol::MAGIC);
        match self.command().await {
            Command::Identify(body) => body,
            other => panic!("{other:?} instead of IDENTIFY"),
        }
    }

    /// The next command, NOPs included; `None` once the client has closed.
    pub async fn next(&mut self) -> Option<Command> {
        loop {
            if self.first != First::Sent {
                if let Some(command) = self.kept.pop_front() {
                    return Some(command);
                }
            }
            let Some(command) = self.read_next().await else {
                self.first = First::Others;
                return self.kept.pop_front();
            };
            match (self.first, command) {
                (First::Due, Command::Rdy(count)) => {
                    assert_eq!(count, 1, "the first RDY of a connection");
                    self.first = First::Sent;
                    // Whatever a test's handler makes of bodies: to most of them this is an easy one.
                    let message = Message {
                        timestamp: 1,
                        attempts: 1,
                        id: MessageId::new(*FIRST_ID),
                        body: Bytes::from_static(b"0"),
                    };
                    self.send(&Frame::Message(message)).await;
                }
                (First::Sent, Command::Fin(id)) if id.as_bytes() == FIRST_ID => self.first = First::Others,
                (First::Sent, command) => self.kept.push_back(command),
                (_, command) => return Some(command),
            }
        }
    }

    async fn read_next(&mut self) -> Option<Command> {
        loop {
            if let Some(command) = Command::parse(&mut self.read) {
                return Some(command);
            }
            let read = timeout(NEVER, self.io.read_buf(&mut self.read)).await;
            match read.expect("neither a command nor an end came within an hour") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next command that is no NOP.
    pub async fn command(&mut self) -> Command {
        loop {
            match self.next().await.expect("the client closed the connection") {
                Command::Nop => {}
                command => return command,
            }
        }
    }

    /// Fails if a command comes within `duration`.
    pub async fn expect_nothing(&mut self, duration: Duration) {
        if let Ok(came) = timeout(duration, self.next()).await {
            panic!("{came:?} came");
        }
    }

    /// Waits for the client to close. Returns the bytes of a command that it left incomplete.
    pub async fn expect_close(&mut self) -> usize {
        while let Some(command) = self.next().await {
            assert_eq!(command, Command::Nop, "came instead of the end");
        }
        self.read.len()
    }

    /// Reads and answers OK until the client closes. Returns what came.
    pub async fn serve(&mut self) -> Vec<Command> {
        let mut seen = Vec::new();
        while let Some(command) = self.next().await {
            if command != Command::Nop {
                self.ok().await;
                seen.push(command);
            }
        }
        seen
    }

    /// Takes exactly `count` bytes off the wire without looking at them as commands yet.
    pub async fn take_bytes(&mut self, count: usize) {
        let from = self.read.len();
        self.read.resize(from + count, 0);
        self.io.read_exact(&mut self.read[from..]).await.unwrap();
    }

    pub async fn ok(&mut self) {
        self.respond(protocol::OK).await;
    }

    pub async fn heartbeat(&mut self) {
        self.respond(protocol::HEARTBEAT).await;
    }

    pub async fn respond(&mut self, data: &[u8]) {
        self.send(&Frame::Response(Bytes::copy_from_slice(data))).await;
    }

    pub async fn error(&mut self, text: &str) {
        self.send(&Frame::Error(Bytes::copy_from_slice(text.as_bytes()))).await;
    }

    pub async fn message(&mut self, body: &'static str) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{:016x}", NEXT.fetch_add(1, Ordering::Relaxed));
        let message = Message {
            timestamp: 1,
            attempts: 1,
            id: MessageId::new(id.into_bytes().try_into().unwrap()),
            body: body.into(),
        };
        self.send(&Frame::Message(message)).await;
    }

    pub async fn send(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        encode_frame(frame, &mut bytes);
        self.send_bytes(&bytes).await;
    }

    /// Anything at all: a part of a frame, several frames at once, garbage. The client may have closed meanwhile.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let _the_client_may_be_gone = self.io.write_all(bytes).await;
    }
}

/// Several frames as one piece of bytes, so that they arrive with one read.
pub fn frames(frames: &[Frame]) -> BytesMut {
    let mut bytes = BytesMut::new();
    frames.iter().for_each(|frame| encode_frame(frame, &mut bytes));
    bytes
}

/// Lets every task run until all wait for time or for each other. Costs a millisecond of virtual time.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
