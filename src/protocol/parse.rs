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

use std::fmt;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use super::{
    DEFAULT_MAX_BODY_SIZE, DEFAULT_MAX_MSG_SIZE, DEFAULT_MAX_REQ_TIMEOUT, ErrorCode, MessageId, Secret, command,
};

/// The longest command line that nsqd reads, its line feed included, in bytes. Parameters are bounded by it.
pub const MAX_LINE_LEN: usize = 16_384;

/// The longest name of a topic or channel, in bytes.
const MAX_NAME_LEN: usize = 64;

/// The least that a message takes within an MPUB: its length and one byte.
const MIN_MPUB_ENTRY: usize = 5;

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

/// A line of more than [`MAX_LINE_LEN`] bytes. nsqd closes the connection without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineTooLong;

impl fmt::Display for LineTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a command line exceeds {MAX_LINE_LEN} bytes")
    }
}

impl std::error::Error for LineTooLong {}

/// Cuts command lines off the input.
#[derive(Clone, Debug, Default)]
pub struct CommandParser {
    /// How far the input was searched for the end of the line before.
    searched: usize,
}

impl CommandParser {
    /// A parser at the beginning of a line.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the first line off `input`, or returns `None` and takes nothing if its end is not there yet.
    ///
    /// # Errors
    /// [`LineTooLong`], whether or not the end of the line is there.
    pub fn line(&mut self, input: &mut BytesMut) -> Result<Option<CommandLine>, LineTooLong> {
        let from = self.searched.min(input.len());
        let end = input[from..].iter().position(|b| *b == b'\n').map(|at| from + at);
        if end.unwrap_or(input.len()) >= MAX_LINE_LEN {
            return Err(LineTooLong);
        }
        let Some(end) = end else {
            self.searched = input.len();
            return Ok(None);
        };
        self.searched = 0;
        let mut text = input.split_to(end + 1).freeze();
        text.truncate(end);
        if text.last() == Some(&b'\r') {
            text.truncate(end - 1);
        }
        Ok(Some(CommandLine { text }))
    }
}

/// One line: the command's name and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    text: Bytes,
}

impl CommandLine {
    /// Which command it is.
    ///
    /// # Errors
    /// `E_INVALID invalid command ...` if nsqd knows none by this name.
    pub fn name(&self) -> Result<CommandName, CommandError> {
        let word = self.word();
        CommandName::of(word).ok_or_else(|| CommandError::quoting("E_INVALID invalid command ", word))
    }

    pub(crate) fn word(&self) -> &[u8] {
        self.text.split(|b| *b == b' ').next().unwrap_or_default()
    }

