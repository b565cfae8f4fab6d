//! The faults in force, and which of them strikes next.

use std::time::Duration;

use bytes::Bytes;

use super::FrameKind;
use crate::protocol::{CommandName, Frame};

/// What happens to a connection that is accepted.
#[derive(Clone, Debug)]
pub(in super::super) enum AcceptFault {
    Close,
    Delay(Duration),
    Ignore,
}

/// What happens to a command that was read.
#[derive(Clone, Debug)]
pub(in super::super) enum CommandFault {
    /// Carried out, and not answered.
    Swallow,
    /// Neither carried out nor answered.
    Ignore,
    /// Carried out after a while, during which the connection's further commands wait.
    Delay(Duration),
    /// Not carried out, and answered with this.
    Answer(Frame),
    /// Carried out, and its answer comes after the next one.
    HoldAnswer,
    /// Its message's time is over just before.
    Late,
    /// Not carried out: the connection ends.
    Disconnect,
    /// Carried out, and the connection ends instead of an answer.
    DisconnectAfter,
}

/// What happens to a frame that is about to be written.
#[derive(Clone, Debug)]
pub(in super::super) enum FrameFault {
    Swallow,
    Duplicate,
    /// It and all behind it waits.
    Delay(Duration),
    /// Every bit is inverted.
    Garble,
    /// Its header states this size.
    Size(i32),
    /// Its header states this type.
    Type(u32),
    /// These bytes are written instead.
    Replace(Bytes),
    /// The connection ends after so many of its bytes.
    Cut(usize),
}

/// What a client asks for in IDENTIFY and nsqd grants, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// Negotiation itself: IDENTIFY is answered with `OK`, as by an nsqd older than 0.2.20.
    Negotiation,
    /// `tls_v1`.
    Tls,
    /// `snappy`.
    Snappy,
    /// `deflate`.
    Deflate,
    /// `sample_rate`.
    SampleRate,
    /// `msg_timeout`.
    MsgTimeout,
    /// `heartbeat_interval`.
    HeartbeatInterval,
    /// `output_buffer_size` and `output_buffer_timeout`.
    OutputBuffer,
}

impl Feature {
    pub(in super::super) const ALL: [Self; 8] = [
        Self::Negotiation,
        Self::Tls,
        Self::Snappy,
        Self::Deflate,
        Self::SampleRate,
        Self::MsgTimeout,
        Self::HeartbeatInterval,
        Self::OutputBuffer,
    ];
}

/// Which commands a fault concerns.
#[derive(Clone, Copy, Debug)]
pub(super) enum Commands {
    All,
    Publishes,
    Named(CommandName),
}

impl Commands {
    fn contains(self, name: CommandName) -> bool {
        match self {
            Self::All => true,
            Self::Publishes => matches!(name, CommandName::Pub | CommandName::Mpub | CommandName::Dpub),
            Self::Named(wanted) => wanted == name,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Fault {
    Accept(AcceptFault),
    Command(Commands, CommandFault),
    Frame(FrameKind, FrameFault),
    Feature(Feature),
    CutAfter(u64),
}

/// How often a fault strikes, and where.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scope {
    /// Only at this connection.
    pub(super) connection: Option<u64>,
    /// Not at so many occasions at first.
    pub(super) skip: u64,
    /// So often, or without end.
    pub(super) times: Option<u64>,
}

#[derive(Debug)]
struct Rule {
    id: u64,
    scope: Scope,
    hits: u64,
    fault: Fault,
}

/// The faults in force. At each occasion the oldest one that fits strikes.
#[derive(Debug, Default)]
pub(in super::super) struct Script {
    rules: Vec<Rule>,
    last_id: u64,
}

impl Script {
    pub(in super::super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(super) fn add(&mut self, scope: Scope, fault: Fault) -> u64 {
        self.last_id += 1;
        self.rules.push(Rule {
            id: self.last_id,
            scope,
            hits: 0,
            fault,
        });
        self.last_id
    }

    pub(super) fn lift(&mut self, id: u64) {
        self.rules.retain(|rule| rule.id != id);
    }

    /// How often a fault has struck; `None` once it was lifted.
    pub(super) fn hits(&self, id: u64) -> Option<u64> {
        self.rules.iter().find(|rule| rule.id == id).map(|rule| rule.hits)
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    fn strike<T>(&mut self, connection: u64, fits: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        for rule in &mut self.rules {
            if rule.scope.connection.is_some_and(|wanted| wanted != connection) {
                continue;
            }
            let Some(effect) = fits(&rule.fault) else { continue };
            if rule.scope.skip > 0 {
                rule.scope.skip -= 1;
                continue;
            }
            if rule.scope.times.is_some_and(|times| rule.hits >= times) {
                continue;
            }
            rule.hits += 1;
            return Some(effect);
        }
        None
    }

    pub(in super::super) fn on_accept(&mut self, connection: u64) -> Option<AcceptFault> {
        self.strike(connection, |fault| match fault {
            Fault::Accept(effect) => Some(effect.clone()),
            _ => None,
        })
    }

    pub(in super::super) fn on_command(&mut self, connection: u64, name: CommandName) -> Option<CommandFault> {
        self.strike(connection, |fault| match fault {
            Fault::Command(commands, effect) if commands.contains(name) => Some(effect.clone()),
            _ => None,
        })
    }

    pub(in super::super) fn on_frame(&mut self, connection: u64, kind: FrameKind) -> Option<FrameFault> {
        self.strike(connection, |fault| match fault {
            Fault::Frame(wanted, effect) if wanted.contains(kind) => Some(effect.clone()),
            _ => None,
        })
    }

    pub(in super::super) fn refuses(&mut self, connection: u64, feature: Feature) -> bool {
        let refused = self.strike(connection, |fault| match fault {
            Fault::Feature(wanted) if *wanted == feature => Some(()),
            _ => None,
        });
        refused.is_some()
    }

    /// After how many bytes a connection is to be cut.
    pub(in super::super) fn cut_after(&mut self, connection: u64) -> Option<u64> {
        self.strike(connection, |fault| match fault {
            Fault::CutAfter(bytes) => Some(*bytes),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swallow() -> Fault {
        Fault::Command(Commands::Publishes, CommandFault::Swallow)
    }

    #[test]
    fn a_fault_strikes_where_and_as_often_as_it_is_told() {
        let mut script = Script::default();
        let scope = Scope {
            connection: Some(2),
            skip: 1,
            times: Some(2),
        };
        let id = script.add(scope, swallow());
        let mut strikes = |connection, name| script.on_command(connection, name).is_some();
        assert!(!strikes(1, CommandName::Pub), "another connection");
        assert!(!strikes(2, CommandName::Fin), "another command");
        assert!(!strikes(2, CommandName::Pub), "skipped");
        assert!(strikes(2, CommandName::Mpub) && strikes(2, CommandName::Dpub));
        assert!(!strikes(2, CommandName::Pub), "used up");
        assert_eq!(script.hits(id), Some(2));
        script.lift(id);
        assert!(script.is_empty() && script.hits(id).is_none());
    }

    #[test]
    fn the_oldest_that_fits_strikes_until_it_is_used_up() {
        let mut script = Script::default();
        let once = Scope {
            times: Some(1),
            ..Scope::default()
        };
        script.add(once, swallow());
        script.add(Scope::default(), Fault::Command(Commands::All, CommandFault::Ignore));
        let first = script.on_command(1, CommandName::Pub);
        assert!(matches!(first, Some(CommandFault::Swallow)));
        let second = script.on_command(1, CommandName::Pub);
        assert!(matches!(second, Some(CommandFault::Ignore)));
    }
}
