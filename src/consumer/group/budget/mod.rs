//! How one `max_in_flight` is divided among the members of a group.
//!
//! Pure decisions: events and the time come in, allowances come out. See [`Budget`].

mod shares;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

pub(super) use self::shares::MAX_WEIGHT;
use self::shares::{Demand, divide};

/// How long a member may hold an allowance without a message while others could use it: go-nsq's `low_rdy_idle_timeout`.
const IDLE: Duration = Duration::from_secs(10);

/// How long a turn lasts, at most, when there are more members than budget: go-nsq's `low_rdy_timeout`.
const TURN: Duration = Duration::from_secs(30);

/// How often it is looked who is idle: go-nsq's `rdy_redistribute_interval`.
const INTERVAL: Duration = Duration::from_secs(5);

/// However many members share a few slots, no look comes sooner than this after the last: it bounds the work at the price
/// of fairness beyond some hundred members for each slot.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// One member of a [`ConsumerGroup`](super::ConsumerGroup), for as long as the group lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub(super) u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a member is told: how many messages it may have in flight from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) member: MemberId,
    /// Counts a member's orders.
    pub(super) number: u64,
    pub(super) allowance: u32,
}

/// What a member uses, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// The last order that it had carried out.
    pub(super) order: u64,
    /// The sum over its connections of max(RDY, in flight).
    pub(super) charge: u32,
    /// Messages delivered and not answered.
    pub(super) in_flight: u32,
    /// Messages delivered so far.
    pub(super) received: u64,
    /// The nsqds that it is subscribed at.
    pub(super) connections: u32,
}

#[derive(Debug)]
struct Member {
    weight: u32,
    /// What it can use at most.
    limit: u32,
    /// It is being shut down: it gets nothing more, and stays charged for what it has.
    leaving: bool,
    /// What was decided.
    allowance: u32,
    /// What it was told last, and by which order.
    told: u32,
    order: u64,
    usage: Usage,
    /// The most that it was allowed by an order which may still be in force.
    ceiling: u32,
    /// What it is due now.
    share: u32,
    /// No message came for a while, or yet.
    idle: bool,
    last_message: Instant,
    /// Since when it has its turn; only with more members than budget is there anybody without.
    turn: Option<Instant>,
    /// Since when the allowance has been zero, or has not been.
    since: Instant,
}

impl Member {
    fn is_eligible(&self) -> bool {
        !self.leaving && self.limit > 0
    }

    /// What counts against the budget: what it may use, and what it may still have from when it could use more.
    fn held(&self) -> u32 {
        self.allowance.max(self.usage.charge).max(self.ceiling)
    }

    fn lower(&mut self, allowance: u32, now: Instant) {
        if allowance >= self.allowance {
            return;
        }
        self.ceiling = self.ceiling.max(self.told).max(self.allowance);
        self.allowance = allowance;
        if allowance == 0 {
            self.since = now;
        }
    }

    /// Raises towards `allowance` as far as `free` goes, which it takes from.
    fn raise(&mut self, allowance: u32, free: &mut u32, now: Instant) {
        let held = self.held();
        let allowance = allowance.min(held.saturating_add(*free));
        if allowance <= self.allowance {
            return;
        }
        *free -= allowance.max(held) - held;
        if self.allowance == 0 {
            self.since = now;
            self.turn = Some(now);
        }
        self.allowance = allowance;
    }

    /// How long it could have got a message and got none.
    fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_message.max(self.since))
    }

    fn is_silent(&self, now: Instant, idle: Duration) -> bool {
        self.allowance > 0 && self.usage.in_flight == 0 && self.silent_for(now) >= idle
    }
}

/// One `max_in_flight` for several consumers.
///
/// # The allowance of one member
///
/// ```text
///                     it has its turn, and something is free (1 first, then up to its share)
///      +-------------+ -----------------------------------------------------------> +---------------+
///      | allowance 0 |                                                              | allowance > 0 |
///      +-------------+ <----------------------------------------------------------- +---------------+
///                     paused, turn over, leaving
/// ```
///
/// What is free is the budget less the sum over all members, leaving ones included, of what each *holds*: the largest of
/// its allowance, of what it uses (over its connections, max(RDY, in flight)), and of every earlier allowance that it has
/// not yet reported to have lowered. While the sum is above the budget nothing rises. So members are lowered first, and
/// raised with what is really free.
///
/// Where there is room for all, a member's share goes by its weight, is at least 1, and is no more than its own limit. One
/// that was silent for a while, or has yet to get its first message, keeps 1 for each of its connections, as far as its
/// share goes, so that no message waits for a turn; it lends the rest to the busy ones until its next message. If all
/// are silent nobody lends.
///
/// With more members than budget, as many as it allows have an allowance of 1, and the turns go round.
///
/// # How to drive it
///
/// One owner calls the `handle_*` methods and after each of them gives out what [`poll_order`](Budget::poll_order) returns.
/// A member reports when its usage changes, and when [`is_idle`](Budget::is_idle) also at its first message. At
/// [`poll_timeout`](Budget::poll_timeout) the owner first reports the usage of all members, since who is idle is judged by
/// that, then calls [`handle_timeout`](Budget::handle_timeout).
#[derive(Debug)]
pub(super) struct Budget {
    max_in_flight: u32,
    paused: bool,
    members: BTreeMap<MemberId, Member>,
    /// The shares are to be worked out anew.
    stale: bool,
    look_at: Option<Instant>,
}

