//! One life: it starts, faults strike and end, everybody recovers and is shut down, and the ledger is compared with what
//! the nsqds have.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::cluster::{Cluster, Phase, ProducerOrder, run_nsqd, run_producer};
use super::plan::{Fault, Kind, Link, PRODUCERS, Plan, producer_name};
use crate::hosts::NsqdOrder;
use crate::network::{Life, Network};
use crate::plan::{HEARTBEAT, LOOKUPDS, NSQDS, lookupd_name, nsqd_name};
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
        network: Network::new(seed),
        plan: Arc::new(Plan::new(seed)),
        cluster,
        active: Vec::new(),
        down: Vec::new(),
        ending: Vec::new(),
        down_lookupds: Vec::new(),
        crashing: Vec::new(),
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
        run.network.elapsed(),
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
    network: Network<Link>,
    plan: Arc<Plan>,
    cluster: Arc<Cluster>,
    /// The faults that last, with their ends.
    active: Vec<(Duration, Kind)>,
    /// The nsqds that are down.
    down: Vec<usize>,
    /// The producers that are shut down.
    ending: Vec<usize>,
    down_lookupds: Vec<usize>,
    /// The hosts that have a step to go.
    crashing: Vec<String>,
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
            if let Some(end) = destroyed.take_if(|end| end.at <= now && !self.down.contains(&victim)) {
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
        let sim = self.network.sim.get_mut();
        for n in 0..NSQDS {
            let cluster = Arc::clone(&self.cluster);
            sim.host(nsqd_name(n), move || run_nsqd(Arc::clone(&cluster), n));
        }
        for l in 0..LOOKUPDS {
            let cluster = Arc::clone(&self.cluster);
            sim.host(lookupd_name(l), move || {
                let cluster = Arc::clone(&cluster);
                async move { cluster.lookupds[l].run(&lookupd_name(l)).await }
            });
        }
        for p in 0..PRODUCERS {
            let (cluster, plan) = (Arc::clone(&self.cluster), Arc::clone(&self.plan));
            sim.host(producer_name(p), move || {
                run_producer(Arc::clone(&cluster), Arc::clone(&plan), p)
            });
        }
    }

    fn strike(&mut self, fault: &Fault, now: Duration) {
        let began = match fault.kind.clone() {
            Kind::StopNsqd(n) => self.take_down(n, NsqdOrder::Stop),
            Kind::KillNsqd(n) => self.take_down(n, NsqdOrder::Kill),
            Kind::LoseNsqd(n) => {
                !self.down.contains(&n)
                    && self.network.cut_off(&Link::all_of_nsqd(n))
                    && self.take_down(n, NsqdOrder::Stop)
            }
            Kind::CrashLookupd(l) => {
                let is_up = !self.down_lookupds.contains(&l);
                if is_up {
                    self.down_lookupds.push(l);
                    self.cluster.lookupds[l].is_about_to_crash();
                    self.crashing.push(lookupd_name(l));
                }
                is_up
            }
            Kind::Shutdown(p, deadline) => {
                let is_up = !self.ending.contains(&p);
                if is_up {
                    self.ending.push(p);
                    self.cluster.producers[p].give(ProducerOrder::Shutdown(deadline));
                }
                is_up
            }
            Kind::Isolate(p) => self.network.cut_off(&Link::to_nsqds(p)),
            Kind::Partition(link) => self.network.cut_off(&[link]),
            Kind::Hold(link) => self.network.hold(link),
            Kind::Slow(link, latency) => self.network.slow_down(link, latency),
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
                Kind::StopNsqd(n) | Kind::KillNsqd(n) => self.bring_up(n),
                Kind::LoseNsqd(n) => {
                    self.network.mend(&Link::all_of_nsqd(n));
                    self.bring_up(n);
                }
                Kind::CrashLookupd(l) => {
                    self.down_lookupds.retain(|down| *down != l);
                    self.network.sim.get_mut().bounce(lookupd_name(l));
                }
                Kind::Shutdown(p, _) => {
                    self.ending.retain(|ending| *ending != p);
                    self.cluster.producers[p].give(ProducerOrder::Start);
                }
                Kind::Isolate(p) => self.network.mend(&Link::to_nsqds(p)),
                Kind::Partition(link) => self.network.mend(&[link]),
                Kind::Hold(link) => self.network.release(link),
                Kind::Slow(link, _) => self.network.speed_up(link),
            }
        }
    }

    /// The victim is gone for good.
    fn destroy(&mut self, silently: bool) {
        let victim = self.plan.victim;
        let silently = silently && self.network.cut_off(&Link::all_of_nsqd(victim));
        let ledger = &self.cluster.ledger;
        ledger.note(format_args!("nsqd {victim} is destroyed, silently: {silently}"));
        self.take_down(victim, NsqdOrder::Kill);
    }

    fn take_down(&mut self, n: usize, order: NsqdOrder) -> bool {
        let is_up = !self.down.contains(&n);
        if is_up {
            self.down.push(n);
            self.cluster.nsqds[n].orders.give(order);
        }
        is_up
    }

    fn bring_up(&mut self, n: usize) {
        self.down.retain(|down| *down != n);
        self.cluster.nsqds[n].orders.give(NsqdOrder::Restart);
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
            let clients = |n: usize| run.cluster.nsqds[n].nsqd().stats().clients;
            // A connection that was cut off before its first bytes arrived is left to TCP, by the real nsqd too.
            (0..NSQDS).all(|n| {
                clients(n)
                    .iter()
                    .all(|client| !client.client_id.starts_with("producer"))
            })
        })?;
        for host in &self.cluster.nsqds {
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
            let clients = self.cluster.nsqds[n].nsqd().stats().clients;
            let _ = writeln!(story, "nsqd {n}: {} clients", clients.len());
        }
        format!("{story}\n{broken}\n")
    }
}

impl Life for Run {
    fn elapsed(&self) -> Duration {
        self.network.elapsed()
    }

    fn step(&mut self) -> Result<(), String> {
        self.network.step()?;
        // Their connections are cut by now.
        for host in std::mem::take(&mut self.crashing) {
            self.network.sim.get_mut().crash(host.as_str());
        }
        let mut book = self.cluster.ledger.lock();
        book.story.clock = self.network.elapsed();
        book.story.judge()
    }
}
