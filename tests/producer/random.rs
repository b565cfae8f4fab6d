//! Random lives on the test broker: what callers were told, against what is in the broker's queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::protocol::CommandName;
use async_nsq::test_server::{FrameKind, Nsqd};
use async_nsq::transport::MemoryNetwork;
use async_nsq::{ConnectionConfig, ErrorKind, Producer, Result};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::run_life;

const TOPICS: [&str; 2] = ["a", "b"];
/// Less than some messages have, so that nsqd tells its limit now and then.
const MAX_MSG_SIZE: usize = 400;

type Told = Arc<Mutex<HashMap<u32, ErrorKind>>>;

struct Call {
    ids: Vec<u32>,
    enqueued: bool,
    task: JoinHandle<Result<()>>,
}

struct Life {
    rng: fastrand::Rng,
    nsqd: Nsqd,
    producer: Producer,
    told: Told,
    calls: Vec<Call>,
    next_id: u32,
}

impl Life {
    async fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let network = MemoryNetwork::new();
        let nsqd = Nsqd::builder()
            .max_msg_size(MAX_MSG_SIZE)
            .max_body_size(if rng.bool() { 600 } else { 5_000_000 })
            .start_in(&network, "nsqd:4150")
            .await
            .unwrap();
        for topic in TOPICS {
            nsqd.create_channel(topic, "all").unwrap();
        }
        let told = Told::default();
        let hears = Arc::clone(&told);
        let producer = Producer::builder()
            .nsqd("nsqd:4150")
            .connection(ConnectionConfig::new().connector(network.connector()))
            .max_pending_messages(if rng.bool() { 5 } else { 1_000 })
            .max_body_size(if rng.bool() { 300 } else { 5_000_000 })
            .linger(Duration::from_millis(if rng.u8(..3) == 0 { 20 } else { 0 }))
            .linger_messages(4)
            .on_failure(move |failure| {
                let id = id_of(&failure.body);
                let before = hears.lock().unwrap().insert(id, failure.error.kind());
                assert!(before.is_none(), "told twice of {id}");
            })
            .connect()
            .await
            .unwrap();
        Self {
            rng,
            nsqd,
            producer,
            told,
            calls: Vec::new(),
            next_id: 0,
        }
    }

    fn body(&mut self) -> Bytes {
        let size = if self.rng.u8(..25) == 0 {
            MAX_MSG_SIZE + 1
        } else {
            self.rng.usize(4..150)
        };
        let mut body = self.next_id.to_be_bytes().to_vec();
        self.next_id += 1;
        body.resize(size, 0);
        body.into()
    }

    fn publish(&mut self) {
        let topic = TOPICS[self.rng.usize(..2)];
        let allowed = Duration::from_millis([50, 2_000, 20_000][self.rng.usize(..3)]);
        let producer = self.producer.with_publish_timeout(allowed);
        let kind = self.rng.u8(..10);
        let count = if kind == 0 { self.rng.usize(1..8) } else { 1 };
        let bodies: Vec<Bytes> = (0..count).map(|_| self.body()).collect();
        let first = bodies[0].clone();
        self.calls.push(Call {
            ids: bodies.iter().map(|body| id_of(body)).collect(),
            enqueued: (1..4).contains(&kind),
            task: tokio::spawn(async move {
                match kind {
                    0 => producer.publish_many(topic, bodies).await,
                    1..4 => producer.enqueue(topic, first).await,
                    _ => producer.publish(topic, first).await,
                }
            }),
        });
    }

    /// Lets one thing go wrong that a truthful nsqd and its network do.
    async fn mishap(&mut self) {
        let faults = self.nsqd.faults();
        let publishes = || self.nsqd.faults().publishes().once();
        match self.rng.u8(..11) {
            0 => drop(publishes().disconnect()),
            1 => drop(publishes().disconnect_after()),
            2 => drop(publishes().delay(Duration::from_millis(self.rng.u64(..40_000)))),
            3 => drop(
                faults
                    .command(CommandName::Pub)
                    .once()
                    .reject("E_PUB_FAILED PUB failed"),
            ),
            4 => drop(publishes().reject("E_UNAUTHORIZED AUTH failed")),
            5 => drop(faults.frames(FrameKind::Response).once().cut_at(self.rng.usize(1..9))),
            6 => drop(faults.frames(FrameKind::Response).once().garble()),
            7 => faults.disconnect(),
            8 => {
                faults.freeze();
                sleep(Duration::from_millis(self.rng.u64(..100_000))).await;
                self.nsqd.faults().thaw();
            }
            9 => {
                faults.refuse_connections();
                faults.disconnect();
                sleep(Duration::from_millis(self.rng.u64(..30_000))).await;
                self.nsqd.faults().accept_connections().unwrap();
            }
            _ => {
                self.nsqd.stop().await;
                sleep(Duration::from_millis(self.rng.u64(..5_000))).await;
                self.nsqd.restart().await.unwrap();
            }
        }
    }

    async fn live(&mut self) {
        for _ in 0..150 {
            match self.rng.u8(..20) {
                0 => self.mishap().await,
                1 => {
                    let which = self.rng.usize(..self.calls.len().max(1));
                    if let Some(call) = self.calls.get(which) {
                        call.task.abort();
                    }
                }
                2..6 => sleep(Duration::from_millis(self.rng.u64(..500))).await,
                _ => self.publish(),
            }
        }
    }

    async fn judge(self, seed: u64) {
        self.producer.flush(Duration::from_secs(3_600)).await.unwrap();
        let mut outcomes = Vec::new();
        for call in self.calls {
            let outcome = match call.task.await {
                Ok(outcome) => Some(outcome),
                Err(error) => {
                    assert!(error.is_cancelled(), "{error}");
                    None
                }
            };
            outcomes.push((call.ids, call.enqueued, outcome));
        }
        self.producer.shutdown(Duration::from_secs(3_600)).await;
        // What lies in connections that the producer has given up is read at last.
        sleep(Duration::from_secs(600)).await;
        let mut count: HashMap<u32, usize> = HashMap::new();
        for topic in TOPICS {
            for body in self.nsqd.drain(topic, "all").unwrap() {
                *count.entry(id_of(&body)).or_default() += 1;
            }
        }
        assert!(count.values().all(|count| *count == 1), "seed {seed}: published twice");
        let told = std::mem::take(&mut *self.told.lock().unwrap());
        let mut told_of_enqueued = 0;
        for (ids, enqueued, outcome) in outcomes {
            let there = ids.iter().filter(|id| count.contains_key(id)).count();
            let text = format!("seed {seed}: {ids:?}, {there} are there, {outcome:?}");
            let Some(outcome) = outcome else { continue };
            let mut kind = outcome.as_ref().err().map(|error| error.kind());
            if enqueued && kind.is_none() {
                kind = told.get(&ids[0]).copied();
                told_of_enqueued += usize::from(kind.is_some());
            }
            match kind {
                None => assert_eq!(there, ids.len(), "Ok: {text}"),
                Some(ErrorKind::NotSent | ErrorKind::Invalid) => assert_eq!(there, 0, "{text}"),
                // One part of a batch that left in several.
                Some(ErrorKind::Rejected) => assert!(there < ids.len(), "{text}"),
                Some(ErrorKind::Unknown) => {}
                Some(other) => panic!("{other:?}: {text}"),
            }
        }
        assert_eq!(
            told.len(),
            told_of_enqueued,
            "seed {seed}: the hook heard of what was not enqueued"
        );
    }
}

fn id_of(body: &[u8]) -> u32 {
    u32::from_be_bytes(body[..4].try_into().unwrap())
}

#[test]
fn p1_p2_random_lives_on_the_test_broker_are_told_truthfully() {
    let seeds = std::env::var("PRODUCER_SEEDS").map_or(40, |count| count.parse().unwrap());
    for seed in 0..seeds {
        run_life(seed, async {
            let life = async {
                let mut life = Life::new(seed).await;
                life.live().await;
                life.judge(seed).await;
            };
            timeout(Duration::from_secs(7 * 86_400), life)
                .await
                .unwrap_or_else(|_| panic!("seed {seed}: a publish never resolved"));
        });
    }
}
