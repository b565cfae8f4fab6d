//! Random lives of a pool: nsqds that die, stall, refuse and come back, callers that leave; the nsqds' books decide what was
//! true.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::transport::{MemoryListener, MemoryNetwork};
use async_nsq::{Error, ErrorKind, Producer, ProducerBuilder, Result, RoutedMessage, RoutedNsqd, Router, Routing};
use fastrand::Rng;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{NAMES, SECOND, text};
use crate::run_life;
use crate::support::{Command, Peer};

/// Which nsqd has accepted which message.
pub(super) type Books = Arc<Mutex<HashMap<String, Vec<usize>>>>;

/// What the hook was told of messages that nobody waited for.
type Told = Arc<Mutex<Vec<(String, Error)>>>;

pub(super) struct Chaos {
    pub(super) network: MemoryNetwork,
    pub(super) books: Books,
    /// From now on everybody is well.
    pub(super) calm: Arc<AtomicBool>,
    /// Some refuse because they are exiting.
    pub(super) exiting: bool,
}

impl Chaos {
    fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub(super) async fn nsqd(self, number: usize, mut rng: Rng) {
        loop {
            if !self.is_calm() && rng.u8(..3) == 0 {
                sleep(millis(&mut rng, 3_000)).await;
            }
            let mut listener = self.network.listen(NAMES[number]).unwrap();
            let open_for = millis(&mut rng, 20_000);
            let _closed = timeout(open_for, self.serve(number, &mut listener, &mut rng)).await;
        }
    }

    async fn serve(&self, number: usize, listener: &mut MemoryListener, rng: &mut Rng) {
        loop {
            let mut peer = Peer::new(listener.accept().await);
            if !self.is_calm() && rng.u8(..8) == 0 {
                continue;
            }
            if timeout(SECOND, peer.handshake()).await.is_err() {
                continue;
            }
            // A connection survives the listener's end only by chance, as that of a process that dies.
            while let Ok(Some(command)) = timeout(20 * SECOND, peer.next()).await {
                if command == Command::Nop {
                    continue;
                }
                let what = if self.is_calm() { 99 } else { rng.u8(..100) };
                if what < 4 {
                    break;
                }
                if what < 8 && !command.bodies().is_empty() {
                    let exiting = self.exiting && what < 7;
                    peer.error(if exiting {
                        "E_MPUB_FAILED MPUB failed exiting"
                    } else {
                        "E_PUB_FAILED PUB failed"
                    })
                    .await;
                    break;
                }
                for body in command.bodies() {
                    self.books.lock().unwrap().entry(text(&body)).or_default().push(number);
                }
                if what < 12 {
                    break;
                }
                if what < 40 {
                    sleep(millis(rng, 300)).await;
                }
                peer.ok().await;
            }
        }
    }
}

pub(super) fn millis(rng: &mut Rng, most: u64) -> Duration {
    Duration::from_millis(rng.u64(1..=most))
}

/// What was asked for in this life.
#[derive(Clone, Copy, Debug)]
struct Policy {
    copies: usize,
    quorum: Option<usize>,
    accept_fewer: bool,
    at_least_once: bool,
}

impl Policy {
    fn random(rng: &mut Rng) -> Self {
        let copies = rng.usize(1..=3);
        Self {
            copies,
            quorum: rng.bool().then(|| rng.usize(1..=copies)),
            accept_fewer: rng.bool(),
            at_least_once: rng.bool(),
        }
    }

    fn builder(&self, rng: &mut Rng, network: &MemoryNetwork) -> ProducerBuilder {
        let connection = async_nsq::ConnectionConfig::new().connector(network.connector());
        let builder = Producer::builder().connection(connection);
        let builder = NAMES[..3].iter().fold(builder, |builder, name| builder.nsqd(*name));
        let builder = match self.quorum {
            Some(quorum) => builder.quorum(quorum),
            None => builder,
        };
        let routing = match rng.u8(..5) {
            0 => Routing::failover(),
            4 => Routing::custom(Whimsical {
                rng: Mutex::new(rng.fork()),
                leaves_out: self.copies == 1,
            }),
            1 => Routing::least_loaded(),
            2 => Routing::by_key(|_, body| body.len() as u64),
            _ => Routing::round_robin(),
        };
        let linger = if rng.bool() { millis(rng, 50) } else { Duration::ZERO };
        builder
            .linger(linger)
            .batching(!linger.is_zero() || rng.bool())
            .copies(self.copies)
            .accept_fewer_copies(self.accept_fewer)
            .at_least_once(self.at_least_once)
            .routing(routing)
            .max_pending_messages(rng.u32(1..20))
            .max_pending_bytes(rng.u32(10..500))
    }

