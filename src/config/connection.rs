//! Options of a connection to nsqd, the same for producers and consumers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Compression;
#[cfg(feature = "tls")]
use super::TlsConfig;
use crate::error::{Error, Result};
use crate::protocol::{DEFAULT_MAX_MSG_SIZE, IdentifyRequest, Secret};
#[cfg(feature = "tls")]
use crate::transport::tls;
use crate::transport::{Connector, TcpConnector};

/// How to connect to an nsqd and what to ask of it.
///
/// A setter never fails; a value out of range is reported by the call that uses it
/// ([`ProducerBuilder::connect`](crate::ProducerBuilder::connect),
/// [`ConsumerBuilder::start`](crate::ConsumerBuilder::start)), with the option's name and what is allowed.
///
/// ```
/// use std::time::Duration;
/// use async_nsq::ConnectionConfig;
///
/// let connection = ConnectionConfig::new()
///     .client_id("billing-7")
///     .heartbeat_interval(Duration::from_secs(10));
/// ```
#[derive(Clone)]
pub struct ConnectionConfig {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) dial_timeout: Duration,
    pub(crate) handshake_timeout: Duration,
    /// `None` is no heartbeats.
    pub(crate) heartbeat_interval: Option<Duration>,
    pub(crate) max_msg_size: usize,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) compression: Compression,
    pub(crate) auth_secret: Option<Secret>,
    pub(crate) plaintext_auth: bool,
    pub(crate) sample_rate: Option<u8>,
    pub(super) client_id: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) user_agent: String,
    pub(super) output_buffer_size: Option<usize>,
    pub(super) low_latency: bool,
    pub(super) output_buffer_timeout: Option<Duration>,
    pub(super) msg_timeout: Option<Duration>,
    pub(super) region: Option<String>,
    pub(super) zone: Option<String>,
    /// Of options that were given by name.
    pub(super) contradiction: Option<Error>,
    /// Whether it was an option by name that asked for TLS.
    pub(super) tls_by_name: bool,
}

impl ConnectionConfig {
    /// The defaults: TCP, and what each setter below says.
    #[must_use]
    pub fn new() -> Self {
        Self {
            connector: Arc::new(TcpConnector::new()),
            dial_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            heartbeat_interval: Some(Duration::from_secs(30)),
            max_msg_size: DEFAULT_MAX_MSG_SIZE,
            #[cfg(feature = "tls")]
            tls: None,
            compression: Compression::None,
            auth_secret: None,
            plaintext_auth: false,
            sample_rate: None,
            client_id: None,
            hostname: None,
            user_agent: concat!("async-nsq/", env!("CARGO_PKG_VERSION")).to_owned(),
            output_buffer_size: None,
            low_latency: false,
            output_buffer_timeout: None,
            msg_timeout: None,
            region: None,
            zone: None,
            contradiction: None,
            tls_by_name: false,
        }
    }

    /// Opens connections by other means than TCP, or by way of a proxy. Default: [`TcpConnector`].
    #[must_use]
    pub fn connector(mut self, connector: impl Connector) -> Self {
        self.connector = Arc::new(connector);
        self
    }

