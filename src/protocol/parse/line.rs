//! The line of a command: its name and its parameters.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::body::{CommandBody, Kind};
use super::{Command, CommandError, CommandLimits, CommandName};
use crate::protocol::MessageId;

/// The longest command line that nsqd reads, its line feed included, in bytes. Parameters are bounded by it.
pub const MAX_LINE_LEN: usize = 16_384;

/// The longest name of a topic or channel, in bytes.
const MAX_NAME_LEN: usize = 64;

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
    // nsqd counts in signed nanoseconds, which wrap.
    let nanos = (delay_ms as i64).wrapping_mul(1_000_000);
    match u64::try_from(nanos).map(Duration::from_nanos) {
        Ok(delay) if delay <= limits.max_req_timeout => Ok(delay.as_millis() as u64),
        _ => {
            let max_ms = limits.max_req_timeout.as_millis();
            Err(CommandError::new(format!(
                "E_INVALID DPUB timeout {delay_ms} out of range 0-{max_ms}"
            )))
        }
    }
}

/// nsqd's reading of a number: digits only, none at all is zero, and what exceeds 64 bits wraps.
fn number(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0u64, |number, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        Some(number.wrapping_mul(10).wrapping_add(u64::from(digit)))
    })
}

pub(super) fn check_name(name: &[u8], what: &str) -> Result<String, CommandError> {
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
                _ if !is_printable(c) && u32::from(c) > 0xffff => write!(out, "\\U{:08x}", u32::from(c)),
                _ if !is_printable(c) => write!(out, "\\u{:04x}", u32::from(c)),
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

/// Whether Go prints a character as it is: letters, marks, numbers, punctuation, symbols and the space. The same that
/// Rust's own escaping leaves alone where it does not stand first.
fn is_printable(c: char) -> bool {
    let escaped: usize = ['a', c].iter().collect::<String>().escape_debug().count();
    escaped == 2 || c == '\''
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
