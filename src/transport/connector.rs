//! The one place where connections are opened.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

/// A stream of bytes in both directions: what a connection runs over.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream of any kind.
pub type BoxIo = Box<dyn Io>;

/// What [`Connector::connect`] returns: the opening of a stream, which is cancelled by dropping it.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<BoxIo>> + Send>>;

/// Opens connections: to nsqd, and to nsqlookupd's HTTP port.
///
/// [`TcpConnector`](super::TcpConnector) is the default. Write your own to go through a proxy or a unix socket, or to
/// map the addresses that nsqlookupd announces to ones that can be reached from here:
///
/// ```
/// use async_nsq::transport::{Connecting, Connector, TcpConnector};
///
/// /// Reaches nsqds that run in containers through the ports published on this host.
/// #[derive(Debug)]
/// struct Published(TcpConnector);
///
/// impl Connector for Published {
///     fn connect(&self, address: &str) -> Connecting {
///         match address.rsplit_once(':') {
///             Some((_, port)) => self.0.connect(&format!("127.0.0.1:{port}")),
///             None => self.0.connect(address),
///         }
///     }
/// }
/// ```
pub trait Connector: fmt::Debug + Send + Sync + 'static {
    /// Opens a stream to `address`, which is `host:port` as it was configured or discovered.
    ///
    /// The caller limits the time that this may take.
    fn connect(&self, address: &str) -> Connecting;
}
