//! The flow of each consumer as its connections show it, and what C2, C3 and C4 say of it.
//!
//! A consumer and its connections are tasks of one thread that share an instant of virtual time: what one of them has
//! decided, another may write after a third has written something else. So what is judged is how things stand when
//! virtual time has moved on, and of the messages in flight only as many count as were there before this instant and
//! still are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::journal::{Delivery, LinkId, Written};
use crate::plan::{CONSUMERS, ConsumerPlan, MSG_TIMEOUT};

/// The default of `low_rdy_timeout`, and as long as the slowest handler keeps the only slot.
const LONGEST_WITHOUT_RDY: Duration = Duration::from_secs(30 + 12);

/// How long a changed `max_in_flight` may take from its call to the flow.
const CHANGE: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub struct Flows {
    next_id: LinkId,
    links: BTreeMap<LinkId, (usize, Conn)>,
    consumers: [Flow; CONSUMERS],
    /// Deliveries whose handlers failed, with the consumer and the nsqd.
    failed: BTreeSet<(usize, String, Delivery)>,
    /// How often each check had something to judge.
    pub raises: u64,
    pub failures: u64,
    pub probes: u64,
    pub longest_without_rdy: Duration,
}

#[derive(Debug, Default)]
struct Flow {
    max_in_flight: u32,
    /// The one before, while the change may not have arrived.
    before: (u32, Duration),
    backs_off: bool,
    /// A shutdown has begun: nothing is decided any more.
    ending: bool,
    /// FIN and REQ written, and how many of them were refused.
    answers: (u64, u64, u64),
    /// The instant of the last event.
    instant: Duration,
    /// In this instant RDY rose on this connection.
    raised: Option<LinkId>,
    /// In this instant a REQ was written that RDY 0 has to have gone before.
    requeued: Option<String>,
    /// In backoff when last looked at.
    in_backoff: bool,
}

#[derive(Debug)]
struct Conn {
    nsqd: String,
    subscribed: bool,
    leaving: bool,
    rdy: u32,
    in_flight: BTreeMap<Delivery, InFlight>,
    /// How many there were before this instant.
    settled: usize,
    /// Since when it has had no RDY for no reason but its turn.
    without_rdy: Option<Duration>,
}

#[derive(Debug)]
struct InFlight {
    body: String,
    /// When nsqd takes it back.
    until: Duration,
}

impl Conn {
    fn in_flight(&self, now: Duration) -> usize {
        self.in_flight.values().filter(|message| message.until > now).count()
    }
}

impl Flows {
    pub fn begin(&mut self, consumer: usize, plan: &ConsumerPlan) {
        self.consumers[consumer] = Flow {
            max_in_flight: plan.max_in_flight,
            backs_off: plan.backs_off,
            ..Flow::default()
        };
    }

    pub fn set_max_in_flight(&mut self, consumer: usize, count: u32, now: Duration) {
        let flow = &mut self.consumers[consumer];
        flow.before = (flow.max_in_flight, now + CHANGE);
        flow.max_in_flight = count;
    }

    pub fn end(&mut self, consumer: usize) {
        self.consumers[consumer].ending = true;
    }

    pub fn open(&mut self, consumer: usize, nsqd: &str) -> LinkId {
        self.next_id += 1;
        let conn = Conn {
            nsqd: nsqd.to_owned(),
            subscribed: false,
            leaving: false,
            rdy: 0,
            in_flight: BTreeMap::new(),
            settled: 0,
            without_rdy: None,
        };
        self.links.insert(self.next_id, (consumer, conn));
        self.next_id
    }

