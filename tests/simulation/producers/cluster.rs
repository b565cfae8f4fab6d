//! The hosts, and the ways to tell them what to do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::test_server::Nsqd;
use async_nsq::{Producer, Routing};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use turmoil::Result;

use super::ledger::{Ledger, Merit, PublishId, Told, body};
use super::plan::{MAX_MSG_SIZE, PRODUCERS, Plan, ProducerPlan, Route};
use crate::hosts::{Brokers, NsqdOrder, Orders, connection, lock};
use crate::plan::{LOOKUPDS, NSQDS, lookupd_name, nsqd_name};
use crate::wire::Simulated;

const TOPICS: [&str; 2] = ["orders", "invoices"];

/// Tokio's timers are exact to a millisecond.
const TIMER: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, Debug)]
pub enum ProducerOrder {
    Shutdown(Duration),
    Start,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Chaos,
    /// Nothing fails any more, and everything has to be possible again.
    Recovery,
    /// All are to end.
    Over,
}

/// What the controller and the hosts share.
#[derive(Default)]
pub struct Cluster {
    pub ledger: Ledger,
    pub brokers: Arc<Brokers>,
    pub producers: [Orders<ProducerOrder>; PRODUCERS],
    phase: Mutex<Phase>,
    /// Which producers have had as many publishes confirmed at once as may be pending.
    recovered: Mutex<[bool; PRODUCERS]>,
    /// Whether nothing was left unconfirmed, for those that have ended.
    endings: Mutex<[Option<bool>; PRODUCERS]>,
    /// The nsqds that have told what they have.
    counted: Mutex<[bool; NSQDS]>,
}

impl Cluster {
    pub fn phase(&self) -> Phase {
        *lock(&self.phase)
    }

    pub fn enter(&self, phase: Phase) {
        *lock(&self.phase) = phase;
        *lock(&self.endings) = [None; PRODUCERS];
    }

    pub fn unrecovered(&self) -> Vec<usize> {
        let recovered = lock(&self.recovered);
        (0..PRODUCERS).filter(|&p| !recovered[p]).collect()
    }

    pub fn ending(&self, p: usize) -> Option<bool> {
        lock(&self.endings)[p]
    }

    pub fn is_counted(&self, n: usize) -> bool {
        lock(&self.counted)[n]
    }

    /// Takes an nsqd's messages into the ledger. It is down, so what it deferred is queued.
    fn count(&self, n: usize, nsqd: &Nsqd, lost: bool) {
        for topic in TOPICS {
            let bodies = nsqd.drain(topic, "all").expect("the names are good");
            self.ledger.found(n, &bodies, lost);
        }
    }
}

pub async fn run_nsqd(cluster: Arc<Cluster>, n: usize) -> Result {
    let builder = Nsqd::builder().max_msg_size(MAX_MSG_SIZE).record_commands(0);
    let told = |order, nsqd: &Nsqd| {
        cluster.ledger.note(format_args!("nsqd {n}: {order:?}"));
        match order {
            NsqdOrder::Kill => cluster.count(n, nsqd, true),
            NsqdOrder::Stop if cluster.phase() == Phase::Over => {
                cluster.count(n, nsqd, false);
                lock(&cluster.counted)[n] = true;
            }
            NsqdOrder::Stop | NsqdOrder::Restart => {}
        }
    };
    cluster.brokers.nsqds[n].run(builder, &nsqd_name(n), told).await
}

/// A producer on its host: started, shut down, and started again.
pub async fn run_producer(cluster: Arc<Cluster>, plan: Arc<Plan>, p: usize) -> Result {
    sleep(Duration::from_millis(100)).await;
    let mut caller = Caller {
        random: fastrand::Rng::with_seed(plan.seed.wrapping_mul(PRODUCERS as u64) + p as u64),
        options: plan.producers[p].clone(),
        cluster: Arc::clone(&cluster),
        p,
        number: 0,
    };
    cluster.ledger.note(format_args!("producer {p}: {:?}", caller.options));
    loop {
        let others = Handle::current().metrics().num_alive_tasks();
        let producer = connect(&caller.options, p).await;
        cluster.ledger.note(format_args!("producer {p} has begun"));
        let mut publishing = JoinSet::new();
        let deadline = caller.publish_until_told(&producer, &mut publishing).await;
        caller.shut_down(producer, publishing, deadline).await;
        // Tasks that have been told to end do so in this instant.
        sleep(Duration::from_millis(1)).await;
        let left = Handle::current().metrics().num_alive_tasks();
        if left > others {
            let left = left - others;
            let ledger = &cluster.ledger;
            ledger.broken(format_args!("P4: producer {p} left {left} tasks behind"));
        }
        while !matches!(cluster.producers[p].next().await, ProducerOrder::Start) {}
    }
}