    /// What `Ok` promises at least.
    fn least(&self) -> usize {
        self.quorum.unwrap_or(if self.accept_fewer { 1 } else { self.copies })
    }
}

/// Names nsqds twice and others that do not exist, and leaves some out if one is enough.
struct Whimsical {
    rng: Mutex<Rng>,
    leaves_out: bool,
}

impl Router for Whimsical {
    fn order(&self, _: &RoutedMessage<'_>, nsqds: &[RoutedNsqd<'_>]) -> Vec<usize> {
        let mut rng = self.rng.lock().unwrap();
        let mut order = vec![rng.usize(..nsqds.len())];
        order.extend((0..rng.usize(..4)).map(|_| rng.usize(..=nsqds.len())));
        if !self.leaves_out {
            order.extend(0..nsqds.len());
        }
        order
    }
}

struct Call {
    body: String,
    allowed: Duration,
    begun: Instant,
    task: JoinHandle<(Result<()>, Duration)>,
}

fn call(producer: &Producer, body: String, allowed: Duration) -> Call {
    let producer = producer.with_publish_timeout(allowed);
    let publishing = body.clone();
    let begun = Instant::now();
    let task = tokio::spawn(async move {
        let outcome = producer.publish("t", publishing).await;
        (outcome, begun.elapsed())
    });
    Call {
        body,
        allowed,
        begun,
        task,
    }
}

/// Enqueues a message. What it returns tells whether it was taken.
fn enqueue(producer: &Producer, body: String, allowed: Duration) -> (String, JoinHandle<Result<()>>) {
    let producer = producer.with_publish_timeout(allowed);
    let enqueued = body.clone();
    (body, tokio::spawn(async move { producer.enqueue("t", enqueued).await }))
}

async fn live(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let policy = Policy::random(&mut rng);
    let (network, books, calm) = (MemoryNetwork::new(), Books::default(), Arc::new(AtomicBool::new(false)));
    for number in 0..3 {
        let chaos = Chaos {
            network: network.clone(),
            books: Arc::clone(&books),
            calm: Arc::clone(&calm),
            exiting: false,
        };
        tokio::spawn(chaos.nsqd(number, rng.fork()));
    }
    let told = Told::default();
    let hears = Arc::clone(&told);
    let builder = policy.builder(&mut rng, &network).on_failure(move |failure| {
        let failure = (text(&failure.body), failure.error.clone());
        hears.lock().unwrap().push(failure);
    });
    let producer = builder.connect_lazily().unwrap();
    let (mut calls, mut enqueued) = (vec![call(&producer, "first".to_owned(), SECOND)], Vec::new());
    for n in 0..rng.u32(1..80) {
        let allowed = millis(&mut rng, 8_000);
        if rng.u8(..3) == 0 {
            enqueued.push(enqueue(&producer, n.to_string(), allowed));
        } else {
            calls.push(call(&producer, n.to_string(), allowed));
        }
        if rng.u8(..3) == 0 {
            sleep(millis(&mut rng, 400)).await;
        }
        if rng.u8(..6) == 0 {
            calls[rng.usize(..calls.len())].task.abort();
        }
    }
    for call in &mut calls {
        let left = (call.begun + call.allowed).saturating_duration_since(Instant::now());
        let ended = timeout(left + SECOND, &mut call.task).await;
        judge(ended.expect("it resolves"), call, &policy, &books, seed);
    }
    judge_books(&policy, &books, seed);
    calm.store(true, Ordering::Relaxed);
    let last = producer.with_publish_timeout(600 * SECOND);
    let published = last.publish_many("t", ["last", "but", "one"]).await;
    if let Err(error) = published {
        // A connection may still end that was to do so before all were well.
        let may_be = error.kind() == ErrorKind::Unknown && !policy.at_least_once;
        assert!(may_be, "seed {seed}, {policy:?}: {error:?}");
    }
    // A flush does not wait for what waits for room.
    let mut taken = Vec::new();
    for (body, task) in enqueued {
        taken.push((body, task.await.unwrap()));
    }
    let flushed = producer.flush(60 * SECOND).await;
    flushed.unwrap_or_else(|error| panic!("seed {seed}, {policy:?}: {error}"));
    let mut failures = HashMap::new();
    for (body, error) in told.lock().unwrap().drain(..) {
        assert!(failures.insert(body, error).is_none(), "seed {seed}: told twice");
    }
    for (body, taken) in taken {
        judge_enqueued(&body, taken, failures.remove(&body), &policy, &books, seed);
    }
    assert!(failures.is_empty(), "seed {seed}: {failures:?}");
    // What its deadline has overtaken takes room until its answer comes, and that of a ping comes after it. A connection that
    // ends gives the room back as well.
    let _answered_or_lost = last.ping().await;
    let stats = producer.stats();
    assert_eq!((stats.pending_messages, stats.pending_bytes), (0, 0), "seed {seed}");
    let ending = timeout(61 * SECOND, producer.shutdown(60 * SECOND)).await;
    assert!(ending.is_ok(), "seed {seed}: a shutdown ends in time");
}