    /// The parameters. Two spaces in a row have an empty one between them.
    pub fn params(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.text.split(|b| *b == b' ').skip(1)
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// What nsqd answers to a missing or wrong parameter.
    pub fn read(&self, limits: &CommandLimits) -> Result<CommandHead, CommandError> {
        let name = self.name()?;
        match name {
            CommandName::Identify => Ok(CommandBody::head(Kind::Identify, limits)),
            CommandName::Auth if self.params().next().is_some() => {
                Err(CommandError::new("E_INVALID AUTH invalid number of parameters"))
            }
            CommandName::Auth => Ok(CommandBody::head(Kind::Auth, limits)),
            CommandName::Sub => self.sub(),
            CommandName::Pub | CommandName::Mpub | CommandName::Dpub => self.publish(name, limits),
            CommandName::Rdy => self.rdy(limits),
            CommandName::Fin => self.message_id(name, 1).map(|id| Command::Fin { id }.into()),
            CommandName::Req => self.req(),
            CommandName::Touch => self.message_id(name, 1).map(|id| Command::Touch { id }.into()),
            CommandName::Cls => Ok(Command::Cls.into()),
            CommandName::Nop => Ok(Command::Nop.into()),
        }
    }

    fn sub(&self) -> Result<CommandHead, CommandError> {
        let mut params = self.params();
        let (Some(topic), Some(channel)) = (params.next(), params.next()) else {
            return Err(CommandError::new("E_INVALID SUB insufficient number of parameters"));
        };
        let topic = check_name(topic, "E_BAD_TOPIC SUB topic")?;
        let channel = check_name(channel, "E_BAD_CHANNEL SUB channel")?;
        Ok(Command::Sub { topic, channel }.into())
    }

    fn publish(&self, name: CommandName, limits: &CommandLimits) -> Result<CommandHead, CommandError> {
        let mut params = self.params();
        let (topic, delay) = (params.next(), params.next());
        let Some(topic) = topic.filter(|_| name != CommandName::Dpub || delay.is_some()) else {
            return Err(CommandError::new(format!(
                "E_INVALID {name} insufficient number of parameters"
            )));
        };
        let kind = match name {
            // nsqd does repeat the code here.
            CommandName::Mpub => Kind::Mpub {
                topic: check_name(topic, "E_BAD_TOPIC E_BAD_TOPIC MPUB topic")?,
            },
            CommandName::Dpub => Kind::Dpub {
                topic: check_name(topic, "E_BAD_TOPIC DPUB topic")?,
                delay_ms: dpub_delay(delay.unwrap_or_default(), limits)?,
            },
            _ => Kind::Pub {
                topic: check_name(topic, "E_BAD_TOPIC PUB topic")?,
            },
        };
        Ok(CommandBody::head(kind, limits))
    }

    fn rdy(&self, limits: &CommandLimits) -> Result<CommandHead, CommandError> {
        let Some(text) = self.params().next() else {
            return Ok(Command::Rdy { count: 1 }.into());
        };
        let number = number(text).ok_or_else(|| CommandError::quoting("E_INVALID RDY could not parse count ", text))?;
        match u32::try_from(number) {
            Ok(count) if count <= limits.max_rdy_count => Ok(Command::Rdy { count }.into()),
            _ => Err(CommandError::new(format!(
                "E_INVALID RDY count {} out of range 0-{}",
                number as i64, limits.max_rdy_count
            ))),
        }
    }

    fn req(&self) -> Result<CommandHead, CommandError> {
        let id = self.message_id(CommandName::Req, 2)?;
        let text = self.params().nth(1).unwrap_or_default();
        let delay_ms =
            number(text).ok_or_else(|| CommandError::quoting("E_INVALID REQ could not parse timeout ", text))?;
        Ok(Command::Req { id, delay_ms }.into())
    }

    /// The first parameter as an id, if there are `required` parameters at least.
    fn message_id(&self, name: CommandName, required: usize) -> Result<MessageId, CommandError> {
        if self.params().take(required).count() < required {
            return Err(CommandError::new(format!(
                "E_INVALID {name} insufficient number of params"
            )));
        }
        let id = self.params().next().unwrap_or_default();
        <[u8; MessageId::LEN]>::try_from(id)
            .map(MessageId::new)
            .map_err(|_| CommandError::new("E_INVALID invalid message ID"))
    }
}

fn dpub_delay(text: &[u8], limits: &CommandLimits) -> Result<u64, CommandError> {
    let delay_ms =
        number(text).ok_or_else(|| CommandError::quoting("E_INVALID DPUB could not parse timeout ", text))?;
    let max_ms = limits.max_req_timeout.as_millis();
    if u128::from(delay_ms) > max_ms {
        return Err(CommandError::new(format!(
            "E_INVALID DPUB timeout {delay_ms} out of range 0-{max_ms}"
        )));
    }
    Ok(delay_ms)
}

/// nsqd's reading of a number: digits only, none at all is zero, and what exceeds 64 bits wraps.
fn number(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0u64, |number, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        Some(number.wrapping_mul(10).wrapping_add(u64::from(digit)))
    })
}

fn check_name(name: &[u8], what: &str) -> Result<String, CommandError> {
    let base = name.strip_suffix(b"#ephemeral").unwrap_or(name);
    let valid = !base.is_empty()
        && name.len() <= MAX_NAME_LEN
        && base
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if valid {
        Ok(name.iter().copied().map(char::from).collect())
    } else {
        Err(CommandError::new(format!("{what} name {} is not valid", quote(name))))
    }
}

