//! How a fault is aimed, and what it can do at each occasion.

use std::time::Duration;

use bytes::Bytes;

use super::script::{AcceptFault, CommandFault, Commands, Fault, FrameFault, Scope};
use super::{ActiveFault, Faults, FrameKind};
use crate::protocol::Frame;

macro_rules! how_often {
    ($occasion:literal) => {
        /// Strikes at the next
        #[doc = $occasion]
        /// only.
        pub fn once(self) -> Self {
            self.times(1)
        }

        /// Strikes so many times.
        pub fn times(mut self, times: u64) -> Self {
            self.scope.times = Some(times);
            self
        }

        /// Lets so many pass at first.
        pub fn skip(mut self, count: u64) -> Self {
            self.scope.skip = count;
            self
        }
    };
}

/// What can go wrong when a connection is accepted: what [`Faults::accepts`] returns.
#[derive(Debug)]
#[must_use = "nothing goes wrong until it is told what"]
pub struct AcceptFaults<'a> {
    faults: Faults<'a>,
    scope: Scope,
}

impl<'a> AcceptFaults<'a> {
    pub(super) fn new(faults: Faults<'a>) -> Self {
        Self {
            faults,
            scope: Scope::default(),
        }
    }

    how_often!("connection");

    /// Closes it at once.
    pub fn close(self) -> ActiveFault<'a> {
        self.add(AcceptFault::Close)
    }

    /// Serves it after this time only.
    pub fn delay(self, delay: Duration) -> ActiveFault<'a> {
        self.add(AcceptFault::Delay(delay))
    }

    /// Never reads from it and never writes to it.
    pub fn ignore(self) -> ActiveFault<'a> {
        self.add(AcceptFault::Ignore)
    }

    fn add(self, fault: AcceptFault) -> ActiveFault<'a> {
        self.faults.add(self.scope, Fault::Accept(fault))
    }
}

/// What can go wrong with a command: what [`Faults::command`] and its like return.
#[derive(Debug)]
#[must_use = "nothing goes wrong until it is told what"]
pub struct CommandFaults<'a> {
    faults: Faults<'a>,
    commands: Commands,
    scope: Scope,
}

impl<'a> CommandFaults<'a> {
    pub(super) fn new(faults: Faults<'a>, commands: Commands) -> Self {
        Self {
            faults,
            commands,
            scope: Scope::default(),
        }
    }

    how_often!("command");

    /// Carries it out, and does not answer.
    pub fn swallow(self) -> ActiveFault<'a> {
        self.add(CommandFault::Swallow)
    }

    /// Neither carries it out nor answers.
    pub fn ignore(self) -> ActiveFault<'a> {
        self.add(CommandFault::Ignore)
    }

    /// Carries it out after this time. Until then the connection's further commands wait; heartbeats and messages come.
    pub fn delay(self, delay: Duration) -> ActiveFault<'a> {
        self.add(CommandFault::Delay(delay))
    }

    /// Does not carry it out, and answers with an error frame of this text. All codes but `E_FIN_FAILED`,
    /// `E_REQ_FAILED` and `E_TOUCH_FAILED` close the connection, as nsqd does.
    pub fn reject(self, text: impl Into<String>) -> ActiveFault<'a> {
        self.add(CommandFault::Answer(Frame::Error(text.into().into())))
    }

    /// Does not carry it out, and answers as if it had been: with this frame.
    pub fn forge(self, answer: Frame) -> ActiveFault<'a> {
        self.add(CommandFault::Answer(answer))
    }

    /// Carries it out, and gives its answer after the next one on the same connection that is not held itself. At most
    /// 1,000 are held: past that, all are given.
    pub fn hold_answer(self) -> ActiveFault<'a> {
        self.add(CommandFault::HoldAnswer)
    }

    /// For FIN, REQ and TOUCH: lets the message's time be over just before, so that the command fails with
    /// `E_FIN_FAILED` and the like, and the message is delivered again. Other commands are carried out as ever.
    pub fn late(self) -> ActiveFault<'a> {
        self.add(CommandFault::Late)
    }

    /// Ends the connection without a word, before the command is carried out.
    pub fn disconnect(self) -> ActiveFault<'a> {
        self.add(CommandFault::Disconnect)
    }

    /// Carries it out, and ends the connection without an answer.
    pub fn disconnect_after(self) -> ActiveFault<'a> {
        self.add(CommandFault::DisconnectAfter)
    }

    fn add(self, fault: CommandFault) -> ActiveFault<'a> {
        self.faults.add(self.scope, Fault::Command(self.commands, fault))
    }
}

/// What can go wrong with a frame: what [`Faults::frames`] returns.
#[derive(Debug)]
#[must_use = "nothing goes wrong until it is told what"]
pub struct FrameFaults<'a> {
    faults: Faults<'a>,
    kind: FrameKind,
    scope: Scope,
}

impl<'a> FrameFaults<'a> {
    pub(super) fn new(faults: Faults<'a>, kind: FrameKind) -> Self {
        Self {
            faults,
            kind,
            scope: Scope::default(),
        }
    }

    how_often!("frame");

    /// Leaves it out.
    pub fn swallow(self) -> ActiveFault<'a> {
        self.add(FrameFault::Swallow)
    }

    /// Writes it twice.
    pub fn duplicate(self) -> ActiveFault<'a> {
        self.add(FrameFault::Duplicate)
    }

    /// Holds it back for this time, and with it all that follows on the connection, heartbeats included.
    pub fn delay(self, delay: Duration) -> ActiveFault<'a> {
        self.add(FrameFault::Delay(delay))
    }

    /// Inverts every bit of it, header included.
    pub fn garble(self) -> ActiveFault<'a> {
        self.add(FrameFault::Garble)
    }

    /// States this size in its header: one that is too large, negative, or less than a frame's least size 4.
    pub fn size(self, size: i32) -> ActiveFault<'a> {
        self.add(FrameFault::Size(size))
    }

    /// States this type in its header; nsqd knows 0, 1 and 2.
    pub fn frame_type(self, kind: u32) -> ActiveFault<'a> {
        self.add(FrameFault::Type(kind))
    }

    /// Writes these bytes instead.
    pub fn replace(self, bytes: impl Into<Bytes>) -> ActiveFault<'a> {
        self.add(FrameFault::Replace(bytes.into()))
    }

    /// Ends the connection in the middle of it: after its header and two bytes of its data.
    pub fn cut(self) -> ActiveFault<'a> {
        self.cut_at(10)
    }

    /// Ends the connection after so many of its bytes.
    pub fn cut_at(self, bytes: usize) -> ActiveFault<'a> {
        self.add(FrameFault::Cut(bytes))
    }

    fn add(self, fault: FrameFault) -> ActiveFault<'a> {
        self.faults.add(self.scope, Fault::Frame(self.kind, fault))
    }
}
