//! Random lives of a producer against a model of nsqd: whatever is published, dropped, answered, refused, cut or shut
//! down in whatever order, each publish resolves once, in time and truthfully, and nothing is left behind.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, sleep, timeout};

use super::stats::Counts;
use super::{Lanes, Producer};
use crate::config::ConnectionConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{ErrorCode, Frame, encode_frame};
use crate::transport::{BoxIo, Connecting, Connector};

const TOPICS: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Copy, Debug)]
enum Kind {
    One,
    Many(u8),
    Deferred,
    Ping,
    /// Fire and forget.
    Enqueue,
}

#[derive(Clone, Debug)]
enum Op {
    Publish {
        kind: Kind,
        topic: usize,
        size: usize,
        timeout_ms: u64,
        guilty: bool,
    },
    /// Flushes, within so many milliseconds.
    Flush(u64),
    /// Drops the future of one of the publishes.
    Drop(prop::sample::Index),
    /// nsqd takes so many bytes off the wire and acts on what is complete.
    Read(usize),
    /// nsqd sends so many bytes of its answers.
    Answer(usize),
    /// nsqd does both as far as it can.
    Serve,
    /// nsqd refuses the next publish.
    RefuseNext,
    Heartbeat,
    Disconnect,
    /// Whether further connections are accepted.
    Accept(bool),
    Yield(u8),
    Sleep(u64),
}

fn any_op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        6 => Just(Kind::One),
        1 => (1u8..=8).prop_map(Kind::Many),
        1 => Just(Kind::Deferred),
        1 => Just(Kind::Ping),
        4 => Just(Kind::Enqueue),
    ];
    let size = prop_oneof![4 => Just(5usize), 2 => Just(60), 2 => Just(900), 1 => Just(5_000)];
    let timeout_ms = prop_oneof![1 => 0u64..50, 2 => 50u64..3_000, 3 => Just(30_000)];
    let publish = (kind, 0..TOPICS.len(), size, timeout_ms, prop::bool::weighted(0.05)).prop_map(
        |(kind, topic, size, timeout_ms, guilty)| Op::Publish {
            kind,
            topic,
            size,
            timeout_ms,
            guilty,
        },
    );
    let amount = prop_oneof![1usize..10, 10usize..200, Just(100_000)];
    prop_oneof![
        12 => publish,
        1 => prop_oneof![Just(0u64), Just(100), Just(600_000)].prop_map(Op::Flush),
        2 => any::<prop::sample::Index>().prop_map(Op::Drop),
        6 => amount.clone().prop_map(Op::Read),
        5 => amount.prop_map(Op::Answer),
        5 => Just(Op::Serve),
        1 => Just(Op::RefuseNext),
        1 => Just(Op::Heartbeat),
        1 => Just(Op::Disconnect),
        1 => prop::bool::weighted(0.7).prop_map(Op::Accept),
        6 => (1u8..6).prop_map(Op::Yield),
        5 => prop_oneof![Just(1u64), 1u64..300, 1_000u64..8_000].prop_map(Op::Sleep),
    ]
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    /// What the pipe to nsqd holds, in bytes.
    capacity: usize,
    max_messages: u32,
    batching: bool,
    /// In milliseconds, with how many messages are enough.
    linger: Option<(u64, usize)>,
    /// The largest message that nsqd accepts, of which the producer knows nothing at first.
    max_msg_size: usize,
}

fn any_setup() -> impl Strategy<Value = Setup> {
    let capacity = prop_oneof![Just(16usize), Just(100), Just(1_500), Just(65_536)];
    let linger = prop_oneof![2 => Just(None), 1 => (1u64..200, 1usize..6).prop_map(Some)];
    let max_msg_size = prop_oneof![Just(usize::MAX), Just(1_000)];
    let all = (
        capacity,
        prop_oneof![Just(6u32), Just(40)],
        any::<bool>(),
        linger,
        max_msg_size,
    );
    all.prop_map(|(capacity, max_messages, batching, linger, max_msg_size)| Setup {
        capacity,
        max_messages,
        batching: batching || linger.is_some(),
        linger,
        max_msg_size,
    })
}

