//! One life of the cluster: it starts, faults strike and end, it recovers, and everything is shut down.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use turmoil::{Builder, Sim};

use crate::cluster::{
    CHANNEL, Cluster, ConsumerOrder, NsqdOrder, Phase, TOPIC, run_consumer, run_lookupd, run_nsqd, run_publisher,
};
use crate::plan::{
    CONSUMERS, Fault, HEARTBEAT, Kind, LOOKUPDS, Link, NSQDS, PUBLISHER, Plan, consumer_name, lookupd_name, nsqd_name,
};

const TICK: Duration = Duration::from_millis(20);

/// How long the cluster may take to have everything handled and everyone served again. The longest part is a client that
/// tries again after 25 s, an nsqd that registers with an nsqlookupd that has forgotten it after 15 s, or in a long run
/// the turns that RDY goes round in.
const RECOVERY: Duration = Duration::from_secs(120);

/// The deadline of the shutdowns at the end.
const DEADLINE: Duration = Duration::from_secs(3);

/// What is told of a run that went well.
pub struct Outcome {
    pub digest: u64,
    pub events: u64,
    pub confirmed: usize,
    pub excused: usize,
    pub faults: usize,
    pub raises: u64,
    pub failures: u64,
    pub probes: u64,
    pub recovery: Duration,
    pub longest_without_rdy: Duration,
    pub virtual_time: Duration,
    pub story: Option<Vec<String>>,
}

/// Runs a seed.
///
/// # Errors
/// What was broken, and what happened before.
pub fn run(seed: u64, keep_story: bool) -> Result<Outcome, String> {
    // The clients draw from the thread's generator, and the simulation is one thread.
    fastrand::seed(seed);
    let plan = Arc::new(Plan::new(seed));
    let cluster = Arc::new(Cluster::default());
    cluster.journal.lock().complete = keep_story.then(Vec::new);
    let mut builder = Builder::new();
    builder
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(3600))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(30))
        .tcp_capacity(4096)
        .enable_random_order();
    let mut run = Run {
        sim: RefCell::new(builder.build()),
        plan,
        cluster,
        active: Vec::new(),
        down_nsqds: Vec::new(),
        down_consumers: Vec::new(),
        down_lookupds: Vec::new(),
        links: Vec::new(),
        struck: 0,
        crashing: Vec::new(),
    };
    let lived = run.live();
    let (virtual_time, recovery) = match lived {
        Ok(times) => times,
        Err(broken) => return Err(run.tell(&broken)),
    };
    let digest = run.cluster.journal.digest();
    let mut book = run.cluster.journal.lock();
    let story = book.complete.take();
    Ok(Outcome {
        digest,
        story,
        events: book.events,
        confirmed: book.confirmed.len(),
        excused: book.excused.iter().filter(|body| !book.handled.contains(*body)).count(),
        faults: run.struck,
        raises: book.flows.raises,
        failures: book.flows.failures,
        probes: book.flows.probes,
        longest_without_rdy: book.flows.longest_without_rdy,
        recovery,
        virtual_time,
    })
}

struct Run {
    sim: RefCell<Sim<'static>>,
    plan: Arc<Plan>,
    cluster: Arc<Cluster>,
    /// The faults that last, with their ends.
    active: Vec<(Duration, Kind)>,
    down_nsqds: Vec<usize>,
    down_consumers: Vec<usize>,
    down_lookupds: Vec<usize>,
    /// The links that something is wrong with.
    links: Vec<Link>,
    struck: usize,
    /// The hosts that have a step to go.
    crashing: Vec<String>,
}

impl Run {
    fn live(&mut self) -> Result<(Duration, Duration), String> {
        self.build();
        let mut faults = self.plan.faults.clone().into_iter().peekable();
        while self.elapsed() < self.plan.heals_at || !self.active.is_empty() {
            self.step()?;
            let now = self.elapsed();
            self.end_faults(now);
            while let Some(fault) = faults.next_if(|fault| fault.at <= now) {
                self.strike(&fault, now);
            }
        }
        for (c, options) in self.plan.consumers.iter().enumerate() {
            self.cluster.consumer_orders[c].give(ConsumerOrder::SetMaxInFlight(options.max_in_flight));
        }
        self.cluster.enter(Phase::Recovery);
        let healed = self.elapsed();
        while let Some(missing) = self.missing() {
            if self.elapsed() > healed + RECOVERY {
                return Err(format!(
                    "not recovered {RECOVERY:?} after the last fault has ended: {missing}"
                ));
            }
            self.step()?;
        }
        let recovery = self.elapsed() - healed;
        self.finish()?;
        Ok((self.elapsed(), recovery))
    }

