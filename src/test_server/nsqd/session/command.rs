//! How a command is read, judged in nsqd's order, and carried out.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Done, Flow, OUT_LIMIT, Session};
use crate::protocol::{
    CLOSE_WAIT, Command, CommandBody, CommandError, CommandHead, CommandLine, CommandName, Frame, LineTooLong,
    MessageId, OK,
};
use crate::test_server::nsqd::channel::Refusal;
use crate::test_server::nsqd::client::Phase;
use crate::test_server::nsqd::faults::CommandFault;
use crate::test_server::nsqd::record::body_bytes;
use crate::test_server::nsqd::state::State;
use crate::test_server::nsqd::stats::Received;
use crate::test_server::tls::TlsRequired;

/// How far the current command has come.
pub(super) enum Stage {
    /// Its line is to be read.
    Line,
    /// Its line is read. Before the body of an MPUB, nsqd asks whether its sender may.
    Head(CommandBody),
    /// Its body is to come.
    Body(CommandBody),
    /// It is complete, and it is to be asked whether its sender may.
    Complete(Command),
    /// Its sender may, and a fault may strike it.
    Allowed(Command),
    /// It has waited, and goes on with the fault that has struck it, if that is not over.
    Resumed(Command, Option<CommandFault>),
}

/// What became of a command.
enum Step {
    /// It is done, or on its way through the stages.
    GoOn,
    Incomplete,
    /// It goes on when the job is done or the connection is upgraded.
    Wait,
}

/// Why a connection is closed by the broker.
pub(super) enum Fatal {
    Silently,
    With(CommandError),
}

impl From<CommandError> for Fatal {
    fn from(error: CommandError) -> Self {
        Self::With(error)
    }
}

impl From<LineTooLong> for Fatal {
    fn from(_: LineTooLong) -> Self {
        Self::Silently
    }
}

impl Session {
    pub(super) fn process(&mut self, state: &mut State, now: Instant) -> Flow {
        while self.wire.pending() < OUT_LIMIT && self.job.is_none() && self.upgrade.is_none() && !self.doomed {
            match self.step(state, now) {
                Ok(Step::GoOn) => {}
                Ok(Step::Incomplete) if self.wire.eof => {
                    self.put_cut_off();
                    return Flow::Close;
                }
                Ok(Step::Incomplete | Step::Wait) => return Flow::GoOn,
                Err(Fatal::Silently) => return Flow::Close,
                Err(Fatal::With(error)) => {
                    self.put_answer(state, Frame::Error(error.text().clone()));
                    return Flow::Close;
                }
            }
        }
        Flow::GoOn
    }

    /// Takes the current command one stage on.
    fn step(&mut self, state: &mut State, now: Instant) -> Result<Step, Fatal> {
        match std::mem::replace(&mut self.stage, Stage::Line) {
            Stage::Line => {
                let Some(line) = self.parser.line(&mut self.wire.input)? else {
                    return Ok(Step::Incomplete);
                };
                self.begin(state, &line, now)?;
                Ok(Step::GoOn)
            }
            Stage::Body(mut body) => match body.decode(&mut self.wire.input)? {
                Some(command) => {
                    self.stage = Stage::Complete(command);
                    Ok(Step::GoOn)
                }
                None => {
                    self.stage = Stage::Body(body);
                    Ok(Step::Incomplete)
                }
            },
            Stage::Head(body) => {
                let topic = body.topic().unwrap_or_default();
                if !self.authorize(body.name(), topic, "", now)? {
                    self.stage = Stage::Head(body);
                    return Ok(Step::Wait);
                }
                // It creates its topic before its body is read.
                state.ensure_topic(topic, now);
                self.stage = Stage::Body(body);
                Ok(Step::GoOn)
            }
            Stage::Complete(command) => match self.may(&command, now)? {
                true => {
                    self.stage = Stage::Allowed(command);
                    Ok(Step::GoOn)
                }
                false => {
                    self.stage = Stage::Complete(command);
                    Ok(Step::Wait)
                }
            },
            Stage::Allowed(command) => {
                let fault = match state.script.is_empty() {
                    true => None,
                    false => state.script.on_command(self.id, command.name()),
                };
                self.conclude(state, command, fault, now)
            }
            Stage::Resumed(command, fault) => self.conclude(state, command, fault, now),
        }
    }

