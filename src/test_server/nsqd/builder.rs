//! How an [`Nsqd`] is configured.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Nsqd;
use super::doors::Doors;
use super::options::Options;
use crate::test_server::LONGEST;
use crate::test_server::lookupd::{Lookupd, Registry};
use crate::test_server::tls::{ClientAuth, ServerTls, TlsRequired};
use crate::transport::{Connector, MemoryNetwork, TcpConnector};

/// Configures an [`Nsqd`]. The defaults are nsqd's; every option can also be set by the name of its flag with
/// [`flag`](Self::flag).
#[derive(Default)]
#[must_use = "a builder does nothing until it is started"]
pub struct NsqdBuilder {
    pub(super) options: Options,
    pub(super) places: Places,
    pub(super) tls_files: TlsFiles,
    connector: Option<Arc<dyn Connector>>,
    lookupds: Vec<Registry>,
}

/// Where it listens, if not at a free loopback port.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) tcp: Option<String>,
    pub(super) http: Option<String>,
    pub(super) https: Option<String>,
}

/// The files of a certificate, which are read at the start.
#[derive(Debug, Default)]
pub(super) struct TlsFiles {
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) root_ca: Option<PathBuf>,
    pub(super) client_auth: ClientAuth,
    /// A policy for clients' certificates was given, if only one that nsqd does not know: TLS is required then.
    pub(super) policy_given: bool,
    pub(super) tls13_only: bool,
}

impl TlsFiles {
    fn read(&self) -> io::Result<Option<ServerTls>> {
        let (cert, key) = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) => return Ok(None),
            _ => {
                let text = "the flags tls-cert and tls-key go together";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        };
        let mut tls = ServerTls::from_pem_files(cert, key)?.client_auth(self.client_auth);
        if let Some(root_ca) = &self.root_ca {
            tls = tls.root_ca_pem(&std::fs::read(root_ca)?)?;
        }
        if self.tls13_only {
            tls = tls.tls13_only()?;
        }
        Ok(Some(tls))
    }
}

impl NsqdBuilder {
    /// How long a consumer may take to answer a message before it is delivered again, unless its IDENTIFY says
    /// otherwise. Default 60 s.
    pub fn msg_timeout(mut self, timeout: Duration) -> Self {
        self.options.msg_timeout = timeout.min(LONGEST);
        self
    }

    /// The longest message timeout that IDENTIFY can ask for and TOUCH can reach. Default 15 min.
    pub fn max_msg_timeout(mut self, timeout: Duration) -> Self {
        self.options.max_msg_timeout = timeout.min(LONGEST);
        self
    }

