//! N5: whatever an nsqlookupd answers, the nsqd is found once it answers as it should.

use std::time::Duration;

use async_nsq::test_server::{Lookupd, Nsqd, Stats};
use async_nsq::transport::MemoryNetwork;
use async_nsq::{ConnectionConfig, Consumer};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::scripted::{SECOND, chain, succeed};

/// What discovery may take to forget what is wrong and to look again: the interval between polls, and for nsqds that
/// never were, three polls more.
const RECOVERY: Duration = Duration::from_secs(300);

/// Answers of an nsqlookupd that is broken, is something else, or means harm.
#[derive(Clone, Debug)]
enum Answer {
    Status(u16),
    Body(Vec<u8>),
    Huge(u64),
    Slow(Duration),
    Silence,
    Refusal,
}

impl Answer {
    fn give(&self, lookupd: &Lookupd) {
        let faults = lookupd.faults();
        match self {
            Self::Status(status) => faults.answer_status(*status),
            Self::Body(body) => faults.answer_body(body.clone()),
            Self::Huge(bytes) => faults.huge_answer(*bytes),
            Self::Slow(delay) => faults.delay(*delay),
            Self::Silence => faults.hang(),
            Self::Refusal => faults.down(),
        }
    }
}

fn any_word() -> impl Strategy<Value = String> {
    let long = "long".repeat(100);
    let odd = [
        "",
        " ",
        "nsqd",
        "nobody",
        "::1",
        "[::1",
        "a b",
        "a:1:2",
        "\n",
        "\0",
        "\u{1f980}",
        "http://nsqd",
        "OK",
        &long,
    ];
    prop_oneof![select(odd.map(String::from).to_vec()), any::<String>()]
}

fn any_key() -> impl Strategy<Value = String> {
    let known = [
        "producers",
        "channels",
        "broadcast_address",
        "tcp_port",
        "http_port",
        "hostname",
        "remote_address",
        "version",
        "status_code",
        "status_txt",
        "data",
        "message",
    ];
    prop_oneof![9 => select(known.map(String::from).to_vec()), 1 => any_word()]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        select(vec![0_i64, -1, 200, 404, 4150, 65_535, 65_536, i64::MAX, i64::MIN]).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any_word().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        let object = vec((any_key(), inner.clone()), 0..6).prop_map(|entries| entries.into_iter().collect());
        prop_oneof![vec(inner, 0..6).prop_map(Value::from), object.prop_map(Value::Object)]
    })
}

/// An answer of the right form with anything in it.
fn any_lookup() -> impl Strategy<Value = Value> {
    let producer = (any_word(), any_json(), any_json())
        .prop_map(|(host, port, more)| json!({"broadcast_address": host, "tcp_port": port, "hostname": more}));
    let producers = vec(prop_oneof![producer, any_json()], 0..6);
    (producers, any_json(), any::<bool>()).prop_map(|(producers, channels, old)| {
        let lookup = json!({"producers": producers, "channels": channels});
        if old {
            json!({"status_code": 200, "status_txt": "OK", "data": lookup})
        } else {
            lookup
        }
    })
}

/// JSON, whole or cut off somewhere.
fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let json = prop_oneof![any_json(), any_lookup()].prop_map(|json| json.to_string().into_bytes());
    (json, any::<prop::sample::Index>(), any::<bool>()).prop_map(|(mut json, end, cut)| {
        if cut {
            json.truncate(end.index(json.len()));
        }
        json
    })
}

fn any_answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        2 => (0_u16..1100).prop_map(Answer::Status),
        5 => any_text().prop_map(Answer::Body),
        1 => vec(any::<u8>(), 0..300).prop_map(Answer::Body),
        1 => (0_u64..8_000_000).prop_map(Answer::Huge),
        1 => (0_u64..4000).prop_map(|ms| Answer::Slow(Duration::from_millis(ms))),
        1 => Just(Answer::Silence),
        1 => Just(Answer::Refusal),
    ]
}

fn paused<F: Future>(test: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(test)
}

/// One nsqd with a message, and the nsqlookupd that knows of it.
struct Cluster {
    network: MemoryNetwork,
    lookupd: Lookupd,
    nsqd: Nsqd,
}

impl Cluster {
    async fn start() -> Self {
        let network = MemoryNetwork::new();
        let lookupd = Lookupd::start_in(&network, "lookupd:4161").await.unwrap();
        let nsqd = Nsqd::builder().start_in(&network, "nsqd:4150").await.unwrap();
        lookupd.register("orders", nsqd.address()).unwrap();
        nsqd.publish("orders", "one").unwrap();
        Self { network, lookupd, nsqd }
    }

    async fn consumer(&self) -> Consumer {
        let builder = Consumer::builder("orders", "billing").lookupd(self.lookupd.address());
        let connection = ConnectionConfig::new().connector(self.network.connector());
        builder.connection(connection).start(succeed).await.unwrap()
    }

    /// The nsqlookupd works again: the nsqd is found, and one more message of it handled.
    async fn recovers(&self, consumer: &Consumer) {
        self.lookupd.faults().clear().unwrap();
        if let Err(error) = consumer.ready(RECOVERY).await {
            panic!("{}", chain(&error));
        }
        // It may be found, consumed from and let go of while the answers are bad.
        self.nsqd.publish("orders", "one more").unwrap();
        let all_done = |stats: &Stats| {
            let channel = stats.channel("orders", "billing");
            channel.is_some_and(|channel| channel.finish_count == channel.message_count && channel.finish_count > 0)
        };
        self.nsqd.wait_for_within(RECOVERY, all_done).await.unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn n5_an_nsqlookupd_may_answer_anything_and_the_nsqd_is_found_afterwards(
        answers in vec((any_answer(), 0_u64..40), 1..6),
        is_found_before in any::<bool>(),
    ) {
        paused(async {
            let cluster = Cluster::start().await;
            let consumer = if is_found_before {
                let consumer = cluster.consumer().await;
                consumer.ready(10 * SECOND).await.unwrap();
                consumer
            } else {
                answers[0].0.give(&cluster.lookupd);
                cluster.consumer().await
            };
            for (answer, seconds) in &answers {
                cluster.lookupd.faults().clear().unwrap();
                answer.give(&cluster.lookupd);
                tokio::time::sleep(Duration::from_secs(*seconds)).await;
            }
            cluster.recovers(&consumer).await;
            assert!(consumer.shutdown(30 * SECOND).await.is_clean());
        });
    }
}

#[tokio::test(start_paused = true)]
async fn n4_thousands_of_nsqds_that_never_were_leave_room_for_the_one_that_is() {
    let cluster = Cluster::start().await;
    let bogus: Vec<_> = (0..3000)
        .map(|number| json!({"broadcast_address": format!("bogus-{number}"), "tcp_port": 4150}))
        .collect();
    let flood = json!({"channels": [], "producers": bogus}).to_string();
    cluster.lookupd.faults().answer_body(flood);
    let consumer = cluster.consumer().await;
    let error = consumer.ready(60 * SECOND).await.unwrap_err();
    assert!(chain(&error).contains("1000 addresses fail"), "{}", chain(&error));
    cluster.recovers(&consumer).await;
}