    /// How long opening a connection may take, name resolution included. Default: 5 s. Allowed: 1 ms to a day.
    ///
    /// Lower it where nsqds are near and a dead host should be noticed sooner.
    #[must_use]
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.dial_timeout = timeout;
        self
    }

    /// How long the negotiation after opening may take: TLS, compression, AUTH, up to and with nsqd's answer to SUB.
    /// Default: 5 s. Allowed: 1 ms to a day.
    ///
    /// nsqd itself allows 5 s for TLS, and up to 7 s for its auth server's answer.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// How often nsqd asks whether the client is alive. Default: 30 s, as in go-nsq. Allowed: 1 s to 60 s.
    ///
    /// A peer that is silent for two intervals is taken for dead and the connection replaced, so a smaller value finds
    /// a dead nsqd sooner at the cost of a small packet each way per interval. nsqd's own maximum may be lower
    /// (`max-heartbeat-interval`).
    #[must_use]
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = Some(interval);
        self
    }

    /// Has nsqd send no heartbeats. Only for producers: nsqd refuses consumers that have none.
    ///
    /// An nsqd that has died without a word is then noticed only by a publish, one to two minutes after its caller has
    /// stopped waiting for the answer. And the memory that a burst takes is given back on heartbeats only. There is little
    /// to gain but silence on an idle network.
    #[must_use]
    pub fn no_heartbeats(mut self) -> Self {
        self.heartbeat_interval = None;
        self
    }

    /// Speaks TLS with nsqd. Default: clear text.
    ///
    /// The name in an nsqd's certificate must be the host in its address, which for a discovered nsqd is its
    /// `broadcast-address`; see [`TlsConfig::server_name`]. An nsqd that does not grant TLS is not connected to: asked for is
    /// TLS or an error. nsqlookupds whose address begins with `https://` are asked by the same settings, unless they have
    /// [their own](crate::LookupdConfig::tls).
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    #[must_use]
    pub fn tls(mut self, tls: TlsConfig) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Compresses what goes to nsqd and comes from it, under TLS or without. Default: [`Compression::None`].
    ///
    /// An nsqd that does not grant it is not connected to, so that nobody pays for traffic they believe to be small.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// The secret for an nsqd that demands AUTH. Default: none.
    ///
    /// It is sent only to an nsqd that demands it, and only over TLS, unless
    /// [`allow_plaintext_auth`](Self::allow_plaintext_auth) says otherwise. It is not shown in logs and errors.
    #[must_use]
    pub fn auth_secret(mut self, secret: impl Into<Secret>) -> Self {
        self.auth_secret = Some(secret.into());
        self
    }

    /// Lets the secret travel without TLS, where everybody on the way can read and reuse it. Default: that is an error.
    ///
    /// It is also what to call where a [`connector`](Self::connector) of your own protects the connection: the crate does
    /// not know of it.
    #[must_use]
    pub fn allow_plaintext_auth(mut self) -> Self {
        self.plaintext_auth = true;
        self
    }

    /// Has nsqd deliver only this percentage of the messages, drawn at random. For consumers. Default: all. Allowed: 1 to
    /// 99.
    ///
    /// The others are lost to the channel: nsqd drops them when it would deliver them to this connection. It is meant for
    /// a channel of its own that looks at a sample, usually an `#ephemeral` one.
    #[must_use]
    pub fn sample_rate(mut self, percent: u8) -> Self {
        self.sample_rate = Some(percent);
        self
    }

    /// The largest message in bytes, as nsqd's `max-msg-size`. Default: 1 MiB, as in nsqd. Allowed: 1 byte to 1 KiB less
    /// than 2 GiB.
    ///
    /// A producer refuses larger messages before sending them; a larger frame from nsqd is taken for a broken peer, so
    /// raise it together with nsqd's. It bounds what one frame can make this process allocate.
    #[must_use]
    pub fn max_msg_size(mut self, bytes: usize) -> Self {
        self.max_msg_size = bytes;
        self
    }

    /// Tells this client apart in nsqd's statistics. Default: the host name up to its first dot, as in go-nsq.
    #[must_use]
    pub fn client_id(mut self, id: impl Into<String>) -> Self {
        self.client_id = Some(id.into());
        self
    }

    /// The host name told to nsqd. Default: the system's.
    #[must_use]
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = Some(name.into());
        self
    }

    /// The client library told to nsqd. Default: `async-nsq/VERSION`.
    #[must_use]
    pub fn user_agent(mut self, agent: impl Into<String>) -> Self {
        self.user_agent = agent.into();
        self
    }

    /// The region and the zone in which this client runs, told to nsqd. Default: neither. An empty text tells nothing.
    ///
    /// An nsqd that is newer than 1.3.0 and run with `--enable-experiment=topology-aware-consumption` and the flags
    /// `--topology-region` and `--topology-zone` then offers a message to waiting consumers of its own zone first, to
    /// those of its region next, and to all others last. Any other nsqd ignores it. Only equal texts are the same place.
    ///
    /// ```
    /// use async_nsq::ConnectionConfig;
    ///
    /// let connection = ConnectionConfig::new().topology("eu-west", "eu-west-1b");
    /// ```
    #[must_use]
    pub fn topology(mut self, region: impl Into<String>, zone: impl Into<String>) -> Self {
        let told = |text: String| Some(text).filter(|text| !text.is_empty());
        self.region = told(region.into());
        self.zone = told(zone.into());
        self
    }

    /// How many bytes of messages nsqd may collect before it writes them. Default: 64 KiB for a consumer with a
    /// `max_in_flight` above 300, else nsqd's own (16 KiB). Allowed: 64 to 65,536.
    ///
    /// A larger buffer halves the cost of consuming in bulk; nsqd holds one per connection.
    #[must_use]
    pub fn output_buffer_size(mut self, bytes: usize) -> Self {
        self.output_buffer_size = Some(bytes);
        self.low_latency = false;
        self
    }

    /// Has nsqd write each message at once, without an output buffer: IDENTIFY's `output_buffer_size` of -1.
    ///
    /// It saves a message up to [`output_buffer_timeout`](Self::output_buffer_timeout) where messages come now and then. It
    /// costs nsqd three system calls for each message (and three records of TLS, or three chunks of snappy) where the
    /// buffer needs one for hundreds, so it is wrong for channels with much to deliver. With a
    /// [`max_in_flight`](crate::ConsumerBuilder::max_in_flight) of 1 it changes nothing: nsqd never holds that message
    /// back. With [`Compression::Deflate`] it changes nothing either: without a buffer, nsqd would hold deflated messages
    /// back until the next heartbeat.
    ///
    /// The later of this and [`output_buffer_size`](Self::output_buffer_size) counts.
    #[must_use]
    pub fn low_latency(mut self) -> Self {
        self.low_latency = true;
        self
    }

    /// How long nsqd may hold collected messages. Default: 25 ms for a consumer, else nsqd's own (250 ms). Allowed:
    /// 25 ms to 30 s.
    ///
    /// nsqd writes at once whenever a connection is at its RDY limit, so this matters only at moderate rates, where it
    /// is the larger part of a message's latency. A shorter time costs nsqd a timer per connection.
    #[must_use]
    pub fn output_buffer_timeout(mut self, timeout: Duration) -> Self {
        self.output_buffer_timeout = Some(timeout);
        self
    }

    /// How long nsqd waits for a message's answer before it gives the message to another consumer. Default: nsqd's
    /// own (60 s). Allowed: 1 s to 15 min; nsqd's own maximum may be lower (`max-msg-timeout`).
    #[must_use]
    pub fn msg_timeout(mut self, timeout: Duration) -> Self {
        self.msg_timeout = Some(timeout);
        self
    }

    /// Fills in what a consumer of this `max_in_flight` asks for where the user has not chosen.
    #[must_use]
    pub(crate) fn for_consumer(mut self, max_in_flight: u32) -> Self {
        // Below some 300 messages a larger buffer would not be filled: nsqd reaches the RDY limit first.
        if max_in_flight > 300 {
            self.output_buffer_size.get_or_insert(65_536);
        }
        self.output_buffer_timeout.get_or_insert(Duration::from_millis(25));
        self
    }

    /// Takes the place of `before`. TLS that was asked for from outside is not dropped in silence by the order of two calls.
    #[must_use]
    pub(crate) fn instead_of(mut self, before: &Self) -> Self {
        if before.tls_by_name && !self.asks_for_tls() {
            let value = "true, and connection() without TLS replaces it";
            let error = Error::option("tls_v1", value, "connection() before options(), or with TLS of its own");
            self.contradiction.get_or_insert(error);
        }
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if let Some(contradiction) = &self.contradiction {
            return Err(contradiction.clone());
        }
        let within = |name: &str, value: Duration, least: Duration, most: Duration| {
            if value < least || value > most {
                return Err(Error::option(
                    name,
                    format_args!("{value:?}"),
                    &format!("{least:?} to {most:?}"),
                ));
            }
            Ok(())
        };
        let day = Duration::from_secs(86_400);
        let (milli, second) = (Duration::from_millis(1), Duration::from_secs(1));
        within("dial_timeout", self.dial_timeout, milli, day)?;
        within("handshake_timeout", self.handshake_timeout, milli, day)?;
        if let Some(interval) = self.heartbeat_interval {
            within("heartbeat_interval", interval, second, 60 * second)?;
        }
        if let Some(timeout) = self.output_buffer_timeout {
            within("output_buffer_timeout", timeout, 25 * milli, 30 * second)?;
        }
        if let Some(timeout) = self.msg_timeout {
            within("msg_timeout", timeout, second, 900 * second)?;
        }
        if let Some(size) = self.output_buffer_size {
            if !(64..=65_536).contains(&size) {
                return Err(Error::option("output_buffer_size", size, "64 to 65536 bytes"));
            }
        }
        if let Some(percent) = self.sample_rate {
            if !(1..=99).contains(&percent) {
                return Err(Error::option("sample_rate", percent, "1 to 99 percent"));
            }
        }
        self.compression.validate()?;
        if self
            .auth_secret
            .as_ref()
            .is_some_and(|secret| secret.reveal().is_empty())
        {
            return Err(Error::option("auth_secret", "empty", "a secret"));
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            // Which host it will be, discovery may decide later.
            tls::check(tls, "nsqd")?;
        }
        if self.max_msg_size == 0 || self.max_msg_size > i32::MAX as usize - 1024 {
            return Err(Error::option(
                "max_msg_size",
                self.max_msg_size,
                "1 to 2147482623 bytes",
            ));
        }
        Ok(())
    }

    /// As [`validate`](Self::validate), for a connection that subscribes.
    pub(crate) fn validate_for_consumer(&self) -> Result<()> {
        if self.heartbeat_interval.is_none() {
            let allowed = "1s to 60s for a consumer: nsqd refuses SUB without heartbeats";
            return Err(Error::option("heartbeat_interval", "off", allowed));
        }
        self.validate()
    }

    #[cfg(feature = "tls")]
    pub(crate) fn asks_for_tls(&self) -> bool {
        self.tls.is_some()
    }

    #[cfg(not(feature = "tls"))]
    pub(crate) fn asks_for_tls(&self) -> bool {
        false
    }

    /// What to say to nsqd.
    pub(crate) fn identify(&self) -> IdentifyRequest {
        let hostname = self.hostname.clone().or_else(system_hostname);
        let short = hostname.as_deref().and_then(|name| name.split('.').next());
        IdentifyRequest {
            client_id: self.client_id.clone().or_else(|| short.map(str::to_owned)),
            user_agent: Some(self.user_agent.clone()),
            feature_negotiation: true,
            heartbeat_interval: Some(self.heartbeat_interval.map_or(-1, millis)),
            output_buffer_size: match self.low_latency && self.compression.deflate_level().is_none() {
                true => Some(-1),
                // With a size of -1 nsqd drops its timer, which is what flushes deflate.
                false => self.output_buffer_size.map(|bytes| bytes as i64),
            },
            output_buffer_timeout: self.output_buffer_timeout.map(millis),
            msg_timeout: self.msg_timeout.map(millis),
            hostname,
            sample_rate: self.sample_rate.map(i64::from),
            tls_v1: self.asks_for_tls(),
            snappy: self.compression == Compression::Snappy,
            deflate: self.compression.deflate_level().is_some(),
            deflate_level: self.compression.deflate_level().map(i64::from),
            topology_region: self.region.clone(),
            topology_zone: self.zone.clone(),
        }
    }
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ConnectionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionConfig")
            .field("connector", &self.connector)
            .field("dial_timeout", &self.dial_timeout)
            .field("heartbeat_interval", &self.heartbeat_interval)
            .field("max_msg_size", &self.max_msg_size)
            .field("client_id", &self.client_id)
            .field("tls", &self.asks_for_tls())
            .field("compression", &self.compression)
            .field("auth_secret", &self.auth_secret)
            .finish_non_exhaustive()
    }
}