    fn build(&mut self) {
        let sim = self.sim.get_mut();
        for n in 0..NSQDS {
            let cluster = Arc::clone(&self.cluster);
            sim.host(nsqd_name(n), move || run_nsqd(Arc::clone(&cluster), n));
        }
        for l in 0..LOOKUPDS {
            let cluster = Arc::clone(&self.cluster);
            sim.host(lookupd_name(l), move || run_lookupd(Arc::clone(&cluster), l));
        }
        for c in 0..CONSUMERS {
            let (cluster, plan) = (Arc::clone(&self.cluster), Arc::clone(&self.plan));
            sim.host(consumer_name(c), move || {
                run_consumer(Arc::clone(&cluster), Arc::clone(&plan), c)
            });
        }
        let (cluster, plan) = (Arc::clone(&self.cluster), Arc::clone(&self.plan));
        sim.host(PUBLISHER, move || {
            run_publisher(Arc::clone(&cluster), Arc::clone(&plan))
        });
    }

    fn elapsed(&self) -> Duration {
        self.sim.borrow().elapsed()
    }

    /// Lets a tick pass and looks at every consumer.
    fn step(&mut self) -> Result<(), String> {
        let stepped = self.sim.get_mut().step();
        stepped.map_err(|error| format!("a host ended: {error}"))?;
        // Their connections are cut by now.
        for host in std::mem::take(&mut self.crashing) {
            self.sim.get_mut().crash(host.as_str());
            if let Some(c) = (0..CONSUMERS).find(|&c| consumer_name(c) == host) {
                self.cluster.lose_consumer(c);
            }
        }
        let elapsed = self.elapsed();
        self.cluster.journal.lock().clock = elapsed;
        for c in 0..CONSUMERS {
            let consumer = self.cluster.consumer(c);
            let in_backoff = consumer.map(|consumer| consumer.stats().backoff_level > 0);
            let mut book = self.cluster.journal.lock();
            let broken = book.flows.look(c, in_backoff, elapsed);
            book.all_broken(broken);
        }
        let book = self.cluster.journal.lock();
        if book.violations.is_empty() {
            return Ok(());
        }
        Err(book.violations.join("\n"))
    }

    fn strike(&mut self, fault: &Fault, now: Duration) {
        let began = match fault.kind.clone() {
            Kind::StopNsqd(n) => self.take_nsqd_down(n, NsqdOrder::Stop),
            Kind::KillNsqd(n) => self.take_nsqd_down(n, NsqdOrder::Kill),
            Kind::LoseNsqd(n) => {
                !self.down_nsqds.contains(&n)
                    && self.cut_off(&Link::of_nsqd(n))
                    && self.take_nsqd_down(n, NsqdOrder::Stop)
            }
            Kind::CrashLookupd(l) if !self.down_lookupds.contains(&l) => {
                self.down_lookupds.push(l);
                self.cluster.lookupd_crashes[l].notify_one();
                self.crashing.push(lookupd_name(l));
                true
            }
            Kind::CrashConsumer(c) => self.take_consumer_down(c),
            Kind::LoseConsumer(c) => {
                !self.down_consumers.contains(&c) && self.cut_off(&Link::of_consumer(c)) && self.take_consumer_down(c)
            }
            Kind::Shutdown(c, deadline) if !self.down_consumers.contains(&c) => {
                self.down_consumers.push(c);
                self.cluster.consumer_orders[c].give(ConsumerOrder::Shutdown(deadline));
                true
            }
            Kind::SetMaxInFlight(c, count) if !self.down_consumers.contains(&c) => {
                self.cluster.consumer_orders[c].give(ConsumerOrder::SetMaxInFlight(count));
                false
            }
            Kind::Partition(link) => self.cut_off(&[link]),
            Kind::Hold(link) => self.claim(&[link]) && self.with(link, |sim, a, b| sim.hold(a, b)),
            Kind::Slow(link, latency) => {
                self.claim(&[link]) && self.with(link, |sim, a, b| sim.set_link_latency(a, b, latency))
            }
            Kind::CrashLookupd(_) | Kind::Shutdown(..) | Kind::SetMaxInFlight(..) => false,
        };
        if began {
            self.struck += 1;
            let journal = &self.cluster.journal;
            journal.note(format_args!("for {:?}: {:?}", fault.lasts, fault.kind));
            self.active.push((now + fault.lasts, fault.kind.clone()));
        }
    }

