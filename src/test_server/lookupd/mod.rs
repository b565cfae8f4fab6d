//! nsqlookupd: who has which topic, over HTTP and TCP.

mod builder;
mod faults;
mod http;
mod registration;
mod registry;
mod state;
mod tcp;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use self::registry::Lifetimes;
use super::LONGEST;
use super::http::{Router, Script};
use super::listener::{Door, split_address};
use super::record::Record;
use super::server::Server;
use crate::transport::{Io, MemoryNetwork};

pub(super) use self::registration::{Registration, Registry};
pub(super) use self::registry::Identity;
pub use builder::LookupdBuilder;
pub use faults::LookupdFaults;
pub use state::{
    LookupdCommand, LookupdNode, LookupdProducer, LookupdRequest, LookupdState, LookupdTopic, LookupdWaitError,
};

/// The deadline of [`Lookupd::wait_for`].
const PATIENCE: Duration = Duration::from_secs(10);

/// How many requests and how many commands are remembered, and how many bytes of each.
const RECORD: (usize, usize) = (10_000, 4 * 1024 * 1024);

/// An nsqlookupd within this process: its HTTP side, which clients ask, and its TCP side, where nsqds register.
///
/// It answers as nsqlookupd 1.3.0 does, so a real nsqd can register with it. A broker of this process that was given
/// it by [`NsqdBuilder::lookupd`](crate::test_server::NsqdBuilder::lookupd) registers its topics and channels the moment
/// they are created, without a connection. Other addresses are registered by hand, existing or not.
///
/// A test sees what it knows ([`state`](Self::state)) and what it was asked ([`requests_received`](Self::requests_received),
/// [`commands`](Self::commands)), waits for a state instead of sleeping ([`wait_for`](Self::wait_for)), and makes it
/// misbehave ([`faults`](Self::faults)). Dropping it closes its listeners and its connections.
///
/// ```
/// use async_nsq::test_server::{Lookupd, Nsqd};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let lookupd = Lookupd::start().await?;
/// let nsqd = Nsqd::builder().lookupd(&lookupd).start().await?;
/// nsqd.publish("orders", "the first")?;
/// assert_eq!(lookupd.producers("orders"), [nsqd.address()]);
///
/// lookupd.register("orders", "gone.example:4150")?;
/// assert_eq!(lookupd.producers("orders").len(), 2);
/// # Ok(())
/// # }
/// ```
///
/// # Where it differs from nsqlookupd
///
/// - Lists are sorted; nsqlookupd's are in any order.
/// - A line is at most 16 KiB, the body of IDENTIFY at most 64 KiB, and there are at most a million registrations.
///   nsqlookupd has no such limits, and a negative length crashes it.
/// - There is no `/debug/pprof`.
pub struct Lookupd {
    shared: Arc<Shared>,
    http: Server,
    tcp: Server,
}

/// What the handle and the connections' tasks share.
struct Shared {
    registry: Registry,
    /// What nsqds are told of this nsqlookupd.
    identity: Identity,
    script: Script,
    routes: Router<Shared>,
    seen: Mutex<Seen>,
}

struct Seen {
    requests: u64,
    commands: u64,
    connections: u64,
    request_record: Record<LookupdRequest>,
    command_record: Record<LookupdCommand>,
    /// Whether commands are answered no more.
    mute: bool,
}

impl Lookupd {
    /// Starts one of the default configuration on free loopback ports.
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

