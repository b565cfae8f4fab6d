//! What one connection is charged for, what it is due, and in which order RDY is moved between connections.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::ConnectionId;

/// One connection as the flow control sees it.
#[derive(Debug)]
pub(super) struct Connection {
    /// The largest RDY this nsqd accepts.
    max_rdy_count: u32,
    /// The RDY that was decided.
    pub(super) rdy: u32,
    /// The RDY that was last handed out for writing.
    pub(super) sent: u32,
    /// Messages in flight as last reported; after a lowering the most that there can be, until a report says less.
    pub(super) in_flight: u32,
    /// What it is due when nothing holds it back.
    pub(super) share: u32,
    /// What it should have now: the share, or zero in backoff, without a turn, or after an overrun.
    pub(super) goal: u32,
    /// CLS was sent: nsqd ignores RDY from now on.
    pub(super) closing: bool,
    /// nsqd sent more than RDY allowed, and the handlers have not caught up.
    pub(super) overrun: bool,
    /// It was silent, so others use most of its share until its next message.
    pub(super) yielded: bool,
    /// It has delivered a message. Until then nobody knows whether its nsqd has any, or can deliver at all.
    pub(super) proven: bool,
    /// Since when it has its turn; every connection has, unless there are more than `max_in_flight`.
    pub(super) turn: Option<Instant>,
    /// Since when RDY has been zero, or has not been.
    pub(super) since: Instant,
    pub(super) last_message: Instant,
}

impl Connection {
    pub(super) fn new(max_rdy_count: u32, now: Instant) -> Self {
        Self {
            max_rdy_count,
            rdy: 0,
            sent: 0,
            in_flight: 0,
            share: 0,
            goal: 0,
            closing: false,
            overrun: false,
            yielded: false,
            proven: false,
            turn: None,
            since: now,
            last_message: now,
        }
    }

    /// What counts against `max_in_flight`: the messages that are here, and those that nsqd may send.
    pub(super) fn charge(&self) -> u32 {
        self.rdy.max(self.in_flight)
    }

    /// Whether it takes part in the sharing at all.
    pub(super) fn is_eligible(&self) -> bool {
        !self.closing && self.max_rdy_count > 0
    }

    /// Whether RDY may rise from here: the messages of the last window are answered as far as the share goes.
    ///
    /// Without this, an nsqd that takes messages back from stuck handlers and sends them again would be given one
    /// window after the other.
    pub(super) fn may_rise(&self) -> bool {
        self.is_eligible() && !self.overrun && self.in_flight <= self.share
    }

    /// Whether RDY 1 is all it keeps until its next message, and others use the rest of its share.
    pub(super) fn lends(&self) -> bool {
        self.yielded || !self.proven
    }

    /// How long it has had RDY and no message.
    pub(super) fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_message.max(self.since))
    }

    pub(super) fn lower(&mut self, rdy: u32, now: Instant) {
        if rdy >= self.rdy {
            return;
        }
        // Messages may be on their way up to the RDY that nsqd knows.
        self.in_flight = self.in_flight.max(self.sent);
        self.rdy = rdy;
        if rdy == 0 {
            self.since = now;
        }
    }

    /// Raises towards `rdy` as far as `budget` goes, which it takes from.
    fn raise(&mut self, rdy: u32, budget: &mut u32, now: Instant) {
        let charge = self.charge();
        let rdy = rdy.min(charge.saturating_add(*budget));
        if rdy <= self.rdy {
            return;
        }
        *budget -= rdy.max(charge) - charge;
        if self.rdy == 0 {
            self.since = now;
            self.turn = Some(now);
        }
        self.rdy = rdy;
    }
}

pub(super) type Connections = BTreeMap<ConnectionId, Connection>;