fn judge(
    ended: std::result::Result<(Result<()>, Duration), tokio::task::JoinError>,
    call: &Call,
    policy: &Policy,
    books: &Books,
    seed: u64,
) {
    // Its caller has left.
    let Ok((outcome, took)) = ended else { return };
    assert!(
        took <= call.allowed + Duration::from_millis(5),
        "seed {seed}, {policy:?}: late by {:?}: {outcome:?}",
        took - call.allowed
    );
    judge_outcome(&call.body, outcome, policy, books, seed);
}

fn judge_enqueued(body: &str, taken: Result<()>, failure: Option<Error>, policy: &Policy, books: &Books, seed: u64) {
    match (taken, failure) {
        (Ok(()), None) => judge_outcome(body, Ok(()), policy, books, seed),
        (Ok(()), Some(failure)) => judge_outcome(body, Err(failure), policy, books, seed),
        (Err(refusal), None) => {
            assert_eq!(refusal.kind(), ErrorKind::NotSent);
            judge_outcome(body, Err(refusal), policy, books, seed);
        }
        (Err(refusal), Some(failure)) => panic!("seed {seed}: {body} was refused, {refusal}, and told of, {failure}"),
    }
}

fn judge_outcome(body: &str, outcome: Result<()>, policy: &Policy, books: &Books, seed: u64) {
    let books = books.lock().unwrap();
    let accepted = books.get(body).map_or(&[][..], Vec::as_slice);
    let distinct: HashSet<_> = accepted.iter().collect();
    let told = format!("seed {seed}, {policy:?}: {body}: {outcome:?}, accepted by {accepted:?}");
    match outcome {
        Ok(()) => assert!(distinct.len() >= policy.least(), "{told}"),
        Err(error) => match error.kind() {
            ErrorKind::NotSent | ErrorKind::Rejected => assert!(accepted.is_empty(), "{told}"),
            ErrorKind::Unknown => {}
            other => panic!("{other:?} is no outcome of a valid publish: {told}"),
        },
    }
}

fn judge_books(policy: &Policy, books: &Books, seed: u64) {
    for (body, accepted) in books.lock().unwrap().iter() {
        assert!(
            policy.at_least_once || accepted.len() <= policy.copies,
            "seed {seed}, {policy:?}: {body} came to {accepted:?}"
        );
        let distinct: HashSet<_> = accepted.iter().collect();
        assert!(
            policy.at_least_once || distinct.len() == accepted.len(),
            "seed {seed}, {policy:?}: two copies of {body} at one nsqd: {accepted:?}"
        );
    }
}

#[test]
fn p1_p2_p3_random_lives_of_a_pool_are_told_truthfully() {
    let seeds = std::env::var("POOL_SEEDS").map_or(300, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        run_life(seed, async {
            let life = timeout(7 * 86_400 * SECOND, live(seed));
            life.await.unwrap_or_else(|_| panic!("seed {seed}: a life never ended"));
        });
    }
}