    fn end_faults(&mut self, now: Duration) {
        let (over, active) = self.active.drain(..).partition(|(end, _)| *end <= now);
        self.active = active;
        let over: Vec<(Duration, Kind)> = over;
        for (_, kind) in over {
            self.cluster.journal.note(format_args!("over: {kind:?}"));
            match kind {
                Kind::StopNsqd(n) | Kind::KillNsqd(n) => self.bring_nsqd_up(n),
                Kind::LoseNsqd(n) => {
                    self.mend(&Link::of_nsqd(n));
                    self.bring_nsqd_up(n);
                }
                Kind::CrashLookupd(l) => {
                    self.down_lookupds.retain(|down| *down != l);
                    self.sim.get_mut().bounce(lookupd_name(l));
                }
                Kind::CrashConsumer(c) => self.bring_consumer_up(c),
                Kind::LoseConsumer(c) => {
                    self.mend(&Link::of_consumer(c));
                    self.bring_consumer_up(c);
                }
                Kind::Shutdown(c, _) => {
                    self.down_consumers.retain(|down| *down != c);
                    self.cluster.consumer_orders[c].give(ConsumerOrder::Start);
                }
                Kind::Partition(link) => self.mend(&[link]),
                Kind::Hold(link) => {
                    self.with(link, |sim, a, b| sim.release(a, b));
                    self.links.retain(|claimed| *claimed != link);
                }
                Kind::Slow(link, _) => {
                    self.with(link, |sim, a, b| sim.set_link_latency(a, b, Duration::from_millis(5)));
                    self.links.retain(|claimed| *claimed != link);
                }
                Kind::SetMaxInFlight(..) => {}
            }
        }
    }

    fn take_nsqd_down(&mut self, n: usize, order: NsqdOrder) -> bool {
        let is_up = !self.down_nsqds.contains(&n);
        if is_up {
            self.down_nsqds.push(n);
            self.cluster.nsqd_orders[n].give(order);
        }
        is_up
    }

    fn bring_nsqd_up(&mut self, n: usize) {
        self.down_nsqds.retain(|down| *down != n);
        self.cluster.nsqd_orders[n].give(NsqdOrder::Restart);
    }

    fn take_consumer_down(&mut self, c: usize) -> bool {
        let is_up = !self.down_consumers.contains(&c);
        if is_up {
            self.down_consumers.push(c);
            self.cluster.consumer_crashes[c].notify_one();
            self.crashing.push(consumer_name(c));
        }
        is_up
    }

    fn bring_consumer_up(&mut self, c: usize) {
        self.down_consumers.retain(|down| *down != c);
        self.sim.get_mut().bounce(consumer_name(c));
    }

    /// Takes links for one fault, if no other has one of them.
    fn claim(&mut self, links: &[Link]) -> bool {
        let are_free = links.iter().all(|link| !self.links.contains(link));
        if are_free {
            self.links.extend(links);
        }
        are_free
    }

    fn cut_off(&mut self, links: &[Link]) -> bool {
        let are_free = self.claim(links);
        if are_free {
            for &link in links {
                self.with(link, |sim, a, b| sim.partition(a, b));
            }
        }
        are_free
    }

    fn mend(&mut self, links: &[Link]) {
        for &link in links {
            self.with(link, |sim, a, b| sim.repair(a, b));
            self.links.retain(|claimed| *claimed != link);
        }
    }

