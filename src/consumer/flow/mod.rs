//! How many messages each nsqd may send: RDY and backoff of one consumer over all its connections.
//!
//! Pure decisions: events and the time come in, RDY commands come out. See [`Flow`].

mod backoff;
mod rdy;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use self::backoff::{BackoffState, Phase};
use self::rdy::{Connection, Connections};
use crate::backoff::Backoff;

/// No redistribution comes sooner than this after the last, however many nsqds share a few slots: it bounds the work
/// at the price of fairness beyond some hundred nsqds for each slot.
const MIN_TICK: Duration = Duration::from_millis(100);

/// One connection of the consumer. A reconnection is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionId(pub(crate) u64);

/// What [`Flow`] goes by, under go-nsq's names and with its defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowOptions {
    /// How many messages may be in flight over all connections. Default 1; with 0 nothing comes.
    pub(crate) max_in_flight: u32,
    /// The longest pause after failures. Default 2 min, range 0 to 60 min; 0 never pauses.
    pub(crate) max_backoff_duration: Duration,
    /// How long a connection may hold RDY without a message while others could use it. Default 10 s, range 1 s to 5 min.
    pub(crate) low_rdy_idle_timeout: Duration,
    /// How long a connection waits at most for RDY when there are more of them than `max_in_flight`. Default 30 s,
    /// range 1 s to 5 min.
    pub(crate) low_rdy_timeout: Duration,
    /// How often RDY is moved between connections, at least, while there is reason to. Default 5 s, range 1 ms to 5 s.
    pub(crate) rdy_redistribute_interval: Duration,
}

impl Default for FlowOptions {
    fn default() -> Self {
        Self {
            max_in_flight: 1,
            max_backoff_duration: Duration::from_secs(120),
            low_rdy_idle_timeout: Duration::from_secs(10),
            low_rdy_timeout: Duration::from_secs(30),
            rdy_redistribute_interval: Duration::from_secs(5),
        }
    }
}

/// What became of a message, as far as backoff is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Finished.
    Success,
    /// Requeued, and the cause may well hit the next message too.
    Failure,
    /// Requeued for a cause of its own.
    FailureWithoutBackoff,
}

/// A RDY command to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RdyChange {
    pub(crate) id: ConnectionId,
    pub(crate) rdy: u32,
}

/// Whether a connection has about as much in flight as its RDY lets nsqd send, so that it is worth while to answer what
/// is there before asking for more: go-nsq's rule, 85 % of RDY and at least one message. It is for connections that are
/// not closing.
pub(crate) fn is_starved(in_flight: u32, rdy: u32) -> bool {
    in_flight > 0 && u64::from(in_flight) >= u64::from(rdy) * 85 / 100
}

/// Why nsqd is to send nothing on a connection, that is, why its RDY is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PauseReason {
    /// Messages failed: the whole consumer waits, or tries one message on another connection.
    Backoff,
    /// `max_in_flight` is 0.
    MaxInFlightZero,
    /// The consumer was paused.
    Paused,
    /// Other connections use all of `max_in_flight`, or still have messages from when they did.
    WaitingForShare,
    /// nsqd sent more than was asked for, because it took messages back from handlers that are too slow.
    Overrun,
    /// The connection is being closed.
    Closing,
}

