//! Groups of consumers with the test broker: what nsqds are told of RDY, all members together, and topics that come and go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::test_server::{Lookupd, Nsqd};
use async_nsq::transport::MemoryNetwork;
use async_nsq::{
    BoxError, ConnectionConfig, Consumer, ConsumerBuilder, ConsumerGroup, ErrorKind, GroupStats, Message, PauseReason,
    Topic, TopicPattern,
};
use tokio::time::{Instant, sleep};

use crate::scripted::{SECOND, chain, stuck, succeed};
use crate::support::settle;

const STEP: Duration = Duration::from_millis(10);

/// Some nsqds in memory, and what they say of their clients.
struct Brokers {
    network: MemoryNetwork,
    nsqds: Vec<Nsqd>,
}

impl Brokers {
    async fn start(count: usize) -> Self {
        let network = MemoryNetwork::new();
        let mut nsqds = Vec::new();
        for number in 0..count {
            let address = format!("nsqd-{number}:4150");
            nsqds.push(Nsqd::builder().start_in(&network, &address).await.unwrap());
        }
        Self { network, nsqds }
    }

    fn consumer(&self, topic: &str) -> ConsumerBuilder {
        let builder = Consumer::builder(topic, "billing")
            .max_in_flight(10_000)
            .concurrency(20)
            .connection(ConnectionConfig::new().connector(self.network.connector()));
        self.nsqds
            .iter()
            .fold(builder, |builder, nsqd| builder.nsqd(nsqd.address()))
    }

    fn publish(&self, topic: &str, count: usize) {
        for nsqd in &self.nsqds {
            for number in 0..count {
                nsqd.publish(topic, number.to_string()).unwrap();
            }
        }
    }

    /// RDY and in flight of each topic, over all nsqds.
    fn usage(&self) -> BTreeMap<String, (u32, u64)> {
        let mut usage = BTreeMap::new();
        for client in self.nsqds.iter().flat_map(|nsqd| nsqd.stats().clients) {
            if let Some((topic, _)) = client.subscription {
                let (rdy, in_flight) = usage.entry(topic).or_insert((0, 0));
                *rdy += client.rdy;
                *in_flight += client.in_flight;
            }
        }
        usage
    }

    fn rdy(&self, topic: &str) -> u32 {
        self.usage().get(topic).map_or(0, |(rdy, _)| *rdy)
    }

    /// Watches the budget on the brokers' side for a while.
    async fn watch(&self, time: Duration, max_in_flight: u32) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            sleep(STEP).await;
            let usage = self.usage();
            let rdy: u32 = usage.values().map(|(rdy, _)| rdy).sum();
            let in_flight: u64 = usage.values().map(|(_, in_flight)| in_flight).sum();
            assert!(rdy <= max_in_flight, "RDY {rdy} of {max_in_flight}: {usage:?}");
            // Every nsqd may have used up its window at the moment that it was lowered.
            assert!(
                in_flight <= 2 * u64::from(max_in_flight),
                "{in_flight} of {max_in_flight}: {usage:?}"
            );
        }
    }

    fn finished(&self, topic: &str) -> u64 {
        let channels = self.nsqds.iter().filter_map(|nsqd| nsqd.channel(topic, "billing"));
        channels.map(|channel| channel.finish_count).sum()
    }
}

async fn slow(_: Message) -> Result<(), BoxError> {
    sleep(Duration::from_millis(50)).await;
    Ok(())
}

fn allowances(stats: &GroupStats) -> Vec<u32> {
    stats.members.iter().map(|member| member.allowance).collect()
}