    fn with(&self, link: Link, act: impl FnOnce(&Sim<'static>, String, String)) -> bool {
        let (a, b) = link.ends();
        act(&self.sim.borrow(), a, b);
        true
    }

    /// What the recovery still waits for.
    fn missing(&self) -> Option<String> {
        let book = self.cluster.journal.lock();
        let unhandled = book.unhandled();
        if !unhandled.is_empty() {
            return Some(format!("confirmed and not handled: {unhandled:?}"));
        }
        for (c, nsqds) in book.unserved() {
            // One with fewer slots than nsqds goes round, which takes as long as `low_rdy_timeout`.
            let goes_round = (self.plan.consumers[c].max_in_flight as usize) < NSQDS;
            let needed = if goes_round && !self.plan.is_long { 1 } else { NSQDS };
            if NSQDS - nsqds.len() < needed {
                return Some(format!("consumer {c} has handled nothing new of nsqds {nsqds:?}"));
            }
        }
        None
    }

    /// Ends everything, and sees that nothing is left.
    fn finish(&mut self) -> Result<(), String> {
        self.cluster.enter(Phase::Over { ended: false });
        self.step_until("the producers end", Duration::from_secs(10), |cluster| {
            cluster.phase() == Phase::Over { ended: true }
        })?;
        self.step_until("what was published at the end is handled", RECOVERY, |cluster| {
            cluster.journal.lock().unhandled().is_empty()
        })?;
        for (c, orders) in self.cluster.consumer_orders.iter().enumerate() {
            *self.cluster.endings[c].lock().unwrap() = None;
            orders.give(ConsumerOrder::Shutdown(DEADLINE));
        }
        let patience = DEADLINE + Duration::from_millis(50);
        self.step_until("the consumers end within their deadline", patience, |cluster| {
            (0..CONSUMERS).all(|c| cluster.ending(c).is_some())
        })?;
        for c in 0..CONSUMERS {
            let ending = self.cluster.ending(c);
            let book = self.cluster.journal.lock();
            let (links, unanswered) = book.flows.left(c);
            if links + unanswered > 0 {
                return Err(format!(
                    "C7: consumer {c} ended with {links} connections and {unanswered} messages unanswered: {ending:?}"
                ));
            }
            // The network is well, so nothing but a handler that is stuck can keep an end from being clean.
            if ending.is_none_or(|ending| !ending.was_clean && ending.abandoned == 0) {
                return Err(format!("C7: consumer {c} did not end cleanly: {ending:?}"));
            }
        }
        // A peer that vanished is noticed by its missing heartbeats.
        self.step_until(
            "nsqds have neither clients nor messages in flight",
            4 * HEARTBEAT,
            |cluster| {
                (0..NSQDS).all(|n| {
                    let stats = cluster.nsqd(n).stats();
                    let channel = stats.channel(TOPIC, CHANNEL);
                    // A connection that was cut off before its first bytes arrived is left to TCP, by the real nsqd too.
                    let identified = |id: &str| id.starts_with("consumer") || id.starts_with("publisher");
                    let nobody = !stats.clients.iter().any(|client| identified(&client.client_id));
                    nobody && channel.is_none_or(|channel| channel.in_flight == 0)
                })
            },
        )
    }

    fn step_until(&mut self, what: &str, patience: Duration, done: impl Fn(&Cluster) -> bool) -> Result<(), String> {
        let until = self.elapsed() + patience;
        while !done(&self.cluster) {
            if self.elapsed() > until {
                return Err(format!("not within {patience:?}: {what}"));
            }
            self.step()?;
        }
        Ok(())
    }

    /// Everything that helps to understand a failure.
    fn tell(&self, broken: &str) -> String {
        let mut story = self.cluster.journal.lock().story();
        let _ = writeln!(story, "{:?} have passed", self.elapsed());
        for n in 0..NSQDS {
            let stats = self.cluster.nsqd(n).stats();
            let _ = writeln!(story, "nsqd {n}: {:?}", stats.channel(TOPIC, CHANNEL));
        }
        for c in 0..CONSUMERS {
            let consumer = self.cluster.consumer(c);
            let told = consumer.map(|consumer| (consumer.stats(), consumer.connections()));
            let _ = writeln!(story, "consumer {c}: {told:?}");
        }
        format!("{story}\n{broken}\n")
    }
}