/// The flow control of one consumer over all its connections.
///
/// # Backoff
///
/// ```text
///                Failure (level 1): RDY 0 everywhere
///      +--------+ -------------------------------> +---------+ <-----------------------------+
///      | Normal |                                  | Waiting |  outcomes are ignored         |
///      | level 0|                                  | level n |                               |
///      +--------+                                  +---------+                               |
///          ^                                            | timer of level n ends              |
///          |                                            v                                    |
///          |  Success at level 1:                  +---------+  Success: level n - 1         |
///          +-------------------------------------- | Probing |  Failure: level n + 1 --------+
///             everyone gets its share              | level n |  FailureWithoutBackoff: n
///                                                  +---------+
///                                                       ^ |  no connection, the probe's connection lost, closing
///                                                       +-+  or silent: RDY 1 to another as soon as there is one
/// ```
///
/// Probing is a wish, not an event: it stays until one connection has RDY 1, so no order of losses and closings can
/// leave the consumer without a way back.
///
/// # RDY of one connection
///
/// ```text
///                       it has its turn, and something is free (1 first, then up to its share)
///      +-------+ ------------------------------------------------------------------> +---------+
///      | RDY 0 |                                                                     | RDY > 0 |
///      +-------+ <------------------------------------------------------------------ +---------+
///                       backoff, paused, turn over, or more in flight than RDY allowed
/// ```
///
/// What is free is `max_in_flight` less the sum over all connections, closing ones included, of max(RDY, in flight).
/// A lowered connection counts with its old RDY until a report says that fewer are in flight, because nsqd never
/// answers RDY. While the sum is above `max_in_flight` nothing rises.
///
/// Where there is room for all, each has an even share. A new connection has RDY 1 until its first message: an nsqd that
/// is slow or empty is not handed a large window unseen. One that has been silent keeps 1, too, and both lend the rest to
/// the busy ones until their next message. With more connections than `max_in_flight`, that many have RDY 1 and the
/// turns go round, so that none waits longer than `low_rdy_timeout`.
///
/// A pause is a `max_in_flight` of 0 that remembers the number. The backoff goes on underneath: its timer runs, and the
/// probe that is due then is sent once the pause is over.
///
/// # How to drive it
///
/// One owner calls the `handle_*` methods and after each of them, in this order:
/// 1. takes everything from [`poll_rdy`](Flow::poll_rdy) and sends it on, lowerings before raisings as they come;
/// 2. has each connection watch for [`notify_above`](Flow::notify_above) and [`notify_below`](Flow::notify_below), and
///    if the count is beyond one of them already, calls [`handle_all_in_flight`](Flow::handle_all_in_flight) and starts over;
/// 3. sleeps until [`poll_timeout`](Flow::poll_timeout); before [`handle_timeout`](Flow::handle_timeout) it reports the
///    counts of all connections, for who is silent is judged by these reports.
///
/// The RDY commands that follow a failure must be written before the REQ that tells nsqd of it.
///
/// The same seed and the same calls give the same commands.
#[derive(Debug)]
pub(crate) struct Flow {
    options: FlowOptions,
    paused: bool,
    backoff: BackoffState,
    /// The connection whose next message decides, chosen in [`Phase::Probing`] as soon as there is one that qualifies.
    probe: Option<ConnectionId>,
    connections: Connections,
    redistribute_at: Option<Instant>,
    rng: fastrand::Rng,
}