/// How a life ends.
#[derive(Clone, Copy, Debug)]
enum Finish {
    /// nsqd recovers and answers everything.
    Recovery,
    /// A shutdown of this many milliseconds, with nsqd as it is.
    Shutdown(u64),
    /// A shutdown while nsqd answers everything.
    Drain,
}

/// Opens pipes of one capacity, while it is told to.
#[derive(Debug)]
struct Pipes {
    capacity: usize,
    accepting: Arc<AtomicBool>,
    opened: mpsc::UnboundedSender<DuplexStream>,
}

impl Connector for Pipes {
    fn connect(&self, _address: &str) -> Connecting {
        let connected = if self.accepting.load(Ordering::Relaxed) {
            let (client, server) = duplex(self.capacity);
            self.opened.send(server).unwrap();
            Ok(Box::new(client) as BoxIo)
        } else {
            Err(io::ErrorKind::ConnectionRefused.into())
        };
        Box::pin(std::future::ready(connected))
    }
}

/// What nsqd did, by message.
#[derive(Debug, Default)]
struct Ledger {
    accepted: Vec<(String, u32)>,
    refused: HashSet<u32>,
}

/// nsqd: it acts on a command when it has read it to the end, and on nothing behind one that it has refused.
struct Nsqd {
    accepting: Arc<AtomicBool>,
    incoming: mpsc::UnboundedReceiver<DuplexStream>,
    connection: Option<ServerSide>,
    refuse_next: bool,
    max_msg_size: usize,
    ledger: Arc<Mutex<Ledger>>,
}

struct ServerSide {
    io: DuplexStream,
    read: BytesMut,
    answers: BytesMut,
    greeted: bool,
    refused: bool,
}

impl Nsqd {
    fn connection(&mut self) -> Option<&mut ServerSide> {
        while let Ok(io) = self.incoming.try_recv() {
            self.connection = Some(ServerSide {
                io,
                read: BytesMut::new(),
                answers: BytesMut::new(),
                greeted: false,
                refused: false,
            });
        }
        self.connection.as_mut()
    }

    fn read(&mut self, most: usize) {
        let Some(connection) = self.connection() else { return };
        let mut bytes = vec![0; most];
        match connection.io.read(&mut bytes).now_or_never() {
            Some(Ok(count)) if count > 0 => connection.read.extend_from_slice(&bytes[..count]),
            Some(_ended) => {
                self.connection = None;
                return;
            }
            None => return,
        }
        self.act();
    }

    fn act(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        if !connection.greeted && connection.read.starts_with(b"  V2") {
            connection.read.advance(4);
            connection.greeted = true;
        }
        while connection.greeted && !connection.refused {
            let Some((command, topic, bodies)) = parse(&mut connection.read) else {
                return;
            };
            let ids = bodies
                .iter()
                .map(|body| u32::from_be_bytes(body[..4].try_into().unwrap()));
            let too_big = bodies.iter().find(|body| body.len() > self.max_msg_size);
            let guilty = bodies.iter().any(|body| body[4] == 1);
            let refusal = if let Some(body) = too_big {
                let (size, most) = (body.len(), self.max_msg_size);
                Some(format!("E_BAD_MESSAGE {command} message too big {size} > {most}"))
            } else if guilty {
                Some(format!("E_BAD_MESSAGE {command} invalid message body size 0"))
            } else if command != "IDENTIFY" && std::mem::take(&mut self.refuse_next) {
                Some("E_UNAUTHORIZED AUTH failed".to_owned())
            } else {
                None
            };
            let answer = match refusal {
                None => {
                    self.ledger
                        .lock()
                        .unwrap()
                        .accepted
                        .extend(ids.map(|id| (topic.clone(), id)));
                    Frame::Response("OK".into())
                }
                Some(text) => {
                    self.ledger.lock().unwrap().refused.extend(ids);
                    connection.refused = true;
                    Frame::Error(text.into())
                }
            };
            encode_frame(&answer, &mut connection.answers);
        }
    }

