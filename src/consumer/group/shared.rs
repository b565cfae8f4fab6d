//! What a group's handle and its tasks share. Decisions are made by whoever brings the news, under one lock that nobody holds
//! across an await.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::Consumer;
use super::budget::{Budget, MAX_WEIGHT, MemberId, Usage};
use super::ration::{Bell, Ration};
use super::state::{GroupReport, GroupStats, MemberReport, MemberStats};
use crate::consumer::builder::ConsumerBuilder;
use crate::consumer::handler::Handler;
use crate::consumer::state::ConsumerReport;
use crate::error::{Error, ErrorKind, Result, Step};

pub(super) struct Shared {
    bell: Arc<Bell>,
    max_members: usize,
    inner: Mutex<Inner>,
    /// Set at the end.
    report: watch::Sender<Option<GroupReport>>,
}

struct Inner {
    budget: Budget,
    members: BTreeMap<MemberId, Member>,
    next: u64,
    /// No further members.
    ending: bool,
    /// What members did that have left.
    left: GroupReport,
}

struct Member {
    consumer: Arc<Consumer>,
    ration: Arc<Ration>,
    weight: u32,
    ending: bool,
}

impl Member {
    fn usage(&self) -> Usage {
        // Before the counts: what they miss the next report tells.
        let (order, charge) = self.ration.reported();
        let state = self.consumer.state.borrow();
        let links = state.links.iter();
        let (in_flight, received) = links.fold((0, state.received_before), |(in_flight, received), link| {
            (in_flight + link.in_flight(), received + link.received())
        });
        Usage {
            order,
            charge,
            in_flight,
            received,
            connections: u32::try_from(state.links.len()).unwrap_or(u32::MAX),
        }
    }

    /// Makes the supervisor see what the ration has for it.
    fn look_around(&self) {
        self.consumer.desk.mailbox.notify();
    }
}

impl Inner {
    /// Passes on what the budget has decided.
    fn give_orders(&mut self) {
        let paused = self.budget.is_paused();
        while let Some(order) = self.budget.poll_order() {
            if let Some(member) = self.members.get(&order.member) {
                member.ration.give(order, paused);
                member.look_around();
            }
        }
    }

    /// Asks those without messages to speak up when one comes.
    fn ask_idle(&self) {
        for (id, member) in &self.members {
            if self.budget.is_idle(*id) && !member.ration.wants_first() {
                member.ration.want_first();
                member.look_around();
            }
        }
    }

    fn read_usage(&mut self, id: MemberId, now: Instant) {
        if let Some(member) = self.members.get(&id) {
            self.budget.handle_usage(id, member.usage(), now.into_std());
        }
    }

    fn remove(&mut self, id: MemberId, report: &ConsumerReport) {
        if self.members.remove(&id).is_some() {
            self.left.add(report);
        }
        self.budget.handle_left(id, Instant::now().into_std());
        self.give_orders();
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Shutdown, Step::Subscribe, "the group of consumers has ended")
}

