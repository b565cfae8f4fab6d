//! What goes wrong on purpose.

mod aim;
mod script;

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

pub use aim::{AcceptFaults, CommandFaults, FrameFaults};
pub use script::Feature;
pub(super) use script::{AcceptFault, CommandFault, FrameFault, Script};

use self::script::{Commands, Fault, Scope};
use super::broker::Shared;
use crate::protocol::CommandName;

/// Makes an [`Nsqd`](super::Nsqd) misbehave: what [`Nsqd::faults`](super::Nsqd::faults) returns.
///
/// There are three occasions at which a fault can strike, and each is aimed first and then told what to do:
///
/// - a connection is accepted: [`accepts`](Self::accepts);
/// - a command was read: [`command`](Self::command), [`publishes`](Self::publishes), [`commands`](Self::commands);
/// - a frame is about to be written: [`frames`](Self::frames).
///
/// Such a fault strikes at every occasion, or as often as `once`, `times` and `skip` say, until it is
/// [lifted](ActiveFault::lift) or all are [cleared](Self::clear). If several fit, the oldest that is not used up strikes.
/// All else happens at once: [`freeze`](Self::freeze), [`disconnect`](Self::disconnect), [`inject`](Self::inject) and so
/// on. Every fault concerns all connections, or one of them after [`connection`](Self::connection).
///
/// ```
/// use std::time::Duration;
/// use async_nsq::protocol::CommandName;
/// use async_nsq::test_server::{FrameKind, Nsqd};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let nsqd = Nsqd::start().await?;
/// let faults = nsqd.faults();
/// faults.publishes().once().swallow();                          // stored, and never confirmed
/// faults.command(CommandName::Sub).ignore();                    // never answered
/// faults.command(CommandName::Fin).skip(10).times(2).late();    // E_FIN_FAILED, and the message comes again
/// faults.frames(FrameKind::Message).once().cut();               // the connection ends within a message
/// faults.connection(3).accepts().delay(Duration::from_secs(1)); // the third one waits
/// let fault = faults.publishes().reject("E_PUB_FAILED PUB failed disk full");
/// assert_eq!(fault.hits(), 0);
/// fault.lift();
/// faults.clear()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct Faults<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) connection: Option<u64>,
}

impl<'a> Faults<'a> {
    /// Only this connection, by [its number](super::ClientStats::connection). It need not exist yet: numbers are given in
    /// the order of acceptance, and the first is 1.
    #[must_use]
    pub fn connection(self, number: u64) -> Self {
        Self {
            connection: Some(number),
            ..self
        }
    }

