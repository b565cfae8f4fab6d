//! Several nsqds, and the task that drives [`Flow`].
//!
//! The nsqds deliver while fewer messages are in flight than the last RDY they have read, which can be long after it
//! was sent; they take messages back and deliver them again while the handlers still hold the first copy. After each
//! event the promises are checked against the model's own books, never against what `Flow` believes.

use std::collections::BTreeMap;

use super::history::MAX_CONNECTIONS;
use super::nsqd::{Message, Nsqd};
use super::*;

pub(super) struct World {
    flow: Flow,
    options: FlowOptions,
    now: Instant,
    paused: bool,
    nsqds: BTreeMap<ConnectionId, Nsqd>,
    next_id: u64,
    /// Since when nothing that matters to everyone has changed: who is there, `max_in_flight`, pause, backoff.
    settled_since: Instant,
    log: Vec<(ConnectionId, u32)>,
}

impl World {
    pub(super) fn new(setup: &Setup, start: Instant) -> Self {
        let options = setup.options();
        Self {
            flow: Flow::new(options, setup.pace.strategy(), setup.seed),
            options,
            now: start,
            paused: false,
            nsqds: BTreeMap::new(),
            next_id: 1,
            settled_since: start,
            log: Vec::new(),
        }
    }

    /// All RDY commands so far.
    pub(super) fn log(&self) -> &[(ConnectionId, u32)] {
        &self.log
    }

    /// What may be in flight as things are.
    fn limit(&self) -> u32 {
        if self.paused { 0 } else { self.options.max_in_flight }
    }

    fn id(&self, which: usize) -> Option<ConnectionId> {
        let count = self.nsqds.len();
        (count > 0)
            .then(|| self.nsqds.keys().nth(which % count).copied())
            .flatten()
    }

    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::Connect { max_rdy_count, busy } => self.connect(max_rdy_count, busy),
            Event::SetMaxInFlight(max) => self.set_max_in_flight(max),
            Event::SetPaused(paused) => self.set_paused(paused),
            Event::Pass { ms } => self.pass(Duration::from_millis(ms)),
            Event::Refuse => self.tell(Failure),
            Event::Close { which } => self.on(which, Self::close),
            Event::Closing { which } => self.on(which, |world, id| world.close_gently(id)),
            Event::Read { which } => self.on(which, |world, id| {
                world.nsqd(id).read();
            }),
            Event::Deliver { which, count } => self.on(which, |world, id| {
                world.nsqd(id).deliver(count);
            }),
            Event::Receive { which, count } => self.on(which, |world, id| {
                let (now, idle) = (world.now, world.options.low_rdy_idle_timeout);
                world.nsqd(id).receive(count, now, idle);
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
        self.nsqds.insert(id, Nsqd::new(max_rdy_count, busy, self.now));
        self.settled_since = self.now;
        self.flow.handle_connected(id, max_rdy_count, self.now);
    }

    fn close(&mut self, id: ConnectionId) {
        self.nsqds.remove(&id);
        self.settled_since = self.now;
        self.flow.handle_closed(id, self.now);
    }

    fn set_max_in_flight(&mut self, max: u32) {
        if max < self.options.max_in_flight {
            for nsqd in self.nsqds.values_mut() {
                nsqd.held
                    .iter_mut()
                    .chain(&mut nsqd.wire)
                    .for_each(|m| m.excused = true);
            }
        }
        self.options.max_in_flight = max;
        self.settled_since = self.now;
        self.flow.set_max_in_flight(max, self.now);
    }

    fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        self.settled_since = self.now;
        self.flow.set_paused(paused, self.now);
    }

    fn close_gently(&mut self, id: ConnectionId) {
        let now = self.now;
        let nsqd = self.nsqd(id);
        if !nsqd.closing {
            nsqd.send_rdy(0, now);
            nsqd.closing = true;
            self.settled_since = now;
            self.flow.handle_closing(id, now);
        }
    }

    fn answer(&mut self, id: ConnectionId, outcome: Outcome) {
        if self.nsqd(id).held.pop_front().is_some() {
            self.tell(outcome);
        }
    }