fn millis(duration: Duration) -> i64 {
    // `validate` keeps durations below a day.
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn system_hostname() -> Option<String> {
    hostname::get().ok()?.into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_range_names_option_value_and_range() {
        let error = ConnectionConfig::new()
            .heartbeat_interval(Duration::from_millis(999))
            .validate()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "configuration: option heartbeat_interval is 999ms, allowed is 1s to 60s"
        );
        for bad in [
            ConnectionConfig::new().dial_timeout(Duration::ZERO),
            ConnectionConfig::new().handshake_timeout(Duration::ZERO),
            ConnectionConfig::new().output_buffer_size(63),
            ConnectionConfig::new().output_buffer_timeout(Duration::from_millis(24)),
            ConnectionConfig::new().msg_timeout(Duration::from_secs(901)),
            ConnectionConfig::new().max_msg_size(0),
            ConnectionConfig::new().sample_rate(0),
            ConnectionConfig::new().sample_rate(100),
            ConnectionConfig::new().auth_secret(""),
            ConnectionConfig::new().compression(Compression::Deflate { level: 0 }),
            ConnectionConfig::new().compression(Compression::Deflate { level: 10 }),
        ] {
            assert!(bad.validate().is_err());
        }
        ConnectionConfig::new().validate().unwrap();
    }

    #[test]
    fn where_a_client_runs_is_told_if_it_is_known() {
        let told = |config: ConnectionConfig| {
            let json: serde_json::Value = serde_json::from_slice(&config.identify().to_json()).unwrap();
            ["topology_region", "topology_zone"].map(|key| json.get(key).map(|text| text.as_str().unwrap().to_owned()))
        };
        let place = |text: &str| Some(text.to_owned());
        assert_eq!(told(ConnectionConfig::new()), [None, None]);
        let config = ConnectionConfig::new().topology("eu", "b");
        assert_eq!(told(config.clone()), [place("eu"), place("b")]);
        assert_eq!(told(config.for_consumer(1)), [place("eu"), place("b")]);
        assert_eq!(told(ConnectionConfig::new().topology("eu", "")), [place("eu"), None]);
    }

    #[test]
    fn low_latency_leaves_nsqd_the_buffer_whose_timer_flushes_deflate() {
        let low_latency = ConnectionConfig::new().low_latency();
        let size = |config: &ConnectionConfig| config.identify().output_buffer_size;
        assert_eq!(size(&low_latency), Some(-1));
        assert_eq!(size(&low_latency.clone().compression(Compression::Snappy)), Some(-1));
        let deflate = low_latency.compression(Compression::Deflate { level: 6 });
        assert_eq!(size(&deflate), None);
        assert_eq!(size(&deflate.for_consumer(2500)), Some(65_536));
    }

    #[test]
    fn a_consumers_defaults_do_not_override_the_user() {
        let asked = ConnectionConfig::new().for_consumer(2500).identify();
        assert_eq!(asked.output_buffer_size, Some(65_536));
        assert_eq!(asked.output_buffer_timeout, Some(25));
        let asked = ConnectionConfig::new()
            .output_buffer_size(1024)
            .for_consumer(2500)
            .identify();
        assert_eq!(asked.output_buffer_size, Some(1024));
        assert_eq!(
            ConnectionConfig::new().for_consumer(100).identify().output_buffer_size,
            None
        );
    }
}