/// A producer that publishes to all nsqds.
async fn connect(options: &ProducerPlan, p: usize) -> Producer {
    let mut builder = Producer::builder()
        .connection(connection().connector(Simulated).client_id("producer"))
        .routing(match options.routing {
            Route::RoundRobin => Routing::round_robin(),
            Route::Failover => Routing::failover(),
            Route::LeastLoaded => Routing::least_loaded(),
            Route::SameZoneFirst => Routing::same_zone_first("region", format!("zone-{}", p % NSQDS)),
            Route::ByKey => Routing::by_key(|_, body| body.len() as u64),
        })
        .copies(options.copies)
        .accept_fewer_copies(options.accept_fewer)
        .at_least_once(options.at_least_once)
        .publish_timeout(options.timeout)
        .max_pending_messages(options.max_pending)
        .batching(options.batching);
    if let Some(quorum) = options.quorum {
        builder = builder.quorum(quorum);
    }
    if options.discovers {
        builder = builder.lookupd_poll_interval(Duration::from_secs(3));
        for l in 0..LOOKUPDS {
            builder = builder.lookupd(format!("{}:4161", lookupd_name(l)));
        }
    }
    for n in (0..NSQDS).filter(|_| !options.discovers) {
        builder = builder.nsqd_in(format!("{}:4150", nsqd_name(n)), "region", format!("zone-{n}"));
    }
    if options.lazily {
        return builder.connect_lazily().expect("the options are good");
    }
    // All nsqds may be out of reach.
    loop {
        if let Ok(producer) = builder.clone().connect().await {
            return producer;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Those who call a producer.
struct Caller {
    random: fastrand::Rng,
    options: ProducerPlan,
    cluster: Arc<Cluster>,
    p: usize,
    number: usize,
}

#[derive(Clone, Debug)]
enum Call {
    One(String),
    Many(Vec<String>),
    Deferred(Duration, String),
}

impl Caller {
    async fn publish_until_told(&mut self, producer: &Producer, publishing: &mut JoinSet<Told>) -> Duration {
        let cluster = Arc::clone(&self.cluster);
        loop {
            let pause = self.options.pause.mul_f64(self.random.f64() * 2.0);
            tokio::select! {
                biased;
                order = cluster.producers[self.p].next() => match order {
                    ProducerOrder::Shutdown(deadline) => return deadline,
                    ProducerOrder::Start => {}
                },
                () = sleep(pause) => {}
            }
            while publishing.try_join_next().is_some() {}
            match cluster.phase() {
                Phase::Chaos => {
                    // Some come alone, some in a burst.
                    let count = if self.random.u32(0..6) == 0 { 12 } else { 1 };
                    for _ in 0..count {
                        self.publish_something(producer, publishing);
                    }
                }
                Phase::Recovery if !lock(&cluster.recovered)[self.p] => {
                    if self.publish_all_at_once(producer).await {
                        cluster.ledger.note(format_args!("producer {} has recovered", self.p));
                        lock(&cluster.recovered)[self.p] = true;
                    }
                }
                Phase::Recovery | Phase::Over => {}
            }
        }
    }

    fn publish_something(&mut self, producer: &Producer, publishing: &mut JoinSet<Told>) {
        let id = self.next_id();
        let random = &mut self.random;
        let size = random.usize(10..200);
        let call = match random.u32(0..100) {
            0 => Call::One(String::new()),
            // Only nsqd knows that this is too much.
            1 => Call::One(body(id, 0, MAX_MSG_SIZE + 1)),
            2..12 => Call::Many((0..random.usize(2..6)).map(|message| body(id, message, size)).collect()),
            12..17 => Call::Deferred(Duration::from_millis(random.u64(1..2_000)), body(id, 0, size)),
            _ => Call::One(body(id, 0, size)),
        };
        let patience = (random.u32(0..8) == 0).then(|| Duration::from_millis(random.u64(0..400)));
        let topic = TOPICS[random.usize(..TOPICS.len())];
        publishing.spawn(self.publish(producer, id, topic, call, patience));
    }

    /// Whether as many publishes as may be pending are confirmed.
    async fn publish_all_at_once(&mut self, producer: &Producer) -> bool {
        let mut publishing = JoinSet::new();
        for _ in 0..self.options.max_pending {
            let id = self.next_id();
            let call = Call::One(body(id, 0, 100));
            publishing.spawn(self.publish(producer, id, TOPICS[0], call, None));
        }
        let told = publishing.join_all().await;
        told.iter().all(|told| *told == Told::Confirmed)
    }

    fn next_id(&mut self) -> PublishId {
        self.number += 1;
        (self.p, self.number)
    }

    /// One call. After `patience` its future is dropped.
    fn publish(
        &self,
        producer: &Producer,
        id: PublishId,
        topic: &'static str,
        call: Call,
        patience: Option<Duration>,
    ) -> impl Future<Output = Told> + Send + 'static {
        let (producer, cluster, allowed) = (producer.clone(), Arc::clone(&self.cluster), self.options.timeout);
        let messages = match &call {
            Call::One(_) | Call::Deferred(..) => 1,
            Call::Many(bodies) => bodies.len(),
        };
        let merit = match &call {
            Call::One(body) if body.is_empty() => Merit::Empty,
            Call::One(body) if body.len() > MAX_MSG_SIZE => Merit::TooLarge,
            _ => Merit::Good,
        };
        cluster.ledger.begins(id, messages, merit);
        async move {
            let begun = Instant::now();
            let outcome = async {
                match call {
                    Call::One(body) => producer.publish(topic, body).await,
                    Call::Many(bodies) => producer.publish_many(topic, bodies).await,
                    Call::Deferred(delay, body) => producer.publish_deferred(topic, delay, body).await,
                }
            };
            let outcome = match patience {
                None => Some(outcome.await),
                Some(patience) => timeout(patience, outcome).await.ok(),
            };
            let took = begun.elapsed();
            if took > allowed + TIMER {
                let ledger = &cluster.ledger;
                ledger.broken(format_args!("P3: publish {id:?} took {took:?} of {allowed:?}"));
            }
            let told = match outcome {
                None => Told::Dropped,
                Some(outcome) => told(&cluster.ledger, id, outcome),
            };
            cluster.ledger.ended(id, told);
            told
        }
    }

    /// Within the deadline, and with nothing left.
    async fn shut_down(&self, producer: Producer, mut publishing: JoinSet<Told>, deadline: Duration) {
        let (ledger, p) = (&self.cluster.ledger, self.p);
        ledger.note(format_args!("producer {p} is shut down within {deadline:?}"));
        let begun = Instant::now();
        let report = producer.shutdown(deadline).await;
        let was_clean = report.is_clean();
        drop(producer);
        let took = begun.elapsed();
        ledger.note(format_args!("producer {p} took {took:?} to end: {report:?}"));
        if took > deadline + TIMER {
            ledger.broken(format_args!(
                "P3: producer {p} took {took:?} to shut down within {deadline:?}"
            ));
        }
        let all_end = async { while publishing.join_next().await.is_some() {} };
        if timeout(Duration::from_millis(1), all_end).await.is_err() {
            ledger.broken(format_args!(
                "P3: producer {p} has ended and {} publishes have not",
                publishing.len()
            ));
        }
        lock(&self.cluster.endings)[p] = Some(was_clean);
    }
}

fn told(ledger: &Ledger, id: PublishId, outcome: async_nsq::Result<()>) -> Told {
    Told::of(&outcome).unwrap_or_else(|| {
        ledger.broken(format_args!("P2: {outcome:?} is no outcome of publish {id:?}"));
        Told::Unknown
    })
}
