//! The body of a command.

use bytes::{Buf, Bytes, BytesMut};

use super::{Command, CommandError, CommandHead, CommandLimits, CommandName};
use crate::protocol::Secret;

/// The least that a message takes within an MPUB: its length and one byte.
const MIN_MPUB_ENTRY: usize = 5;

/// A command whose line is read and whose body is still to come.
#[derive(Clone, Debug)]
pub struct CommandBody {
    kind: Kind,
    part: Part,
    max_msg_size: usize,
    max_body_size: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
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
    pub(super) fn head(kind: Kind, limits: &CommandLimits) -> CommandHead {
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