/// The way in which Go quotes text (`%q`).
fn quote(text: &[u8]) -> String {
    use fmt::Write;

    let mut out = String::from('"');
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            // Writing to a `String` cannot fail.
            let _infallible = match c {
                '"' | '\\' => write!(out, "\\{c}"),
                '\t' => write!(out, "\\t"),
                '\r' => write!(out, "\\r"),
                '\x07' => write!(out, "\\a"),
                '\x08' => write!(out, "\\b"),
                '\x0b' => write!(out, "\\v"),
                '\x0c' => write!(out, "\\f"),
                '\x00'..='\x1f' | '\x7f' => write!(out, "\\x{:02x}", u32::from(c)),
                _ if c.is_control() || (c.is_whitespace() && c != ' ') => write!(out, "\\u{:04x}", u32::from(c)),
                _ => write!(out, "{c}"),
            };
        }
        for byte in chunk.invalid() {
            let _infallible = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

/// What a line amounts to.
#[derive(Clone, Debug)]
pub enum CommandHead {
    /// A command without a body.
    Command(Command),
    /// A command whose body follows.
    Body(CommandBody),
}

impl From<Command> for CommandHead {
    fn from(command: Command) -> Self {
        Self::Command(command)
    }
}

/// A command whose line is read and whose body is still to come.
#[derive(Clone, Debug)]
pub struct CommandBody {
    kind: Kind,
    part: Part,
    max_msg_size: usize,
    max_body_size: usize,
}

#[derive(Clone, Debug)]
enum Kind {
    Identify,
    Auth,
    Pub { topic: String },
    Dpub { topic: String, delay_ms: u64 },
    Mpub { topic: String },
}

/// Which part of the body comes next.
#[derive(Clone, Debug)]
enum Part {
    Size,
    Data(usize),
    Count,
    Messages {
        count: usize,
        bodies: Vec<Bytes>,
        /// The length of the message that comes next, once it is known.
        next: Option<usize>,
        /// The bytes that the messages so far have taken.
        taken: usize,
    },
}

impl CommandBody {
    fn head(kind: Kind, limits: &CommandLimits) -> CommandHead {
        CommandHead::Body(Self {
            kind,
            part: Part::Size,
            max_msg_size: limits.max_msg_size,
            max_body_size: limits.max_body_size,
        })
    }

    /// The command whose body this is.
    #[must_use]
    pub fn name(&self) -> CommandName {
        match self.kind {
            Kind::Identify => CommandName::Identify,
            Kind::Auth => CommandName::Auth,
            Kind::Pub { .. } => CommandName::Pub,
            Kind::Dpub { .. } => CommandName::Dpub,
            Kind::Mpub { .. } => CommandName::Mpub,
        }
    }

    /// The topic of a publish.
    #[must_use]
    pub fn topic(&self) -> Option<&str> {
        match &self.kind {
            Kind::Identify | Kind::Auth => None,
            Kind::Pub { topic } | Kind::Dpub { topic, .. } | Kind::Mpub { topic } => Some(topic),
        }
    }

    /// How many bytes the input must hold for the next step, as far as that is known: what a reader makes room for.
    /// Bounded by the limits.
    #[must_use]
    pub fn needed(&self) -> usize {
        match self.part {
            Part::Data(len) => len,
            Part::Messages { next: Some(len), .. } => len,
            _ => 4,
        }
    }

    /// Takes what is there of the body off the front of `input`. Returns the command once it is complete; this must
    /// not be called again after that. Message bodies are slices of the input: nothing is copied.
    ///
    /// # Errors
    /// What nsqd answers to a body that is empty, too big or malformed.
    ///
    /// nsqd takes an MPUB's messages by their count, whatever the body's stated length, so that a client could make it
    /// read without end. Here a total beyond the largest body is refused as a body too big.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Command>, CommandError> {
        loop {
            match &mut self.part {
                Part::Size => {
                    let Some(size) = take_i32(input) else { return Ok(None) };
                    let size = self.check_size(size)?;
                    self.part = match self.kind {
                        Kind::Mpub { .. } => Part::Count,
                        _ => Part::Data(size),
                    };
                }
                Part::Data(len) => {
                    if input.len() < *len {
                        return Ok(None);
                    }
                    let data = input.split_to(*len).freeze();
                    return Ok(Some(self.complete(data)));
                }
                Part::Count => {
                    let Some(count) = take_i32(input) else { return Ok(None) };
                    self.part = self.begin_messages(count)?;
                }
                Part::Messages { .. } => return self.decode_messages(input),
            }
        }
    }

    /// What nsqd answers if the input ends, or its patience does, before the body is complete.
    #[must_use]
    pub fn cut_off(&self) -> CommandError {
        let name = self.name();
        let single = matches!(self.kind, Kind::Pub { .. } | Kind::Dpub { .. });
        CommandError::new(match &self.part {
            Part::Size if single => format!("E_BAD_MESSAGE {name} failed to read message body size"),
            Part::Size => format!("E_BAD_BODY {name} failed to read body size"),
            Part::Data(_) if single => format!("E_BAD_MESSAGE {name} failed to read message body"),
            Part::Data(_) => format!("E_BAD_BODY {name} failed to read body"),
            Part::Count => "E_BAD_BODY MPUB failed to read message count".to_owned(),
            Part::Messages { bodies, next: None, .. } => {
                format!("E_BAD_MESSAGE MPUB failed to read message({}) body size", bodies.len())
            }
            Part::Messages { .. } => "E_BAD_MESSAGE MPUB failed to read message body".to_owned(),
        })
    }

    fn check_size(&self, size: i32) -> Result<usize, CommandError> {
        let name = self.name();
        let single = matches!(self.kind, Kind::Pub { .. } | Kind::Dpub { .. });
        let (code, what, too_big, limit) = if single {
            ("E_BAD_MESSAGE", "message body", "message", self.max_msg_size)
        } else {
            ("E_BAD_BODY", "body", "body", self.max_body_size)
        };
        match usize::try_from(size) {
            Ok(size) if size > limit => Err(CommandError::new(format!(
                "{code} {name} {too_big} too big {size} > {limit}"
            ))),
            Ok(size) if size > 0 => Ok(size),
            _ => Err(CommandError::new(format!("{code} {name} invalid {what} size {size}"))),
        }
    }

    fn begin_messages(&self, count: i32) -> Result<Part, CommandError> {
        let limit = self.max_body_size.saturating_sub(4) / MIN_MPUB_ENTRY;
        match usize::try_from(count) {
            Ok(count) if count > 0 && count <= limit => Ok(Part::Messages {
                count,
                // Nothing is reserved on the word of the peer.
                bodies: Vec::new(),
                next: None,
                taken: 0,
            }),
            _ => Err(CommandError::new(format!(
                "E_BAD_BODY MPUB invalid message count {count}"
            ))),
        }
    }

    fn decode_messages(&mut self, input: &mut BytesMut) -> Result<Option<Command>, CommandError> {
        let (max_msg_size, max_body_size) = (self.max_msg_size, self.max_body_size);
        let Part::Messages {
            count,
            bodies,
            next,
            taken,
        } = &mut self.part
        else {
            return Ok(None);
        };
        while bodies.len() < *count {
            let len = match *next {
                Some(len) => len,
                None => {
                    let Some(size) = take_i32(input) else { return Ok(None) };
                    let len = check_entry(size, bodies.len(), max_msg_size)?;
                    *taken = taken.saturating_add(4 + len);
                    if *taken > max_body_size {
                        return Err(CommandError::new(format!(
                            "E_BAD_BODY MPUB body too big {taken} > {max_body_size}"
                        )));
                    }
                    *next.insert(len)
                }
            };
            if input.len() < len {
                return Ok(None);
            }
            bodies.push(input.split_to(len).freeze());
            *next = None;
        }
        Ok(Some(self.complete(Bytes::new())))
    }

    /// Makes the command of what was read; what it is made of is taken out.
    fn complete(&mut self, data: Bytes) -> Command {
        let part = std::mem::replace(&mut self.part, Part::Size);
        match &mut self.kind {
            Kind::Identify => Command::Identify { body: data },
            Kind::Auth => Command::Auth {
                secret: Secret::new(data),
            },
            Kind::Pub { topic } => Command::Pub {
                topic: std::mem::take(topic),
                body: data,
            },
            Kind::Dpub { topic, delay_ms } => Command::Dpub {
                topic: std::mem::take(topic),
                delay_ms: *delay_ms,
                body: data,
            },
            Kind::Mpub { topic } => Command::Mpub {
                topic: std::mem::take(topic),
                bodies: match part {
                    Part::Messages { bodies, .. } => bodies,
                    _ => Vec::new(),
                },
            },
        }
    }
}

fn check_entry(size: i32, index: usize, max_msg_size: usize) -> Result<usize, CommandError> {
    match usize::try_from(size) {
        Ok(len) if len > max_msg_size => Err(CommandError::new(format!(
            "E_BAD_MESSAGE MPUB message too big {len} > {max_msg_size}"
        ))),
        Ok(len) if len > 0 => Ok(len),
        _ => Err(CommandError::new(format!(
            "E_BAD_MESSAGE MPUB invalid message({index}) body size {size}"
        ))),
    }
}

fn take_i32(input: &mut BytesMut) -> Option<i32> {
    (input.len() >= 4).then(|| input.get_i32())
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
