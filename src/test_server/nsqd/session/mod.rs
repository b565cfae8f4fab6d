//! One connection's task: it reads commands, and writes answers, messages and heartbeats.

mod identify;
mod wire;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::time::{Instant, sleep_until, timeout};

use self::identify::Settings;
use self::wire::Wire;
use super::broker::{Shared, State, batch_weight};
use super::client::{Link, Phase};
use crate::protocol::{
    CLOSE_WAIT, Command, CommandBody, CommandError, CommandHead, CommandName, CommandParser, Frame, HEARTBEAT,
    LineTooLong, MAGIC, Message, OK,
};
use crate::transport::BoxIo;

/// How many bytes may wait to be written before no further command is read and no further message is encoded: a peer
/// that does not read its answers is held up, as by nsqd.
const OUT_LIMIT: usize = 256 * 1024;

/// How long the task sleeps where no timer is due: any long time.
const IDLE: Duration = Duration::from_secs(24 * 3600);

/// How long a connection without heartbeats may take to read its last answer.
const LAST_WORDS: Duration = Duration::from_secs(30);

pub(super) struct Session {
    id: u64,
    shared: Arc<Shared>,
    link: Arc<Link>,
    wire: Wire,
    parser: CommandParser,
    body: Option<CommandBody>,
    settings: Settings,
    identified: bool,
    /// The interval of the heartbeats and the time of the next one. The first IDENTIFY decides.
    heartbeat: Option<(Duration, Instant)>,
    read_deadline: Option<Instant>,
    /// Messages on their way from the broker to the write buffer.
    batch: Vec<Message>,
}

enum Flow {
    GoOn,
    Close,
}

/// Why a connection is closed by the broker.
enum Fatal {
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
    pub(super) fn new(id: u64, shared: Arc<Shared>, link: Arc<Link>, io: BoxIo) -> Self {
        let settings = Settings::new(&shared.options);
        Self {
            id,
            link,
            wire: Wire::new(io),
            parser: CommandParser::new(),
            body: None,
            settings,
            identified: false,
            heartbeat: None,
            read_deadline: None,
            batch: Vec::new(),
            shared,
        }
    }

    /// Serves the connection until it ends.
    pub(super) async fn run(mut self) {
        match self.read_magic().await {
            Some(true) => {}
            Some(false) => {
                self.wire.put(&Frame::Error(Bytes::from_static(b"E_BAD_PROTOCOL")));
                return self.close().await;
            }
            None => return,
        }
        self.rearm(Instant::now());
        let mut timer = pin!(sleep_until(self.next_timer()));
        loop {
            if let Flow::Close = self.turn() {
                return self.close().await;
            }
            if timer.deadline() > self.next_timer() || timer.is_elapsed() {
                timer.as_mut().reset(self.next_timer());
            }
            let needed = (self.wire.out.len() < OUT_LIMIT).then(|| self.body.as_ref().map_or(0, CommandBody::needed));
            let may_transfer = needed.is_some_and(|_| !self.wire.eof) || self.wire.has_output();
            let frozen = self.link.is_frozen();
            tokio::select! {
                biased;
                moved = self.wire.transfer(needed, &self.link), if may_transfer => {
                    if moved.is_err() {
                        return;
                    }
                }
                () = self.link.wake.notified() => {}
                () = timer.as_mut(), if !frozen => {
                    if let Flow::Close = self.on_timer(Instant::now()) {
                        return self.close().await;
                    }
                }
            }
            if frozen && !self.link.is_frozen() {
                self.rearm(Instant::now());
            }
        }
    }

    /// Waits for the first four bytes, however long that takes. `None` if they do not come.
    async fn read_magic(&mut self) -> Option<bool> {
        while self.wire.input.len() < MAGIC.len() {
            tokio::select! {
                moved = self.wire.transfer(Some(0), &self.link) => moved.ok()?,
                // Thawed.
                () = self.link.wake.notified() => continue,
            }
            if self.wire.eof {
                return None;
            }
        }
        let is_magic = self.wire.input.starts_with(MAGIC);
        self.wire.input.advance(MAGIC.len());
        Some(is_magic)
    }

    /// Lets heartbeats and patience begin anew.
    fn rearm(&mut self, now: Instant) {
        let interval = match self.heartbeat {
            Some((interval, _)) => Some(interval),
            None if self.identified => None,
            None => self.settings.heartbeat,
        };
        self.heartbeat = interval.map(|interval| (interval, now + interval));
        self.await_command(now);
    }

