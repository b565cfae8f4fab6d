//! The commands of a client, read from bytes: nsqd's side of the protocol.
//!
//! nsqd judges a command in a fixed order: the state of the connection first, then the parameters, then the length of
//! the body, then the body itself. So reading goes in three steps, and a server looks at its own state between them:
//!
//! 1. [`CommandParser::line`] cuts a [`CommandLine`] off the input; [`CommandLine::name`] tells which command it is.
//! 2. [`CommandLine::read`] checks the parameters and yields a [`CommandHead`]: a whole [`Command`], or a
//!    [`CommandBody`] that is still to come.
//! 3. [`CommandBody::decode`] takes the body from the input, however it arrives.
//!
//! What is refused carries nsqd's text, to the byte.
//!
//! ```
//! use async_nsq::protocol::{Command, CommandHead, CommandLimits, CommandParser};
//! use bytes::BytesMut;
//!
//! let limits = CommandLimits::default();
//! let mut input = BytesMut::from(&b"PUB events\n\0\0\0\x05hello"[..]);
//! let line = CommandParser::new().line(&mut input).unwrap().unwrap();
//! let CommandHead::Body(mut body) = line.read(&limits).unwrap() else { unreachable!("PUB has a body") };
//! let command = body.decode(&mut input).unwrap().unwrap();
//! assert_eq!(command, Command::Pub { topic: "events".to_owned(), body: "hello".into() });
//!
//! let mut input = BytesMut::from(&b"PUB bad!name\n"[..]);
//! let line = CommandParser::new().line(&mut input).unwrap().unwrap();
//! let refused = line.read(&limits).unwrap_err();
//! assert_eq!(refused.text(), &b"E_BAD_TOPIC PUB topic name \"bad!name\" is not valid"[..]);
//! ```

mod body;
mod line;

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

pub use body::CommandBody;
pub use line::{CommandHead, CommandLine, CommandParser, LineTooLong, MAX_LINE_LEN};

use super::{
    DEFAULT_MAX_BODY_SIZE, DEFAULT_MAX_MSG_SIZE, DEFAULT_MAX_REQ_TIMEOUT, ErrorCode, MessageId, Secret, command,
};

/// One command of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// `IDENTIFY`.
    Identify {
        /// The JSON, not looked at.
        body: Bytes,
    },
    /// `AUTH`.
    Auth {
        /// The secret.
        secret: Secret,
    },
    /// `SUB`.
    Sub {
        /// The topic.
        topic: String,
        /// The channel.
        channel: String,
    },
    /// `PUB`.
    Pub {
        /// The topic.
        topic: String,
        /// The message.
        body: Bytes,
    },
    /// `MPUB`.
    Mpub {
        /// The topic.
        topic: String,
        /// The messages.
        bodies: Vec<Bytes>,
    },
    /// `DPUB`.
    Dpub {
        /// The topic.
        topic: String,
        /// The delay in milliseconds.
        delay_ms: u64,
        /// The message.
        body: Bytes,
    },
    /// `RDY`.
    Rdy {
        /// How many messages may be in flight.
        count: u32,
    },
    /// `FIN`.
    Fin {
        /// The message.
        id: MessageId,
    },
    /// `REQ`.
    Req {
        /// The message.
        id: MessageId,
        /// The delay in milliseconds, as the client states it: nsqd lowers it to its limit by itself.
        delay_ms: u64,
    },
    /// `TOUCH`.
    Touch {
        /// The message.
        id: MessageId,
    },
    /// `CLS`.
    Cls,
    /// `NOP`.
    Nop,
}

impl Command {
    /// The command's name.
    #[must_use]
    pub fn name(&self) -> CommandName {
        match self {
            Self::Identify { .. } => CommandName::Identify,
            Self::Auth { .. } => CommandName::Auth,
            Self::Sub { .. } => CommandName::Sub,
            Self::Pub { .. } => CommandName::Pub,
            Self::Mpub { .. } => CommandName::Mpub,
            Self::Dpub { .. } => CommandName::Dpub,
            Self::Rdy { .. } => CommandName::Rdy,
            Self::Fin { .. } => CommandName::Fin,
            Self::Req { .. } => CommandName::Req,
            Self::Touch { .. } => CommandName::Touch,
            Self::Cls => CommandName::Cls,
            Self::Nop => CommandName::Nop,
        }
    }

