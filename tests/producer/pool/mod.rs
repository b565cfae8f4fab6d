//! Several nsqds behind one producer: who gets a message, and what happens when one of them dies.

mod changes;
mod copies;
mod detached;
mod discovery;
mod endings;
mod random;
mod random_changes;
mod retry;
mod routing;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::transport::{MemoryListener, MemoryNetwork};
use async_nsq::{ConnectionConfig, Producer, ProducerBuilder};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{Command, Peer, settle};

const SECOND: Duration = Duration::from_secs(1);
const NAMES: [&str; 4] = ["a:1", "b:1", "c:1", "d:1"];

/// Addresses in one network, which a test may open and close.
struct Nsqds {
    network: MemoryNetwork,
    listeners: HashMap<&'static str, MemoryListener>,
}

impl Nsqds {
    fn start(count: usize) -> Self {
        let mut nsqds = Self {
            network: MemoryNetwork::new(),
            listeners: HashMap::new(),
        };
        NAMES[..count].iter().for_each(|name| nsqds.open(name));
        nsqds
    }

    fn open(&mut self, name: &'static str) {
        let listener = self.network.listen(name).unwrap();
        self.listeners.insert(name, listener);
    }

    /// Refuses connections from now on.
    fn close(&mut self, name: &str) {
        self.listeners.remove(name);
    }

    fn connection(&self) -> ConnectionConfig {
        ConnectionConfig::new().connector(self.network.connector())
    }

    /// With as many of the addresses, whether or not they are open.
    fn producer(&self, count: usize) -> ProducerBuilder {
        let builder = Producer::builder().connection(self.connection());
        NAMES[..count].iter().fold(builder, |builder, name| builder.nsqd(*name))
    }

    async fn accept(&mut self, name: &str) -> Peer {
        let listener = self.listeners.get_mut(name).unwrap();
        let mut peer = Peer::new(timeout(3600 * SECOND, listener.accept()).await.unwrap());
        peer.handshake().await;
        peer
    }

    /// A producer that is connected to all that are open, and the other ends in the order of their addresses.
    async fn connect(&mut self, builder: ProducerBuilder) -> (Producer, Vec<Peer>) {
        let connecting = tokio::spawn(builder.connect());
        let mut names: Vec<_> = self.listeners.keys().copied().collect();
        names.sort_unstable();
        let mut peers = Vec::new();
        for name in names {
            peers.push(self.accept(name).await);
        }
        settle().await;
        (connecting.await.unwrap().unwrap(), peers)
    }

    /// The same, all of them in good health.
    async fn serve(&mut self, builder: ProducerBuilder) -> (Producer, Vec<Served>) {
        let (producer, peers) = self.connect(builder).await;
        (producer, peers.into_iter().map(Served::new).collect())
    }
}

/// A connection on which everything is answered OK at once.
struct Served {
    bodies: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Served {
    fn new(mut peer: Peer) -> Self {
        let bodies: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&bodies);
        let task = tokio::spawn(async move {
            loop {
                match timeout(20 * SECOND, peer.next()).await {
                    Err(_silent) => peer.heartbeat().await,
                    Ok(None) => break,
                    Ok(Some(Command::Nop)) => {}
                    Ok(Some(command)) => {
                        let came = command.bodies();
                        seen.lock().unwrap().extend(came.iter().map(text));
                        peer.ok().await;
                    }
                }
            }
        });
        Self { bodies, task }
    }

    /// What came since the last call.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.bodies.lock().unwrap())
    }

    fn count(&self) -> usize {
        self.bodies.lock().unwrap().len()
    }

    /// Ends the connection from nsqd's side. What came stays known.
    async fn kill(&self) {
        self.task.abort();
        settle().await;
    }
}

fn text(body: &bytes::Bytes) -> String {
    String::from_utf8(body.to_vec()).unwrap()
}
