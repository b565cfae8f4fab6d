//! The place where a server accepts connections: open, or closed and still its own.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;

use crate::transport::{BoxIo, MemoryListener, MemoryNetwork};

const BACKLOG: u32 = 1024;

/// The pause after the system refused to accept, so that a lack of file descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A listener that can be closed and opened again at the same address.
pub(super) struct Door {
    address: String,
    place: Place,
    state: Mutex<State>,
    opened: Notify,
}

enum Place {
    Tcp(SocketAddr),
    Memory(MemoryNetwork),
    Elsewhere,
}

enum State {
    Tcp(TcpListener),
    Memory(MemoryListener),
    Elsewhere,
    /// A bound socket that does not listen refuses connections and keeps the system from giving the port to anyone who
    /// asks for a free one.
    Closed(Option<TcpSocket>),
}

/// A connection and the name of its other end.
pub(super) type Accepted = (BoxIo, String);

impl Door {
    /// Opens a port: `host:port` as Go programs take it, without a host at all interfaces. By default it is a free one on
    /// the loopback interface.
    pub(super) fn tcp(address: Option<&str>) -> io::Result<Self> {
        let listener = bind(resolve(address.unwrap_or("127.0.0.1:0"))?)?.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok(Self {
            address: address.to_string(),
            place: Place::Tcp(address),
            state: Mutex::new(State::Tcp(listener)),
            opened: Notify::new(),
        })
    }

    pub(super) fn memory(network: &MemoryNetwork, address: &str) -> io::Result<Self> {
        let listener = network.listen(address)?;
        Ok(Self {
            address: address.to_owned(),
            place: Place::Memory(network.clone()),
            state: Mutex::new(State::Memory(listener)),
            opened: Notify::new(),
        })
    }

    /// A place where nobody listens: connections come from elsewhere.
    pub(super) fn detached(address: &str) -> io::Result<Self> {
        split_address(address)?;
        Ok(Self {
            address: address.to_owned(),
            place: Place::Elsewhere,
            state: Mutex::new(State::Elsewhere),
            opened: Notify::new(),
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(*self.lock(), State::Closed(_))
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Refuses connections from now on.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        if !matches!(*state, State::Closed(_)) {
            // The listener has to be gone before the port can be bound again.
            *state = State::Closed(None);
            if let Place::Tcp(address) = self.place {
                *state = State::Closed(bind(address).ok());
            }
        }
    }

    /// Gives the address up.
    pub(super) fn demolish(&self) {
        *self.lock() = State::Closed(None);
    }

    /// Accepts connections again.
    pub(super) fn open(&self) -> io::Result<()> {
        let mut state = self.lock();
        if let State::Closed(reserved) = &mut *state {
            *state = match &self.place {
                Place::Tcp(address) => {
                    let socket = reserved.take().map_or_else(|| bind(*address), Ok)?;
                    State::Tcp(socket.listen(BACKLOG)?)
                }
                Place::Memory(network) => State::Memory(network.listen(self.address.as_str())?),
                Place::Elsewhere => State::Elsewhere,
            };
        }
        drop(state);
        self.opened.notify_one();
        Ok(())
    }

    /// Waits for the next connection, and while closed for ever.
    pub(super) async fn accept(&self) -> Accepted {
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = poll_fn(|cx| self.poll_accept(cx)) => accepted,
                // The listener is another one: it has to be asked before it wakes anybody.
                () = self.opened.notified() => continue,
            };
            match accepted {
                Ok(accepted) => return accepted,
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        match &mut *self.lock() {
            State::Tcp(listener) => listener.poll_accept(cx).map_ok(|(stream, remote)| {
                // A failure leaves the connection slower, not broken.
                let _ = stream.set_nodelay(true);
                (Box::new(stream) as BoxIo, remote.to_string())
            }),
            State::Memory(listener) => listener.poll_accept(cx).map(|io| Ok((io, "memory".to_owned()))),
            State::Elsewhere | State::Closed(_) => Poll::Pending,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections of the former listener may still be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn resolve(address: &str) -> io::Result<SocketAddr> {
    let (host, port) = split_address(address)?;
    if host.is_empty() {
        return Ok(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    }
    // Blocks for a host name that is not in a file; a test broker's address is a number or `localhost`.
    let mut found = (host.as_str(), port).to_socket_addrs()?;
    found
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")))
}

/// Takes `host:port` apart.
pub(super) fn split_address(address: &str) -> io::Result<(String, u16)> {
    let parts = address.rsplit_once(':');
    parts
        .and_then(|(host, port)| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Some((host.to_owned(), port.parse().ok()?))
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{address:?} is not host:port")))
}
