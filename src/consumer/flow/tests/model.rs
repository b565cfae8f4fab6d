//! A model of several nsqds, the wires to them, the handlers, and the task that drives [`Flow`].
//!
//! The nsqds deliver while fewer messages are in flight than the last RDY they have read, which can be long after it
//! was sent; they take messages back and deliver them again while the handlers still hold the first copy. After each
//! event the promises are checked against the model's own books, never against what `Flow` believes.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::RngAlgorithm;

use super::super::{ConnectionId, Flow, FlowOptions, Outcome};
use crate::backoff::{Exponential, FullJitter};

/// Short times, so that a history of some hundred events meets every deadline. The proportions are the defaults'.
const OPTIONS: FlowOptions = FlowOptions {
    max_in_flight: 5,
    max_backoff_duration: Duration::from_secs(2),
    low_rdy_idle_timeout: Duration::from_secs(2),
    low_rdy_timeout: Duration::from_secs(6),
    rdy_redistribute_interval: Duration::from_secs(1),
};
const MAX_CONNECTIONS: usize = 8;

#[derive(Clone, Copy, Debug)]
enum Event {
    Connect {
        max_rdy_count: u32,
        busy: bool,
    },
    Close {
        which: usize,
    },
    Closing {
        which: usize,
    },
    /// An nsqd reads the next command.
    Read {
        which: usize,
    },
    Deliver {
        which: usize,
        count: usize,
    },
    Receive {
        which: usize,
        count: usize,
    },
    /// A handler ends and its message is answered.
    Answer {
        which: usize,
        outcome: Outcome,
    },
    /// nsqd takes the oldest messages back; the handlers keep what they have.
    Expire {
        which: usize,
        count: usize,
    },
    SetMaxInFlight(u32),
    Pass(Duration),
}

fn event() -> impl Strategy<Value = Event> {
    let which = || 0..MAX_CONNECTIONS;
    let outcome = prop_oneof![
        6 => Just(Outcome::Success),
        1 => Just(Outcome::Failure),
        1 => Just(Outcome::FailureWithoutBackoff),
    ];
    prop_oneof![
        3 => (prop_oneof![3 => Just(2500), 1 => 1..6u32], any::<bool>())
            .prop_map(|(max_rdy_count, busy)| Event::Connect { max_rdy_count, busy }),
        2 => which().prop_map(|which| Event::Close { which }),
        1 => which().prop_map(|which| Event::Closing { which }),
        10 => which().prop_map(|which| Event::Read { which }),
        10 => (which(), 1..20usize).prop_map(|(which, count)| Event::Deliver { which, count }),
        10 => (which(), 1..20usize).prop_map(|(which, count)| Event::Receive { which, count }),
        15 => (which(), outcome).prop_map(|(which, outcome)| Event::Answer { which, outcome }),
        2 => (which(), 1..20usize).prop_map(|(which, count)| Event::Expire { which, count }),
        1 => prop_oneof![Just(0), Just(1), 1..30u32].prop_map(Event::SetMaxInFlight),
        4 => (1..3000u64).prop_map(|ms| Event::Pass(Duration::from_millis(ms))),
    ]
}

#[derive(Clone, Copy, Debug, Default)]
struct Message {
    /// The number of the last command nsqd had read when it sent this.
    after_command: u64,
    /// Allowed to be there in spite of `max_in_flight`: sent before nsqd read a lowered RDY, before the limit itself
    /// was lowered, or taken back while it was on its way.
    excused: bool,
    /// nsqd has taken it back.
    expired: bool,
}

#[derive(Debug)]
struct Nsqd {
    max_rdy_count: u32,
    busy: bool,
    // nsqd's side.
    rdy: u32,
    last_read: u64,
    commands: VecDeque<(u64, u32)>,
    wire: VecDeque<Message>,
    // Our side.
    held: VecDeque<Message>,
    received: bool,
    sent_rdy: u32,
    closing: bool,
    last_command: u64,
    last_lowering: u64,
    without_rdy_since: Instant,
}