impl Flow {
    pub(crate) fn new(options: FlowOptions, strategy: Box<dyn Backoff>, seed: u64) -> Self {
        Self {
            options,
            paused: false,
            backoff: BackoffState::new(strategy, options.max_backoff_duration),
            probe: None,
            connections: Connections::new(),
            redistribute_at: None,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// A connection is subscribed and may get RDY. `max_rdy_count` is what its nsqd said in its IDENTIFY answer.
    pub(crate) fn handle_connected(&mut self, id: ConnectionId, max_rdy_count: u32, now: Instant) {
        self.connections.insert(id, Connection::new(max_rdy_count, now));
        self.plan(now);
    }

    /// A connection is gone, and its messages with it: nsqd delivers them again to whoever is next.
    pub(crate) fn handle_closed(&mut self, id: ConnectionId, now: Instant) {
        if self.connections.remove(&id).is_some() {
            self.plan(now);
        }
    }

    /// CLS was queued on a connection: it gets no more RDY, and stays charged for what it has in flight.
    pub(crate) fn handle_closing(&mut self, id: ConnectionId, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.closing = true;
        connection.lower(0, now);
        // nsqd sets it to zero by itself.
        connection.sent = 0;
        self.plan(now);
    }

    /// Takes reports on connections: how many messages each has in flight, and whether any came since its last report.
    pub(crate) fn handle_all_in_flight(
        &mut self,
        reports: impl IntoIterator<Item = (ConnectionId, u32, bool)>,
        now: Instant,
    ) {
        for (id, in_flight, received) in reports {
            self.note_in_flight(id, in_flight, received, now);
        }
        // Once for all of them: it looks at each connection.
        self.plan(now);
    }

    fn note_in_flight(&mut self, id: ConnectionId, in_flight: u32, received: bool, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        // Only one that was empty lends, so anything in flight has come since.
        if received || (connection.lends() && in_flight > 0) {
            connection.last_message = now;
            connection.yielded = false;
            connection.proven = true;
        }
        if in_flight > connection.charge() && in_flight > connection.share {
            connection.overrun = true;
        }
        // A count taken before the lowered RDY is on its way says nothing about what nsqd can still send.
        let pending = if connection.rdy < connection.sent {
            connection.sent
        } else {
            0
        };
        connection.in_flight = in_flight.max(pending);
    }

    /// A message was answered. Call it, and write the RDY commands that follow, before the answer itself.
    ///
    /// It may also be told of a [`Failure`](Outcome::Failure) that is no answer, such as nsqd's refusal of a FIN.
    pub(crate) fn handle_outcome(&mut self, outcome: Outcome, now: Instant) {
        let jitter = self.rng.f64();
        if self.backoff.handle_outcome(outcome, jitter, now) {
            self.plan(now);
        }
    }

    /// Changes `max_in_flight`; with 0 nothing comes until it is raised.
    pub(crate) fn set_max_in_flight(&mut self, max_in_flight: u32, now: Instant) {
        self.options.max_in_flight = max_in_flight;
        self.plan(now);
    }

    /// Sets every RDY to 0 until it is called with `false`. `max_in_flight` and the backoff go on to mean what they do,
    /// and may change meanwhile.
    pub(crate) fn set_paused(&mut self, paused: bool, now: Instant) {
        if self.paused != paused {
            self.paused = paused;
            self.plan(now);
        }
    }

    /// Does what is due at `now`; harmless when nothing is.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let mut due = self.backoff.handle_timeout(now);
        if self.redistribute_at.is_some_and(|at| at <= now) {
            self.redistribute_at = None;
            self.redistribute(now);
            due = true;
        }
        if due {
            self.plan(now);
        }
    }

    /// When [`handle_timeout`](Flow::handle_timeout) has something to do, if nothing happens before.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.backoff_until(), self.redistribute_at].into_iter().flatten().min()
    }

    /// The next RDY command to write: all lowerings, then the raisings, and never a value that was the last one.
    pub(crate) fn poll_rdy(&mut self) -> Option<RdyChange> {
        let mut changed = self.connections.iter_mut().filter(|(_, c)| c.rdy != c.sent);
        let first = changed.next()?;
        let (&id, connection) = if first.1.rdy < first.1.sent {
            first
        } else {
            changed.find(|(_, c)| c.rdy < c.sent).unwrap_or(first)
        };
        connection.sent = connection.rdy;
        Some(RdyChange {
            id,
            rdy: connection.rdy,
        })
    }

    /// Report the connection's count once it is *at or below* this, at once if it is already.
    ///
    /// `None` while the answer would change nothing, which is the case unless RDY was lowered under what is in flight.
    /// The steps are halves, so a connection that drains costs a handful of reports, except while another has nothing
    /// at all and waits for the first slot.
    pub(crate) fn notify_below(&self, id: ConnectionId) -> Option<u32> {
        let connection = self.connections.get(&id)?;
        let excess = connection.in_flight.checked_sub(connection.rdy).filter(|&e| e > 0)?;
        let next = connection.in_flight - 1;
        if self.is_anyone_left_out() {
            return Some(next);
        }
        Some((connection.rdy + excess / 2).max(connection.share.min(next)))
    }

    /// Report the connection's count once it is *above* this, at once if it is already.
    ///
    /// That is more than nsqd should send, or the first message of a connection that is new or whose share is lent to
    /// others.
    pub(crate) fn notify_above(&self, id: ConnectionId) -> Option<u32> {
        let connection = self.connections.get(&id)?;
        Some(if connection.lends() { 0 } else { connection.charge() })
    }

