//! How an nsqd registers with nsqlookupds by TCP, and asks them which channels a topic has.
//!
//! One task per nsqlookupd. There is no queue of events: the task is woken, looks at what there is now, and sends the
//! difference to what it has registered. As with nsqd, a connection that breaks is opened again at the next command,
//! which is a PING after 15 seconds at the latest.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::{StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::name::Channel;
use crate::test_server::http::{Patience, encode, get};
use crate::test_server::json::{self, Members};
use crate::test_server::lookupd::Identity;
use crate::transport::{BoxIo, Connector};

const MAGIC: &[u8] = b"  V1";

/// Limits dialling, and each read and write.
const STEP: Duration = Duration::from_secs(1);

const PING_INTERVAL: Duration = Duration::from_secs(15);

/// The largest answer to `/channels` that is read.
const MAX_CHANNELS: usize = 4 * 1024 * 1024;

/// How many bytes are read in one go, so that a length alone takes no memory.
const READ: usize = 16 * 1024;

/// What an nsqd has: each topic, and each channel with its topic.
pub(super) type Holdings = BTreeSet<(String, Option<String>)>;

/// Tells what the nsqd has now.
pub(super) type Snapshot = Arc<dyn Fn() -> Holdings + Send + Sync>;

/// What all peers have in common.
#[derive(Clone)]
struct Common {
    connector: Arc<dyn Connector>,
    identity: Identity,
    snapshot: Snapshot,
    /// The largest reply: nsqd's `max-body-size`.
    max_reply: usize,
    patience: Patience,
}

/// The nsqlookupds of an nsqd. Dropping it ends the connections to them.
pub(super) struct LookupPeers {
    common: Common,
    peers: Mutex<Vec<Running>>,
}

struct Running {
    peer: Arc<Peer>,
    /// The peer's task, which ends with this.
    _task: JoinSet<()>,
}

impl LookupPeers {
    /// Connects to the nsqlookupds at these addresses, each `host:port` of the TCP side.
    ///
    /// # Panics
    /// Outside of a tokio runtime, if there are addresses.
    pub(super) fn start(
        connector: Arc<dyn Connector>,
        addresses: &[String],
        identity: Identity,
        max_reply: usize,
        snapshot: Snapshot,
    ) -> Self {
        let peers = Self {
            common: Common {
                connector,
                identity,
                snapshot,
                max_reply,
                patience: Patience::default(),
            },
            peers: Mutex::default(),
        };
        peers.set_addresses(addresses);
        peers
    }

    /// How long a question by HTTP may take. Default: as nsqd.
    pub(super) fn set_patience(&mut self, patience: Patience) {
        self.common.patience = patience;
    }

    /// Replaces the nsqlookupds: those that stay keep their connections. One that is named twice counts once.
    ///
    /// # Panics
    /// Outside of a tokio runtime, if there are new ones.
    pub(super) fn set_addresses(&self, addresses: &[String]) {
        let mut removed = Vec::new();
        let mut peers = self.lock();
        for running in std::mem::take(&mut *peers) {
            if addresses.contains(&running.peer.address) {
                peers.push(running);
            } else {
                removed.push(running);
            }
        }
        for address in addresses {
            if peers.iter().any(|running| running.peer.address == *address) {
                continue;
            }
            let peer = Arc::new(Peer {
                address: address.clone(),
                woken: Notify::new(),
                http_address: Mutex::default(),
            });
            let mut task = JoinSet::new();
            let link = Link::new(Arc::clone(&peer), self.common.clone());
            task.spawn(link.run());
            peers.push(Running { peer, _task: task });
        }
        drop(peers);
        // Ends their connections, and not under the lock.
        drop(removed);
    }

    /// Has every peer look at what there is now. Never waits.
    pub(super) fn wake(&self) {
        for running in self.lock().iter() {
            running.peer.woken.notify_one();
        }
    }

    /// The channels that any nsqlookupd knows for a topic and a new topic starts with, in order: all but ephemeral
    /// ones, which nsqd creates for a consumer only. An nsqlookupd that does not answer is ignored.
    ///
    /// The future does not borrow the peers, so it can be had under a lock and awaited without.
    pub(super) fn channels_of(&self, topic: &str) -> impl Future<Output = BTreeSet<String>> + Send + use<> {
        let addresses: Vec<_> = self
            .lock()
            .iter()
            .filter_map(|running| running.peer.http_address())
            .collect();
        let target: Arc<str> = format!("/channels?{}", encode(&[("topic", topic.as_bytes())])).into();
        let common = self.common.clone();
        async move {
            let mut asking = JoinSet::new();
            for address in addresses {
                asking.spawn(ask_channels(common.clone(), address, Arc::clone(&target)));
            }
            let mut channels = BTreeSet::new();
            while let Some(answer) = asking.join_next().await {
                channels.extend(answer.into_iter().flatten().flatten());
            }
            channels
        }
    }

    /// The addresses of their HTTP sides, as far as they have told.
    #[cfg(test)]
    pub(super) fn http_addresses(&self) -> Vec<String> {
        self.lock()
            .iter()
            .filter_map(|running| running.peer.http_address())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Running>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LookupPeers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.lock().iter().map(|running| &running.peer.address))
            .finish()
    }
}