/// Works out what each connection is due: an even part of `max_in_flight` with the remainder handed out too, no more
/// than its nsqd accepts, and 1 for those that lend. What some cannot use goes to the others. With more connections
/// than `max_in_flight` it is 1, for those whose turn it is.
pub(super) fn assign_shares(connections: &mut Connections, max_in_flight: u32) {
    for connection in connections.values_mut() {
        connection.share = 0;
    }
    let mut due: Vec<&mut Connection> = connections.values_mut().filter(|c| c.is_eligible()).collect();
    if due.len() > max_in_flight as usize {
        for connection in due {
            connection.share = max_in_flight.min(1);
        }
        return;
    }
    let limit = |c: &Connection| if c.lends() { 1 } else { c.max_rdy_count };
    // Those that can use least go first, so that what they leave is known when the others are served.
    due.sort_by_key(|c| limit(c));
    let mut left = max_in_flight;
    let mut sharers = due.len() as u32;
    for connection in due {
        connection.share = (left / sharers).min(limit(connection));
        left -= connection.share;
        sharers -= 1;
    }
}

/// Gives the turns: to everyone where there is room, else to `max_in_flight` connections, those first that have waited
/// longest. Equals are told apart by a random number.
pub(super) fn assign_turns(connections: &mut Connections, max_in_flight: u32, now: Instant, rng: &mut fastrand::Rng) {
    let mut holders = Vec::new();
    let mut waiting = Vec::new();
    for connection in connections.values_mut() {
        if !connection.is_eligible() {
            connection.turn = None;
        } else if connection.turn.is_some() {
            holders.push(connection);
        } else {
            waiting.push((connection.since, rng.u32(..), connection));
        }
    }
    let slots = max_in_flight as usize;
    if holders.len() > slots {
        holders.sort_by_key(|c| c.turn);
        let excess = holders.len() - slots;
        holders.iter_mut().take(excess).for_each(|c| c.turn = None);
        return;
    }
    waiting.sort_by_key(|&(since, draw, _)| (since, draw));
    for (_, _, connection) in waiting.into_iter().take(slots - holders.len()) {
        connection.turn = Some(now);
    }
}

/// Takes the turn from those that had it long enough, or do not use it, as far as others wait for one.
pub(super) fn end_turns(connections: &mut Connections, now: Instant, hold: Duration, idle: Duration) {
    let waiting = connections
        .values()
        .filter(|c| c.is_eligible() && c.turn.is_none())
        .count();
    let mut ending: Vec<&mut Connection> = connections
        .values_mut()
        .filter(|c| {
            c.turn.is_some_and(|turn| {
                now.saturating_duration_since(turn) >= hold || (c.rdy > 0 && c.silent_for(now) >= idle)
            })
        })
        .collect();
    ending.sort_by_key(|c| c.turn);
    for connection in ending.into_iter().take(waiting) {
        connection.turn = None;
        // At once, for it waits from now on: behind all others.
        connection.lower(0, now);
    }
}

/// Lets those that have been silent for `idle` yield their share, provided that somebody is there to use it: one that
/// has yet to deliver its first message is not.
pub(super) fn yield_idle(connections: &mut Connections, now: Instant, idle: Duration) {
    let is_idle = |c: &Connection| c.rdy > 0 && c.in_flight == 0 && c.silent_for(now) >= idle;
    let busy = connections.values().any(|c| c.is_eligible() && c.proven && !is_idle(c));
    for connection in connections.values_mut() {
        connection.yielded = busy && (connection.yielded || is_idle(connection));
    }
}

/// Lowers everyone to its goal, then raises with what is really free.
///
/// A lowered connection stays charged for its old RDY until a report says that fewer messages are in flight, so
/// nothing is given away twice. While more is charged than there is, nothing rises, even what would cost nothing.
pub(super) fn settle(connections: &mut Connections, max_in_flight: u32, now: Instant) {
    for connection in connections.values_mut() {
        connection.lower(connection.goal, now);
    }
    let Some(mut budget) = max_in_flight.checked_sub(total_charge(connections)) else {
        return;
    };
    let mut rising: Vec<&mut Connection> = connections
        .values_mut()
        .filter(|c| c.goal > c.rdy && c.may_rise())
        .collect();
    rising.sort_by_key(|c| (c.rdy > 0, c.since));
    // One for each that has nothing comes before more for anybody.
    for connection in rising.iter_mut().filter(|c| c.rdy == 0) {
        connection.raise(1, &mut budget, now);
    }
    for connection in rising {
        connection.raise(connection.goal, &mut budget, now);
    }
}

