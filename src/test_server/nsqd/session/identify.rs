//! IDENTIFY: what a client asks for, by nsqd's rules for ranges and JSON.

use std::time::Duration;

use serde_json::{Map, Number, Value};

use super::super::options::Options;
use crate::protocol::{CommandError, IdentifyResponse};
use crate::test_server::VERSION;

const DEFAULT_BUFFER_SIZE: i64 = 16_384;
const DEFAULT_BUFFER_TIMEOUT_MS: i64 = 250;
const DEFLATE_LEVEL: i64 = 6;

/// What is agreed on with a connection. A later IDENTIFY keeps what it does not mention.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) client_id: String,
    pub(super) hostname: String,
    pub(super) user_agent: String,
    pub(super) negotiates: bool,
    /// `None` is no heartbeats.
    pub(super) heartbeat: Option<Duration>,
    pub(super) msg_timeout: Duration,
    pub(super) sample_rate: u8,
    buffer_size: i64,
    buffer_timeout_ms: i64,
}

impl Settings {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            client_id: String::new(),
            hostname: String::new(),
            user_agent: String::new(),
            negotiates: false,
            heartbeat: Some(options.heartbeat_interval),
            msg_timeout: options.msg_timeout,
            sample_rate: 0,
            buffer_size: DEFAULT_BUFFER_SIZE,
            buffer_timeout_ms: DEFAULT_BUFFER_TIMEOUT_MS,
        }
    }

    /// Takes over what the body of IDENTIFY asks for.
    pub(super) fn negotiate(&mut self, body: &[u8], options: &Options) -> Result<(), CommandError> {
        let request =
            Request::read(body).ok_or_else(|| CommandError::new("E_BAD_BODY IDENTIFY failed to decode JSON body"))?;
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
            ms => self.buffer_timeout_ms = in_range(ms, 25, 30_000, "output buffer timeout")? as i64,
        }
        match request.output_buffer_size {
            -1 => (self.buffer_size, self.buffer_timeout_ms) = (1, 0),
            0 => {}
            size => self.buffer_size = in_range(size, 64, 65_536, "output buffer size")? as i64,
        }
        self.sample_rate = in_range(request.sample_rate, 0, 99, "sample rate")? as u8;
        match request.msg_timeout {
            0 => {}
            ms => {
                let timeout = in_range(ms, 1000, millis(options.max_msg_timeout), "msg timeout")?;
                self.msg_timeout = Duration::from_millis(timeout);
            }
        }
        self.client_id = request.client_id;
        self.hostname = request.hostname;
        self.user_agent = request.user_agent;
        self.negotiates = request.feature_negotiation;
        Ok(())
    }

    /// The answer to a client that negotiates. TLS and compression are not offered.
    pub(super) fn answer(&self, options: &Options) -> Vec<u8> {
        let response = IdentifyResponse {
            max_rdy_count: options.limits.max_rdy_count,
            version: VERSION.to_owned(),
            max_msg_timeout: millis(options.max_msg_timeout) as u64,
            msg_timeout: millis(self.msg_timeout) as u64,
            tls_v1: false,
            deflate: false,
            deflate_level: DEFLATE_LEVEL,
            max_deflate_level: DEFLATE_LEVEL,
            snappy: false,
            sample_rate: i64::from(self.sample_rate),
            auth_required: false,
            output_buffer_size: self.buffer_size,
            output_buffer_timeout: self.buffer_timeout_ms,
        };
        // A struct of strings and numbers serializes always.
        serde_json::to_vec(&response).unwrap_or_default()
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
struct Request {
    client_id: String,
    hostname: String,
    user_agent: String,
    feature_negotiation: bool,
    heartbeat_interval: i64,
    output_buffer_size: i64,
    output_buffer_timeout: i64,
    sample_rate: i64,
    msg_timeout: i64,
}

impl Request {
    /// Decodes as Go does: keys in any case, `null` as absent, no fractions for integers, unknown keys ignored.
    fn read(body: &[u8]) -> Option<Self> {
        let fields = match serde_json::from_str(&String::from_utf8_lossy(body)).ok()? {
            Value::Object(fields) => fields,
            Value::Null => Map::new(),
            _ => return None,
        };
        let mut request = Self::default();
        // Types are checked, though not granted: nsqd refuses a wrong one as well.
        let (mut ignored_flag, mut ignored_number) = (false, 0);
        for (key, value) in fields {
            match &*key.to_ascii_lowercase() {
                "client_id" => set_text(&mut request.client_id, value)?,
                "hostname" => set_text(&mut request.hostname, value)?,
                "user_agent" => set_text(&mut request.user_agent, value)?,
                "feature_negotiation" => set_flag(&mut request.feature_negotiation, &value)?,
                "tls_v1" | "snappy" | "deflate" => set_flag(&mut ignored_flag, &value)?,
                "heartbeat_interval" => set_number(&mut request.heartbeat_interval, &value)?,
                "output_buffer_size" => set_number(&mut request.output_buffer_size, &value)?,
                "output_buffer_timeout" => set_number(&mut request.output_buffer_timeout, &value)?,
                "sample_rate" => set_number(&mut request.sample_rate, &value)?,
                "msg_timeout" => set_number(&mut request.msg_timeout, &value)?,
                "deflate_level" => set_number(&mut ignored_number, &value)?,
                _ => {}
            }
        }
        Some(request)
    }
}

fn set_text(field: &mut String, value: Value) -> Option<()> {
    match value {
        Value::Null => {}
        Value::String(text) => *field = text,
        _ => return None,
    }
    Some(())
}

fn set_flag(field: &mut bool, value: &Value) -> Option<()> {
    match value {
        Value::Null => {}
        Value::Bool(flag) => *field = *flag,
        _ => return None,
    }
    Some(())
}

fn set_number(field: &mut i64, value: &Value) -> Option<()> {
    if !value.is_null() {
        *field = value.as_number().and_then(Number::as_i64)?;
    }
    Some(())
}