    /// A connection is accepted.
    pub fn accepts(self) -> AcceptFaults<'a> {
        AcceptFaults::new(self)
    }

    /// A command of this name was read in full, and its state and parameters are right.
    pub fn command(self, name: CommandName) -> CommandFaults<'a> {
        CommandFaults::new(self, Commands::Named(name))
    }

    /// A PUB, MPUB or DPUB was read in full, and its parameters are right.
    pub fn publishes(self) -> CommandFaults<'a> {
        CommandFaults::new(self, Commands::Publishes)
    }

    /// Any command was read in full, and its state and parameters are right.
    pub fn commands(self) -> CommandFaults<'a> {
        CommandFaults::new(self, Commands::All)
    }

    /// A frame of this kind is about to be written.
    pub fn frames(self, kind: FrameKind) -> FrameFaults<'a> {
        FrameFaults::new(self, kind)
    }

    /// Leaves heartbeats out. A client that is not asked has nothing to answer, so that it is disconnected unless it
    /// sends commands of its own.
    pub fn drop_heartbeats(self) -> ActiveFault<'a> {
        self.frames(FrameKind::Heartbeat).swallow()
    }

    /// Takes what IDENTIFY asks for of this feature for not asked: the answer says that it is not granted.
    pub fn refuse_feature(self, feature: Feature) -> ActiveFault<'a> {
        self.add(Scope::default(), Fault::Feature(feature))
    }

    /// Ends each connection after so many further bytes were written to it, wherever in a frame that is: the existing
    /// ones and, counted from their beginning, all that are accepted later. Bytes are counted before compression and
    /// encryption.
    pub fn cut_after_bytes(self, bytes: u64) -> ActiveFault<'a> {
        self.shared.read(|state| {
            for client in state.clients_of(self.connection) {
                client.link.set_write_budget(bytes);
            }
        });
        self.add(Scope::default(), Fault::CutAfter(bytes))
    }

    /// Refuses new connections, as a host does on which nothing listens. Existing ones stay. Whatever
    /// [`connection`](Self::connection) says, it concerns all.
    pub fn refuse_connections(self) {
        self.shared.door.close();
    }

    /// Accepts connections again, at the same address. A broker that is [stopped](super::Nsqd::stop) stays so.
    ///
    /// # Errors
    /// If the address was taken by someone else meanwhile, which the broker prevents as far as the system lets it.
    pub fn accept_connections(self) -> io::Result<()> {
        if self.shared.read(|state| state.closed) {
            return Ok(());
        }
        self.shared.door.open()
    }

    /// Ends the existing connections without a word. What was to be written is lost; what is in flight stays so until it
    /// times out.
    ///
    /// The connections are gone once their tasks have noticed: await it by
    /// [`wait_for`](super::Nsqd::wait_for)`(|stats| stats.clients.is_empty())`.
    pub fn disconnect(self) {
        Shared::end(self.shared.change(|state| state.end(self.connection)));
    }

    /// Makes the existing connections half-open: nothing is read from them and nothing is written, heartbeats
    /// included, and they are not closed either. New connections work.
    ///
    /// A TLS handshake that is under way goes on. The broker itself goes on, too: it still sends the messages that RDY allows, into the void, and they time out.
    pub fn freeze(self) {
        self.stall_reads(true);
        self.stall_writes(true);
    }

    /// Lets frozen and stalled connections go on, with what has gathered meanwhile. The deadlines of frozen ones begin
    /// anew.
    pub fn thaw(self) {
        self.stall_reads(false);
        self.stall_writes(false);
    }

    /// Whether nothing is read from the existing connections: what clients send piles up, until they cannot write any
    /// more. What is to be written is, until nsqd's patience for the next command is over.
    pub fn stall_reads(self, stalled: bool) {
        self.shared.read(|state| {
            for client in state.clients_of(self.connection) {
                client.link.stall_reads(stalled);
            }
        });
    }

    /// Whether nothing is written to the existing connections: commands are carried out, and their answers pile up, up to
    /// 256 KiB.
    pub fn stall_writes(self, stalled: bool) {
        self.shared.read(|state| {
            for client in state.clients_of(self.connection) {
                client.link.stall_writes(stalled);
            }
        });
    }

    /// Writes these bytes to the existing connections, as they are, between two frames: what nobody has asked for, or
    /// what is no frame at all. A client that has not sent its magic yet gets them after it.
    pub fn inject(self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.shared.change(|state| state.inject(self.connection, &bytes));
    }

    /// Takes all faults back, those of all connections: scripted ones are forgotten, connections accepted and thawed. A
    /// broker that is [stopped](super::Nsqd::stop) stays so.
    ///
    /// # Errors
    /// As [`accept_connections`](Self::accept_connections).
    pub fn clear(self) -> io::Result<()> {
        let all = Self {
            connection: None,
            ..self
        };
        all.thaw();
        self.shared.change(|state| {
            state.script.clear();
            for client in state.clients.values() {
                client.link.set_write_budget(u64::MAX);
            }
        });
        self.accept_connections()
    }

    fn add(self, scope: Scope, fault: Fault) -> ActiveFault<'a> {
        let scope = Scope {
            connection: self.connection,
            ..scope
        };
        let id = self.shared.change(|state| state.script.add(scope, fault));
        ActiveFault {
            shared: self.shared,
            id,
        }
    }
}

impl fmt::Debug for Faults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.read(|state| fmt::Debug::fmt(&state.script, f))
    }
}

/// A fault that was set. Dropping this changes nothing: the fault stays in force.
pub struct ActiveFault<'a> {
    shared: &'a Arc<Shared>,
    id: u64,
}

impl ActiveFault<'_> {
    /// How often it has struck; 0 once it was lifted. That of [`cut_after_bytes`](Faults::cut_after_bytes) counts the
    /// connections that were accepted under it.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.shared.read(|state| state.script.hits(self.id)).unwrap_or_default()
    }

    /// Takes it back. What it has done stays done: a connection whose end is fixed by
    /// [`cut_after_bytes`](Faults::cut_after_bytes) is still cut.
    pub fn lift(self) {
        self.shared.change(|state| state.script.lift(self.id));
    }
}

impl fmt::Debug for ActiveFault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActiveFault")
            .field("hits", &self.hits())
            .finish_non_exhaustive()
    }
}

/// Which frames a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FrameKind {
    /// All frames.
    Any,
    /// Answers to commands: `OK`, `CLOSE_WAIT` and JSON.
    Response,
    /// Errors.
    Error,
    /// Messages.
    Message,
    /// Heartbeats.
    Heartbeat,
}

impl FrameKind {
    fn contains(self, kind: Self) -> bool {
        self == Self::Any || self == kind
    }
}
