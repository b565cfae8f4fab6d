//! The hosts of the simulated cluster, and the ways to tell them what to do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::backoff::Exponential;
use async_nsq::test_server::Nsqd;
use async_nsq::{BoxError, Consumer, HandlerError, Message, Producer};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use turmoil::Result;

use crate::hosts::{Brokers, NsqdOrder, Orders, connection, lock};
use crate::journal::Journal;
use crate::plan::{
    CONSUMERS, Deed, LOOKUPDS, MSG_TIMEOUT, NSQDS, Plan, body, consumer_name, deed, lookupd_name, nsqd_name,
};
use crate::wire::{Simulated, Sockets, Tapped};

pub const TOPIC: &str = "orders";
pub const CHANNEL: &str = "billing";

/// The time between publishes to one nsqd during the recovery, on average.
const RECOVERY_PAUSE: Duration = Duration::from_millis(150);

#[derive(Clone, Copy, Debug)]
pub enum ConsumerOrder {
    SetMaxInFlight(u32),
    Shutdown(Duration),
    Start,
}

/// How a consumer ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    pub was_clean: bool,
    pub abandoned: usize,
}

/// What the controller and the hosts share.
#[derive(Default)]
pub struct Cluster {
    pub journal: Arc<Journal>,
    pub brokers: Arc<Brokers>,
    pub consumers: [Mutex<Option<Arc<Consumer>>>; CONSUMERS],
    pub consumer_orders: [Orders<ConsumerOrder>; CONSUMERS],
    pub consumer_sockets: [Arc<Sockets>; CONSUMERS],
    /// Crashes that are about to come.
    pub consumer_crashes: [Notify; CONSUMERS],
    pub endings: [Mutex<Option<Ending>>; CONSUMERS],
    /// What is published now: nothing, or messages of the recovery.
    pub phase: Mutex<Phase>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Chaos,
    Recovery,
    /// The producers have been told to end, or have ended.
    Over {
        ended: bool,
    },
}

impl Cluster {
    pub fn consumer(&self, c: usize) -> Option<Arc<Consumer>> {
        lock(&self.consumers[c]).clone()
    }

    /// The consumer is gone with its host.
    pub fn lose_consumer(&self, c: usize) {
        lock(&self.consumers[c]).take();
        self.consumer_orders[c].forget();
        self.journal.lock().running[c] = 0;
    }

    pub fn ending(&self, c: usize) -> Option<Ending> {
        *lock(&self.endings[c])
    }

    pub fn phase(&self) -> Phase {
        *lock(&self.phase)
    }

    pub fn enter(&self, phase: Phase) {
        *lock(&self.phase) = phase;
    }
}

/// An nsqd on its host. It registers with the nsqlookupds by TCP.
pub async fn run_nsqd(cluster: Arc<Cluster>, n: usize) -> Result {
    let builder = Nsqd::builder().msg_timeout(MSG_TIMEOUT);
    let told = |order, _: &Nsqd| {
        cluster.journal.note(format_args!("nsqd {n}: {order:?}"));
        if let NsqdOrder::Kill = order {
            cluster.journal.lock().excuse(n);
        }
    };
    cluster.brokers.nsqds[n].run(builder, &nsqd_name(n), told).await
}

/// Publishes to all nsqds until told to end.
pub async fn run_publisher(cluster: Arc<Cluster>, plan: Arc<Plan>) -> Result {
    sleep(Duration::from_millis(100)).await;
    let mut publishers = JoinSet::new();
    for n in 0..NSQDS {
        publishers.spawn(publish_to(Arc::clone(&cluster), Arc::clone(&plan), n));
    }
    while let Some(ended) = publishers.join_next().await {
        ended?;
    }
    cluster.enter(Phase::Over { ended: true });
    std::future::pending().await
}

