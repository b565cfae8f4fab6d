//! One life of the cluster: it starts, faults strike and end, it recovers, and everything is shut down.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{CHANNEL, Cluster, ConsumerOrder, Phase, TOPIC, run_consumer, run_nsqd, run_publisher};
use crate::network::Life;
use crate::outages::World;
use crate::plan::{CONSUMERS, Fault, HEARTBEAT, Kind, Link, NSQDS, PUBLISHER, Plan, consumer_name, nsqd_name};
use crate::seeds::Outcome;

/// How long the cluster may take to have everything handled and everyone served again. The longest part is a client that
/// tries again after 25 s, an nsqd that registers with an nsqlookupd that has forgotten it after 15 s, or in a long run
/// the turns that RDY goes round in.
const RECOVERY: Duration = Duration::from_secs(120);

/// The deadline of the shutdowns at the end.
const DEADLINE: Duration = Duration::from_secs(3);

/// Runs a seed.
///
/// # Errors
/// What was broken, and what happened before.
pub fn run(seed: u64, keep_story: bool) -> Result<Outcome, String> {
    // The clients draw from the thread's generator, and the simulation is one thread.
    fastrand::seed(seed);
    let plan = Arc::new(Plan::new(seed));
    let cluster = Arc::new(Cluster::default());
    cluster.journal.lock().story.complete = keep_story.then(Vec::new);
    let mut run = Run {
        world: World::new(seed, Arc::clone(&cluster.brokers)),
        plan,
        cluster,
        active: Vec::new(),
        down_consumers: Vec::new(),
        struck: 0,
    };
    let lived = run.live();
    let (virtual_time, recovery) = match lived {
        Ok(times) => times,
        Err(broken) => return Err(run.tell(&broken)),
    };
    let mut book = run.cluster.journal.lock();
    let excused = book.excused.iter().filter(|body| !book.handled.contains(*body)).count();
    let summary = format!(
        "{} faults, {} messages confirmed ({excused} lost with a killed nsqd), recovered in {recovery:?} of \
         {virtual_time:?}; RDY rose {} times, {} failures backed off, {} times a probe was out, longest without RDY {:?}",
        run.struck,
        book.confirmed.len(),
        book.flows.raises,
        book.flows.failures,
        book.flows.probes,
        book.flows.longest_without_rdy,
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
    down_consumers: Vec<usize>,
    struck: usize,
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
        let sim = self.world.network.sim.get_mut();
        for n in 0..NSQDS {
            let cluster = Arc::clone(&self.cluster);
            sim.host(nsqd_name(n), move || run_nsqd(Arc::clone(&cluster), n));
        }
        self.world.host_lookupds();
        let sim = self.world.network.sim.get_mut();
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

    fn strike(&mut self, fault: &Fault, now: Duration) {
        let began = match fault.kind.clone() {
            Kind::Outage(outage) => self.world.begin(outage),
            Kind::CrashConsumer(c) => self.take_consumer_down(c),
            Kind::LoseConsumer(c) => {
                !self.down_consumers.contains(&c)
                    && self.world.network.cut_off(&Link::of_consumer(c))
                    && self.take_consumer_down(c)
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
            Kind::Shutdown(..) | Kind::SetMaxInFlight(..) => false,
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
                Kind::Outage(outage) => self.world.end(outage),
                Kind::CrashConsumer(c) => self.bring_consumer_up(c),
                Kind::LoseConsumer(c) => {
                    self.world.network.mend(&Link::of_consumer(c));
                    self.bring_consumer_up(c);
                }
                Kind::Shutdown(c, _) => {
                    self.down_consumers.retain(|down| *down != c);
                    self.cluster.consumer_orders[c].give(ConsumerOrder::Start);
                }
                Kind::SetMaxInFlight(..) => {}
            }
        }
    }

    fn take_consumer_down(&mut self, c: usize) -> bool {
        let is_up = !self.down_consumers.contains(&c);
        if is_up {
            self.down_consumers.push(c);
            self.cluster.consumer_crashes[c].notify_one();
            self.world.crash(consumer_name(c));
        }
        is_up
    }

    fn bring_consumer_up(&mut self, c: usize) {
        self.down_consumers.retain(|down| *down != c);
        self.world.network.sim.get_mut().bounce(consumer_name(c));
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
        self.step_until("the producers end", Duration::from_secs(10), |run| {
            run.cluster.phase() == Phase::Over { ended: true }
        })?;
        self.step_until("what was published at the end is handled", RECOVERY, |run| {
            run.cluster.journal.lock().unhandled().is_empty()
        })?;
        for (c, orders) in self.cluster.consumer_orders.iter().enumerate() {
            *self.cluster.endings[c].lock().unwrap() = None;
            orders.give(ConsumerOrder::Shutdown(DEADLINE));
        }
        let patience = DEADLINE + Duration::from_millis(50);
        self.step_until("the consumers end within their deadline", patience, |run| {
            (0..CONSUMERS).all(|c| run.cluster.ending(c).is_some())
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
            |run| {
                (0..NSQDS).all(|n| {
                    let stats = run.cluster.brokers.nsqds[n].nsqd().stats();
                    let channel = stats.channel(TOPIC, CHANNEL);
                    // A connection that was cut off before its first bytes arrived is left to TCP, by the real nsqd too.
                    let identified = |id: &str| id.starts_with("consumer") || id.starts_with("publisher");
                    let nobody = !stats.clients.iter().any(|client| identified(&client.client_id));
                    nobody && channel.is_none_or(|channel| channel.in_flight == 0)
                })
            },
        )
    }

    /// Everything that helps to understand a failure.
    fn tell(&self, broken: &str) -> String {
        let mut story = self.cluster.journal.lock().story.text();
        let _ = writeln!(story, "{:?} have passed", self.elapsed());
        for n in 0..NSQDS {
            let stats = self.cluster.brokers.nsqds[n].nsqd().stats();
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

impl Life for Run {
    fn elapsed(&self) -> Duration {
        self.world.network.elapsed()
    }

    /// Lets a tick pass and looks at every consumer.
    fn step(&mut self) -> Result<(), String> {
        for host in self.world.step()? {
            if let Some(c) = (0..CONSUMERS).find(|&c| consumer_name(c) == host) {
                self.cluster.lose_consumer(c);
            }
        }
        let elapsed = self.elapsed();
        self.cluster.journal.lock().story.clock = elapsed;
        for c in 0..CONSUMERS {
            let consumer = self.cluster.consumer(c);
            let in_backoff = consumer.map(|consumer| consumer.stats().backoff_level > 0);
            let mut book = self.cluster.journal.lock();
            let broken = book.flows.look(c, in_backoff, elapsed);
            book.all_broken(broken);
        }
        self.cluster.journal.lock().story.judge()
    }
}
