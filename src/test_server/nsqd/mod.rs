//! The handle of a broker: [`Nsqd`].

mod admin;
mod broker;
mod builder;
mod channel;
mod client;
mod doors;
mod faults;
mod flags;
mod http;
mod lookup_peer;
mod message;
mod options;
mod record;
mod restart;
mod session;
mod snapshot;
mod state;
mod stats;
mod topic;
mod topics;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use self::broker::Shared;
use self::builder::Places;
use self::doors::Doors;
use self::http::Sides;
use self::options::Options;
use super::LONGEST;
use super::listener::split_address;
use super::lookupd::{Identity, Registration, Registry};
use crate::error::{Error, Result};
use crate::name::{Channel, Topic};
use crate::protocol::Command;
use crate::transport::{Connector, Io};

pub use builder::NsqdBuilder;
pub use faults::{AcceptFaults, ActiveFault, CommandFaults, Faults, Feature, FrameFaults, FrameKind};
pub use stats::{ChannelStats, ClientStats, Encryption, Received, Stats, TopicStats, WaitError};

/// The deadline of [`Nsqd::wait_for`].
const PATIENCE: Duration = Duration::from_secs(10);

/// An nsqd within this process.
///
/// It runs on tasks of the tokio runtime in which it was started. Dropping it closes its listener and ends its
/// connections and tasks; what they were about to write is lost.
///
/// ```
/// use async_nsq::test_server::Nsqd;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let nsqd = Nsqd::start().await?;
/// println!("listening on {}", nsqd.address());
///
/// nsqd.publish("orders", "the first")?;
/// assert_eq!(nsqd.topic("orders").map(|topic| topic.depth), Some(1));
/// assert_eq!(nsqd.drain("orders", "billing")?, ["the first"]);
/// # Ok(())
/// # }
/// ```
pub struct Nsqd {
    shared: Arc<Shared>,
    sides: Sides,
    tasks: [AbortHandle; 3],
}

