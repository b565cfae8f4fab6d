//! One connection's task: it reads commands, and writes answers, messages and heartbeats.

mod auth;
mod command;
mod identify;
mod output;
mod upgrade;
mod wire;

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::time::{Instant, sleep_until, timeout};

use self::auth::Rights;
use self::command::{Answers, Stage};
use self::identify::Settings;
use self::output::Ticker;
use self::upgrade::Upgrade;
use self::wire::Wire;
use super::broker::Shared;
use super::client::Link;
use crate::protocol::{CommandBody, CommandParser, Frame, HEARTBEAT, MAGIC, Message};
use crate::test_server::auth::session::Authorizations;
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
    /// How far the current command has come.
    stage: Stage,
    /// What the current command waits for. Until then no further command is read; heartbeats and messages go on.
    job: Option<Job>,
    /// What IDENTIFY has granted and is still to be done.
    upgrade: Option<Upgrade>,
    settings: Settings,
    rights: Rights,
    identified: bool,
    /// The interval of the heartbeats and the time of the next one. The first IDENTIFY decides.
    heartbeat: Option<(Duration, Instant)>,
    read_deadline: Option<Instant>,
    ticker: Ticker,
    /// A command was carried out: what the client says of itself is known.
    has_spoken: bool,
    introduced: bool,
    /// What a fault does to the answers of the command at hand.
    answers: Answers,
    /// Answers that a fault keeps until after the next one.
    kept_answers: Vec<Frame>,
    /// A fault ends the connection once what is there has been written.
    doomed: bool,
    /// Messages on their way from the broker to the write buffer.
    batch: Vec<Message>,
}

/// What a command waits for.
type Job = Pin<Box<dyn Future<Output = Done> + Send>>;

/// What has been waited for.
enum Done {
    /// A delay is over.
    Rested,
    /// The auth server has answered, or cannot.
    Asked(io::Result<Authorizations>),
}

enum Flow {
    GoOn,
    Close,
}

