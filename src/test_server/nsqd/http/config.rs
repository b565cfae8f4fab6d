//! Options, read and changed by HTTP.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;

use super::{Answered, Front, MAX_UNREAD, cut_off};
use crate::test_server::flags::{parse_bool, parse_duration};
use crate::test_server::http::{Answer, Refusal, Request};
use crate::test_server::json;
use crate::test_server::listener::split_address;
use crate::test_server::nsqd::options::Options;
use crate::test_server::tls::{ClientAuth, ServerTls, TlsRequired};

/// The value of an option.
#[derive(Debug, PartialEq, Eq)]
enum Value {
    /// A text, which is answered as it is.
    Text(String),
    /// Any other value, as JSON.
    Json(String),
}

impl Value {
    fn text(text: impl Into<String>) -> Option<Self> {
        Some(Self::Text(text.into()))
    }

    fn json(value: impl Display) -> Option<Self> {
        Some(Self::Json(value.to_string()))
    }

    /// Go counts nanoseconds.
    fn duration(duration: Duration) -> Option<Self> {
        Self::json(duration.as_nanos())
    }

    fn list(values: &[String]) -> Option<Self> {
        Self::json(String::from_utf8_lossy(&json::to_vec(&values)))
    }
}

impl From<Value> for Answer {
    fn from(value: Value) -> Self {
        match value {
            Value::Text(text) => Self::text(text),
            Value::Json(json) => Self::raw_json(StatusCode::OK, json),
        }
    }
}

pub(super) async fn get(front: Arc<Front>, mut request: Request) -> Answered {
    request.discard_body(MAX_UNREAD).await;
    front.value(request.parameter())
}

/// How many nsqlookupds can be set: each is a task. nsqd has no such limit.
const MAX_LOOKUPDS: usize = 100;

/// nsqd lets two options be changed while it runs.
pub(super) async fn put(front: Arc<Front>, request: Request) -> Answered {
    let option = request.parameter().to_owned();
    let unusable = || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "INVALID_VALUE");
    let body = match request.body(front.shared.options.limits.max_msg_size).await {
        Ok(body) => body,
        Err(error) => return cut_off(error, unusable),
    };
    if body.is_empty() {
        return Err(unusable());
    }
    let invalid = || Refusal::bad_request("INVALID_VALUE");
    match &*option {
        "nsqlookupd_tcp_addresses" => {
            let addresses: Option<Vec<Option<String>>> = serde_json::from_slice(&body).map_err(|_| invalid())?;
            let addresses = addresses.unwrap_or_default();
            if addresses.len() > MAX_LOOKUPDS {
                return Err(invalid());
            }
            front.change(|state, _| {
                let addresses = addresses.into_iter().map(Option::unwrap_or_default);
                state.options.lookupd_tcp_addresses = addresses.collect();
                Ok(())
            })?;
            front.shared.connect_lookupds(true);
        }
        "log_level" => {
            let level = std::str::from_utf8(&body)
                .ok()
                .filter(|level| log_level(level).is_some());
            let level = level.ok_or_else(invalid)?.to_owned();
            front.change(|state, _| {
                state.options.inert.insert("log-level", level);
                Ok(())
            })?;
        }
        _ => return Err(Refusal::bad_request("INVALID_OPTION")),
    }
    front.value(&option)
}

impl Front {
    /// What others are told to reach this nsqd by.
    pub(super) fn broadcast_address(&self) -> String {
        let address = self.shared.options.broadcast_address.clone();
        address.unwrap_or_else(|| {
            split_address(self.shared.door.address()).map_or_else(|_| String::new(), |(host, _)| host)
        })
    }

    fn value(&self, option: &str) -> Answered {
        let value = self.shared.read(|state| {
            self.place(&state.options, option)
                .or_else(|| limit(&state.options, option))
                .or_else(|| self.inert(&state.options, option))
        });
        Ok(value.ok_or_else(|| Refusal::bad_request("INVALID_OPTION"))?.into())
    }

    /// Who it is, and who else there is.
    fn place(&self, options: &Options, option: &str) -> Option<Value> {
        match option {
            "id" => Value::json(options.node_id),
            "tcp_address" => Value::text(self.shared.door.address()),
            "http_address" => Value::text(&self.places.http),
            "https_address" => Value::text(&self.places.https),
            "broadcast_address" => Value::text(self.broadcast_address()),
            "broadcast_tcp_port" => Value::json(options.broadcast_tcp_port.unwrap_or(self.tcp_port)),
            "broadcast_http_port" => Value::json(self.broadcast_http_port()),
            "nsqlookupd_tcp_addresses" => Value::list(&options.lookupd_tcp_addresses),
            "auth_http_addresses" => Value::list(&options.auth_http_addresses),
            "http_client_connect_timeout" => Value::duration(options.http_client_connect_timeout),
            "http_client_request_timeout" => Value::duration(options.http_client_request_timeout),
            _ => None,
        }
    }

    fn broadcast_http_port(&self) -> u16 {
        self.shared.options.broadcast_http_port.unwrap_or(self.http_port)
    }

