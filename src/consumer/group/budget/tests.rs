//! A model of members that carry orders out late, in steps, and never use more than they were allowed. After each event
//! the promises are checked against the model's own books, never against what [`Budget`] believes.

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest::test_runner::RngAlgorithm;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const NOBODY_IS_LIMITED: u32 = 10_000;

#[derive(Clone, Copy, Debug)]
enum Event {
    Join {
        weight: u32,
        limit: u32,
    },
    Leave(usize),
    Left(usize),
    /// A member carries out the next order, or, told several, only the last.
    CarryOut {
        which: usize,
        all: bool,
    },
    Connect {
        which: usize,
        connections: u32,
    },
    Deliver {
        which: usize,
        count: u32,
    },
    Answer {
        which: usize,
        count: u32,
    },
    Report(usize),
    SetMaxInFlight(u32),
    Pause(bool),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let which = || 0..12usize;
    prop_oneof![
        2 => (1..5u32, prop_oneof![3 => Just(NOBODY_IS_LIMITED), 1 => 0..8u32])
            .prop_map(|(weight, limit)| Event::Join { weight, limit }),
        1 => which().prop_map(Event::Leave),
        2 => which().prop_map(Event::Left),
        12 => (which(), any::<bool>()).prop_map(|(which, all)| Event::CarryOut { which, all }),
        2 => (which(), 0..4u32).prop_map(|(which, connections)| Event::Connect { which, connections }),
        12 => (which(), 1..20u32).prop_map(|(which, count)| Event::Deliver { which, count }),
        12 => (which(), 1..20u32).prop_map(|(which, count)| Event::Answer { which, count }),
        20 => which().prop_map(Event::Report),
        1 => prop_oneof![1 => Just(0), 4 => 1..30u32].prop_map(Event::SetMaxInFlight),
        1 => any::<bool>().prop_map(Event::Pause),
        6 => (1..6000u64).prop_map(Event::Pass),
    ]
}

#[derive(Debug, Default)]
struct Worker {
    orders: VecDeque<(u64, u32)>,
    carried_out: u64,
    allowed: u32,
    in_flight: u32,
    received: u64,
    connections: u32,
    reported: Option<Usage>,
    leaving: bool,
    limit: u32,
}

impl Worker {
    /// What it might use, whatever its flow decides: all that it was allowed and has not yet been told to give up.
    fn could_use(&self) -> u32 {
        self.allowed.max(self.in_flight)
    }

    fn carry_out(&mut self) -> bool {
        let Some((number, allowed)) = self.orders.pop_front() else {
            return false;
        };
        (self.carried_out, self.allowed) = (number, allowed);
        true
    }

    fn deliver(&mut self, count: u32) {
        let count = count.min(self.allowed.saturating_sub(self.in_flight));
        self.in_flight += count;
        self.received += u64::from(count);
    }

    fn usage(&self) -> Usage {
        Usage {
            order: self.carried_out,
            charge: self.could_use(),
            in_flight: self.in_flight,
            received: self.received,
            connections: self.connections,
        }
    }
}

struct World {
    budget: Budget,
    now: Instant,
    max: u32,
    paused: bool,
    workers: BTreeMap<MemberId, Worker>,
    next: u64,
    used: u32,
}

impl World {
    fn new(max: u32) -> Self {
        Self {
            budget: Budget::new(max),
            now: Instant::now(),
            max,
            paused: false,
            workers: BTreeMap::new(),
            next: 1,
            used: 0,
        }
    }

    fn join(&mut self, weight: u32, limit: u32) -> MemberId {
        let id = MemberId(self.next);
        self.next += 1;
        let worker = Worker {
            limit,
            connections: 1,
            ..Worker::default()
        };
        self.workers.insert(id, worker);
        self.budget.handle_joined(id, weight, limit, self.now);
        id
    }

    fn id(&self, which: usize) -> Option<MemberId> {
        let count = self.workers.len();
        (count > 0)
            .then(|| self.workers.keys().nth(which % count).copied())
            .flatten()
    }