    /// What nsqd checks before it looks at a body.
    fn begin(&mut self, state: &mut State, line: &CommandLine, now: Instant) -> Result<(), Fatal> {
        self.check_encryption(state, line)?;
        if !self.is_due(state, line.name()?)? {
            self.await_command(now);
            return Ok(());
        }
        self.stage = match line.read(&self.shared.options.limits)? {
            CommandHead::Command(command) => Stage::Complete(command),
            CommandHead::Body(body) if body.name() == CommandName::Mpub => Stage::Head(body),
            CommandHead::Body(body) => Stage::Body(body),
        };
        Ok(())
    }

    /// Where TLS is required, all but IDENTIFY is refused without it, what is no command included.
    fn check_encryption(&self, state: &State, line: &CommandLine) -> Result<(), CommandError> {
        let required = self.shared.options.tls_required != TlsRequired::No;
        if !required || line.word() == CommandName::Identify.as_str().as_bytes() {
            return Ok(());
        }
        match state.clients.get(&self.id) {
            Some(client) if client.agreed.encryption.is_none() => Err(CommandError::new(
                [b"E_INVALID cannot ", line.word(), b" in current state (TLS required)"].concat(),
            )),
            _ => Ok(()),
        }
    }

    /// What nsqd checks before it looks at parameters. `false` is a command to be ignored.
    fn is_due(&self, state: &State, name: CommandName) -> Result<bool, CommandError> {
        use CommandName::{Auth, Cls, Dpub, Fin, Identify, Mpub, Nop, Pub, Rdy, Req, Sub, Touch};

        let phase = state
            .clients
            .get(&self.id)
            .map_or(Phase::Closing, |client| client.phase);
        match (name, phase) {
            (Sub, Phase::Init) if self.settings.heartbeat.is_none() => {
                Err(CommandError::new("E_INVALID cannot SUB with heartbeats disabled"))
            }
            (Identify | Auth | Sub, Phase::Init)
            | (Rdy | Cls, Phase::Subscribed)
            | (Fin | Req | Touch, Phase::Subscribed | Phase::Closing)
            | (Pub | Mpub | Dpub | Nop, _) => Ok(true),
            (Rdy, Phase::Closing) => Ok(false),
            _ => Err(CommandError::wrong_state(name)),
        }
    }

    /// Carries a complete command out, unless a fault has other plans.
    fn conclude(
        &mut self,
        state: &mut State,
        command: Command,
        fault: Option<CommandFault>,
        now: Instant,
    ) -> Result<Step, Fatal> {
        if let Some(CommandFault::Delay(delay)) = fault {
            self.stage = Stage::Resumed(command, None);
            self.job = Some(Box::pin(async move {
                tokio::time::sleep(delay).await;
                Done::Rested
            }));
            return Ok(Step::Wait);
        }
        let result = match fault.clone() {
            Some(fault) => self.apply_faulty(state, &command, fault, now),
            None => self.apply(state, &command, now),
        };
        if self.job.is_some() {
            // The auth server is being asked: what the fault concerns is still to come.
            self.stage = Stage::Resumed(command, fault);
            return result.map(|()| Step::Wait);
        }
        if !state.record.is_off() {
            let weight = body_bytes(&command);
            let received = Received {
                connection: self.id,
                at: now,
                command,
            };
            state.record.push(received, weight);
        }
        result?;
        self.has_spoken = true;
        self.await_command(now);
        Ok(Step::GoOn)
    }

    fn apply_faulty(
        &mut self,
        state: &mut State,
        command: &Command,
        fault: CommandFault,
        now: Instant,
    ) -> Result<(), Fatal> {
        match fault {
            CommandFault::Ignore | CommandFault::Delay(_) => Ok(()),
            CommandFault::Answer(frame) => {
                if let Frame::Error(text) = &frame {
                    let error = CommandError::new(text.clone());
                    if error.code().is_fatal() {
                        return Err(error.into());
                    }
                }
                self.put_answer(state, frame);
                Ok(())
            }
            CommandFault::Disconnect => Err(Fatal::Silently),
            CommandFault::Late => {
                if let Command::Fin { id } | Command::Req { id, .. } | Command::Touch { id } = command {
                    state.time_out(self.id, id);
                }
                let result = self.apply(state, command, now);
                // Not earlier: the message would be this client's again when the command looks for it.
                state.settle_subscription(self.id, now);
                result
            }
            CommandFault::Swallow => {
                self.answers = Answers::Swallowed;
                let result = self.apply(state, command, now);
                self.answers = Answers::Given;
                result
            }
            CommandFault::HoldAnswer => {
                self.answers = Answers::Kept;
                let result = self.apply(state, command, now);
                self.answers = Answers::Given;
                result
            }
            CommandFault::DisconnectAfter => {
                self.answers = Answers::Swallowed;
                self.apply(state, command, now)?;
                match self.job {
                    Some(_) => Ok(()),
                    None => Err(Fatal::Silently),
                }
            }
        }
    }

