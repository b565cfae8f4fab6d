//! The real nsqd and nsqlookupd, as child processes.

use std::any::Any;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_nsq::transport::TcpConnector;
use tokio::net::TcpListener;
use tokio::sync::OnceCell;

use super::authd::{Authd, Listener};
use super::certificates::Certificates;
use super::interop::broker::{Brokers, Nsqd};
use super::table::Line;
use super::target::{Target, Time, flags};

/// The real brokers of this machine. Lines without options share one nsqd, each with topics of its own.
pub(crate) struct RealBrokers {
    brokers: Brokers,
    shared: OnceCell<Arc<Nsqd>>,
}

impl RealBrokers {
    /// `None` where the brokers are missing, which is said in a line.
    ///
    /// # Panics
    ///
    /// When they are missing in CI.
    pub(crate) fn find_or_skip() -> Option<Self> {
        Some(Self {
            brokers: Brokers::find_or_skip()?,
            shared: OnceCell::new(),
        })
    }

    /// Starts the broker that a line asks for.
    ///
    /// # Panics
    ///
    /// When it does not serve.
    pub(crate) async fn start(&self, line: &Line, certificates: &Arc<Certificates>) -> Result<Target, String> {
        if line.can_share() {
            let nsqd = self.shared.get_or_init(|| self.start_shared()).await;
            return Ok(target(
                nsqd.tcp_address(),
                nsqd.http_address(),
                Arc::clone(nsqd),
                certificates,
            ));
        }
        let (auth, address) = match line.option("auth") {
            Some(_) => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                    .await
                    .map_err(|error| error.to_string())?;
                let address = listener.local_addr().map_err(|error| error.to_string())?;
                (Some(Authd::start(Listener::Tcp(listener))), Some(address.to_string()))
            }
            None => (None, None),
        };
        let flags = flags(line, certificates, address.as_deref());
        let flags = flags.into_iter().map(|(name, value)| format!("--{name}={value}"));
        let mut target = if line.option("lookupd").is_some() {
            let builder = flags.fold(self.brokers.nsqlookupd(), |builder, flag| builder.flag(flag));
            let lookupd = builder.start().await;
            target(lookupd.tcp_address(), lookupd.http_address(), lookupd, certificates)
        } else {
            let builder = flags.fold(self.brokers.nsqd(), |builder, flag| builder.flag(flag));
            let nsqd = builder.start().await;
            target(nsqd.tcp_address(), nsqd.http_address(), nsqd, certificates)
        };
        target.lookupd = line.option("lookupd").is_some();
        target.auth = auth;
        Ok(target)
    }

    /// With hundreds of channels, looking at 20 of them at a time would be late for all.
    async fn start_shared(&self) -> Arc<Nsqd> {
        let builder = self.brokers.nsqd().flag("--queue-scan-selection-count=10000");
        Arc::new(builder.start().await)
    }
}

fn target(
    tcp: SocketAddr,
    http: SocketAddr,
    broker: impl Any + Send + Sync,
    certificates: &Arc<Certificates>,
) -> Target {
    Target {
        connector: Arc::new(TcpConnector::new()),
        tcp: tcp.to_string(),
        http: http.to_string(),
        lookupd: false,
        auth: None,
        certificates: Arc::clone(certificates),
        time: Time::Real,
        _broker: Box::new(broker),
    }
}