    pub fn wrote(&mut self, link: LinkId, command: &Written, now: Duration) -> Vec<String> {
        let Some(consumer) = self.links.get(&link).map(|(consumer, _)| *consumer) else {
            return vec![format!("connection {link} wrote after its end")];
        };
        let mut broken = self.settle(consumer, now);
        let Some((_, conn)) = self.links.get_mut(&link) else {
            return broken;
        };
        match command {
            Written::Sub => conn.subscribed = true,
            Written::Rdy(rdy) => {
                let rises = *rdy > conn.rdy;
                conn.rdy = *rdy;
                if rises {
                    self.raises += 1;
                    self.consumers[consumer].raised = Some(link);
                }
            }
            Written::Fin(id) | Written::Req(id) => {
                let answered = conn.in_flight.keys().find(|(known, _)| known == id).cloned();
                let nsqd = conn.nsqd.clone();
                let Some((delivery, message)) = answered.and_then(|known| conn.in_flight.remove_entry(&known)) else {
                    broken.push(format!(
                        "C5: connection {link} answered {id}, which it does not have: {command:?}"
                    ));
                    return broken;
                };
                let answers = &mut self.consumers[consumer].answers;
                match command {
                    Written::Fin(_) => answers.0 += 1,
                    _ => answers.1 += 1,
                }
                let failed = self.failed.remove(&(consumer, nsqd, delivery.clone()));
                let flow = &mut self.consumers[consumer];
                if failed && matches!(command, Written::Req(_)) && flow.backs_off && !flow.ending {
                    self.failures += 1;
                    flow.requeued = Some(format!("REQ of {} on connection {link}", message.body));
                }
            }
            Written::Touch(id) => {
                let touched = conn.in_flight.iter_mut().filter(|((known, _), _)| known == id);
                touched.for_each(|(_, message)| message.until = now + MSG_TIMEOUT);
            }
            Written::Cls => {
                conn.leaving = true;
                conn.rdy = 0;
            }
        }
        broken
    }

    pub fn refused(&mut self, link: LinkId, error: &str) {
        let is_of_answer = error.starts_with("E_FIN_FAILED") || error.starts_with("E_REQ_FAILED");
        if let Some((consumer, _)) = self.links.get(&link).filter(|_| is_of_answer) {
            self.consumers[*consumer].answers.2 += 1;
        }
    }

    /// How many FIN and REQ a consumer has written since it was started, and how many were refused.
    pub fn answers(&self, consumer: usize) -> (u64, u64, u64) {
        self.consumers[consumer].answers
    }

    /// Which message an answer is about.
    pub fn body(&self, link: LinkId, command: &Written) -> Option<String> {
        let (Written::Fin(id) | Written::Req(id)) = command else {
            return None;
        };
        let (_, conn) = self.links.get(&link)?;
        let mut messages = conn.in_flight.iter().filter(|((known, _), _)| known == id);
        messages.next().map(|(_, message)| message.body.clone())
    }

    pub fn delivered(&mut self, link: LinkId, delivery: Delivery, body: String, now: Duration) -> Vec<String> {
        let Some(consumer) = self.links.get(&link).map(|(consumer, _)| *consumer) else {
            return Vec::new();
        };
        let broken = self.settle(consumer, now);
        if let Some((_, conn)) = self.links.get_mut(&link) {
            let until = now + MSG_TIMEOUT;
            conn.in_flight.insert(delivery, InFlight { body, until });
        }
        broken
    }

    pub fn failed(&mut self, consumer: usize, nsqd: &str, delivery: Delivery) {
        self.failed.insert((consumer, nsqd.to_owned(), delivery));
    }

    pub fn close(&mut self, link: LinkId, now: Duration) -> Vec<String> {
        let Some(consumer) = self.links.get(&link).map(|(consumer, _)| *consumer) else {
            return Vec::new();
        };
        let broken = self.settle(consumer, now);
        self.links.remove(&link);
        broken
    }

    /// How many connections a consumer has open, and the deliveries on them that it has not answered.
    pub fn left(&self, consumer: usize) -> (usize, usize) {
        let conns = self.of(consumer);
        conns.fold((0, 0), |(links, unanswered), conn| {
            (links + 1, unanswered + conn.in_flight.len())
        })
    }

    /// Looks at a consumer at the end of a step. `in_backoff` is what it says of itself, `None` if there is none.
    pub fn look(&mut self, consumer: usize, in_backoff: Option<bool>, now: Duration) -> Vec<String> {
        let mut broken = self.settle(consumer, now);
        let in_backoff = in_backoff.unwrap_or(false);
        let flow = &mut self.consumers[consumer];
        let lasts = std::mem::replace(&mut flow.in_backoff, in_backoff) && in_backoff && !flow.ending;
        let idles = in_backoff || flow.max_in_flight == 0 || flow.ending;
        let ready: u32 = self.of(consumer).map(|conn| conn.rdy).sum();
        if lasts {
            self.probes += u64::from(ready == 1);
            if ready > 1 {
                broken.push(format!(
                    "C4: consumer {consumer} has RDY {ready} in all while it backs off"
                ));
            }
        }
        // Whoever still works off an excess cannot give anybody RDY.
        let idles = idles || self.excess(consumer, now) > 0;
        broken.extend(self.judge_turns(consumer, idles, now));
        broken
    }

