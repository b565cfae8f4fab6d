//! nsqd's command-line flags, by their names.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::NsqdBuilder;
use crate::test_server::LONGEST;
use crate::test_server::flags::{FlagError, parse_bool, parse_duration};
use crate::test_server::tls::{ClientAuth, TlsRequired};

/// Flags that concern nsqd's disk, its log and statsd: they are taken and kept, and mean nothing here.
const INERT: [&str; 19] = [
    "config",
    "data-path",
    "e2e-processing-latency-percentile",
    "e2e-processing-latency-window-time",
    "log-level",
    "log-prefix",
    "max-bytes-per-file",
    "queue-scan-selection-count",
    "queue-scan-worker-pool-max",
    "statsd-address",
    "statsd-exclude-ephemeral",
    "statsd-interval",
    "statsd-mem-stats",
    "statsd-prefix",
    "statsd-udp-packet-size",
    "sync-every",
    "sync-timeout",
    "verbose",
    "worker-id",
];

/// Flags that have an effect, and whose values are told by `/config` as they were given.
const TOLD: [&str; 5] = [
    "tls-cert",
    "tls-client-auth-policy",
    "tls-key",
    "tls-min-version",
    "tls-root-ca-file",
];

impl NsqdBuilder {
    /// Sets an option by the name of nsqd's flag, without dashes in front, to a value as nsqd takes it on its command
    /// line: `flag("msg-timeout", "90s")`. Flags that may be given several times add up.
    ///
    /// All flags of nsqd 1.3.0 but `version` are known. Those of the disk, the log and statsd have no effect;
    /// `tls-min-version` below 1.2 is 1.2, which is the least that is supported here.
    ///
    /// ```
    /// use async_nsq::test_server::Nsqd;
    ///
    /// let builder = Nsqd::builder().flag("max-rdy-count", "100")?.flag("snappy", "false")?;
    /// let mistake = Nsqd::builder().flag("max-rdy-count", "many").unwrap_err();
    /// assert_eq!(mistake.to_string(), r#"flag -max-rdy-count is "many", allowed is a number"#);
    /// # Ok::<(), async_nsq::test_server::FlagError>(())
    /// ```
    ///
    /// # Errors
    /// [`FlagError`] if nsqd has no such flag, or the value does not fit it.
    pub fn flag(mut self, name: &str, value: &str) -> Result<Self, FlagError> {
        if let Some(inert) = INERT.iter().find(|inert| **inert == name) {
            let given = self.options.inert.entry(inert).or_default();
            if name == "e2e-processing-latency-percentile" && !given.is_empty() {
                *given = format!("{given},{value}");
            } else {
                value.clone_into(given);
            }
            return Ok(self);
        }
        if let Some(told) = TOLD.iter().find(|told| **told == name) {
            self.options.inert.insert(told, value.to_owned());
        }
        let flag = Flag { name, value };
        match name {
            "node-id" => {
                let id = flag.number("a number from 0 to 1023")?;
                self.options.node_id = Some(id)
                    .filter(|id| *id < 1024)
                    .ok_or_else(|| flag.error("a number from 0 to 1023"))?;
            }
            "tcp-address" => self.places.tcp = Some(flag.address()?),
            "http-address" => self.places.http = Some(flag.address()?),
            "https-address" => self.places.https = Some(flag.address()?),
            "broadcast-address" => self.options.broadcast_address = Some(value.to_owned()),
            "broadcast-tcp-port" => self.options.broadcast_tcp_port = Some(flag.number("a port")?),
            "broadcast-http-port" => self.options.broadcast_http_port = Some(flag.number("a port")?),
            "auth-http-address" => self.options.auth_http_addresses.push(value.to_owned()),
            "lookupd-tcp-address" => self.options.lookupd_tcp_addresses.push(value.to_owned()),
            "tls-cert" => self.tls_files.cert = Some(value.into()),
            "tls-key" => self.tls_files.key = Some(value.into()),
            "tls-root-ca-file" => self.tls_files.root_ca = Some(value.into()),
            "tls-client-auth-policy" => {
                self.tls_files.policy_given = !value.is_empty();
                self.tls_files.client_auth = match value {
                    "require" => ClientAuth::Require,
                    "require-verify" => ClientAuth::RequireVerify,
                    _ => ClientAuth::None,
                }
            }
            "tls-required" => {
                self.options.tls_required = match value {
                    "tcp-https" => TlsRequired::TcpHttps,
                    _ if flag.truth()? => TlsRequired::Yes,
                    _ => TlsRequired::No,
                }
            }
            "tls-min-version" => {
                self.tls_files.tls13_only = match value {
                    "ssl3.0" | "tls1.0" | "tls1.1" | "tls1.2" => false,
                    "tls1.3" => true,
                    _ => return Err(flag.error("ssl3.0, tls1.0, tls1.1, tls1.2 or tls1.3")),
                }
            }
            _ => return self.limit_flag(&flag),
        }
        Ok(self)
    }