    /// What means nothing here.
    fn inert(&self, options: &Options, option: &str) -> Option<Value> {
        let given = |flag| options.inert.get(flag).map(String::as_str);
        let number =
            |flag, default: i64| Value::json(given(flag).and_then(|text| text.parse().ok()).unwrap_or(default));
        let truth = |flag, default| Value::json(given(flag).and_then(parse_bool).unwrap_or(default));
        let seconds = |flag, default| {
            let default = Duration::from_secs(default);
            Value::duration(given(flag).and_then(parse_duration).unwrap_or(default))
        };
        match option {
            "log_level" => Value::json(given("log-level").and_then(log_level).unwrap_or(2)),
            "log_prefix" => Value::text(given("log-prefix").unwrap_or("[nsqd] ")),
            "data_path" => Value::text(given("data-path").unwrap_or_default()),
            "max_bytes_per_file" => number("max-bytes-per-file", 100 * 1024 * 1024),
            "sync_every" => number("sync-every", 2500),
            "sync_timeout" => seconds("sync-timeout", 2),
            "queue_scan_selection_count" => number("queue-scan-selection-count", 20),
            "queue_scan_worker_pool_max" => number("queue-scan-worker-pool-max", 4),
            "statsd_address" => Value::text(given("statsd-address").unwrap_or_default()),
            "statsd_prefix" => Value::text(self.statsd_prefix(given("statsd-prefix").unwrap_or("nsq.%s"))),
            "statsd_interval" => seconds("statsd-interval", 60),
            "statsd_mem_stats" => truth("statsd-mem-stats", true),
            "statsd_udp_packet_size" => number("statsd-udp-packet-size", 508),
            "statsd_exclude_ephemeral" => truth("statsd-exclude-ephemeral", false),
            "e2e_processing_latency_window_time" => seconds("e2e-processing-latency-window-time", 600),
            "e2e_processing_latency_percentiles" => Value::json(percentiles(
                given("e2e-processing-latency-percentile").unwrap_or_default(),
            )),
            _ => None,
        }
    }

    /// nsqd puts its address in, without what statsd takes for a separator, and ends it with a dot.
    fn statsd_prefix(&self, prefix: &str) -> String {
        let host = self.broadcast_address();
        let key = format!("{host}:{}", self.broadcast_http_port()).replace(['.', ':'], "_");
        let mut prefix = prefix.replace("%s", &key);
        if !prefix.is_empty() && !prefix.ends_with('.') {
            prefix.push('.');
        }
        prefix
    }
}

fn limit(options: &Options, option: &str) -> Option<Value> {
    let limits = &options.limits;
    match option {
        "mem_queue_size" => Value::json(options.mem_queue_size),
        "msg_timeout" => Value::duration(options.msg_timeout),
        "max_msg_timeout" => Value::duration(options.max_msg_timeout),
        "max_msg_size" => Value::json(limits.max_msg_size),
        "max_body_size" => Value::json(limits.max_body_size),
        "max_req_timeout" => Value::duration(limits.max_req_timeout),
        "max_heartbeat_interval" => Value::duration(options.max_heartbeat_interval),
        "max_rdy_count" => Value::json(limits.max_rdy_count),
        "max_output_buffer_size" => Value::json(options.max_output_buffer_size),
        "max_output_buffer_timeout" => Value::duration(options.max_output_buffer_timeout),
        "min_output_buffer_timeout" => Value::duration(options.min_output_buffer_timeout),
        "output_buffer_timeout" => Value::duration(options.output_buffer_timeout),
        "max_channel_consumers" => Value::json(options.max_channel_consumers),
        "deflate" => Value::json(options.deflate),
        "max_deflate_level" => Value::json(options.max_deflate_level),
        "snappy" => Value::json(options.snappy),
        _ => encryption(options, option),
    }
}

fn encryption(options: &Options, option: &str) -> Option<Value> {
    let given = |flag| options.inert.get(flag).map(String::as_str);
    match option {
        "tls_cert" => Value::text(given("tls-cert").unwrap_or_default()),
        "tls_key" => Value::text(given("tls-key").unwrap_or_default()),
        "tls_root_ca_file" => Value::text(given("tls-root-ca-file").unwrap_or_default()),
        "tls_client_auth_policy" => {
            let policy = options.tls.as_ref().map(ServerTls::client_auth_policy);
            Value::text(given("tls-client-auth-policy").unwrap_or(match policy {
                None | Some(ClientAuth::None) => "",
                Some(ClientAuth::Require) => "require",
                Some(ClientAuth::RequireVerify) => "require-verify",
            }))
        }
        "tls_required" => Value::json(match options.tls_required {
            TlsRequired::No => 0,
            TlsRequired::TcpHttps => 1,
            TlsRequired::Yes => 2,
        }),
        "tls_min_version" => Value::json(match given("tls-min-version") {
            Some("tls1.1") => 0x0302,
            Some("tls1.2") => 0x0303,
            Some("tls1.3") => 0x0304,
            _ => 0x0301,
        }),
        _ => None,
    }
}

/// nsqd's number of a level.
fn log_level(level: &str) -> Option<u8> {
    const LEVELS: [&str; 5] = ["debug", "info", "warn", "error", "fatal"];
    let number = LEVELS.into_iter().zip(1..);
    number
        .into_iter()
        .find_map(|(name, number)| name.eq_ignore_ascii_case(level).then_some(number))
}

/// The largest first, and without a fraction where there is none.
fn percentiles(given: &str) -> String {
    let mut percentiles: Vec<f64> = given.split(',').filter_map(|text| text.trim().parse().ok()).collect();
    percentiles.sort_by(|left, right| right.total_cmp(left));
    let percentiles: Vec<_> = percentiles.iter().map(f64::to_string).collect();
    format!("[{}]", percentiles.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_sorted_as_nsqd_sorts_them() {
        assert_eq!(percentiles(""), "[]");
        assert_eq!(percentiles("0.99,1.0,0.5"), "[1,0.99,0.5]");
    }

    #[test]
    fn log_levels_have_nsqds_numbers() {
        assert_eq!(log_level("debug"), Some(1));
        assert_eq!(log_level("Fatal"), Some(5));
        assert_eq!(log_level("warning"), None);
    }
}