    /// C3: within `low_rdy_timeout` everyone has a turn.
    fn judge_turns(&mut self, consumer: usize, idles: bool, now: Duration) -> Vec<String> {
        let mut broken = Vec::new();
        let longest = &mut self.longest_without_rdy;
        for (id, (owner, conn)) in &mut self.links {
            if *owner != consumer {
                continue;
            }
            if idles || !conn.subscribed || conn.leaving || conn.rdy > 0 {
                conn.without_rdy = None;
                continue;
            }
            let since = *conn.without_rdy.get_or_insert(now);
            *longest = (*longest).max(now - since);
            if now - since > LONGEST_WITHOUT_RDY {
                conn.without_rdy = None;
                broken.push(format!(
                    "C3: consumer {consumer} has given connection {id} ({}) no RDY for {:?}",
                    conn.nsqd,
                    now - since
                ));
            }
        }
        broken
    }

    /// Judges how a consumer stood at the end of its last instant, if that is over.
    fn settle(&mut self, consumer: usize, now: Duration) -> Vec<String> {
        let mut broken = Vec::new();
        let instant = self.consumers[consumer].instant;
        if now <= instant {
            return broken;
        }
        let ready: u32 = self.of(consumer).map(|conn| conn.rdy).sum();
        let (limit, charge) = (self.limit(consumer, instant), self.charge(consumer, instant));
        let flow = &mut self.consumers[consumer];
        flow.instant = now;
        let (requeued, raised) = (flow.requeued.take(), flow.raised.take());
        let is_ending = flow.ending;
        let mut judge = |is_broken: bool, promise: &str, what: String| {
            if is_broken && !is_ending {
                let stand = self.describe(consumer, instant);
                broken.push(format!(
                    "{promise}: consumer {consumer} {what}; max_in_flight {limit}; {stand}"
                ));
            }
        };
        if let Some(requeued) = requeued {
            judge(ready > 0, "C4", format!("wrote {requeued} with RDY {ready} left"));
        }
        // Whoever has more than `max_in_flight` works that off before it gives anybody more.
        if let Some(link) = raised {
            judge(
                charge > limit,
                "C2",
                format!("raised RDY on connection {link} to a sum of {charge}"),
            );
        }
        judge(ready > limit, "C2", format!("has RDY {ready} in all"));
        for (owner, conn) in self.links.values_mut() {
            if *owner == consumer {
                conn.settled = conn.in_flight(instant);
            }
        }
        broken
    }

    fn of(&self, consumer: usize) -> impl Iterator<Item = &Conn> {
        let conns = self.links.values().filter(move |(owner, _)| *owner == consumer);
        conns.map(|(_, conn)| conn)
    }

    fn limit(&self, consumer: usize, now: Duration) -> u32 {
        let flow = &self.consumers[consumer];
        let (before, until) = flow.before;
        if now < until {
            flow.max_in_flight.max(before)
        } else {
            flow.max_in_flight
        }
    }

    /// The sum of max(RDY, in flight).
    fn charge(&self, consumer: usize, now: Duration) -> u32 {
        let charge = |conn: &Conn| conn.rdy.max(conn.in_flight(now).min(conn.settled) as u32);
        self.of(consumer).map(charge).sum()
    }

    fn excess(&self, consumer: usize, now: Duration) -> u32 {
        let all = self.of(consumer).map(|conn| conn.in_flight.len() as u32).sum::<u32>();
        all.saturating_sub(self.limit(consumer, now))
    }

    fn describe(&self, consumer: usize, now: Duration) -> String {
        let links = self.links.iter().filter(|(_, (owner, _))| *owner == consumer);
        let links = links.map(|(id, (_, conn))| {
            let in_flight = conn.in_flight(now);
            format!(
                "{id} ({}): RDY {}, in flight {in_flight} of {}",
                conn.nsqd,
                conn.rdy,
                conn.in_flight.len()
            )
        });
        links.collect::<Vec<_>>().join("; ")
    }
}