    fn answer(&mut self, most: usize) {
        let Some(connection) = self.connection() else { return };
        let count = connection.answers.len().min(most);
        if count > 0 {
            match connection.io.write(&connection.answers[..count]).now_or_never() {
                Some(Ok(count)) => connection.answers.advance(count),
                Some(Err(_ended)) => self.connection = None,
                None => {}
            }
        }
        if self
            .connection
            .as_ref()
            .is_some_and(|it| it.refused && it.answers.is_empty())
        {
            self.connection = None;
        }
    }

    /// What an nsqd in good health does within a moment.
    async fn serve(&mut self) {
        self.accepting.store(true, Ordering::Relaxed);
        self.refuse_next = false;
        self.read(100_000);
        self.answer(100_000);
        let pause = if self.connection.is_some() { 1 } else { 20 };
        sleep(Duration::from_millis(pause)).await;
    }
}

/// Cuts one command off the front: its name, topic and bodies.
fn parse(bytes: &mut BytesMut) -> Option<(String, String, Vec<Bytes>)> {
    let line_len = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = String::from_utf8(bytes[..line_len].to_vec()).unwrap();
    let mut words = line.split(' ').map(str::to_owned);
    let (command, topic) = (words.next().unwrap(), words.next().unwrap_or_default());
    if command == "NOP" {
        bytes.advance(line_len + 1);
        return parse(bytes);
    }
    let from = line_len + 1 + 4;
    let size: [u8; 4] = bytes.get(from - 4..from)?.try_into().unwrap();
    let mut body = Bytes::copy_from_slice(bytes.get(from..from + u32::from_be_bytes(size) as usize)?);
    bytes.advance(from + body.len());
    let bodies = match command.as_str() {
        "IDENTIFY" => Vec::new(),
        "PUB" | "DPUB" => vec![body],
        "MPUB" => (0..body.get_u32())
            .map(|_| {
                let len = body.get_u32() as usize;
                body.split_to(len)
            })
            .collect(),
        other => panic!("{other} came"),
    };
    Some((command, topic, bodies))
}

/// A publish and what its caller was told.
struct Call {
    ids: Vec<u32>,
    kind: Kind,
    guilty: bool,
    /// Larger than what nsqd accepts.
    too_big: bool,
    task: JoinHandle<Result<()>>,
}

struct World {
    producer: Producer,
    nsqd: Nsqd,
    calls: Vec<Call>,
    next_id: u32,
    late: Arc<AtomicUsize>,
    /// What the hook was told of.
    told: Arc<Mutex<Vec<(u32, Error)>>>,
    flushes: Vec<JoinHandle<()>>,
    /// What was enqueued.
    taken: Arc<Mutex<Vec<u32>>>,
    /// Messages that were confirmed after the life had ended.
    confirmed_later: u64,
}

impl World {
    async fn new(setup: Setup) -> Self {
        let accepting = Arc::new(AtomicBool::new(true));
        let (opened, incoming) = mpsc::unbounded_channel();
        let connector = Pipes {
            capacity: setup.capacity,
            accepting: Arc::clone(&accepting),
            opened,
        };
        let told: Arc<Mutex<Vec<(u32, Error)>>> = Arc::default();
        let hears = Arc::clone(&told);
        let (linger, enough) = setup.linger.unwrap_or((0, 1));
        let connecting = tokio::spawn(
            Producer::builder()
                .linger(Duration::from_millis(linger))
                .linger_messages(enough)
                .on_failure(move |failure| {
                    let id = u32::from_be_bytes(failure.body[..4].try_into().unwrap());
                    hears.lock().unwrap().push((id, failure.error.clone()));
                })
                .nsqd("nsqd:4150")
                .connection(
                    ConnectionConfig::new()
                        .client_id("c")
                        .hostname("h")
                        .connector(connector),
                )
                .max_pending_messages(setup.max_messages)
                .max_pending_bytes(3_000)
                .batching(setup.batching)
                .connect(),
        );
        let mut nsqd = Nsqd {
            accepting,
            incoming,
            connection: None,
            refuse_next: false,
            max_msg_size: setup.max_msg_size,
            ledger: Arc::default(),
        };
        while !connecting.is_finished() {
            nsqd.serve().await;
        }
        Self {
            producer: connecting.await.unwrap().unwrap(),
            nsqd,
            calls: Vec::new(),
            next_id: 0,
            late: Arc::default(),
            told,
            flushes: Vec::new(),
            taken: Arc::default(),
            confirmed_later: 0,
        }
    }

