//! TCP.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream, lookup_host};

use super::connector::{BoxIo, Connecting, Connector};

/// Opens TCP connections, with Nagle's algorithm off and keepalive on.
///
/// A host name is resolved at each connect, and its addresses are tried in the order that the resolver gives.
#[derive(Clone, Debug, Default)]
pub struct TcpConnector {
    local_address: Option<SocketAddr>,
}

impl TcpConnector {
    /// A connector that lets the system choose the local address.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds connections to this local address; port 0 lets the system choose the port.
    #[must_use]
    pub fn local_address(mut self, address: SocketAddr) -> Self {
        self.local_address = Some(address);
        self
    }
}

impl Connector for TcpConnector {
    fn connect(&self, address: &str) -> Connecting {
        let address = address.to_owned();
        let local_address = self.local_address;
        Box::pin(async move { dial(&address, local_address).await })
    }
}

async fn dial(address: &str, local_address: Option<SocketAddr>) -> io::Result<BoxIo> {
    let mut last_error = None;
    for remote in lookup_host(address).await? {
        match dial_one(remote, local_address).await {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) => last_error = Some(error),
        }
    }
    Err(last_error.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host name has no address")))
}

async fn dial_one(remote: SocketAddr, local_address: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = match remote {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_keepalive(true)?;
    if let Some(local_address) = local_address {
        socket.bind(local_address)?;
    }
    let stream = socket.connect(remote).await?;
    // The drivers coalesce by themselves; Nagle's algorithm would only add the peer's delayed acknowledgement to every
    // lone command.
    stream.set_nodelay(true)?;
    Ok(stream)
}