    fn apply(&mut self, state: &mut State, command: &Command, now: Instant) -> Result<(), Fatal> {
        let name = command.name();
        match command {
            Command::Identify { body } => self.identify(state, body, now)?,
            Command::Auth { secret } => {
                // If it is not done yet, the job that was begun will tell.
                let _done = self.authenticate(state, secret)?;
            }
            Command::Sub { topic, channel } => {
                state
                    .subscribe(self.id, topic, channel, now)
                    .map_err(|cause| CommandError::new(format!("E_SUB_FAILED SUB failed {cause}")))?;
                self.put_response(state, OK);
                self.flush_idle();
            }
            Command::Pub { topic, body } => self.publish(state, name, topic, std::slice::from_ref(body), None, now)?,
            Command::Mpub { topic, bodies } => self.publish(state, name, topic, bodies, None, now)?,
            Command::Dpub { topic, delay_ms, body } => {
                let delay = Some(Duration::from_millis(*delay_ms));
                self.publish(state, name, topic, std::slice::from_ref(body), delay, now)?;
            }
            Command::Rdy { count } => {
                state.set_rdy(self.id, *count, now);
                if *count == 0 {
                    self.flush_idle();
                }
            }
            Command::Fin { id } => {
                let result = state.finish(self.id, id, now);
                self.put_refusal(state, name, id, result);
            }
            Command::Req { id, delay_ms } => {
                let result = state.requeue(self.id, id, self.req_delay(*delay_ms), now);
                self.put_refusal(state, name, id, result);
            }
            Command::Touch { id } => {
                let result = state.touch(self.id, id, now);
                self.put_refusal(state, name, id, result);
            }
            Command::Cls => {
                state.start_close(self.id);
                self.put_response(state, CLOSE_WAIT);
            }
            Command::Nop => {}
        }
        Ok(())
    }

    fn publish(
        &mut self,
        state: &mut State,
        name: CommandName,
        topic: &str,
        bodies: &[Bytes],
        delay: Option<Duration>,
        now: Instant,
    ) -> Result<(), Fatal> {
        state
            .publish(topic, bodies, delay, now)
            .map_err(|cause| CommandError::new(format!("E_{name}_FAILED {name} failed {cause}")))?;
        if let Some(client) = state.clients.get_mut(&self.id) {
            client.count_published(topic, bodies.len());
        }
        self.put_response(state, OK);
        Ok(())
    }

    /// nsqd counts in signed nanoseconds, which wrap, and takes what is out of range for its nearest bound.
    fn req_delay(&self, delay_ms: u64) -> Duration {
        let nanos = (delay_ms as i64).wrapping_mul(1_000_000);
        let delay = Duration::from_nanos(u64::try_from(nanos).unwrap_or_default());
        delay.min(self.shared.options.limits.max_req_timeout)
    }

    fn put_refusal(&mut self, state: &mut State, name: CommandName, id: &MessageId, result: Result<(), Refusal>) {
        if let Err(refusal) = result {
            let text = [
                format!("E_{name}_FAILED {name} ").as_bytes(),
                id.as_bytes(),
                b" failed ",
                refusal.as_str().as_bytes(),
            ]
            .concat();
            self.put_answer(state, Frame::Error(text.into()));
        }
    }

    /// What a command has waited for is done: it goes on with the next turn.
    pub(super) fn resume(&mut self, done: Done, now: Instant) {
        match done {
            Done::Rested => {}
            Done::Asked(answer) => self.rights.take_in(answer),
        }
        self.await_command(now);
    }
}

/// What happens to the answers of the command at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    Given,
    Swallowed,
    /// Given after the next one.
    Kept,
}
