//! What tests of the consumer need of a scripted nsqd: several of them, subscriptions, and messages by number.

use std::time::Duration;

use async_nsq::protocol::{self, Frame, MessageId};
use async_nsq::transport::{MemoryListener, MemoryNetwork};
use async_nsq::{BoxError, ConnectionConfig, Consumer, ConsumerBuilder, Handler, Message};
use bytes::Bytes;
use futures_util::future::Either;
use tokio::time::timeout;

use crate::support::{Command, FIRST_ID, IDENTIFY_ANSWER, Peer};

pub const SECOND: Duration = Duration::from_secs(1);

/// The first message of a connection, in counts of messages: see [`Nsqd::accept`].
pub const FIRST: u64 = 1;

/// An nsqd that accepts subscriptions and leaves the rest to the test.
pub struct Nsqd {
    network: MemoryNetwork,
    listener: MemoryListener,
}

impl Nsqd {
    pub fn start() -> Self {
        Self::start_at(&MemoryNetwork::new(), "nsqd:4150")
    }

    pub fn start_at(network: &MemoryNetwork, address: &str) -> Self {
        Self {
            network: network.clone(),
            listener: network.listen(address).unwrap(),
        }
    }

    /// Several in one network.
    pub fn start_many(count: usize) -> Vec<Self> {
        let network = MemoryNetwork::new();
        (0..count)
            .map(|number| Self::start_at(&network, &format!("nsqd-{number}:4150")))
            .collect()
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

    pub fn consumer(&self) -> ConsumerBuilder {
        Consumer::builder("orders", "billing")
            .connection(self.connection())
            .nsqd(self.listener.address())
    }

    /// A consumer and the other end of its connection, once it has sent the RDY that follows its first message. The
    /// handler sees nothing of that one.
    pub async fn consume(&mut self, max_in_flight: u32, handler: impl Handler) -> (Consumer, Peer) {
        self.consume_with(self.consumer().max_in_flight(max_in_flight), handler)
            .await
    }

    pub async fn consume_with(&mut self, builder: ConsumerBuilder, handler: impl Handler) -> (Consumer, Peer) {
        let consumer = builder.start(BeyondTheFirst(handler)).await.unwrap();
        let mut peer = self.accept().await;
        assert!(matches!(peer.command().await, Command::Rdy(_)));
        (consumer, peer)
    }

    /// The next connection, before anything was read from it.
    pub async fn accept_raw(&mut self) -> Peer {
        Peer::new(self.listener.accept().await)
    }

    /// The next connection, subscribed. It [sends the first message](Peer::sends_the_first_message), which the handler
    /// has to finish.
    pub async fn accept(&mut self) -> Peer {
        let mut peer = self.accept_unproven().await;
        peer.sends_the_first_message();
        peer
    }

    /// The next connection, subscribed, and without a message yet.
    pub async fn accept_unproven(&mut self) -> Peer {
        self.accept_granting(IDENTIFY_ANSWER).await
    }

    pub async fn accept_granting(&mut self, granted: &[u8]) -> Peer {
        let mut peer = self.accept_raw().await;
        peer.read_identify().await;
        peer.respond(granted).await;
        peer.read_sub().await;
        peer.ok().await;
        peer
    }
}

/// A handler that finishes the first message of a connection and leaves all others to another one.
struct BeyondTheFirst<H>(H);

impl<H: Handler> Handler for BeyondTheFirst<H> {
    type Error = H::Error;

    fn handle(&self, message: Message) -> impl Future<Output = Result<(), H::Error>> + Send {
        if message.id().as_bytes() == FIRST_ID {
            Either::Left(async { Ok(()) })
        } else {
            Either::Right(self.0.handle(message))
        }
    }
}

/// What only a subscribed connection does.
impl Peer {
    pub async fn read_sub(&mut self) {
        let sub = Command::Sub {
            topic: "orders".to_owned(),
            channel: "billing".to_owned(),
        };
        assert_eq!(self.command().await, sub);
    }

    /// Delivers messages in one piece.
    pub async fn deliver(&mut self, numbers: impl IntoIterator<Item = u64>) {
        let frames: Vec<Frame> = numbers.into_iter().map(message).collect();
        self.send_bytes(&crate::support::frames(&frames)).await;
    }

    /// The commands that are on their way already or leave within a millisecond, without NOPs.
    pub async fn drain(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        while let Ok(Some(command)) = timeout(Duration::from_millis(1), self.next()).await {
            if command != Command::Nop {
                commands.push(command);
            }
        }
        commands
    }

    /// What is there without waiting at all.
    pub async fn at_hand(&mut self) -> Option<Command> {
        timeout(Duration::ZERO, self.next()).await.ok().flatten()
    }

    /// The next so many commands, sorted by their text.
    pub async fn commands(&mut self, count: usize) -> Vec<Command> {
        let mut commands = Vec::new();
        for _ in 0..count {
            commands.push(self.command().await);
        }
        sorted(commands)
    }

    /// Answers CLS and waits for the end. Returns what came before.
    pub async fn close_wait(&mut self) -> Vec<Command> {
        let mut seen = Vec::new();
        while let Some(command) = self.next().await {
            match command {
                Command::Nop => {}
                Command::Cls => self.respond(protocol::CLOSE_WAIT).await,
                command => seen.push(command),
            }
        }
        sorted(seen)
    }
}

pub fn sorted(mut commands: Vec<Command>) -> Vec<Command> {
    commands.sort_by_key(|command| format!("{command:?}"));
    commands
}

pub fn id(number: u64) -> MessageId {
    MessageId::new(format!("{number:016x}").into_bytes().try_into().unwrap())
}

/// The first delivery of a message whose body is its number.
pub fn message(number: u64) -> Frame {
    delivery(number, 1, number.to_string())
}

pub fn delivery(number: u64, attempts: u16, body: impl Into<Bytes>) -> Frame {
    Frame::Message(protocol::Message {
        timestamp: 1_700_000_000_000_000_000,
        attempts,
        id: id(number),
        body: body.into(),
    })
}

pub fn fin(number: u64) -> Command {
    Command::Fin(id(number).to_string())
}

pub fn req(number: u64, delay_ms: u64) -> Command {
    Command::Req {
        id: id(number).to_string(),
        delay_ms,
    }
}

/// A handler that does nothing.
pub async fn succeed(_: Message) -> Result<(), BoxError> {
    Ok(())
}

/// A handler that never ends.
pub async fn stuck(_: Message) -> Result<(), BoxError> {
    std::future::pending().await
}

pub fn text(message: &Message) -> &str {
    std::str::from_utf8(message.body()).unwrap()
}

/// The error and all that caused it, in one line.
pub fn chain(error: &async_nsq::Error) -> String {
    let mut told = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        told = format!("{told}: {cause}");
        source = cause.source();
    }
    told
}