    fn limit_flag(mut self, flag: &Flag<'_>) -> Result<Self, FlagError> {
        let options = &mut self.options;
        match flag.name {
            "http-client-connect-timeout" => options.http_client_connect_timeout = flag.duration()?,
            "http-client-request-timeout" => options.http_client_request_timeout = flag.duration()?,
            "mem-queue-size" => options.mem_queue_size = flag.number("a number")?,
            "msg-timeout" => options.msg_timeout = flag.duration()?,
            "max-msg-timeout" => options.max_msg_timeout = flag.duration()?,
            "max-msg-size" => options.limits.max_msg_size = flag.number("a number of bytes")?,
            "max-req-timeout" => options.limits.max_req_timeout = flag.duration()?,
            "max-body-size" => options.limits.max_body_size = flag.number("a number of bytes")?,
            "max-heartbeat-interval" => options.max_heartbeat_interval = flag.duration()?,
            "max-rdy-count" => options.limits.max_rdy_count = flag.number("a number")?,
            "max-output-buffer-size" => options.max_output_buffer_size = flag.number("a number of bytes")?,
            "max-output-buffer-timeout" => options.max_output_buffer_timeout = flag.duration()?,
            "min-output-buffer-timeout" => options.min_output_buffer_timeout = flag.duration()?,
            "output-buffer-timeout" => options.output_buffer_timeout = flag.duration()?,
            "max-channel-consumers" => options.max_channel_consumers = flag.number("a number")?,
            "deflate" => options.deflate = flag.truth()?,
            "max-deflate-level" => options.max_deflate_level = flag.number("a level from 1 to 9")?,
            "snappy" => options.snappy = flag.truth()?,
            unknown => return Err(FlagError::unknown(unknown)),
        }
        Ok(self)
    }
}

struct Flag<'a> {
    name: &'a str,
    value: &'a str,
}

impl Flag<'_> {
    fn error(&self, allowed: impl fmt::Display) -> FlagError {
        FlagError::value(self.name, self.value, allowed)
    }

    fn number<T: FromStr>(&self, allowed: &str) -> Result<T, FlagError> {
        self.value.parse().map_err(|_| self.error(allowed))
    }

    fn duration(&self) -> Result<Duration, FlagError> {
        let duration = parse_duration(self.value).ok_or_else(|| self.error("a duration, such as 60s or 1m30s"))?;
        Ok(duration.min(LONGEST))
    }

    fn truth(&self) -> Result<bool, FlagError> {
        parse_bool(self.value).ok_or_else(|| self.error("true or false"))
    }

    fn address(&self) -> Result<String, FlagError> {
        let (_, port) = self.value.rsplit_once(':').ok_or_else(|| self.error("host:port"))?;
        port.parse::<u16>().map_err(|_| self.error("host:port"))?;
        Ok(self.value.to_owned())
    }
}
