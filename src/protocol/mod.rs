//! The wire protocol of nsqd and the answers of nsqlookupd: bytes to values and back.
//!
//! Nothing here does IO, reads a clock or knows a runtime, and nothing panics on any input: the decoders are safe to
//! feed with whatever a socket delivers, which is what the fuzz targets do. The client and the test broker both stand
//! on this module.
//!
//! | module item | direction |
//! | --- | --- |
//! | [`FrameDecoder`] | bytes from nsqd to [`Frame`]s |
//! | [`command`] | commands to bytes for nsqd |
//! | [`CommandParser`] | bytes from a client to [`Command`]s |
//! | [`IdentifyRequest`], [`IdentifyResponse`], [`AuthResponse`] | the negotiation's JSON |
//! | [`ErrorCode`] | what an error frame means for the connection |
//! | [`parse_lookup`], [`parse_topics`], [`parse_nodes`] | nsqlookupd's JSON, current and pre-1.0 |
//!
//! This is the low-level layer; services use [`Producer`](crate::Producer) and [`Consumer`](crate::Consumer).

mod answer;
mod auth;
pub mod command;
mod error_code;
mod frame;
mod identify;
mod lookup;
mod message;
mod parse;
mod secret;
mod shown;

pub use answer::AnswerError;
pub use auth::AuthResponse;
pub use error_code::ErrorCode;
pub use frame::{Frame, FrameDecoder, FrameError, Frames, encode_frame};
pub use identify::{IdentifyRequest, IdentifyResponse};
pub use lookup::{
    Lookup, LookupError, LookupNodes, LookupProducer, LookupTopics, parse_lookup, parse_nodes, parse_topics,
};
pub use message::{Message, MessageId};
pub use parse::{
    Command, CommandBody, CommandError, CommandHead, CommandLimits, CommandLine, CommandName, CommandParser,
    LineTooLong, MAX_LINE_LEN,
};
pub use secret::Secret;
pub(crate) use shown::shown;

/// The four bytes that begin every connection to nsqd: version 2 of the protocol.
pub const MAGIC: &[u8; 4] = b"  V2";

/// The largest message that nsqd accepts by default (its `max-msg-size`): 1 MiB.
pub const DEFAULT_MAX_MSG_SIZE: usize = 1_048_576;

/// The largest command body that nsqd accepts by default (its `max-body-size`): 5 MiB. It bounds MPUB, IDENTIFY and
/// AUTH, but not PUB.
pub const DEFAULT_MAX_BODY_SIZE: usize = 5_242_880;

/// The longest delay that nsqd accepts by default for DPUB and REQ (its `max-req-timeout`): one hour.
pub const DEFAULT_MAX_REQ_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3600);

/// The text of the response frame by which nsqd asks whether the client is alive.
pub const HEARTBEAT: &[u8] = b"_heartbeat_";

/// The text of the response frame that confirms a command.
pub const OK: &[u8] = b"OK";

/// The text of the response frame that confirms CLS.
pub const CLOSE_WAIT: &[u8] = b"CLOSE_WAIT";