async fn ask_channels(common: Common, address: String, target: Arc<str>) -> io::Result<Vec<String>> {
    let accept = [(header::ACCEPT, "application/vnd.nsq; version=1.0")];
    let asked = get(
        &*common.connector,
        &address,
        &target,
        &accept,
        common.patience,
        MAX_CHANNELS,
    );
    let (status, body) = asked.await?;
    if status != StatusCode::OK {
        return Err(io::Error::other(format!("answered {status}")));
    }
    let channels = Members::read(&body).and_then(|mut answer| answer.texts("channels"));
    let channels = channels.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let usable = channels.into_iter().filter(|name| {
        let channel = Channel::new(name);
        channel.is_ok_and(|channel| !channel.is_ephemeral())
    });
    Ok(usable.collect())
}

/// What the task of one nsqlookupd and the nsqd share.
struct Peer {
    address: String,
    woken: Notify,
    /// From its last answer to IDENTIFY; it outlives the connection.
    http_address: Mutex<Option<String>>,
}

impl Peer {
    fn http_address(&self) -> Option<String> {
        self.http_address.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One nsqlookupd, as its task sees it.
struct Link {
    peer: Arc<Peer>,
    common: Common,
    connection: Option<Connection>,
}

/// An open connection, and what was registered over it.
struct Connection {
    io: BoxIo,
    max_reply: usize,
    registered: Holdings,
}

impl Link {
    fn new(peer: Arc<Peer>, common: Common) -> Self {
        Self {
            peer,
            common,
            connection: None,
        }
    }

    async fn run(mut self) {
        let mut ticks = interval(PING_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // The first one comes at once.
        ticks.tick().await;
        let mut turn = self.turn(false).await;
        loop {
            if turn.is_err() {
                // Opened again with the next command.
                self.connection = None;
            }
            let ping = tokio::select! {
                biased;
                _ = ticks.tick() => true,
                () = self.peer.woken.notified() => false,
            };
            turn = self.turn(ping).await;
        }
    }

    /// Registers what has changed, over a new connection if there is none, and sends a PING if it is time.
    async fn turn(&mut self, ping: bool) -> io::Result<()> {
        if self.connection.is_none() {
            let connection = self.open().await?;
            self.connection = Some(connection);
        }
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        connection.update(&(self.common.snapshot)()).await?;
        if ping {
            connection.command(b"PING\n").await?;
        }
        Ok(())
    }

    // Not by a shared reference: a stream may not be looked at from two threads.
    async fn open(&mut self) -> io::Result<Connection> {
        let io = within(self.common.connector.connect(&self.peer.address)).await?;
        let mut connection = Connection {
            io,
            max_reply: self.common.max_reply,
            registered: Holdings::new(),
        };
        let body = json::to_vec(&self.common.identity);
        let mut identify = [MAGIC, b"IDENTIFY\n"].concat();
        identify.extend((body.len() as u32).to_be_bytes());
        identify.extend(body);
        let reply = connection.command(&identify).await?;
        let http_address = read_http_address(&reply)?;
        // One that tells no address is not asked by HTTP.
        *self.peer.http_address.lock().unwrap_or_else(PoisonError::into_inner) = http_address;
        Ok(connection)
    }
}

impl Connection {
    async fn update(&mut self, holdings: &Holdings) -> io::Result<()> {
        for command in difference(&self.registered, holdings) {
            // Whatever the reply is: after an error the peer closes, which the next command finds out.
            self.command(command.as_bytes()).await?;
        }
        self.registered.clone_from(holdings);
        Ok(())
    }

    async fn command(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        within(self.io.write_all(command)).await?;
        within(self.io.flush()).await?;
        let size = within(self.io.read_i32()).await?;
        let size = usize::try_from(size).ok().filter(|size| *size <= self.max_reply);
        let size = size.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        let mut reply = Vec::with_capacity(size.min(READ));
        while reply.len() < size {
            let mut part = (&mut self.io).take((size - reply.len()).min(READ) as u64);
            if within(part.read_buf(&mut reply)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(reply)
    }
}

/// The commands that lead from what is registered to what there is. A channel registers its topic along. Channels go
/// before their topic does: an nsqlookupd forgets an ephemeral one only if it is taken back by name.
fn difference(registered: &Holdings, holdings: &Holdings) -> Vec<String> {
    let mut commands = Vec::new();
    let mut gone: Vec<_> = registered.difference(holdings).collect();
    gone.sort_by_key(|(_, channel)| channel.is_none());
    for (topic, channel) in gone {
        commands.push(line("UNREGISTER", topic, channel.as_deref()));
    }
    let new: Vec<_> = holdings.difference(registered).collect();
    let with_channels: BTreeSet<_> = new
        .iter()
        .filter(|(_, channel)| channel.is_some())
        .map(|(topic, _)| topic)
        .collect();
    for (topic, channel) in &new {
        if channel.is_some() || !with_channels.contains(topic) {
            commands.push(line("REGISTER", topic, channel.as_deref()));
        }
    }
    commands
}

fn line(command: &str, topic: &str, channel: Option<&str>) -> String {
    match channel {
        Some(channel) => format!("{command} {topic} {channel}\n"),
        None => format!("{command} {topic}\n"),
    }
}

fn read_http_address(reply: &[u8]) -> io::Result<Option<String>> {
    let read = || {
        let mut members = Members::read(reply)?;
        Ok((members.text("broadcast_address")?, members.integer("http_port")?))
    };
    let (host, port): (String, i64) =
        read().map_err(|_: json::Mismatch| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok((!host.is_empty()).then(|| {
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }))
}

async fn within<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(STEP, step)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests;