    /// Starts one of the default configuration within a memory network. `address` is `host:port` of the HTTP side, any
    /// host and any port from 2 on; the TCP side is at the port below.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if something listens at either address already, [`io::ErrorKind::InvalidInput`] if
    /// `address` is not `host:port`.
    ///
    /// # Cancel safety
    /// Dropping the future before it is polled starts nothing; its first poll completes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start_in(network: &MemoryNetwork, address: &str) -> io::Result<Self> {
        Self::builder().start_in(network, address).await
    }

    /// Configures one.
    pub fn builder() -> LookupdBuilder {
        LookupdBuilder::default()
    }

    fn open(http: Door, tcp: Door, lifetimes: Lifetimes, broadcast_address: Option<String>) -> io::Result<Self> {
        let (host, http_port) = split_address(http.address())?;
        let (_, tcp_port) = split_address(tcp.address())?;
        let mut identity = Identity::new(broadcast_address.unwrap_or(host), tcp_port, http_port);
        if let Some(hostname) = hostname::get().ok().and_then(|name| name.into_string().ok()) {
            identity.hostname = hostname;
        }
        let shared = Arc::new(Shared {
            registry: Registry::new(lifetimes),
            identity,
            script: Script::default(),
            routes: http::routes(),
            seen: Mutex::new(Seen::new()),
        });
        let (asked, registered) = (Arc::clone(&shared), Arc::clone(&shared));
        Ok(Self {
            shared,
            http: Server::start(http, move |io, remote| {
                super::http::serve(io, remote, Arc::clone(&asked))
            }),
            tcp: Server::start(tcp, move |io, remote| tcp::serve(Arc::clone(&registered), io, remote)),
        })
    }

    /// Where clients reach its HTTP side: `127.0.0.1:port`, or the address within the memory network.
    #[must_use]
    pub fn address(&self) -> &str {
        self.http.address()
    }

    /// Where nsqds register: `127.0.0.1:port`, or the address within the memory network.
    #[must_use]
    pub fn tcp_address(&self) -> &str {
        self.tcp.address()
    }

    /// Serves a client's HTTP over a stream that was accepted elsewhere: by a listener of your own, or made by
    /// [`tokio::io::duplex`]. One that is [down](LookupdFaults::down) closes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn serve_http(&self, io: impl Io + 'static, remote: impl Into<String>) {
        self.http.serve(io, remote);
    }

    /// Serves an nsqd over a stream that was accepted elsewhere. `remote` is what `/lookup` gives as its
    /// `remote_address`, `ip:port` as a rule. One whose TCP side is [down](LookupdFaults::tcp_down) closes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn serve_tcp(&self, io: impl Io + 'static, remote: impl Into<String>) {
        self.tcp.serve(io, remote);
    }

    /// Announces that the nsqd at `address`, which is `host:port`, has the topic. Its HTTP port is the one above, its
    /// version 1.3.0, and it never becomes inactive.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `address` is not `host:port`.
    pub fn register(&self, topic: &str, address: &str) -> io::Result<()> {
        let identity = identity_at(address)?;
        self.shared
            .registry
            .change(|book| book.register_by_hand(topic, &identity));
        Ok(())
    }

    /// Takes back that the nsqd at `address` has the topic, however it was registered. The topic stays known, unless it
    /// is ephemeral and that was its last nsqd.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `address` is not `host:port`.
    pub fn unregister(&self, topic: &str, address: &str) -> io::Result<()> {
        let address = identity_at(address)?.tcp_address();
        self.shared
            .registry
            .change(|book| book.unregister_by_hand(topic, &address));
        Ok(())
    }

    /// Hides the nsqd at `address`, which is `host:port` of its TCP protocol, from `/lookup` for this topic, until the
    /// tombstone's lifetime is over or the nsqd connects again. This is what `nsqadmin` does with a topic's producer.
    ///
    /// Returns whether there was such an nsqd.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `address` is not `host:port`.
    pub fn tombstone(&self, topic: &str, address: &str) -> io::Result<bool> {
        let address = identity_at(address)?.tcp_address();
        let buried = self
            .shared
            .registry
            .change(|book| book.tombstone_by_hand(topic, &address));
        Ok(buried > 0)
    }

    /// The addresses that `/lookup` gives for a topic, in order; none for an unknown topic.
    #[must_use]
    pub fn producers(&self, topic: &str) -> Vec<String> {
        self.shared.registry.read(|book| {
            let producers = book.producers(topic).into_iter();
            producers.map(|node| node.identity.tcp_address()).collect()
        })
    }

    /// All that it knows at this moment.
    #[must_use]
    pub fn state(&self) -> LookupdState {
        let (requests, commands) = {
            let seen = self.shared.lock();
            (seen.requests, seen.commands)
        };
        self.shared.registry.read(|book| LookupdState {
            topics: book.see_topics(),
            nodes: book.see_nodes(),
            requests,
            commands,
        })
    }

    /// All topics that it knows, by name.
    #[must_use]
    pub fn topics(&self) -> Vec<LookupdTopic> {
        self.state().topics
    }

    /// All nsqds that it knows, in the order of their addresses.
    #[must_use]
    pub fn nodes(&self) -> Vec<LookupdNode> {
        self.state().nodes
    }

    /// How many HTTP requests have arrived, whatever the answer was.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.lock().requests
    }

    /// The HTTP requests that have arrived, oldest first: the last 10,000 of them, and no more than 4 MiB.
    #[must_use]
    pub fn requests_received(&self) -> Vec<LookupdRequest> {
        self.shared.lock().request_record.all()
    }

    /// The commands that have arrived by TCP, oldest first: the last 10,000 of them, and no more than 4 MiB.
    #[must_use]
    pub fn commands(&self) -> Vec<LookupdCommand> {
        self.shared.lock().command_record.all()
    }

    /// Waits until the state fulfils the condition, and returns that state. The condition is asked at each change, so
    /// nothing that lasts is missed and nobody sleeps for luck.
    ///
    /// ```
    /// use async_nsq::test_server::Lookupd;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let lookupd = Lookupd::start().await?;
    /// lookupd.register("orders", "127.0.0.1:4150")?;
    /// let state = lookupd.wait_for(|state| state.topic("orders").is_some()).await?;
    /// assert_eq!(state.nodes.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`LookupdWaitError`] after ten seconds on tokio's clock. Its text, also by `unwrap`, shows the last state.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn wait_for(
        &self,
        condition: impl FnMut(&LookupdState) -> bool,
    ) -> Result<LookupdState, LookupdWaitError> {
        self.wait_for_within(PATIENCE, condition).await
    }

    /// [`wait_for`](Self::wait_for) with a deadline of your own: needed for what takes long on a paused clock.
    ///
    /// # Errors
    /// [`LookupdWaitError`] once `patience` is over.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn wait_for_within(
        &self,
        patience: Duration,
        mut condition: impl FnMut(&LookupdState) -> bool,
    ) -> Result<LookupdState, LookupdWaitError> {
        let deadline = Instant::now() + patience.min(LONGEST);
        loop {
            let changed = self.shared.registry.changed().notified();
            let mut changed = std::pin::pin!(changed);
            // From here on no change is missed, though it happens before the await.
            changed.as_mut().enable();
            let state = self.state();
            if condition(&state) {
                return Ok(state);
            }
            if Instant::now() >= deadline {
                return Err(LookupdWaitError {
                    waited: patience,
                    last: Box::new(state),
                });
            }
            // A tombstone that ends is a change that nobody makes.
            let next = self.shared.registry.read(registry::Book::next_change);
            let _ = timeout_at(next.map_or(deadline, |next| next.min(deadline)), changed).await;
        }
    }

    /// Makes it misbehave.
    #[must_use]
    pub fn faults(&self) -> LookupdFaults<'_> {
        LookupdFaults::new(self)
    }

    pub(super) fn registry(&self) -> Registry {
        self.shared.registry.clone()
    }
}

