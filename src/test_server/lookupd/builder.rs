//! How a [`Lookupd`] is configured.

use std::io;
use std::time::Duration;

use super::Lookupd;
use super::registry::Lifetimes;
use crate::test_server::LONGEST;
use crate::test_server::flags::{FlagError, parse_duration};
use crate::test_server::listener::{Door, split_address};
use crate::transport::MemoryNetwork;

/// Configures a [`Lookupd`]. The defaults are nsqlookupd's, but for where it listens.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is started"]
pub struct LookupdBuilder {
    lifetimes: Lifetimes,
    broadcast_address: Option<String>,
    tcp_address: Option<String>,
    http_address: Option<String>,
}

impl Default for LookupdBuilder {
    fn default() -> Self {
        Self {
            lifetimes: Lifetimes {
                inactive: Duration::from_secs(300),
                tombstone: Duration::from_secs(45),
            },
            broadcast_address: None,
            tcp_address: None,
            http_address: None,
        }
    }
}

impl LookupdBuilder {
    /// How long an nsqd that is connected by TCP may go without PING before it is left out of `/lookup` and `/nodes`.
    /// Default 5 min.
    pub fn inactive_producer_timeout(mut self, timeout: Duration) -> Self {
        self.lifetimes.inactive = timeout.min(LONGEST);
        self
    }

    /// How long a tombstone hides an nsqd. Default 45 s.
    pub fn tombstone_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetimes.tombstone = lifetime.min(LONGEST);
        self
    }

    /// The host that nsqds are told, at which they reach the HTTP side. Default: the host of
    /// [`Lookupd::address`]; nsqlookupd's is the system's host name.
    pub fn broadcast_address(mut self, host: impl Into<String>) -> Self {
        self.broadcast_address = Some(host.into());
        self
    }

    /// Sets one of nsqlookupd's own flags, named without dashes and written as on its command line.
    ///
    /// `tcp-address`, `http-address` (where [`start`](Self::start) listens), `broadcast-address`,
    /// `inactive-producer-timeout` and `tombstone-lifetime` have an effect. `config`, `log-level`, `log-prefix`,
    /// `verbose` and `version` are accepted and have none.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use async_nsq::test_server::Lookupd;
    ///
    /// let builder = Lookupd::builder().flag("tombstone-lifetime", "1m30s")?;
    /// assert!(builder.flag("tombstone-lifetime", "90").is_err());
    /// # Ok::<(), async_nsq::test_server::FlagError>(())
    /// ```
    ///
    /// # Errors
    /// [`FlagError`] if nsqlookupd has no such flag, or the value is none for it.
    pub fn flag(mut self, name: &str, value: &str) -> Result<Self, FlagError> {
        match name {
            "tcp-address" => self.tcp_address = Some(address(name, value)?),
            "http-address" => self.http_address = Some(address(name, value)?),
            "broadcast-address" => self.broadcast_address = Some(value.to_owned()),
            "inactive-producer-timeout" => self = self.inactive_producer_timeout(duration(name, value)?),
            "tombstone-lifetime" => self = self.tombstone_lifetime(duration(name, value)?),
            "config" | "log-level" | "log-prefix" | "verbose" | "version" => {}
            _ => return Err(FlagError::unknown(name)),
        }
        Ok(self)
    }

    /// Starts on two free loopback ports, or where the flags `tcp-address` and `http-address` say.
    ///
    /// # Errors
    /// If a port cannot be opened.
    ///
    /// # Cancel safety
    /// Dropping the future before it is polled starts nothing; its first poll completes it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start(self) -> io::Result<Lookupd> {
        let http = Door::tcp(self.http_address.as_deref())?;
        let tcp = Door::tcp(self.tcp_address.as_deref())?;
        self.open(http, tcp)
    }

    /// Starts within a memory network. `address` is `host:port` of the HTTP side, any host and any port from 2 on; the
    /// TCP side is at the port below. The flags `tcp-address` and `http-address` do not matter.
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
    pub async fn start_in(self, network: &MemoryNetwork, address: &str) -> io::Result<Lookupd> {
        let below = port_below(address)?;
        let http = Door::memory(network, address)?;
        let tcp = Door::memory(network, &below)?;
        self.open(http, tcp)
    }

    /// Starts without listening: every connection is handed over by [`Lookupd::serve_http`] and [`Lookupd::serve_tcp`].
    /// For a transport of your own, such as the simulated hosts of turmoil. `address` is `host:port` of the HTTP side, and
    /// what [`Lookupd::address`] says; the TCP side is at the port below.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `address` is not `host:port`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start_detached(self, address: &str) -> io::Result<Lookupd> {
        let tcp = Door::detached(&port_below(address)?)?;
        self.open(Door::detached(address)?, tcp)
    }

    fn open(self, http: Door, tcp: Door) -> io::Result<Lookupd> {
        Lookupd::open(http, tcp, self.lifetimes, self.broadcast_address)
    }
}

fn port_below(address: &str) -> io::Result<String> {
    let (_, port) = split_address(address)?;
    let below = port.checked_sub(1).filter(|port| *port > 0).ok_or_else(|| {
        let message = format!("{address:?}: the TCP side is at the port below, so the port has to be 2 or more");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })?;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    Ok(format!("{host}:{below}"))
}

fn address(name: &str, value: &str) -> Result<String, FlagError> {
    match split_address(value) {
        Ok(_) => Ok(value.to_owned()),
        Err(_) => Err(FlagError::value(name, value, "host:port")),
    }
}

fn duration(name: &str, value: &str) -> Result<Duration, FlagError> {
    parse_duration(value).ok_or_else(|| FlagError::value(name, value, "a duration such as 45s or 1m30s"))
}