    /// Whether this outcome would change anything now. In normal operation a success does not, so nobody need send it.
    pub(crate) fn wants_outcome(&self, outcome: Outcome) -> bool {
        self.backoff.wants(outcome)
    }

    /// The RDY of a connection, as decided; zero for an unknown one.
    pub(crate) fn rdy(&self, id: ConnectionId) -> u32 {
        self.connections.get(&id).map_or(0, |c| c.rdy)
    }

    /// Why a connection has RDY 0; `None` if it has not, or is unknown.
    pub(crate) fn pause_reason(&self, id: ConnectionId) -> Option<PauseReason> {
        let connection = self.connections.get(&id).filter(|c| c.rdy == 0)?;
        Some(if connection.closing {
            PauseReason::Closing
        } else if self.paused {
            PauseReason::Paused
        } else if self.options.max_in_flight == 0 {
            PauseReason::MaxInFlightZero
        } else if self.in_backoff() {
            PauseReason::Backoff
        } else if connection.overrun {
            PauseReason::Overrun
        } else {
            PauseReason::WaitingForShare
        })
    }

    /// The sum of max(RDY, in flight): what is used of `max_in_flight`, and what may still come.
    pub(crate) fn charge(&self) -> u32 {
        rdy::total_charge(&self.connections)
    }

    /// By how much the sum of max(RDY, in flight) is above `max_in_flight`: what nsqd sent before it read a lowered
    /// RDY, or sent again. It is worked off before any RDY rises.
    #[cfg(test)]
    pub(crate) fn excess(&self) -> u32 {
        rdy::total_charge(&self.connections).saturating_sub(self.options.max_in_flight)
    }

    /// Failures not yet made up for by successes; 0 outside of backoff.
    pub(crate) fn backoff_level(&self) -> u32 {
        self.backoff.level()
    }

    /// When the backoff timer ends; `None` while none runs.
    pub(crate) fn backoff_until(&self) -> Option<Instant> {
        match self.backoff.phase() {
            Phase::Waiting { until } => Some(until),
            Phase::Normal | Phase::Probing => None,
        }
    }

    /// From the first failure until the success that ends it.
    pub(crate) fn in_backoff(&self) -> bool {
        self.backoff.phase() != Phase::Normal
    }

    /// Decides every RDY anew from what is known. Each event ends here, so no rule depends on the order of events.
    fn plan(&mut self, now: Instant) {
        let max = self.limit();
        let anyone_busy = self.connections.values().any(|c| c.is_eligible() && !c.lends());
        // A pause says nothing about who is busy, so all is as it was when it ends.
        let crowded = self.eligible() > self.options.max_in_flight as usize;
        if crowded || self.in_backoff() || !anyone_busy {
            self.connections.values_mut().for_each(|c| c.yielded = false);
        }
        rdy::assign_shares(&mut self.connections, max);
        for connection in self.connections.values_mut() {
            connection.overrun &= connection.in_flight > connection.share;
        }
        match self.backoff.phase() {
            Phase::Normal => {
                self.probe = None;
                rdy::assign_turns(&mut self.connections, max, now, &mut self.rng);
            }
            Phase::Waiting { .. } => self.probe = None,
            Phase::Probing => self.choose_probe(),
        }
        let in_normal = self.backoff.phase() == Phase::Normal;
        for (id, connection) in &mut self.connections {
            let open = !connection.overrun && !connection.closing;
            connection.goal = match in_normal {
                true if open && connection.turn.is_some() => connection.share,
                false if open && self.probe == Some(*id) => 1,
                _ => 0,
            };
        }
        rdy::settle(&mut self.connections, max, now);
        self.schedule(now);
    }