    /// Tells the flow of an outcome, and writes what has to go before the answer.
    fn tell(&mut self, outcome: Outcome) {
        let wanted = self.flow.wants_outcome(outcome);
        let before = (self.flow.backoff_level(), self.flow.backoff_until());
        self.flow.handle_outcome(outcome, self.now);
        let after = (self.flow.backoff_level(), self.flow.backoff_until());
        assert_eq!(wanted, before != after, "wants_outcome lied about {outcome:?}");
        let stalls = self.flow.in_backoff() && after.1.is_none();
        assert!(!stalls, "C4: no timer runs after {outcome:?}");
        if wanted {
            self.settled_since = self.now;
            self.write_rdy();
            let total: u32 = self.nsqds.values().map(|n| n.sent_rdy).sum();
            assert!(
                !self.flow.in_backoff() || total == 0,
                "C4: RDY {total} when the answer is written"
            );
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..1000 {
            let Some(due) = self.flow.poll_timeout().filter(|&at| at <= end) else {
                self.pass_until(end);
                return;
            };
            self.pass_until(due);
            self.report(|_, _| true);
            let backoff_until = self.flow.backoff_until();
            self.flow.handle_timeout(self.now);
            if self.flow.backoff_until() != backoff_until {
                self.settled_since = self.now;
            }
            self.pump();
            self.check();
        }
        panic!("the deadlines do not move on");
    }

    fn pass_until(&mut self, then: Instant) {
        let time = then.saturating_duration_since(self.now);
        self.now = self.now.max(then);
        // Whoever has more in flight than RDY is working off a turn that is over, and that is up to the handlers.
        let in_the_way = |n: &Nsqd| n.in_flight() > n.sent_rdy;
        if self.flow.in_backoff() || self.limit() == 0 || self.nsqds.values().any(in_the_way) {
            return;
        }
        for nsqd in self.nsqds.values_mut().filter(|n| n.takes_part() && n.sent_rdy == 0) {
            nsqd.passed_over += time;
        }
    }

    /// Reports the counts of those connections for which it is `due`. Returns whether there was one.
    fn report(&mut self, due: impl Fn(&Flow, (ConnectionId, u32)) -> bool) -> bool {
        let mut reports = Vec::new();
        for (&id, nsqd) in &mut self.nsqds {
            let in_flight = nsqd.in_flight();
            if due(&self.flow, (id, in_flight)) {
                reports.push((id, in_flight, std::mem::take(&mut nsqd.received)));
            }
        }
        let any = !reports.is_empty();
        self.flow.handle_all_in_flight(reports, self.now);
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
        let total: u32 = self.nsqds.values().map(Nsqd::charge).sum();
        assert!(
            !costly || total <= self.limit(),
            "C2: raised to {total} of {}",
            self.limit()
        );
    }

    fn check(&self) {
        self.check_c2();
        self.check_c3();
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
        let max = self.options.max_in_flight;
        assert!(within <= max, "C2: {within} of {max}");
        // Handlers that never end let nsqd send everything once more, and not a third time.
        let bound = 2 * max;
        let copies = total(|m| !m.excused);
        assert!(copies <= bound, "C1: {copies} messages held, at most {bound} expected");
        let charged: u32 = self.nsqds.values().map(Nsqd::charge).sum();
        assert!(
            self.flow.excess() >= charged.saturating_sub(max),
            "excess is not counted"
        );
        for nsqd in self.nsqds.values() {
            let allowed = match nsqd.last_message {
                _ if self.limit() == 0 => 0,
                None => 1,
                Some(_) => nsqd.max_rdy_count,
            };
            assert!(
                nsqd.sent_rdy <= allowed,
                "C2: RDY {} of {allowed} for {nsqd:?}",
                nsqd.sent_rdy
            );
        }
    }

    /// Turns go round, and who is silent lends to who is not.
    fn check_c3(&self) {
        // With nsqds coming and going a turn that has begun keeps the length of when there were fewer.
        let patience = 2 * self.options.low_rdy_timeout;
        for nsqd in self.nsqds.values() {
            assert!(nsqd.passed_over <= patience, "C3: passed over: {nsqd:?}");
        }
        let idle = self.options.low_rdy_idle_timeout;
        // The flow hears of a message at the next look, and of silence at the one after the time.
        let late = 3 * self.options.rdy_redistribute_interval;
        for (id, nsqd) in self.nsqds.iter().filter(|(_, n)| n.sent_rdy == 1) {
            if let Some(last) = nsqd.last_message.filter(|_| self.flow.notify_above(*id) == Some(0)) {
                assert!(self.now - last >= idle, "C3: made to lend: {nsqd:?}");
            }
        }
        let settled = self.now - self.settled_since > idle + late;
        let sharers = self.nsqds.values().filter(|n| n.takes_part()).count();
        if !settled || self.flow.in_backoff() || sharers >= self.limit() as usize {
            return;
        }
        let is_busy = |n: &Nsqd| {
            let speaks = n.last_message.is_some_and(|at| self.now - at < idle / 2);
            n.sent_rdy > 0 && speaks && self.now - n.speaks_since > late
        };
        if self.nsqds.values().any(|n| n.takes_part() && is_busy(n)) {
            for nsqd in self.nsqds.values().filter(|n| n.sent_rdy > 1 && n.in_flight() == 0) {
                assert!(
                    nsqd.silent_for(self.now) <= idle + late,
                    "C3: it does not lend: {nsqd:?}"
                );
            }
        }
    }

    fn check_c4(&self) {
        let total: u32 = self.nsqds.values().map(|n| n.sent_rdy).sum();
        assert_eq!(self.flow.in_backoff(), self.flow.backoff_level() > 0);
        if self.flow.in_backoff() {
            let allowed = u32::from(self.flow.backoff_until().is_none());
            assert!(total <= allowed, "C4: RDY {total} in backoff");
        }
        if let Some(until) = self.flow.backoff_until() {
            assert!(
                until <= self.now + self.options.max_backoff_duration,
                "C4: a pause longer than the longest"
            );
        }
        // 100 ms doubled, or 300 ms more each time, up to 20 s.
        assert!(
            self.flow.backoff_level() <= 66,
            "C4: level {}",
            self.flow.backoff_level()
        );
        let live = self.nsqds.values().any(Nsqd::takes_part);
        if live && self.limit() > 0 && total == 0 {
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
            .filter(|(_, n)| n.takes_part())
            .map(|(&id, n)| {
                if n.sent_rdy == 1 && lends(id) {
                    1
                } else {
                    n.max_rdy_count
                }
            })
            .sum();
        let total: u32 = self.nsqds.values().map(|n| n.sent_rdy).sum();
        assert_eq!(total, usable.min(self.limit()), "RDY is withheld for no reason");
    }

    /// Everybody works: no delays, no stuck handlers, no failures. Then nobody may starve.
    pub(super) fn calm_down(&mut self) {
        const STEP: Duration = Duration::from_millis(500);
        if self.options.max_in_flight == 0 {
            self.set_max_in_flight(1);
            self.pump();
        }
        self.set_paused(false);
        self.pump();
        if self.nsqds.values().all(|n| !n.takes_part() || !n.busy) {
            self.nsqds.clear();
            for id in 1..self.next_id {
                self.flow.handle_closed(ConnectionId(id), self.now);
            }
            self.connect(2500, true);
            self.pump();
        }
        // Each level: its pause, and a probe that may go round all idle nsqds first.
        let options = self.options;
        let round = (options.low_rdy_idle_timeout + options.rdy_redistribute_interval) * MAX_CONNECTIONS as u32;
        let levels = self.flow.backoff_level() + 1;
        let limit = self.now + levels * (options.max_backoff_duration + round);
        while self.flow.in_backoff() {
            assert!(self.now < limit, "C4: still at level {}", self.flow.backoff_level());
            self.work();
            self.pass(STEP);
        }
        self.work();
        let normal_since = self.now;
        let patience = options.low_rdy_timeout + STEP;
        while self.now < normal_since + 2 * options.low_rdy_timeout {
            self.pass(STEP);
            self.work();
            for nsqd in self.nsqds.values().filter(|n| n.takes_part() && n.sent_rdy == 0) {
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
                let (now, idle) = (self.now, self.options.low_rdy_idle_timeout);
                let nsqd = self.nsqd(id);
                while nsqd.read() {}
                if nsqd.busy {
                    nsqd.deliver(2);
                }
                nsqd.receive(usize::MAX, now, idle);
                self.pump();
                while !self.nsqd(id).held.is_empty() {
                    self.answer(id, Success);
                }
                self.pump();
                self.check();
            }
        }
    }
}