impl Nsqd {
    fn send_rdy(&mut self, rdy: u32, now: Instant) {
        self.last_command += 1;
        if rdy < self.sent_rdy {
            self.last_lowering = self.last_command;
        }
        if rdy == 0 {
            self.without_rdy_since = now;
        }
        self.commands.push_back((self.last_command, rdy));
        self.sent_rdy = rdy;
    }

    fn read(&mut self) -> bool {
        let Some((number, rdy)) = self.commands.pop_front() else {
            return false;
        };
        self.last_read = number;
        self.rdy = rdy;
        true
    }

    fn deliver(&mut self, count: usize) {
        let in_flight = self.wire.iter().chain(&self.held).filter(|m| !m.expired).count();
        let window = (self.rdy as usize).saturating_sub(in_flight);
        for _ in 0..count.min(window) {
            self.wire.push_back(Message {
                after_command: self.last_read,
                ..Message::default()
            });
        }
    }

    fn receive(&mut self, count: usize) {
        for _ in 0..count {
            let Some(mut message) = self.wire.pop_front() else {
                return;
            };
            message.excused |= message.after_command < self.last_lowering;
            self.held.push_back(message);
            self.received = true;
        }
    }

    fn expire(&mut self, count: usize) {
        let held = self.held.len();
        let messages = self.held.iter_mut().chain(&mut self.wire).enumerate();
        for (i, message) in messages.filter(|(_, m)| !m.expired).take(count) {
            message.expired = true;
            // No RDY can keep nsqd from sending again what has not even arrived.
            message.excused |= i >= held;
        }
    }

    fn in_flight(&self) -> u32 {
        self.held.len() as u32
    }

    fn held_where(&self, counts: impl Fn(&Message) -> bool) -> u32 {
        self.held.iter().filter(|m| counts(m)).count() as u32
    }
}

struct World {
    flow: Flow,
    now: Instant,
    max_in_flight: u32,
    nsqds: BTreeMap<ConnectionId, Nsqd>,
    next_id: u64,
    log: Vec<(ConnectionId, u32)>,
}

impl World {
    fn new(start: Instant, max_in_flight: u32, jitter: bool, seed: u64) -> Self {
        let options = FlowOptions {
            max_in_flight,
            ..OPTIONS
        };
        let multiplier = Duration::from_millis(100);
        let flow = if jitter {
            Flow::new(options, Box::new(FullJitter::new(multiplier)), seed)
        } else {
            Flow::new(options, Box::new(Exponential::new(multiplier)), seed)
        };
        Self {
            flow,
            now: start,
            max_in_flight,
            nsqds: BTreeMap::new(),
            next_id: 1,
            log: Vec::new(),
        }
    }