    /// Appends the command as a client sends it. Names and limits are not checked: see [`command`].
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Identify { body } => command::identify(out, body),
            Self::Auth { secret } => command::auth(out, secret.reveal()),
            Self::Sub { topic, channel } => command::sub(out, topic, channel),
            Self::Pub { topic, body } => command::publish(out, topic, body),
            Self::Mpub { topic, bodies } => command::publish_many(out, topic, bodies.iter().map(|body| &body[..])),
            Self::Dpub { topic, delay_ms, body } => command::publish_deferred(out, topic, *delay_ms, body),
            Self::Rdy { count } => command::rdy(out, *count),
            Self::Fin { id } => command::fin(out, id),
            Self::Req { id, delay_ms } => command::req(out, id, *delay_ms),
            Self::Touch { id } => command::touch(out, id),
            Self::Cls => command::cls(out),
            Self::Nop => command::nop(out),
        }
    }
}

/// Which command a line holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CommandName {
    /// `IDENTIFY`.
    Identify,
    /// `AUTH`.
    Auth,
    /// `SUB`.
    Sub,
    /// `PUB`.
    Pub,
    /// `MPUB`.
    Mpub,
    /// `DPUB`.
    Dpub,
    /// `RDY`.
    Rdy,
    /// `FIN`.
    Fin,
    /// `REQ`.
    Req,
    /// `TOUCH`.
    Touch,
    /// `CLS`.
    Cls,
    /// `NOP`.
    Nop,
}

impl CommandName {
    /// The name as it stands on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identify => "IDENTIFY",
            Self::Auth => "AUTH",
            Self::Sub => "SUB",
            Self::Pub => "PUB",
            Self::Mpub => "MPUB",
            Self::Dpub => "DPUB",
            Self::Rdy => "RDY",
            Self::Fin => "FIN",
            Self::Req => "REQ",
            Self::Touch => "TOUCH",
            Self::Cls => "CLS",
            Self::Nop => "NOP",
        }
    }

    fn of(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"IDENTIFY" => Self::Identify,
            b"AUTH" => Self::Auth,
            b"SUB" => Self::Sub,
            b"PUB" => Self::Pub,
            b"MPUB" => Self::Mpub,
            b"DPUB" => Self::Dpub,
            b"RDY" => Self::Rdy,
            b"FIN" => Self::Fin,
            b"REQ" => Self::Req,
            b"TOUCH" => Self::Touch,
            b"CLS" => Self::Cls,
            b"NOP" => Self::Nop,
            _ => return None,
        })
    }
}

impl fmt::Display for CommandName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What nsqd's configuration allows a command to state. The default is nsqd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandLimits {
    /// The largest message, in bytes (`max-msg-size`).
    pub max_msg_size: usize,
    /// The largest body of IDENTIFY, AUTH and MPUB, in bytes (`max-body-size`).
    pub max_body_size: usize,
    /// The largest count of RDY (`max-rdy-count`).
    pub max_rdy_count: u32,
    /// The longest delay of DPUB (`max-req-timeout`).
    pub max_req_timeout: Duration,
}

impl Default for CommandLimits {
    fn default() -> Self {
        Self {
            max_msg_size: DEFAULT_MAX_MSG_SIZE,
            max_body_size: DEFAULT_MAX_BODY_SIZE,
            max_rdy_count: 2500,
            max_req_timeout: DEFAULT_MAX_REQ_TIMEOUT,
        }
    }
}

/// A command that nsqd refuses, with the text of its error frame. nsqd closes the connection after it.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandError {
    text: Bytes,
}

impl CommandError {
    pub(crate) fn new(text: impl Into<Bytes>) -> Self {
        Self { text: text.into() }
    }

    /// The command does not fit the state of the connection: `E_INVALID cannot FIN in current state`.
    #[must_use]
    pub fn wrong_state(name: CommandName) -> Self {
        Self::new(format!("E_INVALID cannot {name} in current state"))
    }

    fn quoting(before: &str, culprit: &[u8]) -> Self {
        Self::new([before.as_bytes(), culprit].concat())
    }

    /// The text of the error frame. Text, but for what it quotes of the client's bytes.
    #[must_use]
    pub fn text(&self) -> &Bytes {
        &self.text
    }

    /// The code at the beginning of the text.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        let end = self.text.iter().position(|b| *b == b' ').unwrap_or(self.text.len());
        std::str::from_utf8(&self.text[..end]).map_or(ErrorCode::Unknown, ErrorCode::of)
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.text))
    }
}

impl fmt::Debug for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CommandError").field(&self.text).finish()
    }
}

impl std::error::Error for CommandError {}

#[cfg(test)]
mod tests;