impl Shared {
    pub(super) fn new(max_in_flight: u32, max_members: usize) -> Self {
        Self {
            bell: Arc::default(),
            max_members,
            inner: Mutex::new(Inner {
                budget: Budget::new(max_in_flight),
                members: BTreeMap::new(),
                next: 1,
                ending: false,
                left: GroupReport::default(),
            }),
            report: watch::Sender::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the budget, for as long as it is polled.
    pub(super) async fn keep(self: Arc<Self>) {
        loop {
            let timer = self.lock().budget.poll_timeout().map(Instant::from_std);
            tokio::select! {
                biased;
                () = self.bell.rung() => {
                    let now = Instant::now();
                    let rung = self.bell.take();
                    let mut inner = self.lock();
                    for id in rung {
                        inner.read_usage(id, now);
                    }
                    inner.give_orders();
                }
                () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => self.look_at_all(),
            }
        }
    }

    fn look_at_all(&self) {
        let now = Instant::now();
        let mut inner = self.lock();
        let ids: Vec<MemberId> = inner.members.keys().copied().collect();
        for id in ids {
            inner.read_usage(id, now);
        }
        inner.budget.handle_timeout(now.into_std());
        inner.give_orders();
        inner.ask_idle();
    }

    /// Starts a further member.
    pub(super) fn start<H: Handler>(&self, builder: ConsumerBuilder, weight: u32, handler: H) -> Result<MemberId> {
        if !(1..=MAX_WEIGHT).contains(&weight) {
            return Err(Error::option("weight", weight, "1 to 10000"));
        }
        // What fails below the lock would drop the handler there, and a handler's destructor is the user's code.
        builder.check()?;
        let mut inner = self.lock();
        if inner.ending {
            return Err(ended());
        }
        if inner.members.len() >= self.max_members {
            let more = format_args!("{} and all are in use", self.max_members).to_string();
            return Err(Error::option("max_members", more, "more, or fewer members"));
        }
        let id = MemberId(inner.next);
        let limit = builder.own_max_in_flight();
        let ration = Arc::new(Ration::new(id, Arc::clone(&self.bell)));
        let consumer = Arc::new(builder.start_rationed(handler, Arc::clone(&ration))?);
        inner.next += 1;
        let member = Member {
            consumer,
            ration,
            weight,
            ending: false,
        };
        inner.members.insert(id, member);
        inner.budget.handle_joined(id, weight, limit, Instant::now().into_std());
        inner.give_orders();
        inner.ask_idle();
        drop(inner);
        // There may be a timer now.
        self.bell.wake();
        Ok(id)
    }

    /// Whether there may be a further member.
    pub(super) fn has_room(&self) -> bool {
        let inner = self.lock();
        inner.ending || inner.members.len() < self.max_members
    }

    /// Changes the budget.
    fn change(&self, change: impl FnOnce(&mut Budget, std::time::Instant)) {
        let mut inner = self.lock();
        change(&mut inner.budget, Instant::now().into_std());
        inner.give_orders();
        drop(inner);
        self.bell.wake();
    }

    pub(super) fn set_max_in_flight(&self, count: u32) {
        self.change(|budget, now| budget.set_max_in_flight(count, now));
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.change(|budget, now| budget.set_paused(paused, now));
    }

    /// Marks a member as ending. `None` if there is none of this id.
    fn begin_end(&self, id: MemberId) -> Option<Arc<Consumer>> {
        let mut inner = self.lock();
        let member = inner.members.get_mut(&id)?;
        member.ending = true;
        let consumer = Arc::clone(&member.consumer);
        inner.budget.handle_leaving(id, Instant::now().into_std());
        inner.give_orders();
        Some(consumer)
    }

    /// Ends a member, whether the handle is polled or not.
    pub(super) fn end(self: &Arc<Self>, id: MemberId, deadline: Duration) -> Option<JoinHandle<ConsumerReport>> {
        let consumer = self.begin_end(id)?;
        // It must not keep the other members alive when the group is dropped.
        let shared: Weak<Self> = Arc::downgrade(self);
        Some(tokio::spawn(async move {
            let report = consumer.shutdown(deadline).await;
            if let Some(shared) = shared.upgrade() {
                shared.lock().remove(id, &report);
                shared.bell.wake();
            }
            report
        }))
    }

    /// The members that are not ending.
    pub(super) fn consumers(&self) -> Vec<Arc<Consumer>> {
        let inner = self.lock();
        let staying = inner.members.values().filter(|member| !member.ending);
        staying.map(|member| Arc::clone(&member.consumer)).collect()
    }

    pub(super) fn is_ending(&self) -> bool {
        self.lock().ending
    }

    pub(super) fn stats(&self) -> GroupStats {
        let inner = self.lock();
        let members = inner.members.iter().map(|(id, member)| MemberStats {
            id: *id,
            topic: member.consumer.topic().clone(),
            channel: member.consumer.channel().clone(),
            weight: member.weight,
            allowance: inner.budget.allowance(*id),
            idle: inner.budget.is_idle(*id),
            ending: member.ending,
            consumer: member.consumer.stats(),
        });
        GroupStats {
            max_in_flight: inner.budget.max_in_flight(),
            held: inner.budget.held(),
            paused: inner.budget.is_paused(),
            members: members.collect(),
        }
    }

    /// Ends the group, and tells what it did.
    pub(super) async fn shut_down(self: &Arc<Self>, deadline: Duration) -> GroupReport {
        self.begin_shutdown(deadline);
        let mut report = self.report.subscribe();
        match report.wait_for(Option::is_some).await {
            Ok(report) => report.clone().unwrap_or_default(),
            // The task is gone with its runtime.
            Err(_) => GroupReport::default(),
        }
    }

    /// Ends all members at once, in a task of its own, so that nobody has to wait for it.
    fn begin_shutdown(self: &Arc<Self>, deadline: Duration) {
        let mut inner = self.lock();
        if std::mem::replace(&mut inner.ending, true) {
            return;
        }
        let now = Instant::now();
        let end = now
            .checked_add(deadline)
            .unwrap_or(now + Duration::from_secs(86_400 * 365));
        let mut ending = JoinSet::new();
        for (id, member) in &mut inner.members {
            let began_before = std::mem::replace(&mut member.ending, true);
            let (id, consumer) = (*id, Arc::clone(&member.consumer));
            ending.spawn(async move { end_by(id, &consumer, end, began_before).await });
        }
        drop(inner);
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let mut members = Vec::new();
            while let Some(ended) = ending.join_next().await {
                let Ok(ended) = ended else { continue };
                shared.lock().remove(ended.id, &ended.report);
                members.push(ended);
            }
            members.sort_by_key(|member| member.id);
            let sums = shared.lock().left.clone();
            let report = GroupReport { members, ..sums };
            tracing::info!(
                members = report.members.len(),
                finished = report.finished,
                "group of consumers ended"
            );
            shared.report.send_replace(Some(report));
        });
    }

    /// The handle is gone: all consumers are dropped, unless they are being shut down.
    pub(super) fn abandon(&self) {
        let mut inner = self.lock();
        if !std::mem::replace(&mut inner.ending, true) {
            let members = std::mem::take(&mut inner.members);
            drop(inner);
            drop(members);
        }
    }
}

async fn end_by(id: MemberId, consumer: &Consumer, end: Instant, began_before: bool) -> MemberReport {
    let shutdown = consumer.shutdown(end.saturating_duration_since(Instant::now()));
    let report = if began_before {
        // It ends by a deadline of its own, which may be later.
        timeout_at(end, shutdown).await.ok()
    } else {
        Some(shutdown.await)
    };
    MemberReport {
        id,
        topic: consumer.topic().clone(),
        channel: consumer.channel().clone(),
        report: report.unwrap_or_else(|| consumer.unfinished()),
    }
}
