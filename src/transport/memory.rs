//! Connections within the process, for tests: no ports, no kernel, and a paused clock works.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;

use super::connector::{BoxIo, Connecting, Connector};

/// What one direction of a connection holds before its writer has to wait, about what a kernel's socket holds.
const PIPE_CAPACITY: usize = 64 * 1024;

/// How many connections wait to be accepted before the next one is refused, as a kernel's backlog.
const BACKLOG: usize = 128;

type Listeners = HashMap<String, mpsc::Sender<DuplexStream>>;

/// A network within the process: listeners by name, and connections between them and their clients.
///
/// Clones are the same network.
///
/// ```
/// use async_nsq::transport::{Connector, MemoryNetwork};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let network = MemoryNetwork::new();
/// let mut listener = network.listen("nsqd:4150")?;
/// let mut client = network.connector().connect("nsqd:4150").await?;
/// let mut server = listener.accept().await;
/// client.write_all(b"  V2").await?;
/// let mut magic = [0; 4];
/// server.read_exact(&mut magic).await?;
/// assert_eq!(&magic, b"  V2");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    listeners: Arc<Mutex<Listeners>>,
}

impl MemoryNetwork {
    /// A network without listeners.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens at `address`, any text, until the listener is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if a listener is there already.
    pub fn listen(&self, address: impl Into<String>) -> io::Result<MemoryListener> {
        let address = address.into();
        let (sender, incoming) = mpsc::channel(BACKLOG);
        let mut listeners = self.lock();
        if listeners.get(&address).is_some_and(|listener| !listener.is_closed()) {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{address} is in use in this memory network"),
            ));
        }
        listeners.insert(address.clone(), sender);
        Ok(MemoryListener { address, incoming })
    }

    /// A connector to the listeners of this network.
    #[must_use]
    pub fn connector(&self) -> MemoryConnector {
        MemoryConnector { network: self.clone() }
    }

    fn connect(&self, address: &str) -> io::Result<BoxIo> {
        let (client, server) = duplex(PIPE_CAPACITY);
        let refused = || {
            io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("nothing accepts connections at {address} in this memory network"),
            )
        };
        let listeners = self.lock();
        let listener = listeners.get(address).ok_or_else(refused)?;
        listener.try_send(server).map_err(|_| refused())?;
        Ok(Box::new(client))
    }

    fn lock(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.lock().keys()).finish()
    }
}

/// Opens connections within a [`MemoryNetwork`].
#[derive(Clone, Debug)]
pub struct MemoryConnector {
    network: MemoryNetwork,
}

impl Connector for MemoryConnector {
    fn connect(&self, address: &str) -> Connecting {
        let connected = self.network.connect(address);
        Box::pin(std::future::ready(connected))
    }
}

/// Accepts the connections to one address of a [`MemoryNetwork`]. Dropping it refuses further ones.
#[derive(Debug)]
pub struct MemoryListener {
    address: String,
    incoming: mpsc::Receiver<DuplexStream>,
}

impl MemoryListener {
    /// The address that this listener has in its network.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits for the next connection.
    ///
    /// # Cancel safety
    /// Dropping the future loses no connection.
    pub async fn accept(&mut self) -> BoxIo {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// [`accept`](Self::accept) as a poll, for a listener behind a lock.
    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<BoxIo> {
        match self.incoming.poll_recv(cx) {
            Poll::Ready(Some(stream)) => Poll::Ready(Box::new(stream)),
            // Without senders, another listener has taken the address over, which `listen` allows only once this one
            // is gone.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_refused_before_and_after_its_listener() {
        let network = MemoryNetwork::new();
        let connector = network.connector();
        let refused = |result: io::Result<BoxIo>| result.err().map(|error| error.kind());
        assert_eq!(
            refused(connector.connect("a:1").await),
            Some(io::ErrorKind::ConnectionRefused)
        );
        let listener = network.listen("a:1").unwrap();
        assert_eq!(network.listen("a:1").unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(connector.connect("a:1").await.is_ok());
        drop(listener);
        assert_eq!(
            refused(connector.connect("a:1").await),
            Some(io::ErrorKind::ConnectionRefused)
        );
        assert!(network.listen("a:1").is_ok());
    }

    #[tokio::test]
    async fn n4_a_full_backlog_refuses() {
        let network = MemoryNetwork::new();
        let _listener = network.listen("a:1").unwrap();
        let mut open = Vec::new();
        for _ in 0..BACKLOG {
            open.push(network.connector().connect("a:1").await.unwrap());
        }
        assert!(network.connector().connect("a:1").await.is_err());
    }
}