impl Nsqd {
    /// Starts a broker of the default configuration on a free loopback port.
    ///
    /// # Errors
    /// If no port can be opened.
    ///
    /// # Cancel safety
    /// Dropping the future before it is polled starts nothing; its first poll completes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start() -> io::Result<Self> {
        Self::builder().start().await
    }

    /// Configures a broker.
    pub fn builder() -> NsqdBuilder {
        NsqdBuilder::default()
    }

    fn open(
        options: Options,
        places: &Places,
        doors: Doors,
        connector: Arc<dyn Connector>,
        lookupds: Vec<Registry>,
    ) -> io::Result<Self> {
        let (host, port) = split_address(doors.tcp.address())?;
        let host = options.broadcast_address.clone().unwrap_or(host);
        let port = options.broadcast_tcp_port.unwrap_or(port);
        let (_, http_port) = split_address(doors.http.address())?;
        let http_port = options.broadcast_http_port.unwrap_or(http_port);
        let identity = Identity::new(host, port, http_port);
        let registrations = lookupds
            .into_iter()
            .map(|registry| Registration::new(registry, identity.clone()))
            .collect();
        let shared = Arc::new(Shared::new(options, doors.tcp, connector, identity, registrations));
        // Without a certificate nobody listens there, but nsqd tells its option all the same.
        let https = doors.https.ok_or_else(|| {
            let given = places.https.clone();
            given.unwrap_or_else(|| "0.0.0.0:4152".to_owned())
        });
        let sides = Sides::start(&shared, doors.http, https)?;
        shared.connect_lookupds(true);
        let tasks = [
            tokio::spawn(Arc::clone(&shared).run_door()),
            tokio::spawn(Arc::clone(&shared).run_clock()),
            tokio::spawn(Arc::clone(&shared).run_newcomers()),
        ];
        Ok(Self {
            shared,
            sides,
            tasks: tasks.map(|task| task.abort_handle()),
        })
    }

    /// Serves a client over a stream that was accepted elsewhere: by a listener of your own, or made by
    /// [`tokio::io::duplex`]. `remote` is how statistics and logs call the other end, `ip:port` as a rule.
    ///
    /// A [stopped](Self::stop) broker, and one that [refuses connections](Faults::refuse_connections), closes it.
    ///
    /// ```
    /// use async_nsq::test_server::Nsqd;
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let nsqd = Nsqd::builder().start_detached("nsqd:4150")?;
    /// let (mut client, server) = tokio::io::duplex(1024);
    /// nsqd.serve(server, "client:1");
    /// client.write_all(b"  V2PUB events\n\0\0\0\x05hello").await?;
    /// let mut answer = [0; 10];
    /// client.read_exact(&mut answer).await?;
    /// assert_eq!(&answer, b"\0\0\0\x06\0\0\0\0OK");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn serve(&self, io: impl Io + 'static, remote: impl Into<String>) {
        if !self.shared.door.is_closed() {
            self.shared.serve((Box::new(io), remote.into()));
        }
    }

    /// Serves HTTP over a stream that was accepted elsewhere: [`serve`](Self::serve) for the HTTP side. A
    /// [stopped](Self::stop) broker closes it.
    ///
    /// ```
    /// use async_nsq::test_server::Nsqd;
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let nsqd = Nsqd::builder().start_detached("nsqd:4150")?;
    /// let (mut client, server) = tokio::io::duplex(1024);
    /// nsqd.serve_http(server, "client:1");
    /// client.write_all(b"GET /ping HTTP/1.1\r\nHost: nsqd\r\nConnection: close\r\n\r\n").await?;
    /// let mut answer = String::new();
    /// client.read_to_string(&mut answer).await?;
    /// assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nOK"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn serve_http(&self, io: impl Io + 'static, remote: impl Into<String>) {
        self.sides.serve(Box::new(io), remote.into());
    }

    /// Where clients connect: `127.0.0.1:port`, or the address within the memory network. It stays the same for the
    /// life of this handle.
    #[must_use]
    pub fn address(&self) -> &str {
        self.shared.door.address()
    }

    /// Where its HTTP side is reached: `127.0.0.1:port`, or the address within the memory network. It stays the same for
    /// the life of this handle.
    #[must_use]
    pub fn http_address(&self) -> &str {
        self.sides.address()
    }

    /// Where its HTTPS side is reached, if it was given [`tls`](NsqdBuilder::tls).
    #[must_use]
    pub fn https_address(&self) -> Option<&str> {
        self.sides.https_address()
    }

    /// The state of everything at this moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.read(|state| state.stats())
    }

    /// The state of a topic, if it exists.
    #[must_use]
    pub fn topic(&self, topic: &str) -> Option<TopicStats> {
        self.stats().topic(topic).cloned()
    }

    /// The state of a channel, if it exists.
    #[must_use]
    pub fn channel(&self, topic: &str, channel: &str) -> Option<ChannelStats> {
        self.stats().channel(topic, channel).cloned()
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.read(|state| state.clients.len())
    }

    /// Waits until the state fulfils the condition, and returns that state. The condition is asked at each change, so
    /// nothing that lasts is missed and nobody sleeps for luck.
    ///
    /// # Errors
    /// [`WaitError`] after ten seconds on tokio's clock. Its text, also by `unwrap`, shows the last state.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn wait_for(&self, condition: impl FnMut(&Stats) -> bool) -> Result<Stats, WaitError> {
        self.wait_for_within(PATIENCE, condition).await
    }

    /// [`wait_for`](Self::wait_for) with a deadline of your own: needed for what takes long on a paused clock.
    ///
    /// # Errors
    /// [`WaitError`] once `patience` is over.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn wait_for_within(
        &self,
        patience: Duration,
        mut condition: impl FnMut(&Stats) -> bool,
    ) -> Result<Stats, WaitError> {
        // A clock can add a century, which is as good as for ever.
        let deadline = Instant::now() + patience.min(LONGEST);
        loop {
            let changed = self.shared.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // From here on no change is missed, though it happens before the await.
            changed.as_mut().enable();
            let stats = self.stats();
            if condition(&stats) {
                return Ok(stats);
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(WaitError {
                    waited: patience,
                    last: Box::new(self.stats()),
                });
            }
        }
    }

    /// Waits until a command that fulfils the condition was received, and returns the first: of those on record, and then of
    /// each that comes.
    ///
    /// ```
    /// use async_nsq::{Producer, protocol::CommandName, test_server::Nsqd};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let nsqd = Nsqd::start().await?;
    /// let producer = Producer::connect(nsqd.address()).await?;
    /// let identify = nsqd.wait_for_command(|received| received.command.name() == CommandName::Identify).await?;
    /// assert_eq!(identify.connection, 1);
    /// # drop(producer);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`WaitError`] after ten seconds on tokio's clock.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn wait_for_command(&self, mut condition: impl FnMut(&Received) -> bool) -> Result<Received, WaitError> {
        let (mut found, mut seen) = (None, 0);
        self.wait_for_within(PATIENCE, |_| {
            // Not under the lock: the condition may ask the broker, too.
            let (new, total) = self.shared.read(|state| state.record.since(seen));
            seen = total;
            found = new.into_iter().find(|received| condition(received));
            found.is_some()
        })
        .await
        .map(|stats| (stats, found))
        .and_then(|(stats, found)| {
            found.ok_or_else(|| WaitError {
                waited: PATIENCE,
                last: Box::new(stats),
            })
        })
    }

    /// Every well-formed command received, oldest first, as far back as
    /// [`record_commands`](NsqdBuilder::record_commands) reaches. Refused ones are among them if they could be read.
    #[must_use]
    pub fn commands(&self) -> Vec<Received> {
        self.shared.read(|state| state.record.all())
    }

    /// The messages that clients have sent to this topic by PUB, MPUB and DPUB, oldest first, as far back as
    /// [`commands`](Self::commands) reaches.
    #[must_use]
    pub fn published(&self, topic: &str) -> Vec<Bytes> {
        let mut published = Vec::new();
        for received in self.commands() {
            match received.command {
                Command::Pub { topic: to, body } | Command::Dpub { topic: to, body, .. } if to == topic => {
                    published.push(body);
                }
                Command::Mpub { topic: to, bodies } if to == topic => published.extend(bodies),
                _ => {}
            }
        }
        published
    }

    /// Forgets the record of received commands.
    pub fn clear_commands(&self) {
        self.shared.change(|state| state.record.clear());
    }

    /// Publishes a message without a client. No fault applies to it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the name is not valid, or the body is empty or larger than
    /// the largest message, or the queue has no room for it.
    pub fn publish<T>(&self, topic: T, body: impl Into<Bytes>) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        let body = body.into();
        let max = self.shared.options.limits.max_msg_size;
        if body.is_empty() || body.len() > max {
            let len = body.len();
            return Err(Error::invalid(format!(
                "a message of {len} bytes, allowed are 1 to {max}"
            )));
        }
        self.shared
            .change(|state| state.publish(topic.as_str(), &[body], None, Instant::now()))
            .map_err(Error::invalid)
    }

    /// Takes the messages that wait in a channel, so that no consumer gets them. The channel is created if it
    /// does not exist, and as a topic's first one gets what the topic has kept so far. From a new topic, which keeps its
    /// messages until the nsqlookupds have told which channels it has, this channel gets them at once.
    ///
    /// What is in flight or deferred stays where it is, and so does what a paused topic keeps.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if a name is not valid.
    pub fn drain<T, C>(&self, topic: T, channel: C) -> Result<Vec<Bytes>>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
        C: TryInto<Channel>,
        C::Error: Into<Error>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        let channel = channel.try_into().map_err(Into::into)?;
        Ok(self
            .shared
            .change(|state| state.drain(topic.as_str(), channel.as_str(), Instant::now())))
    }

    /// Makes the broker misbehave.
    #[must_use]
    pub fn faults(&self) -> Faults<'_> {
        Faults {
            shared: &self.shared,
            connection: None,
        }
    }

    /// Shuts down as nsqd does on SIGTERM: the address refuses connections, existing ones are closed without notice,
    /// and messages are kept for [`restart`](Self::restart). Those in flight and those deferred are queued again, and so
    /// is what a new topic kept for the nsqlookupds' answer, which is no longer waited for; ephemeral topics and channels
    /// are gone.
    ///
    /// Returns when no connection of the TCP protocol is left. Stopping twice is allowed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the broker closed, with connections that end on their own, and messages in flight.
    /// Calling it again completes it.
    pub async fn stop(&self) {
        self.close().await;
        self.shared.change(|state| state.settle_for_restart(Instant::now()));
    }

    /// Dies as nsqd does on SIGKILL: as [`stop`](Self::stop), but all messages are lost. Topics and channels are
    /// remembered.
    ///
    /// # Cancel safety
    /// As [`stop`](Self::stop).
    pub async fn kill(&self) {
        self.close().await;
        self.shared.change(|state| {
            state.settle_for_restart(Instant::now());
            state.forget_messages();
        });
    }

    /// Starts again at the same address, with the messages kept. One that runs is stopped first.
    ///
    /// # Errors
    /// If the address was taken by someone else meanwhile, which the broker prevents as far as the system lets it.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the broker stopped, or about to be.
    pub async fn restart(&self) -> io::Result<()> {
        if !self.shared.read(|state| state.closed) {
            self.stop().await;
        }
        self.shared.change(|state| {
            state.closed = false;
            state.started = Instant::now();
            state.register_all();
        });
        self.shared.connect_lookupds(true);
        self.shared.door.open()?;
        self.sides.open()
    }

    async fn close(&self) {
        self.shared.door.close();
        self.sides.close();
        self.end_connections();
        loop {
            let changed = self.shared.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if self.connections() == 0 {
                return;
            }
            changed.await;
        }
    }

    fn end_connections(&self) {
        let tasks = self.shared.change(|state| {
            state.closed = true;
            state.unregister_all();
            state.end(None)
        });
        Shared::end(tasks);
        self.shared.connect_lookupds(false);
    }
}

impl Drop for Nsqd {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.door.demolish();
        self.end_connections();
    }
}

impl fmt::Debug for Nsqd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nsqd")
            .field("address", &self.address())
            .field("http_address", &self.http_address())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