impl Budget {
    pub(super) fn new(max_in_flight: u32) -> Self {
        Self {
            max_in_flight,
            paused: false,
            members: BTreeMap::new(),
            stale: false,
            look_at: None,
        }
    }

    /// There is a further member, which has been told 0 by order 0 and can use `limit` at most.
    pub(super) fn handle_joined(&mut self, id: MemberId, weight: u32, limit: u32, now: Instant) {
        let member = Member {
            weight: weight.clamp(1, MAX_WEIGHT),
            limit,
            leaving: false,
            allowance: 0,
            told: 0,
            order: 0,
            usage: Usage::default(),
            ceiling: 0,
            share: 0,
            idle: true,
            last_message: now,
            turn: None,
            since: now,
        };
        self.members.insert(id, member);
        self.stale = true;
        self.plan(now);
    }

    /// A member is being shut down.
    pub(super) fn handle_leaving(&mut self, id: MemberId, now: Instant) {
        if let Some(member) = self.members.get_mut(&id) {
            member.leaving = true;
            self.stale = true;
            self.plan(now);
        }
    }

    /// A member has ended, and has nothing in flight any more.
    pub(super) fn handle_left(&mut self, id: MemberId, now: Instant) {
        if self.members.remove(&id).is_some() {
            self.stale = true;
            self.plan(now);
        }
    }

    /// What a member uses.
    pub(super) fn handle_usage(&mut self, id: MemberId, usage: Usage, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let before = std::mem::replace(&mut member.usage, usage);
        if usage.received > before.received || usage.in_flight > 0 {
            member.last_message = now;
            self.stale |= member.idle;
            member.idle = false;
        }
        self.stale |= usage.connections != before.connections;
        // An order that is still under way says nothing about what is in force.
        if usage.order == member.order && member.told == member.allowance {
            member.ceiling = 0;
        }
        self.plan(now);
    }

    pub(super) fn set_max_in_flight(&mut self, max_in_flight: u32, now: Instant) {
        self.max_in_flight = max_in_flight;
        self.stale = true;
        self.plan(now);
    }

    /// Allows nobody anything until it is called with `false`.
    pub(super) fn set_paused(&mut self, paused: bool, now: Instant) {
        self.paused = paused;
        self.stale = true;
        self.plan(now);
    }

    /// Does what is due at `now`; harmless when nothing is.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_at = None;
            if self.is_crowded() {
                self.end_turns(now);
            } else {
                self.find_idle(now);
            }
            self.plan(now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do, if nothing happens before.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.look_at
    }

    /// The next order to give: all lowerings, then the raisings, and never what was told last.
    pub(super) fn poll_order(&mut self) -> Option<Order> {
        let mut changed = self.members.iter_mut().filter(|(_, m)| m.allowance != m.told);
        let first = changed.next()?;
        let (&id, member) = if first.1.allowance < first.1.told {
            first
        } else {
            changed.find(|(_, m)| m.allowance < m.told).unwrap_or(first)
        };
        member.told = member.allowance;
        member.order += 1;
        Some(Order {
            member: id,
            number: member.order,
            allowance: member.allowance,
        })
    }

