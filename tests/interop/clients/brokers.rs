//! The two brokers: how each is started in a mode, and what it tells.

use async_nsq::test_server::{self, AuthServer, Grant, Permission, Received};
use serde_json::Value;

use super::mode::{Certificate, Mode};
use super::records::{Channel, Connection};
use crate::broker::{self, Brokers};

/// What the tests need of a broker.
pub(super) trait Broker {
    /// How a program is told of it.
    fn arguments(&self) -> Vec<String>;

    /// The connections that have subscribed or published.
    async fn connections(&self) -> Vec<Connection>;

    /// A channel, if it exists.
    async fn channel(&self, topic: &str, channel: &str) -> Option<Channel>;
}

/// What stands around a broker in a mode.
struct Setting {
    mode: Mode,
    certificate: Option<Certificate>,
    auth: Option<AuthServer>,
}

impl Setting {
    async fn new(mode: Mode) -> Self {
        Self {
            mode,
            certificate: mode.tls().then(Certificate::new),
            auth: if mode == Mode::Auth {
                Some(auth_server().await)
            } else {
                None
            },
        }
    }

    /// nsqd's flags.
    fn flags(&self) -> Vec<(&'static str, String)> {
        let mut flags = Vec::new();
        if let Some(certificate) = &self.certificate {
            flags.push(("tls-cert", certificate.cert().display().to_string()));
            flags.push(("tls-key", certificate.key().display().to_string()));
        }
        if let Some(auth) = &self.auth {
            flags.push(("auth-http-address", auth.address().to_owned()));
        }
        flags
    }

    fn arguments(&self, nsqd: &str, lookupd: Option<&str>) -> Vec<String> {
        let mut arguments = vec!["--nsqd-tcp".to_owned(), nsqd.to_owned()];
        if let Some(lookupd) = lookupd {
            arguments.extend(["--lookupd-http".to_owned(), lookupd.to_owned()]);
        }
        if let Some(certificate) = &self.certificate {
            arguments.extend(["--tls-ca".to_owned(), certificate.cert().display().to_string()]);
        }
        if self.mode.snappy() {
            arguments.push("--snappy".to_owned());
        }
        if self.mode.deflate() {
            arguments.push("--deflate".to_owned());
        }
        if self.auth.is_some() {
            arguments.extend(["--auth".to_owned(), SECRET.to_owned()]);
        }
        arguments
    }
}

/// What may publish and subscribe to everything.
const SECRET: &str = "letmein";

async fn auth_server() -> AuthServer {
    let auth = AuthServer::start().await.unwrap();
    let everything = Grant::new()
        .identity("tester")
        .allow(".*", [".*"], [Permission::Publish, Permission::Subscribe]);
    auth.grant(SECRET, everything);
    auth
}

/// nsqd itself.
pub(super) struct RealBroker {
    nsqd: broker::Nsqd,
    lookupd: Option<broker::Nsqlookupd>,
    setting: Setting,
}

impl RealBroker {
    pub(super) async fn start(brokers: &Brokers, mode: Mode) -> Self {
        let setting = Setting::new(mode).await;
        let mut nsqd = brokers.nsqd();
        for (name, value) in setting.flags() {
            nsqd = nsqd.flag(format!("--{name}={value}"));
        }
        let mut lookupd = None;
        if mode == Mode::Lookupd {
            let started = brokers.nsqlookupd().start().await;
            nsqd = nsqd.lookupd(started.tcp_address());
            lookupd = Some(started);
        }
        Self {
            nsqd: nsqd.start().await,
            lookupd,
            setting,
        }
    }
}

impl Broker for RealBroker {
    fn arguments(&self) -> Vec<String> {
        let lookupd = self.lookupd.as_ref().map(|lookupd| lookupd.http_address().to_string());
        self.setting
            .arguments(&self.nsqd.tcp_address().to_string(), lookupd.as_deref())
    }

    async fn connections(&self) -> Vec<Connection> {
        let stats = self.nsqd.stats().await;
        let channels = list(&stats["topics"]).iter().flat_map(|topic| list(&topic["channels"]));
        let consumers = channels.flat_map(|channel| list(&channel["clients"]));
        let consumers = consumers.map(|client| connection(client, true));
        let publishers = list(&stats["producers"]).iter().map(|client| connection(client, false));
        consumers.chain(publishers).collect()
    }

    async fn channel(&self, topic: &str, channel: &str) -> Option<Channel> {
        let stats = self.nsqd.channel_stats(topic, channel).await?;
        Some(Channel {
            depth: stats.depth,
            in_flight: stats.in_flight,
            deferred: stats.deferred,
            message_count: stats.message_count,
            requeue_count: stats.requeue_count,
            timeout_count: stats.timeout_count,
            client_count: stats.client_count,
        })
    }
}

/// nsqd writes `null` for a list that has nothing.
fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn connection(stats: &Value, consumer: bool) -> Connection {
    let is = |key: &str| stats[key].as_bool().unwrap_or_default();
    Connection {
        consumer,
        user_agent: stats["user_agent"].as_str().unwrap_or_default().to_owned(),
        tls: is("tls"),
        snappy: is("snappy"),
        deflate: is("deflate"),
        authorized: is("authed"),
    }
}

/// Ours.
pub(super) struct TestBroker {
    nsqd: test_server::Nsqd,
    lookupd: Option<test_server::Lookupd>,
    setting: Setting,
}

impl TestBroker {
    pub(super) async fn start(mode: Mode) -> Self {
        let setting = Setting::new(mode).await;
        let mut nsqd = test_server::Nsqd::builder();
        for (name, value) in setting.flags() {
            nsqd = nsqd.flag(name, &value).unwrap();
        }
        let mut lookupd = None;
        if mode == Mode::Lookupd {
            let started = test_server::Lookupd::start().await.unwrap();
            nsqd = nsqd.lookupd(&started);
            lookupd = Some(started);
        }
        Self {
            nsqd: nsqd.start().await.unwrap(),
            lookupd,
            setting,
        }
    }

    pub(super) fn commands(&self) -> Vec<Received> {
        self.nsqd.commands()
    }
}

impl Broker for TestBroker {
    fn arguments(&self) -> Vec<String> {
        let lookupd = self.lookupd.as_ref().map(test_server::Lookupd::address);
        self.setting.arguments(self.nsqd.address(), lookupd)
    }

    async fn connections(&self) -> Vec<Connection> {
        let clients = self.nsqd.stats().clients.into_iter();
        clients
            .filter(|it| it.subscription.is_some() || !it.published.is_empty())
            .map(|it| Connection {
                consumer: it.subscription.is_some(),
                user_agent: it.user_agent,
                tls: it.encryption.is_some(),
                snappy: it.snappy,
                deflate: it.deflate,
                authorized: it.identity.is_some(),
            })
            .collect()
    }

    async fn channel(&self, topic: &str, channel: &str) -> Option<Channel> {
        let stats = self.nsqd.channel(topic, channel)?;
        Some(Channel {
            depth: stats.depth as u64,
            in_flight: stats.in_flight as u64,
            deferred: stats.deferred as u64,
            message_count: stats.message_count,
            requeue_count: stats.requeue_count,
            timeout_count: stats.timeout_count,
            client_count: stats.clients.len() as u64,
        })
    }
}