impl Session {
    pub(super) fn new(id: u64, shared: Arc<Shared>, link: Arc<Link>, io: BoxIo) -> Self {
        let settings = Settings::new(&shared.options);
        Self {
            id,
            link,
            wire: Wire::new(io, settings.buffer_size()),
            parser: CommandParser::new(),
            stage: Stage::Line,
            job: None,
            upgrade: None,
            ticker: Ticker::new(settings.buffer_timeout(), Instant::now()),
            settings,
            rights: Rights::default(),
            identified: false,
            heartbeat: None,
            read_deadline: None,
            has_spoken: false,
            introduced: false,
            answers: Answers::Given,
            kept_answers: Vec::new(),
            doomed: false,
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
        let mut was_frozen = false;
        loop {
            if let Flow::Close = self.turn() {
                return self.close().await;
            }
            if let Some(upgrade) = self.upgrade.take() {
                match self.carry_out(upgrade).await {
                    Flow::GoOn => continue,
                    Flow::Close => return self.close().await,
                }
            }
            let frozen = self.link.is_frozen();
            if was_frozen && !frozen {
                self.rearm(Instant::now());
            }
            was_frozen = frozen;
            if !frozen {
                // Here, too, since a client that never stops sending leaves no turn to the timer.
                self.do_what_is_due(Instant::now());
            }
            if timer.deadline() > self.next_timer() || timer.is_elapsed() {
                timer.as_mut().reset(self.next_timer());
            }
            let needed = self.wants_input().then(|| self.stage.needed());
            let may_transfer = needed.is_some_and(|_| !self.wire.eof) || self.wire.has_output();
            tokio::select! {
                biased;
                moved = self.wire.transfer(needed, &self.link), if may_transfer => {
                    if moved.is_err() {
                        return;
                    }
                }
                done = wait_for(&mut self.job), if self.job.is_some() => {
                    self.job = None;
                    self.resume(done, Instant::now());
                }
                () = self.link.wake.notified() => {}
                () = timer.as_mut(), if !frozen => {
                    if let Flow::Close = self.on_timer(Instant::now()) {
                        return self.close().await;
                    }
                }
            }
        }
    }

    fn wants_input(&self) -> bool {
        self.wire.pending() < OUT_LIMIT && self.job.is_none()
    }

    /// Waits for the first four bytes, however long that takes. `None` if they do not come.
    async fn read_magic(&mut self) -> Option<bool> {
        while self.wire.input.len() < MAGIC.len() {
            tokio::select! {
                biased;
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
        // A command that waits for something makes nobody impatient.
        let deadline = self.read_deadline.filter(|_| self.job.is_none());
        let flush = self.ticker.next().filter(|_| self.wire.held() > 0);
        let next = [heartbeat, deadline, flush, self.wire.next_due()];
        next.into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| Instant::now() + IDLE)
    }

    fn on_timer(&mut self, now: Instant) -> Flow {
        let impatient = self.job.is_none() && self.read_deadline.is_some_and(|deadline| deadline <= now);
        if impatient {
            self.put_cut_off();
            return Flow::Close;
        }
        self.do_what_is_due(now);
        Flow::GoOn
    }

    /// Lets go what was held back until now, and sends the heartbeat.
    fn do_what_is_due(&mut self, now: Instant) {
        self.wire.release_delayed(now);
        self.flush_by_ticker(now);
        if let Some((interval, next)) = self.heartbeat {
            if next <= now {
                // One that is late moves the later ones: they never come in a burst.
                self.heartbeat = Some((interval, now + interval));
                let shared = Arc::clone(&self.shared);
                shared.change(|state| self.put(state, &Frame::Response(Bytes::from_static(HEARTBEAT))));
            }
        }
    }

    async fn close(mut self) {
        let patience = self.settings.heartbeat.unwrap_or(LAST_WORDS) + self.wire.longest_delay();
        // Whether the peer has read it is the peer's business; the connection ends in any case.
        let _ = timeout(patience, self.wire.finish(&self.link)).await;
    }

    /// Carries out the commands that are there, and fetches the messages that are to be sent.
    fn turn(&mut self) -> Flow {
        let now = Instant::now();
        let shared = Arc::clone(&self.shared);
        let (flow, wants_more) = shared.change(|state| {
            let flow = self.process(state, now);
            if self.wire.pending() >= OUT_LIMIT {
                return (flow, true);
            }
            let wants_more = state.take_outbox(self.id, &mut self.batch, now);
            self.put_faulty(state);
            (flow, wants_more)
        });
        if self.has_spoken && !self.introduced {
            self.introduce();
        }
        self.put_messages();
        self.flush_as_nsqd(wants_more, now);
        if self.doomed { Flow::Close } else { flow }
    }

    /// If a body was begun, says that it did not come.
    fn put_cut_off(&mut self) {
        if let Stage::Body(body) = &self.stage {
            let error = body.cut_off();
            self.wire.put(&Frame::Error(error.text().clone()));
        }
    }
}

impl Session {
    /// Says in the log who this is, once for each connection.
    fn introduce(&mut self) {
        self.introduced = true;
        let client = self.shared.read(|state| {
            let client = state.clients.get(&self.id);
            client.map(|client| (client.remote.clone(), client.agreed.clone()))
        });
        if let Some((remote, agreed)) = client {
            let agent = match agreed.user_agent.as_str() {
                "" => "a client that gives no user agent",
                agent => agent,
            };
            tracing::info!("client {}: {agent} from {remote}, id {:?}", self.id, agreed.client_id);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.introduced {
            self.introduce();
        }
        self.shared.change(|state| state.remove_client(self.id));
    }
}

/// Waits for a job, and for ever if there is none.
async fn wait_for(job: &mut Option<Job>) -> Done {
    match job {
        Some(job) => job.await,
        None => std::future::pending().await,
    }
}

impl Stage {
    /// How many bytes the next step needs, as far as that is known.
    fn needed(&self) -> usize {
        match self {
            Self::Body(body) => CommandBody::needed(body),
            _ => 0,
        }
    }
}