    /// The interval of heartbeats, unless IDENTIFY says otherwise. A client that sends nothing for twice as long is
    /// disconnected. Default 30 s, for which nsqd has no flag. At least 1 ms.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.options.heartbeat_interval = interval.clamp(Duration::from_millis(1), LONGEST);
        self
    }

    /// The longest interval of heartbeats that IDENTIFY can ask for. Default 60 s.
    pub fn max_heartbeat_interval(mut self, interval: Duration) -> Self {
        self.options.max_heartbeat_interval = interval.min(LONGEST);
        self
    }

    /// How long messages may wait in the output buffer of a connection that could take more, unless its IDENTIFY says
    /// otherwise. Default 250 ms.
    pub fn output_buffer_timeout(mut self, timeout: Duration) -> Self {
        self.options.output_buffer_timeout = timeout.min(LONGEST);
        self
    }

    /// The largest RDY. Default 2,500.
    pub fn max_rdy_count(mut self, count: u32) -> Self {
        self.options.limits.max_rdy_count = count;
        self
    }

    /// The largest message, in bytes. Default 1 MiB.
    pub fn max_msg_size(mut self, bytes: usize) -> Self {
        self.options.limits.max_msg_size = bytes;
        self
    }

    /// The largest body of IDENTIFY, AUTH and MPUB, in bytes. Default 5 MiB.
    pub fn max_body_size(mut self, bytes: usize) -> Self {
        self.options.limits.max_body_size = bytes;
        self
    }

    /// The longest delay of REQ, where longer ones are lowered to it, and of DPUB, where they are refused. Default 1 h.
    pub fn max_req_timeout(mut self, timeout: Duration) -> Self {
        self.options.limits.max_req_timeout = timeout.min(LONGEST);
        self
    }

    /// How many consumers a channel may have; 0 is no limit, which is the default.
    pub fn max_channel_consumers(mut self, count: usize) -> Self {
        self.options.max_channel_consumers = count;
        self
    }

    /// Whether clients may have their connections compressed by snappy. Default `true`.
    pub fn snappy(mut self, allowed: bool) -> Self {
        self.options.snappy = allowed;
        self
    }

    /// Whether clients may have their connections compressed by deflate. Default `true`.
    pub fn deflate(mut self, allowed: bool) -> Self {
        self.options.deflate = allowed;
        self
    }

    /// The highest level of deflate that a client gets, 1 to 9. Default 6.
    pub fn max_deflate_level(mut self, level: u8) -> Self {
        self.options.max_deflate_level = level.clamp(1, 9);
        self
    }

    /// Grants TLS to clients that ask for it, and serves HTTPS, with this certificate. A policy for clients' certificates other than
    /// [`ClientAuth::None`] makes TLS required. Default: neither.
    pub fn tls(mut self, tls: ServerTls) -> Self {
        self.options.tls = Some(tls);
        self
    }

    /// Who has to use TLS. Default nobody.
    pub fn tls_required(mut self, required: TlsRequired) -> Self {
        self.options.tls_required = required;
        self
    }

    /// How many messages wait in an ephemeral topic or channel before further ones are dropped. Default 10,000.
    pub fn mem_queue_size(mut self, messages: usize) -> Self {
        self.options.mem_queue_size = messages;
        self
    }

    /// How much a topic or channel may hold, in bytes, before publishing to it fails with `E_PUB_FAILED` and the like.
    /// nsqd has no such limit but its disk. Default 1 GiB.
    pub fn max_queue_bytes(mut self, bytes: usize) -> Self {
        self.options.max_queue_bytes = bytes;
        self
    }

    /// Whether timeouts and delays are as inexact as nsqd's, which looks for them every 100 ms and may take five seconds to
    /// notice a new channel. Default `false`: each comes at its time.
    pub fn coarse_timers(mut self, coarse: bool) -> Self {
        self.options.coarse_timers = coarse;
        self
    }

    /// How many received commands are kept for [`Nsqd::commands`]; older ones are forgotten. Their bodies may hold
    /// 64 MiB in all. 0 keeps none, which is faster. Default 100,000.
    pub fn record_commands(mut self, count: usize) -> Self {
        self.options.record = count;
        self
    }

    /// The host that nsqlookupd gives to clients. Default: the host of [`Nsqd::address`].
    pub fn broadcast_address(mut self, host: impl Into<String>) -> Self {
        self.options.broadcast_address = Some(host.into());
        self
    }

    /// Registers topics and channels with this nsqlookupd at the moment they are created, without a connection. A topic
    /// that is new here gets the channels that the nsqlookupd knows of. Can be called several times. See
    /// [`lookupd_tcp_address`](Self::lookupd_tcp_address) for the way that nsqd takes.
    pub fn lookupd(mut self, lookupd: &Lookupd) -> Self {
        self.lookupds.push(lookupd.registry());
        self
    }

    /// Registers with the nsqlookupd whose TCP side is at this address, as nsqd does: a task of its own connects, tells of
    /// topics and channels as they come and go, and asks which channels a new topic has. Can be called several times.
    pub fn lookupd_tcp_address(mut self, address: impl Into<String>) -> Self {
        self.options.lookupd_tcp_addresses.push(address.into());
        self
    }

    /// Requires AUTH of clients, and asks the auth server at this address what they may do: `host:port`, or a URL. Can be
    /// called several times; they are asked in turn until one answers. Default: AUTH is disabled.
    pub fn auth_http_address(mut self, address: impl Into<String>) -> Self {
        self.options.auth_http_addresses.push(address.into());
        self
    }

    /// How auth servers and nsqlookupds are reached. Default: by TCP, or within the memory network in which the broker is
    /// started.
    pub fn connector(mut self, connector: impl Connector) -> Self {
        self.connector = Some(Arc::new(connector));
        self
    }

    /// Starts on free loopback ports, or where the [flags](Self::flag) `tcp-address`, `http-address` and `https-address`
    /// say. HTTPS is served with [`tls`](Self::tls) only.
    ///
    /// # Errors
    /// If a port cannot be opened.
    ///
    /// # Cancel safety
    /// Dropping the future before it is polled starts nothing; its first poll completes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start(mut self) -> io::Result<Nsqd> {
        self.settle_tls()?;
        let doors = Doors::tcp(&self.places, self.options.tls.is_some())?;
        let connector = self.connector.take();
        self.open(doors, connector.unwrap_or_else(|| Arc::new(TcpConnector::new())))
    }

    /// Starts within a memory network, where clients reach it by
    /// [`MemoryNetwork::connector`](crate::transport::MemoryNetwork::connector). `address` is `host:port`, any host
    /// and any port but the highest two. HTTP is served at the port above and HTTPS, with [`tls`](Self::tls), at the one
    /// above that, unless the [flags](Self::flag) `http-address` and `https-address` say otherwise.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if something listens at one of these addresses already,
    /// [`io::ErrorKind::InvalidInput`] if `address` is not `host:port`, or leaves no port for HTTP.
    ///
    /// # Cancel safety
    /// Dropping the future before it is polled starts nothing; its first poll completes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start_in(mut self, network: &MemoryNetwork, address: &str) -> io::Result<Nsqd> {
        self.settle_tls()?;
        let doors = Doors::memory(network, address, &self.places, self.options.tls.is_some())?;
        let connector = self.connector.take();
        self.open(doors, connector.unwrap_or_else(|| Arc::new(network.connector())))
    }

    /// Starts without listening: every connection is handed over by [`Nsqd::serve`] or [`Nsqd::serve_http`]. For a
    /// transport of your own, such as the simulated hosts of turmoil. `address` is what [`Nsqd::address`] says and
    /// nsqlookupd is told; `host:port`. That of HTTP is at the port above.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `address` is not `host:port`, or leaves no port for HTTP.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start_detached(mut self, address: &str) -> io::Result<Nsqd> {
        self.settle_tls()?;
        let doors = Doors::detached(address, &self.places, self.options.tls.is_some())?;
        let connector = self.connector.take();
        self.open(doors, connector.unwrap_or_else(|| Arc::new(TcpConnector::new())))
    }

    /// Reads the files of the certificate, and settles who has to use it.
    fn settle_tls(&mut self) -> io::Result<()> {
        let options = &mut self.options;
        if options.tls.is_none() {
            options.tls = self.tls_files.read()?;
        }
        let tls = options.tls.as_ref();
        let asks_for_certificates = tls.is_some_and(|tls| tls.client_auth_policy() != ClientAuth::None);
        let required = asks_for_certificates || self.tls_files.policy_given;
        if required && options.tls_required == TlsRequired::No {
            options.tls_required = TlsRequired::Yes;
        }
        if options.tls.is_none() && options.tls_required != TlsRequired::No {
            let text = "to require TLS, a certificate is needed: NsqdBuilder::tls, or the flags tls-cert and tls-key";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(())
    }

    fn open(self, doors: Doors, connector: Arc<dyn Connector>) -> io::Result<Nsqd> {
        Nsqd::open(self.options, &self.places, doors, connector, self.lookupds)
    }
}

impl fmt::Debug for NsqdBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NsqdBuilder")
            .field("options", &self.options)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}