    fn publish(&mut self, kind: Kind, topic: &'static str, size: usize, allowed: Duration, guilty: bool) {
        let mut body = |guilty: bool| {
            let mut body = self.next_id.to_be_bytes().to_vec();
            self.next_id += 1;
            body.resize(size, u8::from(guilty));
            body
        };
        let bodies: Vec<Vec<u8>> = match kind {
            Kind::One | Kind::Deferred | Kind::Enqueue => vec![body(guilty)],
            // The last one of them.
            Kind::Many(count) => (1..=count).map(|n| body(guilty && n == count)).collect(),
            Kind::Ping => Vec::new(),
        };
        let ids = (self.next_id - bodies.len() as u32..self.next_id).collect();
        let producer = self.producer.with_publish_timeout(allowed);
        let late = Arc::clone(&self.late);
        let (taken, id) = (Arc::clone(&self.taken), self.next_id - bodies.len() as u32);
        let task = tokio::spawn(async move {
            let begun = Instant::now();
            let first = bodies.first().cloned().unwrap_or_default();
            let outcome = match kind {
                Kind::One => producer.publish(topic, first).await,
                Kind::Many(_) => producer.publish_many(topic, bodies).await,
                Kind::Deferred => producer.publish_deferred(topic, Duration::from_millis(7), first).await,
                Kind::Ping => producer.ping().await,
                Kind::Enqueue => producer.enqueue(topic, first).await,
            };
            // The timer counts in whole milliseconds.
            if begun.elapsed() > allowed + Duration::from_millis(2) {
                late.fetch_add(1, Ordering::Relaxed);
            }
            if outcome.is_ok() && matches!(kind, Kind::Enqueue) {
                taken.lock().unwrap().push(id);
            }
            outcome
        });
        let is_ping = matches!(kind, Kind::Ping);
        self.calls.push(Call {
            ids,
            kind,
            guilty: guilty && !is_ping,
            too_big: size > self.nsqd.max_msg_size && !is_ping,
            task,
        });
    }

    /// Flushes; once that is done, nsqd has or the hook knows what was enqueued before.
    fn flush(&mut self, allowed: Duration) {
        let (producer, told, ledger) = (
            self.producer.clone(),
            Arc::clone(&self.told),
            Arc::clone(&self.nsqd.ledger),
        );
        let enqueued = self.taken.lock().unwrap().clone();
        self.flushes.push(tokio::spawn(async move {
            let begun = Instant::now();
            match producer.flush(allowed).await {
                Ok(()) => {
                    let (told, ledger) = (told.lock().unwrap(), ledger.lock().unwrap());
                    for id in enqueued {
                        let known = told.iter().any(|(other, _)| *other == id)
                            || ledger.accepted.iter().any(|(_, other)| *other == id);
                        assert!(known, "{id} was left by a flush");
                    }
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut),
            }
            assert!(
                begun.elapsed() <= allowed + Duration::from_millis(2),
                "a flush took too long"
            );
        }));
    }

    async fn apply(&mut self, op: Op) {
        match op {
            Op::Publish {
                kind,
                topic,
                size,
                timeout_ms,
                guilty,
            } => self.publish(kind, TOPICS[topic], size, Duration::from_millis(timeout_ms), guilty),
            Op::Flush(millis) => self.flush(Duration::from_millis(millis)),
            Op::Drop(which) => {
                if !self.calls.is_empty() {
                    which.get(&self.calls).task.abort();
                }
            }
            Op::Read(most) => self.nsqd.read(most),
            Op::Answer(most) => self.nsqd.answer(most),
            Op::Serve => {
                self.nsqd.read(100_000);
                self.nsqd.answer(100_000);
            }
            Op::RefuseNext => self.nsqd.refuse_next = true,
            Op::Heartbeat => {
                if let Some(connection) = self.nsqd.connection().filter(|it| it.greeted && !it.refused) {
                    encode_frame(&Frame::Response("_heartbeat_".into()), &mut connection.answers);
                }
            }
            Op::Disconnect => {
                self.nsqd.connection();
                self.nsqd.connection = None;
            }
            Op::Accept(on) => self.nsqd.accepting.store(on, Ordering::Relaxed),
            Op::Yield(times) => {
                for _ in 0..times {
                    yield_now().await;
                }
            }
            Op::Sleep(millis) => sleep(Duration::from_millis(millis)).await,
        }
    }