/// The sum that is to stay within `max_in_flight`.
pub(super) fn total_charge(connections: &Connections) -> u32 {
    connections.values().fold(0, |sum, c| sum.saturating_add(c.charge()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(limits: &[u32]) -> Connections {
        let now = Instant::now();
        let all = limits.iter().enumerate().map(|(i, &limit)| {
            let mut connection = Connection::new(limit, now);
            connection.proven = true;
            (ConnectionId(i as u64), connection)
        });
        all.collect()
    }

    fn shares_of(mut connections: Connections, max_in_flight: u32) -> Vec<u32> {
        assign_shares(&mut connections, max_in_flight);
        connections.values().map(|c| c.share).collect()
    }

    fn shares(max_in_flight: u32, limits: &[u32], yielded: &[usize]) -> Vec<u32> {
        let mut connections = connections(limits);
        for &i in yielded {
            connections.get_mut(&ConnectionId(i as u64)).unwrap().yielded = true;
        }
        shares_of(connections, max_in_flight)
    }

    #[test]
    fn c3_shares_are_even_and_the_remainder_is_handed_out() {
        assert_eq!(shares(10, &[2500], &[]), [10]);
        assert_eq!(shares(10, &[2500; 2], &[]), [5, 5]);
        assert_eq!(shares(10, &[2500; 3], &[]), [3, 3, 4]);
        assert_eq!(shares(11, &[2500; 3], &[]), [3, 4, 4]);
        assert_eq!(shares(3, &[2500; 3], &[]), [1, 1, 1]);
        assert_eq!(shares(2, &[2500; 3], &[]), [1, 1, 1]);
        assert_eq!(shares(0, &[2500; 3], &[]), [0, 0, 0]);
        assert!(shares(10, &[], &[]).is_empty());
    }

    #[test]
    fn c3_what_one_nsqd_does_not_accept_the_others_get() {
        assert_eq!(shares(100, &[2500, 10, 2500], &[]), [45, 10, 45]);
        assert_eq!(shares(100, &[5, 10, 20], &[]), [5, 10, 20]);
        assert_eq!(shares(100, &[0, 2500], &[]), [0, 100]);
        assert_eq!(shares(u32::MAX, &[u32::MAX; 2], &[]), [u32::MAX / 2, u32::MAX / 2 + 1]);
    }

    #[test]
    fn c3_a_yielding_connection_keeps_one() {
        assert_eq!(shares(10, &[2500; 3], &[0]), [1, 4, 5]);
        assert_eq!(shares(10, &[2500; 3], &[0, 2]), [1, 8, 1]);
        assert_eq!(shares(2, &[2500; 2], &[0]), [1, 1]);
    }

    #[test]
    fn c2_a_connection_without_a_message_yet_is_due_one_and_lends_the_rest() {
        let shares = |max, unproven: &[usize]| {
            let mut connections = connections(&[2500; 3]);
            for &i in unproven {
                connections.get_mut(&ConnectionId(i as u64)).unwrap().proven = false;
            }
            shares_of(connections, max)
        };
        assert_eq!(shares(10, &[0]), [1, 4, 5]);
        assert_eq!(shares(10, &[0, 2]), [1, 8, 1]);
        assert_eq!(shares(10, &[0, 1, 2]), [1, 1, 1]);
        assert_eq!(shares(3, &[0]), [1, 1, 1]);
        assert_eq!(shares(2, &[0]), [1, 1, 1]);
        assert_eq!(shares(0, &[0]), [0, 0, 0]);
    }
}