    /// The patience for the next command begins.
    fn await_command(&mut self, now: Instant) {
        self.read_deadline = self.settings.heartbeat.map(|interval| now + 2 * interval);
    }

    fn next_timer(&self) -> Instant {
        let heartbeat = self.heartbeat.map(|(_, next)| next);
        let next = match (heartbeat, self.read_deadline) {
            (Some(heartbeat), Some(deadline)) => Some(heartbeat.min(deadline)),
            (heartbeat, deadline) => heartbeat.or(deadline),
        };
        next.unwrap_or_else(|| Instant::now() + IDLE)
    }

    fn on_timer(&mut self, now: Instant) -> Flow {
        if self.read_deadline.is_some_and(|deadline| deadline <= now) {
            self.put_cut_off();
            return Flow::Close;
        }
        if let Some((interval, next)) = self.heartbeat {
            if next <= now {
                // One that is late moves the later ones: they never come in a burst.
                self.heartbeat = Some((interval, now + interval));
                if !self.shared.read(|state| state.script.drop_heartbeats) {
                    self.put_response(HEARTBEAT);
                }
            }
        }
        Flow::GoOn
    }

    fn put_response(&mut self, text: &'static [u8]) {
        self.wire.put(&Frame::Response(Bytes::from_static(text)));
    }

    /// If a body was begun, says that it did not come.
    fn put_cut_off(&mut self) {
        if let Some(body) = &self.body {
            let error = body.cut_off();
            self.wire.put(&Frame::Error(error.text().clone()));
        }
    }

    async fn close(mut self) {
        let patience = self.settings.heartbeat.unwrap_or(LAST_WORDS);
        // Whether the peer has read it is the peer's business; the connection ends in any case.
        let _ = timeout(patience, self.wire.finish(&self.link)).await;
    }

    /// Carries out the commands that are there, and fetches the messages that are to be sent.
    fn turn(&mut self) -> Flow {
        let now = Instant::now();
        let shared = Arc::clone(&self.shared);
        let flow = shared.change(|state| {
            let flow = self.process(state, now);
            if self.wire.out.len() < OUT_LIMIT {
                state.take_outbox(self.id, &mut self.batch, now);
            }
            flow
        });
        self.wire.out.reserve(batch_weight(&self.batch));
        for message in self.batch.drain(..) {
            self.wire.put(&Frame::Message(message));
        }
        flow
    }

    fn process(&mut self, state: &mut State, now: Instant) -> Flow {
        while self.wire.out.len() < OUT_LIMIT {
            match self.step(state, now) {
                Ok(true) => self.await_command(now),
                Ok(false) if self.wire.eof => {
                    self.put_cut_off();
                    return Flow::Close;
                }
                Ok(false) => return Flow::GoOn,
                Err(Fatal::Silently) => return Flow::Close,
                Err(Fatal::With(error)) => {
                    self.wire.put(&Frame::Error(error.text().clone()));
                    return Flow::Close;
                }
            }
        }
        Flow::GoOn
    }

