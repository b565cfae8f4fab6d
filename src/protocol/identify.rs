//! IDENTIFY: what a client says of itself and what nsqd grants.

use serde::{Deserialize, Serialize};

use super::answer::{self, AnswerError};

/// The JSON body of IDENTIFY. Durations are milliseconds, sizes bytes.
///
/// A field that is `None` is left out, and nsqd takes its own default.
///
/// ```
/// use async_nsq::protocol::IdentifyRequest;
///
/// let request = IdentifyRequest {
///     user_agent: Some("example/1.0".to_owned()),
///     feature_negotiation: true,
///     ..IdentifyRequest::default()
/// };
/// assert_eq!(request.to_json(), br#"{"user_agent":"example/1.0","feature_negotiation":true}"#);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IdentifyRequest {
    /// Tells clients of one host apart in nsqd's statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The host on which the client runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The client library, `name/version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// Whether nsqd shall answer with an [`IdentifyResponse`] rather than `OK`.
    pub feature_negotiation: bool,
    /// The interval of nsqd's heartbeats: 1,000 to 60,000, or -1 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval: Option<i64>,
    /// How many bytes nsqd may collect before it writes: 64 to 65,536, or -1 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_buffer_size: Option<i64>,
    /// How long nsqd may hold what it collects: 25 to 30,000, or -1 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_buffer_timeout: Option<i64>,
    /// How long nsqd waits for the answer to a message: 1,000 to 900,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg_timeout: Option<i64>,
    /// The percentage of messages to deliver, 1 to 99; the others are dropped from the channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_rate: Option<i64>,
    /// Whether TLS shall begin after the answer.
    #[serde(skip_serializing_if = "is_off")]
    pub tls_v1: bool,
    /// Whether snappy shall begin after the answer. Together with deflate nsqd refuses both.
    #[serde(skip_serializing_if = "is_off")]
    pub snappy: bool,
    /// Whether deflate shall begin after the answer.
    #[serde(skip_serializing_if = "is_off")]
    pub deflate: bool,
    /// The compression level of deflate, 1 to 9. nsqd takes a lower one if that is the highest it allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deflate_level: Option<i64>,
    /// The region in which the client runs. nsqd up to 1.3.0 ignores it, and the zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology_region: Option<String>,
    /// The zone within the region in which the client runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology_zone: Option<String>,
}

/// What is not asked for is not mentioned.
#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_off(asked: &bool) -> bool {
    !asked
}

impl IdentifyRequest {
    /// The body of the command.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of strings and numbers serializes always.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// nsqd's answer to IDENTIFY with feature negotiation. Durations are milliseconds, sizes bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct IdentifyResponse {
    /// The largest RDY that nsqd accepts. 2,500 where nsqd does not say.
    pub max_rdy_count: u32,
    /// nsqd's version.
    pub version: String,
    /// The longest message timeout that TOUCH can reach.
    pub max_msg_timeout: u64,
    /// The message timeout in force on this connection.
    pub msg_timeout: u64,
    /// Whether TLS begins after this answer.
    pub tls_v1: bool,
    /// Whether deflate begins after this answer.
    pub deflate: bool,
    /// The compression level of deflate.
    pub deflate_level: i64,
    /// The highest level that nsqd allows.
    pub max_deflate_level: i64,
    /// Whether snappy begins after this answer.
    pub snappy: bool,
    /// The percentage of messages delivered; 0 means all.
    pub sample_rate: i64,
    /// Whether nsqd wants AUTH before anything else.
    pub auth_required: bool,
    /// The size of nsqd's output buffer for this connection.
    pub output_buffer_size: i64,
    /// How long nsqd's output buffer may hold messages.
    pub output_buffer_timeout: i64,
}

impl Default for IdentifyResponse {
    /// What an nsqd of the default configuration stands for: used for what an answer leaves out, and in full for an
    /// nsqd too old to negotiate.
    fn default() -> Self {
        Self {
            max_rdy_count: 2500,
            version: String::new(),
            max_msg_timeout: 900_000,
            msg_timeout: 60_000,
            tls_v1: false,
            deflate: false,
            deflate_level: 6,
            max_deflate_level: 6,
            snappy: false,
            sample_rate: 0,
            auth_required: false,
            output_buffer_size: 16_384,
            output_buffer_timeout: 250,
        }
    }
}

impl IdentifyResponse {
    /// The answer as nsqd writes it: what the test broker sends.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of strings and numbers serializes always.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the data of the response frame that answers IDENTIFY. `OK` is the answer of an nsqd that does not
    /// negotiate.
    ///
    /// # Errors
    /// [`AnswerError`] if it is neither `OK` nor a JSON object of the expected shape.
    pub fn decode(data: &[u8]) -> Result<Self, AnswerError> {
        if data == super::OK {
            return Ok(Self::default());
        }
        answer::decode("IDENTIFY", data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nsqds_default_reply_decodes() {
        let reply = br#"{"max_rdy_count":2500,"version":"1.3.0","max_msg_timeout":900000,"msg_timeout":60000,"tls_v1":false,"deflate":false,"deflate_level":6,"max_deflate_level":6,"snappy":false,"sample_rate":0,"auth_required":false,"output_buffer_size":16384,"output_buffer_timeout":250}"#;
        let expected = IdentifyResponse {
            version: "1.3.0".to_owned(),
            ..IdentifyResponse::default()
        };
        assert_eq!(IdentifyResponse::decode(reply).unwrap(), expected);
    }

    #[test]
    fn an_old_nsqd_and_a_larger_one_are_understood() {
        assert_eq!(IdentifyResponse::decode(b"OK").unwrap(), IdentifyResponse::default());
        let large = IdentifyResponse::decode(br#"{"max_rdy_count":100000,"topology_zone":"a"}"#).unwrap();
        assert_eq!(large.max_rdy_count, 100_000);
    }

    #[test]
    fn anything_else_is_an_error() {
        for bad in [&b"OKAY"[..], b"", b"[]", b"{", br#"{"max_rdy_count":-1}"#, b"\xff"] {
            assert!(IdentifyResponse::decode(bad).is_err(), "{bad:?}");
        }
    }
}
