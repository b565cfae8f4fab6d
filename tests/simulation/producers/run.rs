//! One life: it starts, faults strike and end, everybody recovers and is shut down, and the ledger is compared with what
//! the nsqds have.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::cluster::{Cluster, Phase, ProducerOrder, run_nsqd, run_producer};
use super::plan::{Fault, Kind, Link, PRODUCERS, Plan, producer_name};
use crate::hosts::NsqdOrder;
use crate::network::{Life, Link as _};
use crate::outages::World;
use crate::plan::{HEARTBEAT, NSQDS, nsqd_name};
use crate::seeds::Outcome;

/// How long producers may take to publish again. The longest part is a connection that is tried again after half a minute.
const RECOVERY: Duration = Duration::from_secs(90);

/// The deadline of the shutdowns at the end.
const DEADLINE: Duration = Duration::from_secs(3);

/// Runs a seed.
///
/// # Errors
/// What was broken, and what happened before.
pub fn run(seed: u64, keep_story: bool) -> Result<Outcome, String> {
    // The clients draw from the thread's generator, and the simulation is one thread.
    fastrand::seed(seed);
    let cluster = Arc::new(Cluster::default());
    cluster.ledger.lock().story.complete = keep_story.then(Vec::new);
    let mut run = Run {
        world: World::new(seed, Arc::clone(&cluster.brokers)),
        plan: Arc::new(Plan::new(seed)),
        cluster,
        active: Vec::new(),
        ending: Vec::new(),
        struck: 0,
    };
    let recovery = match run.live() {
        Ok(recovery) => recovery,
        Err(broken) => return Err(run.tell(&broken)),
    };
    let mut book = run.cluster.ledger.lock();
    let (repeated, lost) = book.repeated_and_lost(&run.plan);
    let summary = format!(
        "{} faults, {} destroyed, recovered in {recovery:?} of {:?}; {:?}, {repeated} repeated, {lost} confirmed once and lost \
         with a dead nsqd",
        run.struck,
        usize::from(run.plan.destroyed.is_some()),
        run.world.network.elapsed(),
        book.counts(),
    );
    Ok(Outcome {
        summary,
        digest: book.story.digest(),
        events: book.story.events,
        story: book.story.complete.take(),
    })
}

struct Run {
    world: World<Link>,
    plan: Arc<Plan>,
    cluster: Arc<Cluster>,
    /// The faults that last, with their ends.
    active: Vec<(Duration, Kind)>,
    /// The producers that are shut down.
    ending: Vec<usize>,
    struck: usize,
}

impl Run {
    fn live(&mut self) -> Result<Duration, String> {
        self.build();
        let mut faults = self.plan.faults.clone().into_iter().peekable();
        let mut destroyed = self.plan.destroyed.clone();
        while self.elapsed() < self.plan.heals_at || !self.active.is_empty() || destroyed.is_some() {
            self.step()?;
            let now = self.elapsed();
            self.end_faults(now);
            let victim = self.plan.victim;
            if let Some(end) = destroyed.take_if(|end| end.at <= now && !self.world.is_down(victim)) {
                self.destroy(end.silently);
            }
            while let Some(fault) = faults.next_if(|fault| fault.at <= now) {
                self.strike(&fault, now);
            }
        }
        self.cluster.enter(Phase::Recovery);
        self.cluster.ledger.note(format_args!("nothing fails any more"));
        let healed = self.elapsed();
        self.step_until("all producers publish again", RECOVERY, |run| {
            run.cluster.unrecovered().is_empty()
        })?;
        let recovery = self.elapsed() - healed;
        // A copy beyond the quorum, or one whose caller has left, may be on its way to a peer that vanished. That is noticed by
        // missing heartbeats, and no matter of the shutdown.
        let noticed = self.elapsed() + 3 * HEARTBEAT;
        self.step_until("time passes", RECOVERY, |run| run.elapsed() > noticed)?;
        self.finish()?;
        Ok(recovery)
    }

    fn build(&mut self) {
        let sim = self.world.network.sim.get_mut();
        for n in 0..NSQDS {
            let cluster = Arc::clone(&self.cluster);
            sim.host(nsqd_name(n), move || run_nsqd(Arc::clone(&cluster), n));
        }
        self.world.host_lookupds();
        let sim = self.world.network.sim.get_mut();
        for p in 0..PRODUCERS {
            let (cluster, plan) = (Arc::clone(&self.cluster), Arc::clone(&self.plan));
            sim.host(producer_name(p), move || {
                run_producer(Arc::clone(&cluster), Arc::clone(&plan), p)
            });
        }
    }