    /// Carries out one command, or returns `false` if it has not arrived in full.
    fn step(&mut self, state: &mut State, now: Instant) -> Result<bool, Fatal> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => {
                let Some(line) = self.parser.line(&mut self.wire.input)? else {
                    return Ok(false);
                };
                if !self.is_due(state, line.name()?)? {
                    return Ok(true);
                }
                match line.read(&self.shared.options.limits)? {
                    CommandHead::Command(command) => return self.execute(state, command, now).map(|()| true),
                    CommandHead::Body(body) => self.begin_body(state, body),
                }
            }
        };
        match body.decode(&mut self.wire.input)? {
            Some(command) => self.execute(state, command, now).map(|()| true),
            None => {
                self.body = Some(body);
                Ok(false)
            }
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

    /// MPUB creates its topic before its body is read.
    fn begin_body(&self, state: &mut State, body: CommandBody) -> CommandBody {
        if let (CommandName::Mpub, Some(topic)) = (body.name(), body.topic()) {
            state.ensure_topic(topic);
        }
        body
    }

    fn execute(&mut self, state: &mut State, command: Command, now: Instant) -> Result<(), Fatal> {
        let result = self.apply(state, &command, now);
        state.record(self.id, now, command);
        result
    }

    fn apply(&mut self, state: &mut State, command: &Command, now: Instant) -> Result<(), Fatal> {
        let name = command.name();
        match command {
            Command::Identify { body } => self.identify(state, body, now)?,
            Command::Auth { .. } => return Err(CommandError::new("E_AUTH_DISABLED AUTH disabled").into()),
            Command::Sub { topic, channel } => {
                state.subscribe(self.id, topic, channel, now);
                self.put_response(OK);
            }
            Command::Pub { topic, body } => self.publish(state, name, topic, std::slice::from_ref(body), None, now)?,
            Command::Mpub { topic, bodies } => self.publish(state, name, topic, bodies, None, now)?,
            Command::Dpub { topic, delay_ms, body } => {
                let delay = Some(Duration::from_millis(*delay_ms));
                self.publish(state, name, topic, std::slice::from_ref(body), delay, now)?;
            }
            Command::Rdy { count } => state.set_rdy(self.id, *count, now),
            Command::Fin { id } => match state.script.next_finish_error() {
                Some(text) => self.refuse(text)?,
                None => {
                    let result = state.finish(self.id, id, now);
                    self.put_refusal(name, id, result);
                }
            },
            Command::Req { id, delay_ms } => {
                let result = state.requeue(self.id, id, self.req_delay(*delay_ms), now);
                self.put_refusal(name, id, result);
            }
            Command::Touch { id } => {
                let result = state.touch(self.id, id, now);
                self.put_refusal(name, id, result);
            }
            Command::Cls => {
                if let Some(client) = state.clients.get_mut(&self.id) {
                    client.phase = Phase::Closing;
                    client.rdy = 0;
                }
                self.put_response(CLOSE_WAIT);
            }
            Command::Nop => {}
        }
        Ok(())
    }

    fn identify(&mut self, state: &mut State, body: &[u8], now: Instant) -> Result<(), CommandError> {
        self.settings.negotiate(body, &self.shared.options)?;
        if let Some(client) = state.clients.get_mut(&self.id) {
            client.client_id.clone_from(&self.settings.client_id);
            client.hostname.clone_from(&self.settings.hostname);
            client.user_agent.clone_from(&self.settings.user_agent);
            client.touch_timeout = self.settings.msg_timeout;
            if !self.identified {
                client.msg_timeout = self.settings.msg_timeout;
                client.sample_rate = self.settings.sample_rate;
            }
        }
        if !self.identified {
            self.identified = true;
            self.heartbeat = self.settings.heartbeat.map(|interval| (interval, now + interval));
        }
        if self.settings.negotiates {
            let answer = self.settings.answer(&self.shared.options);
            self.wire.put(&Frame::Response(answer.into()));
        } else {
            self.put_response(OK);
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
        if let Some(text) = state.script.next_publish_error() {
            return self.refuse(text);
        }
        state
            .publish(topic, bodies, delay, now)
            .map_err(|cause| CommandError::new(format!("E_{name}_FAILED {name} failed {cause}")))?;
        if !state.script.swallows_publish_answer() {
            self.put_response(OK);
        }
        Ok(())
    }

    /// A scripted refusal, fatal if its code is.
    fn refuse(&mut self, text: Bytes) -> Result<(), Fatal> {
        let error = CommandError::new(text);
        if error.code().is_fatal() {
            return Err(error.into());
        }
        self.wire.put(&Frame::Error(error.text().clone()));
        Ok(())
    }

    /// nsqd counts in signed nanoseconds, which wrap, and takes what is out of range for its nearest bound.
    fn req_delay(&self, delay_ms: u64) -> Duration {
        let nanos = (delay_ms as i64).wrapping_mul(1_000_000);
        let delay = Duration::from_nanos(u64::try_from(nanos).unwrap_or_default());
        delay.min(self.shared.options.limits.max_req_timeout)
    }

    fn put_refusal(
        &mut self,
        name: CommandName,
        id: &crate::protocol::MessageId,
        result: Result<(), super::channel::Refusal>,
    ) {
        if let Err(refusal) = result {
            let text = [
                format!("E_{name}_FAILED {name} ").as_bytes(),
                id.as_bytes(),
                b" failed ",
                refusal.as_str().as_bytes(),
            ]
            .concat();
            self.wire.put(&Frame::Error(text.into()));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.change(|state| state.remove_client(self.id));
    }
}