    fn id(&self, which: usize) -> Option<ConnectionId> {
        let count = self.nsqds.len();
        (count > 0)
            .then(|| self.nsqds.keys().nth(which % count).copied())
            .flatten()
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Connect { max_rdy_count, busy } => self.connect(max_rdy_count, busy),
            Event::SetMaxInFlight(max) => self.set_max_in_flight(max),
            Event::Pass(time) => self.pass(time),
            Event::Close { which } => self.on(which, |world, id| {
                world.nsqds.remove(&id);
                world.flow.handle_closed(id, world.now);
            }),
            Event::Closing { which } => self.on(which, |world, id| world.close_gently(id)),
            Event::Read { which } => self.on(which, |world, id| {
                world.nsqd(id).read();
            }),
            Event::Deliver { which, count } => self.on(which, |world, id| {
                world.nsqd(id).deliver(count);
            }),
            Event::Receive { which, count } => self.on(which, |world, id| {
                world.nsqd(id).receive(count);
            }),
            Event::Expire { which, count } => self.on(which, |world, id| {
                world.nsqd(id).expire(count);
            }),
            Event::Answer { which, outcome } => self.on(which, |world, id| world.answer(id, outcome)),
        }
        self.pump();
        self.check();
    }

    fn on(&mut self, which: usize, act: impl FnOnce(&mut Self, ConnectionId)) {
        if let Some(id) = self.id(which) {
            act(self, id);
        }
    }

    fn nsqd(&mut self, id: ConnectionId) -> &mut Nsqd {
        self.nsqds.get_mut(&id).unwrap()
    }

    fn connect(&mut self, max_rdy_count: u32, busy: bool) {
        if self.nsqds.len() == MAX_CONNECTIONS {
            return;
        }
        let id = ConnectionId(self.next_id);
        self.next_id += 1;
        let nsqd = Nsqd {
            max_rdy_count,
            busy,
            rdy: 0,
            last_read: 0,
            commands: VecDeque::new(),
            wire: VecDeque::new(),
            held: VecDeque::new(),
            received: false,
            sent_rdy: 0,
            closing: false,
            last_command: 0,
            last_lowering: 0,
            without_rdy_since: self.now,
        };
        self.nsqds.insert(id, nsqd);
        self.flow.handle_connected(id, max_rdy_count, self.now);
    }

    fn set_max_in_flight(&mut self, max: u32) {
        if max < self.max_in_flight {
            for nsqd in self.nsqds.values_mut() {
                nsqd.held
                    .iter_mut()
                    .chain(&mut nsqd.wire)
                    .for_each(|m| m.excused = true);
            }
        }
        self.max_in_flight = max;
        self.flow.set_max_in_flight(max, self.now);
    }

    fn close_gently(&mut self, id: ConnectionId) {
        let now = self.now;
        let nsqd = self.nsqd(id);
        if !nsqd.closing {
            nsqd.send_rdy(0, now);
            nsqd.closing = true;
            self.flow.handle_closing(id, now);
        }
    }

    fn answer(&mut self, id: ConnectionId, outcome: Outcome) {
        if self.nsqd(id).held.pop_front().is_some() {
            let wanted = self.flow.wants_outcome(outcome);
            let before = (self.flow.backoff_level(), self.flow.backoff_until());
            self.flow.handle_outcome(outcome, self.now);
            let after = (self.flow.backoff_level(), self.flow.backoff_until());
            assert_eq!(wanted, before != after, "wants_outcome lied about {outcome:?}");
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..1000 {
            let Some(due) = self.flow.poll_timeout().filter(|&at| at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(due);
            self.report(|_, _| true);
            self.flow.handle_timeout(self.now);
            self.pump();
            self.check();
        }
        panic!("the deadlines do not move on");
    }

    /// Reports the counts of those connections for which it is `due`. Returns whether there was one.
    fn report(&mut self, due: impl Fn(&Flow, (ConnectionId, u32)) -> bool) -> bool {
        let mut any = false;
        for (&id, nsqd) in &mut self.nsqds {
            let in_flight = nsqd.in_flight();
            if due(&self.flow, (id, in_flight)) {
                let received = std::mem::take(&mut nsqd.received);
                self.flow.handle_in_flight(id, in_flight, received, self.now);
                any = true;
            }
        }
        any
    }

    /// What the driving task does after each event.
    fn pump(&mut self) {
        for _ in 0..200 {
            self.write_rdy();
            let reported = self.report(|flow, (id, in_flight)| {
                flow.notify_above(id).is_some_and(|above| in_flight > above)
                    || flow.notify_below(id).is_some_and(|below| in_flight <= below)
            });
            if !reported {
                assert_eq!(self.flow.poll_rdy(), None);
                return;
            }
        }
        panic!("the reports do not settle");
    }

    fn write_rdy(&mut self) {
        let mut raised = Vec::new();
        while let Some(change) = self.flow.poll_rdy() {
            let now = self.now;
            let nsqd = self.nsqd(change.id);
            assert!(!nsqd.closing, "RDY after CLS");
            assert_ne!(change.rdy, nsqd.sent_rdy, "RDY repeated");
            assert!(change.rdy <= nsqd.max_rdy_count, "RDY above what nsqd accepts");
            if change.rdy > nsqd.sent_rdy {
                raised.push(change.id);
            } else {
                assert!(raised.is_empty(), "lowered after a raising");
            }
            nsqd.send_rdy(change.rdy, now);
            self.log.push((change.id, change.rdy));
        }
        // C2, the strict half: what is given away was free, whatever was excused before.
        let costly = raised
            .iter()
            .any(|id| self.nsqds[id].sent_rdy > self.nsqds[id].in_flight());
        let total: u32 = self.nsqds.values().map(|n| n.sent_rdy.max(n.in_flight())).sum();
        assert!(
            !costly || total <= self.max_in_flight,
            "C2: raised to {total} of {}",
            self.max_in_flight
        );
    }

    fn check(&self) {
        self.check_c2();
        self.check_c4();
        self.check_nothing_is_wasted();
        for (&id, nsqd) in &self.nsqds {
            assert_eq!(self.flow.rdy(id), nsqd.sent_rdy);
            assert_eq!(self.flow.pause_reason(id).is_some(), nsqd.sent_rdy == 0);
        }
    }

    fn check_c2(&self) {
        let total = |counts: fn(&Message) -> bool| -> u32 {
            self.nsqds.values().map(|n| n.sent_rdy.max(n.held_where(counts))).sum()
        };
        let within = total(|m| !m.excused && !m.expired);
        assert!(within <= self.max_in_flight, "C2: {within} of {}", self.max_in_flight);
        // Handlers that never end let nsqd send everything once more, and not a third time.
        let bound = 2 * self.max_in_flight;
        let copies = total(|m| !m.excused);
        assert!(copies <= bound, "C1: {copies} messages held, at most {bound} expected");
        let charged: u32 = self.nsqds.values().map(|n| n.sent_rdy.max(n.in_flight())).sum();
        assert!(
            self.flow.excess() >= charged.saturating_sub(self.max_in_flight),
            "excess is not counted"
        );
    }

    fn check_c4(&self) {
        let total: u32 = self.nsqds.values().map(|n| n.sent_rdy).sum();
        if self.flow.in_backoff() {
            let allowed = u32::from(self.flow.backoff_until().is_none());
            assert!(total <= allowed, "C4: RDY {total} in backoff");
        }
        let live = self.nsqds.values().any(|n| !n.closing);
        if live && self.max_in_flight > 0 && total == 0 {
            let drains = self
                .nsqds
                .iter()
                .any(|(&id, n)| n.in_flight() > 0 && self.flow.notify_below(id).is_some());
            assert!(
                self.flow.backoff_until().is_some() || drains,
                "C4: nothing will ever happen again"
            );
        }
    }

    /// With every handler idle and no backoff, all that can be given is given.
    fn check_nothing_is_wasted(&self) {
        if self.flow.in_backoff() || self.nsqds.values().any(|n| n.in_flight() > 0) {
            return;
        }
        let lends = |id| self.flow.notify_above(id) == Some(0);
        let usable: u32 = self
            .nsqds
            .iter()
            .filter(|(_, n)| !n.closing)
            .map(|(&id, n)| {
                if n.sent_rdy == 1 && lends(id) {
                    1
                } else {
                    n.max_rdy_count
                }
            })
            .sum();
        let total: u32 = self.nsqds.values().map(|n| n.sent_rdy).sum();
        assert_eq!(total, usable.min(self.max_in_flight), "RDY is withheld for no reason");
    }

    /// Everybody works: no delays, no stuck handlers, no failures. Then nobody may starve.
    fn calm_down(&mut self) {
        const STEP: Duration = Duration::from_millis(500);
        if self.max_in_flight == 0 {
            self.set_max_in_flight(1);
            self.pump();
        }
        if self.nsqds.values().all(|n| n.closing || !n.busy) {
            self.nsqds.clear();
            for id in 1..self.next_id {
                self.flow.handle_closed(ConnectionId(id), self.now);
            }
            self.connect(2500, true);
            self.pump();
        }
        // Each level: its pause, and a probe that may go round all idle nsqds first.
        let round = (OPTIONS.low_rdy_idle_timeout + OPTIONS.rdy_redistribute_interval) * MAX_CONNECTIONS as u32;
        let recovery = 4 * (OPTIONS.max_backoff_duration + round);
        let limit = self.now + recovery;
        while self.flow.in_backoff() {
            assert!(self.now < limit, "C4: still at level {}", self.flow.backoff_level());
            self.work();
            self.pass(STEP);
        }
        self.work();
        let normal_since = self.now;
        let patience = OPTIONS.low_rdy_timeout + STEP;
        while self.now < normal_since + 2 * OPTIONS.low_rdy_timeout {
            self.pass(STEP);
            self.work();
            for nsqd in self.nsqds.values().filter(|n| !n.closing && n.sent_rdy == 0) {
                let waited = self.now - nsqd.without_rdy_since.max(normal_since);
                assert!(waited <= patience, "C3: no RDY for {waited:?}: {nsqd:?}");
            }
        }
    }

    /// Moves everything that can move, all handlers succeed at once.
    fn work(&mut self) {
        let ids: Vec<_> = self.nsqds.keys().copied().collect();
        // Twice, for what one gives up the other has yet to use.
        for _ in 0..2 {
            for &id in &ids {
                let nsqd = self.nsqd(id);
                while nsqd.read() {}
                if nsqd.busy {
                    nsqd.deliver(2);
                }
                nsqd.receive(usize::MAX);
                self.pump();
                while !self.nsqd(id).held.is_empty() {
                    self.answer(id, Outcome::Success);
                }
                self.pump();
                self.check();
            }
        }
    }
}

/// Plays a history that breaks whatever it can.
fn play(events: &[Event], max_in_flight: u32, jitter: bool, seed: u64) -> World {
    let mut world = World::new(Instant::now(), max_in_flight, jitter, seed);
    events.iter().for_each(|&event| world.apply(event));
    world
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        // In a debug build the default generator takes longer than all the histories it makes.
        rng_algorithm: RngAlgorithm::XorShift,
        ..ProptestConfig::default()
    }
}

