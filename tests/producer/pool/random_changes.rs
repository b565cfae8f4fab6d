//! Random lives of a pool whose nsqds are added and removed, and refuse because they exit; a shutdown comes at any moment.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::transport::MemoryNetwork;
use async_nsq::{ConnectionConfig, Error, ErrorKind, Producer, ProducerReport, Result};
use fastrand::Rng;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::random::{Books, Chaos, millis};
use super::{NAMES, SECOND, text};
use crate::run_life;
use crate::support::settle;

type Told = Arc<Mutex<HashMap<String, Vec<Error>>>>;

struct Published {
    body: String,
    deadline: Instant,
    /// The outcome and when it came.
    task: JoinHandle<(Result<()>, Instant)>,
}

struct Life {
    seed: u64,
    rng: Rng,
    producer: Producer,
    books: Books,
    told: Told,
    copies: usize,
    at_least_once: bool,
    published: Vec<Published>,
    enqueued: Vec<(String, JoinHandle<Result<()>>)>,
}

impl Life {
    fn begin(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let (network, books, told) = (MemoryNetwork::new(), Books::default(), Told::default());
        for number in 0..3 {
            let chaos = Chaos {
                network: network.clone(),
                books: Arc::clone(&books),
                calm: Arc::new(AtomicBool::new(false)),
                exiting: true,
            };
            tokio::spawn(chaos.nsqd(number, rng.fork()));
        }
        let (copies, at_least_once) = (rng.usize(1..=2), rng.bool());
        let linger = if rng.bool() {
            millis(&mut rng, 50)
        } else {
            Duration::ZERO
        };
        let hears = Arc::clone(&told);
        let mut builder = Producer::builder()
            .connection(ConnectionConfig::new().connector(network.connector()))
            .dynamic_nsqds(true)
            .nsqd(NAMES[0]);
        if copies > 1 {
            builder = builder.nsqd(NAMES[1]);
        }
        let producer = builder
            .copies(copies)
            .at_least_once(at_least_once)
            .linger(linger)
            .batching(!linger.is_zero() || rng.bool())
            .max_pending_messages(rng.u32(1..20))
            .max_pending_bytes(rng.u32(10..500))
            .on_failure(move |failure| {
                let mut told = hears.lock().unwrap();
                told.entry(text(&failure.body)).or_default().push(failure.error.clone());
            })
            .connect_lazily()
            .unwrap();
        Self {
            seed,
            rng,
            producer,
            books,
            told,
            copies,
            at_least_once,
            published: Vec::new(),
            enqueued: Vec::new(),
        }
    }

    async fn live(&mut self) {
        for number in 0..self.rng.u32(1..80) {
            self.publish(number.to_string());
            if self.rng.u8(..3) == 0 {
                sleep(millis(&mut self.rng, 400)).await;
            }
            match self.rng.u8(..20) {
                0 => drop(self.producer.add_nsqd(NAMES[self.rng.usize(..3)]).unwrap()),
                1 => drop(self.producer.remove_nsqd(NAMES[self.rng.usize(..3)]).unwrap()),
                2 => {
                    let (flushing, within) = (self.producer.clone(), millis(&mut self.rng, 9_000));
                    tokio::spawn(async move { flushing.flush(within).await });
                }
                _ => {}
            }
        }
        settle().await;
    }

    fn publish(&mut self, body: String) {
        let allowed = millis(&mut self.rng, 8_000);
        let producer = self.producer.with_publish_timeout(allowed);
        let sent = body.clone();
        if self.rng.u8(..3) == 0 {
            let task = tokio::spawn(async move { producer.enqueue("t", sent).await });
            self.enqueued.push((body, task));
        } else {
            let deadline = Instant::now() + allowed;
            let task = tokio::spawn(async move { (producer.publish("t", sent).await, Instant::now()) });
            self.published.push(Published { body, deadline, task });
        }
    }

    /// What has no outcome yet.
    fn open(&self) -> HashSet<String> {
        let told = self.told.lock().unwrap();
        let published = self.published.iter().filter(|publish| !publish.task.is_finished());
        let published = published.map(|publish| publish.body.clone());
        let enqueued = self.enqueued.iter().map(|(body, _)| body.clone());
        published
            .chain(enqueued.filter(|body| !told.contains_key(body)))
            .collect()
    }