async fn publish_to(cluster: Arc<Cluster>, plan: Arc<Plan>, n: usize) {
    let producer = Producer::builder()
        .nsqd(format!("{}:4150", nsqd_name(n)))
        .connection(connection().connector(Simulated).client_id("publisher"))
        .publish_timeout(Duration::from_secs(2));
    let producer = producer.connect().await.expect("nothing fails at the start");
    let mut random = fastrand::Rng::with_seed(plan.seed ^ n as u64);
    let mut publishing = JoinSet::new();
    let mut number = 0;
    loop {
        let of_recovery = match cluster.phase() {
            Phase::Chaos => false,
            Phase::Recovery => true,
            Phase::Over { .. } => break,
        };
        // Some come alone, some in a burst.
        let count = if !of_recovery && random.u32(0..10) == 0 { 6 } else { 1 };
        for _ in 0..count {
            number += 1;
            let publish = publish(Arc::clone(&cluster), producer.clone(), body(n, number, of_recovery));
            publishing.spawn(publish);
        }
        // The recovery is slower, or a long one would be all messages.
        let pause = if of_recovery {
            RECOVERY_PAUSE
        } else {
            plan.publish_every
        };
        sleep(pause.mul_f64(random.f64() * 2.0)).await;
        while publishing.try_join_next().is_some() {}
    }
    while publishing.join_next().await.is_some() {}
    producer.shutdown(Duration::from_secs(2)).await;
}

async fn publish(cluster: Arc<Cluster>, producer: Producer, body: String) {
    cluster.journal.lock().published.insert(body.clone());
    let published = producer.publish(TOPIC, body.clone()).await;
    let mut book = cluster.journal.lock();
    match published {
        Ok(()) => {
            book.note(format_args!("confirmed {body}"));
            book.confirmed.insert(body);
        }
        Err(error) => book.note(format_args!("not confirmed {body}: {:?}", error.kind())),
    }
}

/// A consumer on its host: started, told what to do, shut down, and started again.
pub async fn run_consumer(cluster: Arc<Cluster>, plan: Arc<Plan>, c: usize) -> Result {
    let sockets = &cluster.consumer_sockets[c];
    sockets.mend();
    let (crashing, cut) = (Arc::clone(&cluster), Arc::clone(sockets));
    tokio::spawn(async move {
        crashing.consumer_crashes[c].notified().await;
        cut.cut();
    });
    // The nsqds come first, and so does the topic.
    sleep(Duration::from_millis(200)).await;
    loop {
        let others = Handle::current().metrics().num_alive_tasks();
        let consumer = Arc::new(start(&cluster, &plan, c).await?);
        *lock(&cluster.consumers[c]) = Some(Arc::clone(&consumer));
        let deadline = loop {
            match cluster.consumer_orders[c].next().await {
                ConsumerOrder::SetMaxInFlight(count) => {
                    cluster.journal.set_max_in_flight(c, count);
                    consumer.set_max_in_flight(count).await;
                }
                ConsumerOrder::Shutdown(deadline) => break deadline,
                ConsumerOrder::Start => {}
            }
        };
        shut_down(&cluster, c, &consumer, deadline).await;
        lock(&cluster.consumers[c]).take();
        drop(consumer);
        sleep(Duration::from_millis(1)).await;
        let left = Handle::current().metrics().num_alive_tasks();
        if left > others {
            let left = left - others;
            let journal = &cluster.journal;
            journal.broken(format_args!("C7: consumer {c} left {left} tasks behind"));
        }
        while !matches!(cluster.consumer_orders[c].next().await, ConsumerOrder::Start) {}
    }
}

async fn start(cluster: &Arc<Cluster>, plan: &Arc<Plan>, c: usize) -> Result<Consumer> {
    let options = &plan.consumers[c];
    let connector = Tapped {
        consumer: c,
        journal: Arc::clone(&cluster.journal),
        sockets: Arc::clone(&cluster.consumer_sockets[c]),
    };
    let name = consumer_name(c);
    let mut builder = Consumer::builder(TOPIC, CHANNEL)
        .connection(
            connection()
                .connector(connector)
                .client_id(&name)
                .msg_timeout(MSG_TIMEOUT),
        )
        .max_in_flight(options.max_in_flight)
        .concurrency(options.concurrency)
        .max_attempts(0)
        .default_requeue_delay(Duration::from_millis(200))
        .max_requeue_delay(Duration::from_secs(1))
        .backoff(Exponential::new(Duration::from_millis(100)))
        .max_backoff_duration(Duration::from_secs(u64::from(options.backs_off)))
        .lookupd_poll_interval(Duration::from_secs(3))
        .lookupd_timeout(Duration::from_secs(1));
    for l in 0..LOOKUPDS {
        builder = builder.lookupd(format!("{}:4161", lookupd_name(l)));
    }
    cluster.journal.starts(c, options);
    let (cluster, seed) = (Arc::clone(cluster), plan.seed);
    let handler = move |message: Message| handle(Arc::clone(&cluster), seed, c, message);
    Ok(builder.start(handler).await?)
}