    /// Keeps the probe where it is while it can be there, else takes the connection that has been without RDY longest,
    /// one with nothing in flight if there is a choice, since nsqd sends nothing for RDY 1 while one is in flight.
    ///
    /// Backoff lowers all at the same instant, so the choice is random the first time and goes round from then on. It
    /// does not look at what is free: a connection that has just been lowered would win each time, being charged for
    /// its old RDY already, and the probe would never leave it.
    fn choose_probe(&mut self) {
        let can_stay = |c: &Connection| c.share > 0 && (c.may_rise() || (c.rdy > 0 && c.is_eligible() && !c.overrun));
        let current = self.probe.and_then(|id| self.connections.get(&id));
        if current.is_some_and(can_stay) {
            return;
        }
        let rng = &mut self.rng;
        self.probe = self
            .connections
            .iter()
            .filter(|(_, c)| c.share > 0 && c.may_rise())
            .min_by_key(|(_, c)| (c.since, c.in_flight > 0, rng.u32(..)))
            .map(|(&id, _)| id);
    }

    /// Moves RDY on from connections that had it long enough or do not use it.
    fn redistribute(&mut self, now: Instant) {
        let eligible = self.eligible();
        let (hold, idle) = self.turn_limits(eligible);
        // Whoever would be late at the next tick goes now: the promise is an upper bound.
        let hold = hold.saturating_sub(self.tick(eligible));
        match self.backoff.phase() {
            Phase::Waiting { .. } => {}
            Phase::Normal if eligible > self.limit() as usize => {
                rdy::end_turns(&mut self.connections, now, hold, idle);
            }
            Phase::Normal => rdy::yield_idle(&mut self.connections, now, idle),
            Phase::Probing if eligible > 1 => {
                let probe = self.probe.and_then(|id| self.connections.get_mut(&id));
                if let Some(probe) = probe.filter(|c| {
                    c.silent_for(now) >= self.options.low_rdy_idle_timeout
                        || now.saturating_duration_since(c.since) >= self.options.low_rdy_timeout
                }) {
                    probe.lower(0, now);
                    self.probe = None;
                }
            }
            Phase::Probing => {}
        }
    }

    /// How long a turn lasts, for a connection with messages and for one without. With so many connections that one
    /// has to wait for several turns of others, all turns are shorter in proportion.
    fn turn_limits(&self, eligible: usize) -> (Duration, Duration) {
        let slots = self.limit().max(1) as usize;
        let rounds = eligible.saturating_sub(slots).div_ceil(slots).max(1) as u32;
        (
            self.options.low_rdy_timeout / rounds,
            self.options.low_rdy_idle_timeout / rounds,
        )
    }

    /// The time between redistributions: a quarter of a turn at most, so that turns end about when they should.
    fn tick(&self, eligible: usize) -> Duration {
        let interval = self.options.rdy_redistribute_interval;
        let (hold, _) = self.turn_limits(eligible);
        (hold / 4).max(MIN_TICK).min(interval)
    }

    /// Keeps the redistribution running exactly while there is something to redistribute.
    fn schedule(&mut self, now: Instant) {
        let eligible = self.eligible();
        let wanted = eligible > 1
            && self.limit() > 0
            && match self.backoff.phase() {
                Phase::Normal => eligible != self.limit() as usize,
                Phase::Waiting { .. } => false,
                Phase::Probing => true,
            };
        let next = later(now, self.tick(eligible));
        self.redistribute_at = wanted.then(|| self.redistribute_at.map_or(next, |at| at.min(next)));
    }

    /// What may be in flight, but for a pause.
    pub(crate) fn max_in_flight(&self) -> u32 {
        self.options.max_in_flight
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// What may be in flight as things are.
    fn limit(&self) -> u32 {
        if self.paused { 0 } else { self.options.max_in_flight }
    }

    fn eligible(&self) -> usize {
        self.connections.values().filter(|c| c.is_eligible()).count()
    }

    /// Whether a connection should have RDY and nothing is free.
    fn is_anyone_left_out(&self) -> bool {
        self.connections.values().any(|c| c.rdy == 0 && c.goal > 0)
    }
}

/// `now + delay`, or the far future if there is no such instant.
fn later(now: Instant, delay: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    now.checked_add(delay).unwrap_or_else(|| now + FAR)
}