    fn is_quiet(&self) -> bool {
        self.calls.iter().all(|call| call.task.is_finished())
            && self.flushes.iter().all(JoinHandle::is_finished)
            && self.producer.pipeline().is_empty()
    }

    async fn finish(&mut self, finish: Finish) {
        let producer = self.producer.clone();
        match finish {
            Finish::Recovery => {
                while !self.is_quiet() {
                    self.nsqd.serve().await;
                }
                self.producer.pipeline().assert_nothing_is_left();
                // And it still works.
                self.publish(Kind::Many(8), "a", 900, Duration::from_secs(600), false);
                while !self.is_quiet() {
                    self.nsqd.serve().await;
                }
                assert!(self.calls.last_mut().unwrap().task.await_now().is_ok());
                self.calls.pop();
                self.confirmed_later = 8;
            }
            Finish::Shutdown(millis) => {
                let allowed = Duration::from_millis(millis);
                let begun = Instant::now();
                producer.shutdown(allowed).await;
                assert!(
                    begun.elapsed() <= allowed + Duration::from_millis(2),
                    "shutdown took too long"
                );
            }
            Finish::Drain => {
                let ending = tokio::spawn(async move { producer.shutdown(Duration::from_secs(600)).await });
                while !ending.is_finished() {
                    self.nsqd.serve().await;
                }
                assert!(ending.await.unwrap().not_sent == 0);
            }
        }
        // Resolved at once now, without any timer's help.
        for _ in 0..3 {
            yield_now().await;
        }
        assert!(
            self.calls.iter().all(|call| call.task.is_finished()),
            "a publish has not resolved"
        );
        for flush in self.flushes.drain(..) {
            flush.now_or_never().expect("a flush has not ended").unwrap();
        }
        self.producer.pipeline().assert_nothing_is_left();
        assert_eq!(
            self.late.load(Ordering::Relaxed),
            0,
            "publishes resolved after their deadline"
        );
    }

    /// Compares what the callers were told with what nsqd did.
    async fn judge(self) {
        let ledger = self.nsqd.ledger.lock().unwrap();
        let mut count: HashMap<u32, usize> = HashMap::new();
        let mut newest: HashMap<&str, u32> = HashMap::new();
        for (topic, id) in &ledger.accepted {
            *count.entry(*id).or_default() += 1;
            let newest = newest.entry(topic).or_default();
            assert!(*newest <= *id, "{topic}: {id} came after {newest}");
            *newest = *id;
        }
        assert!(
            count.values().all(|count| *count == 1),
            "a message was published twice: {count:?}"
        );
        let mut told: HashMap<u32, Error> = HashMap::new();
        for (id, error) in self.told.lock().unwrap().drain(..) {
            assert!(told.insert(id, error).is_none(), "the hook was told twice of {id}");
        }
        let mut counts = Counts::default();
        counts.count(&Ok(()), self.confirmed_later as u32);
        let mut dropped = false;
        for mut call in self.calls {
            let accepted = call.ids.iter().filter(|id| count.contains_key(id)).count();
            let refused = call.ids.iter().any(|id| ledger.refused.contains(id));
            let text = format!("{:?} of {:?}, {accepted} accepted", call.ids, call.kind);
            assert!(
                accepted == 0 || accepted == call.ids.len(),
                "half a command was accepted"
            );
            let outcome = match (call.kind, call.task.await_now_or_cancelled()) {
                (Kind::Enqueue, outcome) => match (outcome, told.remove(&call.ids[0])) {
                    (Some(Ok(())), Some(failure)) => Some(Err(failure)),
                    (outcome, failure) => {
                        assert!(failure.is_none(), "told of what was not taken: {text}");
                        assert!(outcome.is_some() || accepted == 0, "taken and not told: {text}");
                        outcome
                    }
                },
                (_, outcome) => outcome,
            };
            let Some(outcome) = outcome else {
                dropped = true;
                continue;
            };
            counts.count(&outcome, call.ids.len() as u32);
            judge_one(&call, &outcome, accepted, refused, &text);
        }
        assert!(told.is_empty(), "the hook was told of {told:?}");
        let stats = self.producer.stats();
        let told = Counts {
            ok: stats.ok,
            rejected: stats.rejected,
            not_sent: stats.not_sent,
            unknown: stats.unknown,
            invalid: stats.invalid,
        };
        assert!(
            dropped || told == counts,
            "the stats tell {told:?}, the callers {counts:?}"
        );
    }
}