    async fn end(mut self) {
        let (seed, open, within) = (self.seed, self.open(), millis(&mut self.rng, 6_000));
        let report = timeout(within + SECOND, self.producer.shutdown(within)).await;
        let report = report.unwrap_or_else(|_| panic!("seed {seed}: the shutdown is late"));
        let outcomes = self.outcomes().await;
        for (body, outcome) in &outcomes {
            self.judge(body, outcome);
        }
        let count = |kind| outcomes.iter().filter(|(_, outcome)| kind_of(outcome) == kind).count() as u64;
        let stats = self.producer.stats();
        let expected = (count(None), count(Some(ErrorKind::Unknown)));
        assert_eq!((stats.ok, stats.unknown), expected, "seed {seed}");
        assert_eq!((stats.pending_messages, stats.pending_bytes), (0, 0), "seed {seed}");
        if self.copies == 1 {
            judge_report(report, &open, &outcomes, seed);
        }
    }

    /// They are all known once the shutdown has ended.
    async fn outcomes(&mut self) -> Vec<(String, Result<()>)> {
        let seed = self.seed;
        settle().await;
        let mut outcomes = Vec::new();
        for Published { body, deadline, task } in self.published.drain(..) {
            assert!(task.is_finished(), "seed {seed}: {body} has no outcome");
            let (outcome, ended) = task.await.unwrap();
            let latest = deadline + Duration::from_millis(5);
            assert!(ended <= latest, "seed {seed}: {body} is late: {outcome:?}");
            outcomes.push((body, outcome));
        }
        let mut told = std::mem::take(&mut *self.told.lock().unwrap());
        for (body, task) in self.enqueued.drain(..) {
            assert!(task.is_finished(), "seed {seed}: {body} has no outcome");
            let mut all = told.remove(&body).unwrap_or_default();
            all.extend(task.await.unwrap().err());
            assert!(all.len() <= 1, "seed {seed}: {body} was told twice, {all:?}");
            outcomes.push((body, all.pop().map_or(Ok(()), Err)));
        }
        assert!(told.is_empty(), "seed {seed}: {told:?}");
        outcomes
    }

    fn judge(&self, body: &str, outcome: &Result<()>) {
        let books = self.books.lock().unwrap();
        let came = books.get(body).map_or(&[][..], Vec::as_slice);
        let distinct: HashSet<_> = came.iter().collect();
        let what = format!("seed {}: {body}: {outcome:?}, came to {came:?}", self.seed);
        assert!(
            self.at_least_once || (came.len() <= self.copies && came.len() == distinct.len()),
            "{what}"
        );
        match kind_of(outcome) {
            None => assert!(distinct.len() >= self.copies, "{what}"),
            Some(ErrorKind::NotSent | ErrorKind::Rejected) => assert!(came.is_empty(), "{what}"),
            other => assert_eq!(other, Some(ErrorKind::Unknown), "{what}"),
        }
    }
}

fn kind_of(outcome: &Result<()>) -> Option<ErrorKind> {
    outcome.as_ref().err().map(Error::kind)
}

/// The report is what those were told that had been accepted and had no outcome when the shutdown began.
fn judge_report(report: ProducerReport, open: &HashSet<String>, outcomes: &[(String, Result<()>)], seed: u64) {
    let (mut unknown, mut not_sent) = (0, 0);
    for (_, outcome) in outcomes.iter().filter(|(body, _)| open.contains(body)) {
        let Err(error) = outcome else { continue };
        // Told by the pool itself, this is a message of `enqueue` that waited for room: it was not accepted.
        let was_refused = error.address().is_none() && error.to_string().ends_with("the producer has been shut down");
        unknown += usize::from(error.kind() == ErrorKind::Unknown);
        not_sent += usize::from(error.kind() == ErrorKind::NotSent && !was_refused && is_of_shutdown(error));
    }
    assert_eq!((report.unknown, report.not_sent), (unknown, not_sent), "seed {seed}");
}

/// Others ended by their own deadlines.
fn is_of_shutdown(error: &Error) -> bool {
    error.to_string().contains("shut down")
}

#[test]
fn p1_p2_p3_random_lives_with_changing_nsqds_are_told_truthfully() {
    let seeds = std::env::var("POOL_SEEDS").map_or(300, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        run_life(seed, async {
            let mut life = Life::begin(seed);
            life.live().await;
            life.end().await;
        });
    }
}