    fn on(&mut self, which: usize, act: impl FnOnce(&mut Worker)) {
        if let Some(worker) = self.id(which).and_then(|id| self.workers.get_mut(&id)) {
            act(worker);
        }
    }

    fn report(&mut self, id: MemberId) {
        let worker = self.workers.get_mut(&id).unwrap();
        let usage = worker.usage();
        worker.reported = Some(usage);
        self.budget.handle_usage(id, usage, self.now);
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Join { weight, limit } if self.workers.len() < 12 => {
                self.join(weight, limit);
            }
            Event::Join { .. } => {}
            Event::Leave(which) => {
                if let Some(id) = self.id(which) {
                    self.workers.get_mut(&id).unwrap().leaving = true;
                    self.budget.handle_leaving(id, self.now);
                }
            }
            Event::Left(which) => {
                if let Some(id) = self.id(which).filter(|id| self.workers[id].leaving) {
                    self.workers.remove(&id);
                    self.budget.handle_left(id, self.now);
                }
            }
            Event::CarryOut { which, all } => self.on(which, |worker| while worker.carry_out() && all {}),
            Event::Connect { which, connections } => self.on(which, |worker| worker.connections = connections),
            Event::Deliver { which, count } => self.on(which, |worker| worker.deliver(count)),
            Event::Answer { which, count } => {
                self.on(which, |worker| {
                    worker.in_flight = worker.in_flight.saturating_sub(count)
                });
            }
            Event::Report(which) => {
                if let Some(id) = self.id(which) {
                    self.report(id);
                }
            }
            Event::SetMaxInFlight(max) => {
                self.max = max;
                self.budget.set_max_in_flight(max, self.now);
            }
            Event::Pause(paused) => {
                self.paused = paused;
                self.budget.set_paused(paused, self.now);
            }
            Event::Pass(ms) => self.pass(Duration::from_millis(ms)),
        }
        self.give_orders();
        self.check();
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.budget.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let ids: Vec<_> = self.workers.keys().copied().collect();
            for id in ids {
                self.report(id);
            }
            self.budget.handle_timeout(self.now);
            self.give_orders();
            self.check();
        }
        self.now = end;
    }

    fn give_orders(&mut self) {
        let mut raised = false;
        while let Some(order) = self.budget.poll_order() {
            let worker = self.workers.get_mut(&order.member).unwrap();
            let before = worker.orders.back().map_or(worker.allowed, |(_, allowed)| *allowed);
            assert_ne!(before, order.allowance, "an order that changes nothing");
            let raises = order.allowance > before;
            assert!(raises || !raised, "a lowering after a raising");
            assert!(!(raises && worker.leaving), "a raising for one that leaves");
            assert!(order.allowance <= worker.limit);
            raised |= raises;
            worker.orders.push_back((order.number, order.allowance));
        }
    }

    /// Lets every member carry out what it was told, and report it, until nobody is told anything more.
    fn settle(&mut self) {
        for _ in 0..50 {
            let ids: Vec<_> = self.workers.keys().copied().collect();
            for id in ids {
                let worker = self.workers.get_mut(&id).unwrap();
                while worker.carry_out() {}
                if worker.reported != Some(worker.usage()) {
                    self.report(id);
                    self.give_orders();
                }
            }
            self.check();
            if self.workers.values().all(|worker| worker.orders.is_empty()) {
                return;
            }
        }
        panic!("orders without end");
    }

    fn check(&mut self) {
        let used = |worker: &Worker| {
            let orders = worker.orders.iter().map(|(_, allowed)| *allowed);
            orders.chain([worker.could_use()]).max().unwrap_or(0)
        };
        let used = self.workers.values().map(used).sum::<u32>();
        let limit = if self.paused { 0 } else { self.max };
        // Above the limit, because that was lowered, it only falls.
        assert!(
            used <= limit.max(self.used),
            "{used} may be in flight, before it was {}, of {limit}",
            self.used
        );
        assert!(
            self.budget.held() >= used,
            "{} are charged, {used} used",
            self.budget.held()
        );
        self.used = used;
    }

    fn allowances(&self) -> Vec<u32> {
        self.workers.keys().map(|id| self.budget.allowance(*id)).collect()
    }

    /// Every member gets and answers what it may, for a while.
    fn run_busy(&mut self, time: Duration, step: Duration) {
        let end = self.now + time;
        while self.now < end {
            for worker in self.workers.values_mut() {
                worker.in_flight = worker.in_flight.min(worker.allowed);
                worker.received += u64::from(worker.allowed);
            }
            self.settle();
            self.pass(step);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        // In a debug build the default generator takes longer than all the histories it makes.
        rng_algorithm: RngAlgorithm::XorShift,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// About 105,000 events.
    #[test]
    fn c2_the_budget_holds_after_every_event_of_any_history(
        max in 0..20u32,
        events in prop::collection::vec(event(), 200..500)
    ) {
        let mut world = World::new(max);
        for event in events {
            world.apply(event);
        }
        // Whatever it was, when all is answered and everybody busy, everybody has what is due.
        world.apply(Event::Pause(false));
        for worker in world.workers.values_mut() {
            worker.in_flight = 0;
        }
        world.settle();
        if world.max == 0 {
            world.apply(Event::SetMaxInFlight(5));
        }
        world.run_busy(40 * SECOND, SECOND);
        // A turn may have ended at this very moment.
        world.settle();
        let usable: u32 = world.workers.values().filter(|worker| !worker.leaving).map(|worker| worker.limit).sum();
        let allowed: u32 = world.allowances().iter().sum();
        prop_assert_eq!(allowed, usable.min(world.max));
    }
}

fn told(world: &mut World) -> Vec<u32> {
    world.give_orders();
    world.settle();
    world.allowances()
}

fn make_busy(world: &mut World, id: MemberId) {
    world.workers.get_mut(&id).unwrap().received += 1;
    world.report(id);
}

#[test]
fn c2_what_a_member_may_still_have_is_given_to_nobody_before_it_reports_less() {
    let mut world = World::new(10);
    let first = world.join(1, NOBODY_IS_LIMITED);
    make_busy(&mut world, first);
    assert_eq!(told(&mut world), [10]);
    world.workers.get_mut(&first).unwrap().deliver(10);
    let second = world.join(1, NOBODY_IS_LIMITED);
    world.give_orders();
    // Lowered at once, for the new one is due 1; but it has not said that it knows.
    assert_eq!(world.allowances(), [9, 0]);
    world.report(first);
    assert_eq!(world.allowances(), [9, 0]);
    assert_eq!(told(&mut world), [9, 0], "it has 10 in flight");
    world.workers.get_mut(&first).unwrap().in_flight = 9;
    assert_eq!(told(&mut world), [9, 1]);
    make_busy(&mut world, second);
    assert_eq!(told(&mut world), [5, 1]);
    world.workers.get_mut(&first).unwrap().in_flight = 7;
    assert_eq!(told(&mut world), [5, 3]);
    world.workers.get_mut(&first).unwrap().in_flight = 0;
    assert_eq!(told(&mut world), [5, 5]);
}

#[test]
fn c2_a_report_from_before_a_lowering_frees_nothing() {
    let mut world = World::new(10);
    let first = world.join(1, NOBODY_IS_LIMITED);
    make_busy(&mut world, first);
    told(&mut world);
    let stale = world.workers[&first].usage();
    let second = world.join(1, NOBODY_IS_LIMITED);
    make_busy(&mut world, second);
    world.give_orders();
    world
        .budget
        .handle_usage(first, Usage { charge: 0, ..stale }, world.now);
    world.give_orders();
    assert_eq!(world.allowances(), [5, 0]);
    assert_eq!(told(&mut world), [5, 5]);
}

#[test]
fn members_have_the_budget_by_weight_and_each_at_least_one() {
    let mut world = World::new(100);
    for weight in [1, 2, 7] {
        let id = world.join(weight, NOBODY_IS_LIMITED);
        make_busy(&mut world, id);
    }
    assert_eq!(told(&mut world), [10, 20, 70]);
    world.apply(Event::SetMaxInFlight(4));
    assert_eq!(told(&mut world), [1, 1, 2]);
}

#[test]
fn a_members_own_limit_bounds_its_share_and_the_others_get_the_rest() {
    let mut world = World::new(100);
    for limit in [5, NOBODY_IS_LIMITED, 0] {
        let id = world.join(1, limit);
        make_busy(&mut world, id);
    }
    assert_eq!(told(&mut world), [5, 95, 0]);
}

#[test]
fn an_idle_member_lends_and_gets_its_share_back_at_its_first_message() {
    let mut world = World::new(20);
    let (first, second) = (world.join(1, NOBODY_IS_LIMITED), world.join(1, NOBODY_IS_LIMITED));
    assert_eq!(told(&mut world), [10, 10], "nobody is there to lend to");
    make_busy(&mut world, first);
    assert_eq!(
        told(&mut world),
        [19, 1],
        "the other has yet to show that it has messages"
    );
    world.workers.get_mut(&second).unwrap().connections = 3;
    assert_eq!(told(&mut world), [17, 3], "one for each of its nsqds");
    make_busy(&mut world, second);
    assert_eq!(told(&mut world), [10, 10]);
    for _ in 0..20 {
        make_busy(&mut world, first);
        world.pass(SECOND);
        world.settle();
    }
    assert_eq!(world.allowances(), [17, 3]);
    assert!(world.budget.is_idle(second) && !world.budget.is_idle(first));
}

#[test]
fn a_pause_takes_all_and_a_member_that_leaves_keeps_its_charge() {
    let mut world = World::new(10);
    let (first, second) = (world.join(1, NOBODY_IS_LIMITED), world.join(1, NOBODY_IS_LIMITED));
    make_busy(&mut world, first);
    make_busy(&mut world, second);
    assert_eq!(told(&mut world), [5, 5]);
    world.apply(Event::Pause(true));
    assert_eq!(told(&mut world), [0, 0]);
    assert_eq!(world.budget.poll_timeout(), None);
    world.apply(Event::Pause(false));
    assert_eq!(told(&mut world), [5, 5]);
    world.workers.get_mut(&first).unwrap().deliver(3);
    world.apply(Event::Leave(0));
    assert_eq!(told(&mut world), [0, 7]);
    world.apply(Event::Left(0));
    assert_eq!(told(&mut world), [10]);
}

#[test]
fn c3_with_more_members_than_budget_none_waits_longer_than_a_turn_for_each_that_shares_its_slot() {
    for (members, max) in [(3, 2), (7, 2), (40, 3), (60, 10)] {
        let mut world = World::new(max);
        for _ in 0..members {
            world.join(1, NOBODY_IS_LIMITED);
        }
        let rounds = (members as u32 - max).div_ceil(max);
        // A turn is no shorter than the time between two looks.
        let allowed = (TURN + rounds * 4 * MIN_INTERVAL).max(2 * TURN / rounds) + SECOND;
        let mut last = vec![world.now; members];
        let end = world.now + 8 * TURN;
        while world.now < end {
            world.run_busy(MIN_INTERVAL, MIN_INTERVAL);
            for (allowance, last) in world.allowances().into_iter().zip(&mut last) {
                if allowance > 0 {
                    *last = world.now;
                }
                let waited = world.now - *last;
                assert!(
                    waited <= allowed,
                    "{members} members, {max}: one waited {waited:?} of {allowed:?}"
                );
            }
        }
    }
}

#[test]
fn c3_turns_of_silent_members_are_shorter() {
    let mut world = World::new(1);
    let (first, _) = (world.join(1, NOBODY_IS_LIMITED), world.join(1, NOBODY_IS_LIMITED));
    let mut had = [0, 0];
    for _ in 0..300 {
        if world.workers[&first].allowed > 0 {
            make_busy(&mut world, first);
        }
        world.settle();
        world.pass(SECOND);
        for (had, allowance) in had.iter_mut().zip(world.allowances()) {
            *had += allowance;
        }
    }
    assert!(had[0] > 2 * had[1] - 20 && had[1] > 50, "{had:?}");
}