    fn strike(&mut self, fault: &Fault, now: Duration) {
        let began = match fault.kind.clone() {
            Kind::Outage(outage) => self.world.begin(outage),
            Kind::Shutdown(p, deadline) => {
                let is_up = !self.ending.contains(&p);
                if is_up {
                    self.ending.push(p);
                    self.cluster.producers[p].give(ProducerOrder::Shutdown(deadline));
                }
                is_up
            }
            Kind::Isolate(p) => self.world.network.cut_off(&Link::to_nsqds(p)),
        };
        if began {
            self.struck += 1;
            let ledger = &self.cluster.ledger;
            ledger.note(format_args!("for {:?}: {:?}", fault.lasts, fault.kind));
            self.active.push((now + fault.lasts, fault.kind.clone()));
        }
    }

    fn end_faults(&mut self, now: Duration) {
        let (over, active) = self.active.drain(..).partition(|(end, _)| *end <= now);
        self.active = active;
        let over: Vec<(Duration, Kind)> = over;
        for (_, kind) in over {
            self.cluster.ledger.note(format_args!("over: {kind:?}"));
            match kind {
                Kind::Outage(outage) => self.world.end(outage),
                Kind::Shutdown(p, _) => {
                    self.ending.retain(|ending| *ending != p);
                    self.cluster.producers[p].give(ProducerOrder::Start);
                }
                Kind::Isolate(p) => self.world.network.mend(&Link::to_nsqds(p)),
            }
        }
    }

    /// The victim is gone for good.
    fn destroy(&mut self, silently: bool) {
        let victim = self.plan.victim;
        let silently = silently && self.world.network.cut_off(&Link::of_nsqd(victim));
        let ledger = &self.cluster.ledger;
        ledger.note(format_args!("nsqd {victim} is destroyed, silently: {silently}"));
        self.world.take_down(victim, NsqdOrder::Kill);
    }

    /// Ends everything, sees that nothing is left, and compares.
    fn finish(&mut self) -> Result<(), String> {
        self.cluster.enter(Phase::Over);
        for orders in &self.cluster.producers {
            orders.give(ProducerOrder::Shutdown(DEADLINE));
        }
        let patience = DEADLINE + Duration::from_millis(200);
        self.step_until("the producers end within their deadline", patience, |run| {
            (0..PRODUCERS).all(|p| run.cluster.ending(p).is_some())
        })?;
        for p in 0..PRODUCERS {
            // The network is well and everything was confirmed.
            if self.cluster.ending(p) != Some(true) {
                return Err(format!("P3: producer {p} did not end cleanly"));
            }
        }
        // A peer that vanished is noticed by its missing heartbeats.
        self.step_until("nsqds have no clients", 4 * HEARTBEAT, |run| {
            let clients = |n: usize| run.cluster.brokers.nsqds[n].nsqd().stats().clients;
            // A connection that was cut off before its first bytes arrived is left to TCP, by the real nsqd too.
            (0..NSQDS).all(|n| {
                clients(n)
                    .iter()
                    .all(|client| !client.client_id.starts_with("producer"))
            })
        })?;
        for host in &self.cluster.brokers.nsqds {
            host.orders.give(NsqdOrder::Stop);
        }
        self.step_until("nsqds are stopped", Duration::from_secs(1), |run| {
            (0..NSQDS).all(|n| run.cluster.is_counted(n))
        })?;
        let mut book = self.cluster.ledger.lock();
        book.compare(&self.plan);
        book.story.judge()
    }

    /// Everything that helps to understand a failure.
    fn tell(&self, broken: &str) -> String {
        let mut story = self.cluster.ledger.lock().story.text();
        let _ = writeln!(story, "{:?} have passed", self.elapsed());
        let _ = writeln!(story, "not recovered: {:?}", self.cluster.unrecovered());
        for n in 0..NSQDS {
            let clients = self.cluster.brokers.nsqds[n].nsqd().stats().clients;
            let _ = writeln!(story, "nsqd {n}: {} clients", clients.len());
        }
        format!("{story}\n{broken}\n")
    }
}

impl Life for Run {
    fn elapsed(&self) -> Duration {
        self.world.network.elapsed()
    }

    fn step(&mut self) -> Result<(), String> {
        self.world.step()?;
        let mut book = self.cluster.ledger.lock();
        book.story.clock = self.world.network.elapsed();
        book.story.judge()
    }
}