fn max_in_flight() -> impl Strategy<Value = u32> {
    prop_oneof![1 => Just(1), 2 => 1..30u32]
}

proptest! {
    #![proptest_config(config(320))]

    /// About 110 000 events.
    #[test]
    fn c2_c4_hold_after_each_event_of_any_history(
        events in prop::collection::vec(event(), 1..700),
        max_in_flight in max_in_flight(),
        jitter in any::<bool>(),
        seed in any::<u64>(),
    ) {
        play(&events, max_in_flight, jitter, seed);
    }
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn c3_c4_nobody_starves_after_any_history(
        events in prop::collection::vec(event(), 1..150),
        max_in_flight in max_in_flight(),
        jitter in any::<bool>(),
        seed in any::<u64>(),
    ) {
        play(&events, max_in_flight, jitter, seed).calm_down();
    }
}

proptest! {
    #![proptest_config(config(16))]

    #[test]
    fn the_same_seed_and_history_give_the_same_commands(
        events in prop::collection::vec(event(), 1..700),
        seed in any::<u64>(),
    ) {
        let start = Instant::now();
        let play = || {
            let mut world = World::new(start, 5, true, seed);
            events.iter().for_each(|&event| world.apply(event));
            world.log
        };
        prop_assert_eq!(play(), play());
    }
}