#[tokio::test(start_paused = true)]
async fn c2_a_group_holds_its_budget_over_topics_and_nsqds_whatever_happens() {
    for seed in 0..4 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let brokers = Brokers::start(3).await;
        let topics = ["a", "b", "c", "d"];
        let mut builder = ConsumerGroup::builder().max_in_flight(30);
        for topic in topics {
            builder = builder.add(brokers.consumer(topic), rng.u32(1..5), slow);
        }
        let group = builder.start().await.unwrap();
        group.ready(SECOND).await.unwrap();
        let mut max = 30;
        for _ in 0..30 {
            match rng.u8(..6) {
                0 => {
                    group.pause();
                    settle().await;
                    brokers.watch(Duration::from_millis(200), max).await;
                    assert!(brokers.usage().values().all(|(rdy, _)| *rdy == 0), "seed {seed}");
                    group.resume();
                }
                1 => {
                    // A lowered budget is worked off first.
                    max = rng.u32(2..40);
                    group.set_max_in_flight(max);
                    sleep(Duration::from_millis(500)).await;
                }
                _ => brokers.publish(topics[rng.usize(..4)], rng.usize(1..100)),
            }
            brokers.watch(Duration::from_millis(rng.u64(1..3000)), max).await;
        }
        group.set_max_in_flight(40);
        sleep(120 * SECOND).await;
        for topic in topics {
            let depth: usize = brokers
                .nsqds
                .iter()
                .filter_map(|nsqd| nsqd.channel(topic, "billing"))
                .map(|c| c.depth)
                .sum();
            assert_eq!(depth, 0, "seed {seed}: {topic} was worked off");
        }
        assert!(group.shutdown(10 * SECOND).await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn weights_divide_the_budget_under_load_and_a_members_own_limit_bounds_it() {
    let brokers = Brokers::start(2).await;
    for topic in ["light", "heavy", "limited"] {
        brokers.publish(topic, 5_000);
    }
    let group = ConsumerGroup::builder()
        .max_in_flight(68)
        .add(brokers.consumer("light"), 1, slow)
        .add(brokers.consumer("heavy"), 3, slow)
        .add(brokers.consumer("limited").max_in_flight(8), 10, slow)
        .start()
        .await
        .unwrap();
    brokers.watch(5 * SECOND, 68).await;
    assert_eq!(allowances(&group.stats()), [15, 45, 8]);
    let rdy = ["light", "heavy", "limited"].map(|topic| brokers.rdy(topic));
    assert_eq!(rdy, [15, 45, 8]);
    assert_eq!(group.stats().held, 68);
}

#[tokio::test(start_paused = true)]
async fn an_idle_topic_lends_its_share_and_has_it_back_at_its_first_message() {
    let brokers = Brokers::start(2).await;
    brokers.publish("busy", 20_000);
    let group = ConsumerGroup::builder()
        .max_in_flight(40)
        .add(brokers.consumer("busy"), 1, slow)
        .add(brokers.consumer("idle"), 1, slow)
        .start()
        .await
        .unwrap();
    brokers.watch(2 * SECOND, 40).await;
    // One for each nsqd of the idle one, so that its first message comes at once.
    assert_eq!(["busy", "idle"].map(|topic| brokers.rdy(topic)), [38, 2]);
    assert!(group.stats().members[1].idle);
    brokers.publish("idle", 500);
    brokers.watch(Duration::from_millis(500), 40).await;
    assert_eq!(["busy", "idle"].map(|topic| brokers.rdy(topic)), [20, 20]);
    // Once it has been silent again for a while, it lends again.
    brokers.watch(25 * SECOND, 40).await;
    assert_eq!(brokers.finished("idle"), 1000);
    assert_eq!(["busy", "idle"].map(|topic| brokers.rdy(topic)), [38, 2]);
}

#[tokio::test(start_paused = true)]
async fn c3_with_more_topics_than_budget_each_gets_its_turn() {
    let brokers = Brokers::start(1).await;
    let topics: Vec<String> = (0..9).map(|number| format!("topic-{number}")).collect();
    let handled: Arc<Mutex<BTreeMap<Topic, Vec<Instant>>>> = Arc::default();
    let mut builder = ConsumerGroup::builder().max_in_flight(2);
    for topic in &topics {
        brokers.publish(topic, 5_000);
        let (handled, name) = (Arc::clone(&handled), Topic::new(topic).unwrap());
        builder = builder.add(brokers.consumer(topic), 1, move |_: Message| {
            handled
                .lock()
                .unwrap()
                .entry(name.clone())
                .or_default()
                .push(Instant::now());
            async {
                sleep(Duration::from_millis(200)).await;
                Ok::<(), BoxError>(())
            }
        });
    }
    let begun = Instant::now();
    let group = builder.start().await.unwrap();
    brokers.watch(300 * SECOND, 2).await;
    let waiting = group
        .stats()
        .members
        .iter()
        .filter(|member| member.allowance == 0)
        .count();
    assert!(waiting >= 7, "{:?}", group.stats());
    for topic in &topics {
        let mut last = begun;
        let times = handled.lock().unwrap().remove(&Topic::new(topic).unwrap());
        for at in times.unwrap_or_default().into_iter().chain([Instant::now()]) {
            assert!(at - last <= 32 * SECOND, "{topic} waited {:?}", at - last);
            last = at;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn c3_the_one_nsqd_with_messages_of_a_crowded_topic_is_found() {
    let brokers = Brokers::start(3).await;
    for topic in ["a", "b", "c", "d"] {
        brokers.nsqds[2].publish(topic, "1").unwrap();
    }
    let group = ConsumerGroup::builder().max_in_flight(1).start().await.unwrap();
    for topic in ["a", "b", "c", "d"] {
        group.start(brokers.consumer(topic), 1, slow).await.unwrap();
    }
    brokers.watch(120 * SECOND, 1).await;
    let finished = ["a", "b", "c", "d"].map(|topic| brokers.finished(topic));
    assert_eq!(finished, [1; 4]);
}

#[tokio::test(start_paused = true)]
async fn lesson_50_a_connection_tells_that_the_group_is_why_nothing_comes() {
    let brokers = Brokers::start(1).await;
    let group = ConsumerGroup::builder().max_in_flight(0).start().await.unwrap();
    group.start(brokers.consumer("orders"), 1, succeed).await.unwrap();
    group.ready(SECOND).await.unwrap();
    settle().await;
    assert_eq!(
        group.stats().members[0].consumer.nsqds[0]
            .connection
            .as_ref()
            .unwrap()
            .paused,
        Some(PauseReason::WaitingForShare)
    );
    group.pause();
    group.set_max_in_flight(5);
    settle().await;
    assert_eq!(brokers.rdy("orders"), 0);
    group.resume();
    settle().await;
    assert_eq!(brokers.rdy("orders"), 1, "a new connection is not handed more");
    brokers.publish("orders", 1);
    settle().await;
    assert_eq!(brokers.rdy("orders"), 5);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_removed_keeps_its_charge_until_it_has_ended() {
    let brokers = Brokers::start(1).await;
    brokers.publish("stuck", 10);
    let group = ConsumerGroup::builder().max_in_flight(10).start().await.unwrap();
    let first = group.start(brokers.consumer("stuck"), 1, stuck).await.unwrap();
    settle().await;
    settle().await;
    brokers.publish("orders", 1000);
    group.start(brokers.consumer("orders"), 1, slow).await.unwrap();
    sleep(SECOND).await;
    assert_eq!(brokers.usage()["stuck"].1, 10);
    assert_eq!(brokers.rdy("orders"), 0, "all of the budget is in flight");
    let report = group.remove(first, 5 * SECOND);
    tokio::pin!(report);
    let still_running = tokio::time::timeout(4 * SECOND, &mut report).await;
    assert!(still_running.is_err());
    assert_eq!(brokers.rdy("orders"), 0);
    assert!(group.stats().members[0].ending);
    assert_eq!(report.await.unwrap().abandoned.len(), 10);
    settle().await;
    assert_eq!(brokers.rdy("orders"), 10);
    assert!(group.remove(first, SECOND).await.is_none());
    let report = group.shutdown(SECOND).await;
    assert_eq!((report.members.len(), report.abandoned), (1, 10));
    assert!(report.finished > 0 && !report.is_clean());
}

#[tokio::test(start_paused = true)]
async fn c7_a_group_ends_all_members_at_once_within_one_deadline_and_reports() {
    let brokers = Brokers::start(2).await;
    brokers.publish("orders", 100);
    brokers.publish("stuck", 3);
    let mut builder = ConsumerGroup::builder().max_in_flight(50);
    for _ in 0..3 {
        builder = builder.add(brokers.consumer("stuck"), 1, stuck);
    }
    let group = builder.add(brokers.consumer("orders"), 1, slow).start().await.unwrap();
    sleep(3 * SECOND).await;
    let begun = Instant::now();
    let (report, again) = tokio::join!(group.shutdown(5 * SECOND), group.shutdown(500 * SECOND));
    assert!(begun.elapsed() <= 5 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(report.members.len(), 4);
    assert_eq!((report.finished, report.abandoned, report.unflushed), (200, 6, 0));
    assert_eq!(again.finished, 200);
    assert_eq!(report.members[3].topic.as_str(), "orders");
    assert_eq!(report.members[3].report.finished, 200);
    settle().await;
    assert!(brokers.nsqds.iter().all(|nsqd| nsqd.connections() == 0));
    let late = group.start(brokers.consumer("orders"), 1, succeed).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Shutdown);
    assert_eq!(group.ready(SECOND).await.unwrap_err().kind(), ErrorKind::Shutdown);
    assert!(group.stats().members.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_group_ends_its_consumers_and_their_messages_come_again() {
    let brokers = Brokers::start(1).await;
    brokers.publish("orders", 3);
    let group = ConsumerGroup::builder()
        .add(brokers.consumer("orders"), 1, stuck)
        .start()
        .await
        .unwrap();
    sleep(SECOND).await;
    assert_eq!(brokers.usage()["orders"].1, 3);
    drop(group);
    sleep(SECOND).await;
    assert_eq!(brokers.nsqds[0].connections(), 0);
    assert_eq!(brokers.nsqds[0].channel("orders", "billing").unwrap().depth, 3);
}

#[tokio::test(start_paused = true)]
async fn options_out_of_range_say_so_and_one_bad_member_starts_none() {
    let brokers = Brokers::start(1).await;
    let heavy =
        ConsumerGroup::builder()
            .add(brokers.consumer("a"), 1, succeed)
            .add(brokers.consumer("b"), 10_001, succeed);
    assert!(
        heavy
            .start()
            .await
            .unwrap_err()
            .to_string()
            .contains("option weight is 10001, allowed is 1 to 10000")
    );
    let invalid = ConsumerGroup::builder().add(brokers.consumer("a b"), 1, succeed);
    assert_eq!(invalid.start().await.unwrap_err().kind(), ErrorKind::Invalid);
    let crowd = ConsumerGroup::builder()
        .max_members(1)
        .add(brokers.consumer("a"), 1, succeed)
        .add(brokers.consumer("b"), 1, succeed);
    assert!(crowd.start().await.unwrap_err().to_string().contains("max_members"));
    let alone = |_: &Topic| succeed;
    let nowhere = ConsumerGroup::builder().topics_matching(TopicPattern::all(), "billing", |options| options, alone);
    assert!(
        nowhere
            .start()
            .await
            .unwrap_err()
            .to_string()
            .contains("option lookupd is not set")
    );
    settle().await;
    assert_eq!(brokers.nsqds[0].connections(), 0);
}

/// An nsqlookupd with an nsqd, and a group of what matches a pattern there.
struct Watched {
    network: MemoryNetwork,
    lookupd: Lookupd,
    nsqd: Nsqd,
    handled: Arc<Mutex<Vec<String>>>,
}

impl Watched {
    async fn start() -> Self {
        let network = MemoryNetwork::new();
        let lookupd = Lookupd::start_in(&network, "lookupd:4161").await.unwrap();
        let nsqd = Nsqd::builder()
            .lookupd(&lookupd)
            .start_in(&network, "nsqd:4150")
            .await
            .unwrap();
        Self {
            network,
            lookupd,
            nsqd,
            handled: Arc::default(),
        }
    }

    async fn group(&self, pattern: TopicPattern) -> ConsumerGroup {
        let handled = Arc::clone(&self.handled);
        let connection = ConnectionConfig::new().connector(self.network.connector());
        let address = self.lookupd.address().to_owned();
        let options = move |consumer: ConsumerBuilder| consumer.lookupd(address).connection(connection);
        let handler = move |topic: &Topic| {
            let (handled, topic) = (Arc::clone(&handled), topic.clone());
            move |message: Message| {
                let body = String::from_utf8_lossy(message.body()).into_owned();
                handled.lock().unwrap().push(format!("{topic}: {body}"));
                async { Ok::<(), BoxError>(()) }
            }
        };
        ConsumerGroup::builder()
            .topics_matching(pattern, "archive", options, handler)
            .start()
            .await
            .unwrap()
    }

    fn handled(&self) -> Vec<String> {
        let mut handled = self.handled.lock().unwrap().clone();
        handled.sort();
        handled
    }
}

fn topics(group: &ConsumerGroup) -> Vec<String> {
    group
        .stats()
        .members
        .iter()
        .map(|member| member.topic.to_string())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn lesson_56_a_topic_that_matches_is_consumed_as_it_appears_and_left_when_it_is_gone() {
    let watched = Watched::start().await;
    watched.nsqd.publish("orders.eu", "1").unwrap();
    watched.nsqd.publish("clicks", "2").unwrap();
    let group = watched.group(TopicPattern::glob("orders.*")).await;
    group.ready(5 * SECOND).await.unwrap();
    sleep(SECOND).await;
    assert_eq!(topics(&group), ["orders.eu"]);
    assert_eq!(watched.handled(), ["orders.eu: 1"]);
    watched.nsqd.publish("orders.us", "3").unwrap();
    sleep(65 * SECOND).await;
    assert_eq!(topics(&group), ["orders.eu", "orders.us"]);
    assert_eq!(watched.handled(), ["orders.eu: 1", "orders.us: 3"]);
    // Of an nsqd that registers nothing by itself. nsqlookupd forgets a topic with its last nsqd only if it is ephemeral.
    let other = Nsqd::builder().start_in(&watched.network, "other:4150").await.unwrap();
    watched.lookupd.register("orders.old#ephemeral", "other:4150").unwrap();
    sleep(65 * SECOND).await;
    assert_eq!(topics(&group), ["orders.eu", "orders.us", "orders.old#ephemeral"]);
    assert_eq!(other.connections(), 1);
    watched
        .lookupd
        .unregister("orders.old#ephemeral", "other:4150")
        .unwrap();
    sleep(20 * SECOND).await;
    assert_eq!(topics(&group).len(), 3, "not before it is sure");
    sleep(200 * SECOND).await;
    assert_eq!(topics(&group), ["orders.eu", "orders.us"]);
    assert_eq!(other.connections(), 0);
    watched.lookupd.register("orders.old#ephemeral", "other:4150").unwrap();
    sleep(65 * SECOND).await;
    assert_eq!(other.connections(), 1, "it is back");
    assert!(group.shutdown(5 * SECOND).await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn n4_topics_beyond_the_limit_wait_for_room() {
    let watched = Watched::start().await;
    for topic in ["b", "c"] {
        watched.nsqd.publish(topic, "1").unwrap();
    }
    watched.lookupd.register("a#ephemeral", "nowhere:4150").unwrap();
    let group = watched.group(TopicPattern::all().max_topics(2)).await;
    sleep(65 * SECOND).await;
    assert_eq!(topics(&group), ["a#ephemeral", "b"]);
    let error = group.ready(SECOND).await.unwrap_err();
    assert!(
        chain(&error).contains("member for topic a#ephemeral is not ready"),
        "{}",
        chain(&error)
    );
    watched.lookupd.unregister("a#ephemeral", "nowhere:4150").unwrap();
    sleep(300 * SECOND).await;
    assert_eq!(topics(&group), ["b", "c"]);
    assert_eq!(watched.handled(), ["b: 1", "c: 1"]);
}

#[tokio::test(start_paused = true)]
async fn ready_tells_why_topics_are_not_known() {
    let watched = Watched::start().await;
    let network = watched.network.clone();
    let connection = ConnectionConfig::new().connector(network.connector());
    let group = ConsumerGroup::builder()
        .topics_matching(
            TopicPattern::all(),
            "archive",
            |consumer| consumer.lookupd("nowhere:4161").connection(connection),
            |_: &Topic| succeed,
        )
        .start()
        .await
        .unwrap();
    let error = group.ready(5 * SECOND).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(
        chain(&error).contains("no nsqlookupd has told its topics within 5s: "),
        "{}",
        chain(&error)
    );
}

#[tokio::test(start_paused = true)]
async fn a_topic_whose_consumer_cannot_be_started_keeps_no_room_from_the_others() {
    let watched = Watched::start().await;
    for topic in ["a", "b", "c"] {
        watched.nsqd.publish(topic, "1").unwrap();
    }
    let connection = ConnectionConfig::new().connector(watched.network.connector());
    let address = watched.lookupd.address().to_owned();
    let made = Arc::new(Mutex::new(0));
    let count = Arc::clone(&made);
    let group = ConsumerGroup::builder()
        .max_members(2)
        .topics_matching(
            TopicPattern::all().max_topics(1),
            "archive",
            |consumer| consumer.lookupd(address).connection(connection),
            move |topic: &Topic| {
                *count.lock().unwrap() += 1;
                assert!(topic.as_str() != "a", "on purpose");
                succeed
            },
        )
        .start()
        .await
        .unwrap();
    sleep(120 * SECOND).await;
    assert_eq!(topics(&group), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn no_handler_is_made_for_a_topic_for_which_the_group_has_no_room() {
    let watched = Watched::start().await;
    for topic in ["a", "b", "c"] {
        watched.nsqd.publish(topic, "1").unwrap();
    }
    let connection = ConnectionConfig::new().connector(watched.network.connector());
    let address = watched.lookupd.address().to_owned();
    let made = Arc::new(Mutex::new(Vec::new()));
    let making = Arc::clone(&made);
    let group = ConsumerGroup::builder()
        .max_members(1)
        .topics_matching(
            TopicPattern::all(),
            "archive",
            |consumer| consumer.lookupd(address).connection(connection),
            move |topic: &Topic| {
                making.lock().unwrap().push(topic.to_string());
                succeed
            },
        )
        .start()
        .await
        .unwrap();
    sleep(300 * SECOND).await;
    assert_eq!(topics(&group), ["a"]);
    assert_eq!(*made.lock().unwrap(), ["a"]);
}