    pub(super) fn max_in_flight(&self) -> u32 {
        self.max_in_flight
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// What all members hold together.
    pub(super) fn held(&self) -> u32 {
        self.members.values().fold(0, |sum, m| sum.saturating_add(m.held()))
    }

    /// What a member may have in flight; 0 for an unknown one.
    pub(super) fn allowance(&self, id: MemberId) -> u32 {
        self.members.get(&id).map_or(0, |m| m.allowance)
    }

    /// Whether a member has been silent, so that its next message is news.
    pub(super) fn is_idle(&self, id: MemberId) -> bool {
        self.members.get(&id).is_some_and(|m| m.idle)
    }

    /// Decides every allowance anew from what is known. Each event ends here, so no rule depends on the order of events.
    fn plan(&mut self, now: Instant) {
        if self.is_crowded() {
            self.assign_turns(now);
        } else if self.stale {
            self.assign_shares();
            self.members.values_mut().for_each(|m| m.turn = None);
        }
        self.stale = false;
        self.settle(now);
        self.schedule(now);
    }

    fn limit(&self) -> u32 {
        if self.paused { 0 } else { self.max_in_flight }
    }

    fn eligible(&self) -> usize {
        self.members.values().filter(|m| m.is_eligible()).count()
    }

    fn is_crowded(&self) -> bool {
        self.limit() > 0 && self.eligible() > self.limit() as usize
    }

    /// Works out the shares where there is room for all.
    fn assign_shares(&mut self) {
        let limit = self.limit();
        self.members.values_mut().for_each(|m| m.share = 0);
        let mut members: Vec<&mut Member> = self.members.values_mut().filter(|m| m.is_eligible()).collect();
        if limit == 0 {
            return;
        }
        let mut demands: Vec<Demand> = members
            .iter()
            .map(|m| Demand {
                weight: m.weight,
                floor: 1,
                cap: m.limit,
            })
            .collect();
        let mut shares = divide(limit, &demands);
        if members.iter().any(|m| !m.idle) {
            for ((member, demand), share) in members.iter().zip(&mut demands).zip(&shares) {
                if member.idle {
                    demand.cap = member.usage.connections.clamp(1, *share);
                }
            }
            shares = divide(limit, &demands);
        }
        for (member, share) in members.iter_mut().zip(shares) {
            member.share = share;
        }
    }

    /// Gives as many turns as there is budget, those first that have waited longest.
    fn assign_turns(&mut self, now: Instant) {
        let slots = self.limit() as usize;
        let mut holders = Vec::new();
        let mut waiting = Vec::new();
        for (id, member) in &mut self.members {
            if !member.is_eligible() {
                member.turn = None;
                member.share = 0;
            } else if member.turn.is_some() {
                holders.push((*id, member));
            } else if member.allowance > 0 {
                // There was room for all until now.
                member.turn = Some(member.since);
                holders.push((*id, member));
            } else {
                waiting.push((*id, member));
            }
        }
        holders.sort_by_key(|(id, m)| (m.turn, *id));
        let excess = holders.len().saturating_sub(slots);
        let free = slots.saturating_sub(holders.len());
        for (number, (_, member)) in holders.into_iter().enumerate() {
            if number < excess {
                member.turn = None;
            }
            member.share = u32::from(number >= excess);
        }
        waiting.sort_by_key(|(id, m)| (m.since, *id));
        for (number, (_, member)) in waiting.into_iter().enumerate() {
            if number < free {
                member.turn = Some(now);
            }
            member.share = u32::from(number < free);
        }
    }

    /// Takes the turn from those that had it long enough, or do not use it, as far as others wait for one.
    fn end_turns(&mut self, now: Instant) {
        let (hold, idle) = self.turn_limits();
        // Whoever would be late at the next look goes now: the promise is an upper bound.
        let hold = hold.saturating_sub(self.interval());
        let is_over = |m: &Member| {
            m.turn
                .is_some_and(|turn| now.saturating_duration_since(turn) >= hold || m.is_silent(now, idle))
        };
        let eligible = self.members.values().filter(|m| m.is_eligible());
        let waiting = eligible.filter(|m| m.turn.is_none()).count();
        let mut ending: Vec<&mut Member> = self.members.values_mut().filter(|m| is_over(m)).collect();
        ending.sort_by_key(|m| m.turn);
        for member in ending.into_iter().take(waiting) {
            member.turn = None;
            // At once, for it waits from now on: behind all others.
            member.lower(0, now);
        }
    }

    /// How long a turn lasts, for a member with messages and for one without. With so many members that one has to wait
    /// for several turns of others, all turns are shorter in proportion.
    fn turn_limits(&self) -> (Duration, Duration) {
        let slots = self.limit().max(1) as usize;
        let rounds = self.eligible().saturating_sub(slots).div_ceil(slots).max(1);
        let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
        (TURN / rounds, IDLE / rounds)
    }

    fn find_idle(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            if !member.idle && member.is_silent(now, IDLE) {
                member.idle = true;
                self.stale = true;
            }
        }
    }

    /// Lowers everyone to its share, then raises with what is really free.
    fn settle(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            let share = if member.is_eligible() { member.share } else { 0 };
            member.lower(share, now);
        }
        let Some(mut free) = self.limit().checked_sub(self.held()) else {
            return;
        };
        let mut rising: Vec<(MemberId, &mut Member)> = self
            .members
            .iter_mut()
            .filter(|(_, m)| m.is_eligible() && m.share > m.allowance)
            .map(|(id, m)| (*id, m))
            .collect();
        rising.sort_by_key(|(id, m)| (m.allowance > 0, m.since, *id));
        // One for each that has nothing comes before more for anybody.
        for (_, member) in rising.iter_mut().filter(|(_, m)| m.allowance == 0) {
            member.raise(1, &mut free, now);
        }
        for (_, member) in rising {
            member.raise(member.share, &mut free, now);
        }
    }

    /// A quarter of a turn at most, so that turns end about when they should.
    fn interval(&self) -> Duration {
        if !self.is_crowded() {
            return INTERVAL;
        }
        let (hold, _) = self.turn_limits();
        (hold / 4).clamp(MIN_INTERVAL, INTERVAL)
    }

    /// Keeps looking exactly while there is somebody to lend or to wait.
    fn schedule(&mut self, now: Instant) {
        let wanted = self.limit() > 0 && self.eligible() > 1;
        let next = now + self.interval();
        self.look_at = wanted.then(|| self.look_at.map_or(next, |at| at.min(next)));
    }
}