impl fmt::Debug for Lookupd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookupd")
            .field("address", &self.address())
            .field("tcp_address", &self.tcp_address())
            .field("registry", &self.shared.registry)
            .finish_non_exhaustive()
    }
}

impl Seen {
    fn new() -> Self {
        let (entries, bytes) = RECORD;
        Self {
            requests: 0,
            commands: 0,
            connections: 0,
            request_record: Record::new(entries, bytes),
            command_record: Record::new(entries, bytes),
            mute: false,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_request(&self, request: LookupdRequest) {
        let mut seen = self.lock();
        seen.requests += 1;
        let weight = request.target.len() + size_of::<LookupdRequest>();
        seen.request_record.push(request, weight);
        drop(seen);
        self.registry.changed().notify_waiters();
    }

    fn record_command(&self, command: LookupdCommand) {
        let mut seen = self.lock();
        seen.commands += 1;
        let weight = command.line.len() + command.body.len() + size_of::<LookupdCommand>();
        seen.command_record.push(command, weight);
        drop(seen);
        self.registry.changed().notify_waiters();
    }

    /// The number of a new connection by TCP.
    fn count_connection(&self) -> u64 {
        let mut seen = self.lock();
        seen.connections += 1;
        seen.connections
    }

    fn is_mute(&self) -> bool {
        self.lock().mute
    }
}

fn identity_at(address: &str) -> io::Result<Identity> {
    let (host, port) = split_address(address)?;
    Ok(Identity::new(host, port, port.saturating_add(1)))
}