/// A handler that runs, for as long as its future lives.
struct Running(Arc<Journal>, usize);

impl Running {
    fn new(journal: &Arc<Journal>, consumer: usize) -> Self {
        journal.lock().running[consumer] += 1;
        Self(Arc::clone(journal), consumer)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().running[self.1] -= 1;
    }
}

async fn handle(cluster: Arc<Cluster>, seed: u64, c: usize, message: Message) -> std::result::Result<(), BoxError> {
    let journal = &cluster.journal;
    let _running = Running::new(journal, c);
    let body = String::from_utf8_lossy(message.body()).into_owned();
    let deed = deed(seed, &body, message.attempts());
    journal.note(format_args!("consumer {c} begins {body}: {deed:?}"));
    let (Deed::Succeed(time) | Deed::Fail(time) | Deed::Panic(time) | Deed::RequeueWithoutBackoff(time)) = deed;
    if !time.is_zero() {
        sleep(time).await;
    }
    let delivery = (message.id().to_string(), message.attempts());
    match deed {
        Deed::Succeed(_) => {
            journal.handled(c, &body);
            Ok(())
        }
        Deed::Fail(_) => {
            journal.failed(c, message.nsqd(), &body, delivery);
            Err("simulated".into())
        }
        Deed::Panic(_) => {
            journal.failed(c, message.nsqd(), &body, delivery);
            // Past the hook that would print it.
            std::panic::resume_unwind(Box::new("simulated"))
        }
        Deed::RequeueWithoutBackoff(_) => {
            let again = HandlerError::requeue_after(Duration::from_millis(100));
            Err(again.without_backoff().into())
        }
    }
}

/// C7: within the deadline, with nothing left, and the report says so.
async fn shut_down(cluster: &Cluster, c: usize, consumer: &Consumer, deadline: Duration) {
    let journal = &cluster.journal;
    let running = {
        let mut book = journal.lock();
        book.note(format_args!("consumer {c} is shut down within {deadline:?}"));
        book.flows.end(c);
        book.running[c]
    };
    let begun = Instant::now();
    let report = consumer.shutdown(deadline).await;
    let took = begun.elapsed();
    let mut book = journal.lock();
    // The rest of the report names messages by their ids, which are made of the time of day.
    let (finished, requeued, abandoned) = (report.finished, report.requeued, report.abandoned.len());
    book.note(format_args!(
        "consumer {c} took {took:?} to end: {finished} finished, {requeued} requeued, {abandoned} abandoned"
    ));
    // Tokio's timers are exact to a millisecond.
    if took > deadline + Duration::from_millis(2) {
        book.broken(format_args!(
            "C7: consumer {c} took {took:?} to shut down within {deadline:?}"
        ));
    }
    if book.running[c] != 0 {
        let left = book.running[c];
        book.broken(format_args!("C7: consumer {c} ended with {left} handlers running"));
    }
    let (_, unanswered) = book.flows.left(c);
    if report.is_clean() && unanswered > 0 {
        book.broken(format_args!(
            "C7: consumer {c} reports a clean end with {unanswered} messages unanswered"
        ));
    }
    if abandoned > usize::try_from(running).unwrap_or_default() {
        book.broken(format_args!("C7: consumer {c} had {running} handlers: {report:?}"));
    }
    let (fins, reqs, refusals) = book.flows.answers(c);
    let given_back = report.requeued + report.returned;
    if fins != report.finished || refusals != report.refused {
        book.broken(format_args!(
            "C7: consumer {c} wrote {fins} FIN, and {refusals} answers were refused: {report:?}"
        ));
    }
    if !(given_back..=given_back + abandoned as u64).contains(&reqs) {
        book.broken(format_args!("C7: consumer {c} wrote {reqs} REQ: {report:?}"));
    }
    drop(book);
    *lock(&cluster.endings[c]) = Some(Ending {
        was_clean: report.is_clean(),
        abandoned,
    });
}