fn judge_one(call: &Call, outcome: &Result<()>, accepted: usize, refused: bool, text: &str) {
    let own_fault = call.guilty || call.too_big;
    match outcome.as_ref().map_err(Error::kind) {
        Ok(()) => assert!(accepted == call.ids.len() && !own_fault, "Ok: {text}"),
        Err(ErrorKind::NotSent) => assert!(accepted == 0, "not sent: {text}"),
        Err(ErrorKind::Invalid) => assert!(accepted == 0 && call.too_big, "invalid: {text}"),
        Err(ErrorKind::Rejected) => {
            assert!(accepted == 0 && refused, "rejected: {text}");
            let blamed = outcome
                .as_ref()
                .is_err_and(|error| error.code() == Some(ErrorCode::BadMessage));
            assert_eq!(blamed, own_fault, "blamed for another's message: {text}");
        }
        Err(ErrorKind::Unknown) => {}
        Err(other) => panic!("{other:?} is no outcome of a valid publish: {text}"),
    }
}

trait AwaitNow {
    fn await_now(&mut self) -> Result<()>;

    /// `None` if its caller has dropped it.
    fn await_now_or_cancelled(&mut self) -> Option<Result<()>>;
}

impl AwaitNow for JoinHandle<Result<()>> {
    fn await_now(&mut self) -> Result<()> {
        self.now_or_never().expect("it has finished").unwrap()
    }

    fn await_now_or_cancelled(&mut self) -> Option<Result<()>> {
        match self.now_or_never().expect("it has finished") {
            Ok(outcome) => Some(outcome),
            Err(error) if error.is_cancelled() => None,
            Err(error) => panic!("{error}"),
        }
    }
}

fn live(setup: Setup, ops: Vec<Op>, finish: Finish) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    // The jitter of reconnection.
    fastrand::seed(ops.len() as u64);
    runtime.block_on(async {
        let life = async {
            let mut world = World::new(setup).await;
            for op in ops {
                world.apply(op).await;
            }
            world.finish(finish).await;
            world.judge().await;
        };
        timeout(Duration::from_secs(7 * 86_400), life)
            .await
            .expect("a publish never resolved");
    });
}

#[test]
fn p3_p4_lesson_16_random_lives_resolve_each_publish_once_and_truthfully() {
    let finish = prop_oneof![
        3 => Just(Finish::Recovery),
        2 => (0u64..5_000).prop_map(Finish::Shutdown),
        1 => Just(Finish::Drain),
    ];
    let life = (any_setup(), vec(any_op(), 1..120), finish);
    // The same lives in each run; PROPTEST_CASES asks for more of them.
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    runner
        .run(&life, |(setup, ops, finish)| {
            live(setup, ops, finish);
            Ok(())
        })
        .unwrap();
}

#[test]
fn lesson_21_a_producer_is_to_be_shared() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    shared::<Producer>();
}

impl Producer {
    fn pipeline(&self) -> &super::pipeline::Pipeline {
        match &self.shared.lanes {
            Lanes::One(lane) => &lane.pipeline,
            Lanes::Many(_) => panic!("a pool has several"),
        }
    }
}
