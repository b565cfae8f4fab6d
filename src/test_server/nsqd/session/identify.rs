//! IDENTIFY: what a client asks for, by nsqd's rules for ranges and JSON.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::super::options::Options;
use crate::protocol::{CommandError, IdentifyResponse};
use crate::test_server::VERSION;
use crate::test_server::json;
use crate::test_server::nsqd::faults::Feature;

const DEFAULT_BUFFER_SIZE: i64 = 16_384;
const DEFLATE_LEVEL: i64 = 6;

/// What is agreed on with a connection. A later IDENTIFY keeps what it does not mention.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) client_id: String,
    pub(super) hostname: String,
    pub(super) user_agent: String,
    /// `None` is no heartbeats.
    pub(super) heartbeat: Option<Duration>,
    pub(super) msg_timeout: Duration,
    pub(super) sample_rate: u8,
    buffer_size: i64,
    buffer_timeout_ms: i64,
    deflated: bool,
}

/// What a client that negotiates is granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub(super) tls: bool,
    pub(super) snappy: bool,
    pub(super) deflate: bool,
    pub(super) deflate_level: i64,
}

impl Settings {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            client_id: String::new(),
            hostname: String::new(),
            user_agent: String::new(),
            heartbeat: Some(options.heartbeat_interval),
            msg_timeout: options.msg_timeout,
            sample_rate: 0,
            buffer_size: DEFAULT_BUFFER_SIZE,
            buffer_timeout_ms: millis(options.output_buffer_timeout),
            deflated: false,
        }
    }

    pub(super) fn buffer_size(&self) -> usize {
        usize::try_from(self.buffer_size).unwrap_or_default()
    }

    pub(super) fn buffer_timeout(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.buffer_timeout_ms).unwrap_or_default())
    }

    pub(super) fn is_deflated(&self) -> bool {
        self.deflated
    }

    pub(super) fn set_deflated(&mut self, deflated: bool) {
        self.deflated = deflated;
    }

    /// Takes over what is asked for, as far as it is in range.
    pub(super) fn take_over(&mut self, request: &Request, options: &Options) -> Result<(), CommandError> {
        // nsqd checks in this order.
        match request.heartbeat_interval {
            -1 => self.heartbeat = None,
            0 => {}
            ms => {
                let heartbeat = in_range(ms, 1000, millis(options.max_heartbeat_interval), "heartbeat interval")?;
                self.heartbeat = Some(Duration::from_millis(heartbeat));
            }
        }
        match request.output_buffer_timeout {
            -1 => self.buffer_timeout_ms = 0,
            0 => {}
            ms => {
                let (least, most) = (options.min_output_buffer_timeout, options.max_output_buffer_timeout);
                self.buffer_timeout_ms = in_range(ms, millis(least), millis(most), "output buffer timeout")? as i64;
            }
        }
        match request.output_buffer_size {
            -1 => (self.buffer_size, self.buffer_timeout_ms) = (1, 0),
            0 => {}
            size => {
                let most = i64::try_from(options.max_output_buffer_size).unwrap_or(i64::MAX);
                self.buffer_size = in_range(size, 64, most, "output buffer size")? as i64;
            }
        }
        self.sample_rate = in_range(request.sample_rate, 0, 99, "sample rate")? as u8;
        match request.msg_timeout {
            0 => {}
            ms => {
                let timeout = in_range(ms, 1000, millis(options.max_msg_timeout), "msg timeout")?;
                self.msg_timeout = Duration::from_millis(timeout);
            }
        }
        self.client_id.clone_from(&request.client_id);
        self.hostname.clone_from(&request.hostname);
        self.user_agent.clone_from(&request.user_agent);
        Ok(())
    }

    /// What the broker grants of what it is asked for.
    pub(super) fn grant(request: &Request, options: &Options, has_certificate: bool) -> Result<Grant, CommandError> {
        let deflate = options.deflate && request.deflate;
        let asked = request.deflate_level;
        let level = if deflate && asked > 0 { asked } else { DEFLATE_LEVEL };
        let grant = Grant {
            tls: has_certificate && request.tls_v1,
            snappy: options.snappy && request.snappy,
            deflate,
            deflate_level: level.min(i64::from(options.max_deflate_level)),
        };
        if grant.snappy && grant.deflate {
            return Err(CommandError::new(
                "E_IDENTIFY_FAILED cannot enable both deflate and snappy compression",
            ));
        }
        Ok(grant)
    }

    /// The answer to a client that negotiates.
    pub(super) fn answer(&self, grant: &Grant, options: &Options) -> Vec<u8> {
        let response = IdentifyResponse {
            max_rdy_count: options.limits.max_rdy_count,
            version: VERSION.to_owned(),
            max_msg_timeout: millis(options.max_msg_timeout) as u64,
            msg_timeout: millis(self.msg_timeout) as u64,
            tls_v1: grant.tls,
            deflate: grant.deflate,
            deflate_level: grant.deflate_level,
            max_deflate_level: i64::from(options.max_deflate_level),
            snappy: grant.snappy,
            sample_rate: i64::from(self.sample_rate),
            auth_required: !options.auth_http_addresses.is_empty(),
            output_buffer_size: self.buffer_size,
            output_buffer_timeout: self.buffer_timeout_ms,
        };
        response.to_json()
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn in_range(value: i64, least: i64, most: i64, what: &str) -> Result<u64, CommandError> {
    if (least..=most).contains(&value) {
        Ok(value as u64)
    } else {
        Err(CommandError::new(format!(
            "E_BAD_BODY IDENTIFY {what} ({value}) is invalid"
        )))
    }
}

/// The fields of IDENTIFY; what is absent is empty, zero or false.
#[derive(Default)]
pub(super) struct Request {
    client_id: String,
    hostname: String,
    user_agent: String,
    pub(super) feature_negotiation: bool,
    heartbeat_interval: i64,
    output_buffer_size: i64,
    output_buffer_timeout: i64,
    sample_rate: i64,
    msg_timeout: i64,
    tls_v1: bool,
    snappy: bool,
    deflate: bool,
    deflate_level: i64,
}

impl Request {
    pub(super) fn read(body: &[u8]) -> Result<Self, CommandError> {
        Self::decode(body).ok_or_else(|| CommandError::new("E_BAD_BODY IDENTIFY failed to decode JSON body"))
    }

    /// Decodes as Go does: keys in any case, `null` as absent, no fractions for integers, unknown keys ignored.
    fn decode(body: &[u8]) -> Option<Self> {
        let text = json::readable(body);
        let Fields(fields) = serde_json::from_str::<Option<Fields>>(&text).ok()?.unwrap_or_default();
        let mut request = Self::default();
        for (key, value) in fields {
            match &*key.to_ascii_lowercase() {
                "client_id" => set(&mut request.client_id, &value)?,
                "hostname" => set(&mut request.hostname, &value)?,
                "user_agent" => set(&mut request.user_agent, &value)?,
                "feature_negotiation" => set(&mut request.feature_negotiation, &value)?,
                "tls_v1" => set(&mut request.tls_v1, &value)?,
                "snappy" => set(&mut request.snappy, &value)?,
                "deflate" => set(&mut request.deflate, &value)?,
                "heartbeat_interval" => set(&mut request.heartbeat_interval, &value)?,
                "output_buffer_size" => set(&mut request.output_buffer_size, &value)?,
                "output_buffer_timeout" => set(&mut request.output_buffer_timeout, &value)?,
                "sample_rate" => {
                    set(&mut request.sample_rate, &value)?;
                    // Where all other numbers have 64 bits in nsqd, this one has 32.
                    i32::try_from(request.sample_rate).ok()?;
                }
                "msg_timeout" => set(&mut request.msg_timeout, &value)?,
                "deflate_level" => set(&mut request.deflate_level, &value)?,
                _ => {}
            }
        }
        Some(request)
    }

    /// Forgets what is asked for of a feature.
    pub(super) fn forget(&mut self, feature: Feature) {
        match feature {
            Feature::Negotiation => self.feature_negotiation = false,
            Feature::Tls => self.tls_v1 = false,
            Feature::Snappy => self.snappy = false,
            Feature::Deflate => self.deflate = false,
            Feature::SampleRate => self.sample_rate = 0,
            Feature::MsgTimeout => self.msg_timeout = 0,
            Feature::HeartbeatInterval => self.heartbeat_interval = 0,
            Feature::OutputBuffer => (self.output_buffer_size, self.output_buffer_timeout) = (0, 0),
        }
    }
}

/// The members of an object in their order, also those that come twice, with values that only those who know them look at.
#[derive(Default)]
struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Fields(fields))
    }
}

fn set<T: DeserializeOwned>(field: &mut T, value: &RawValue) -> Option<()> {
    let text = match value.get() {
        // What Rust takes for a fraction.
        "-0" => "0",
        text => text,
    };
    if let Some(value) = serde_json::from_str(text).ok()? {
        *field = value;
    }
    Some(())
}
