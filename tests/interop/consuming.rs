//! The consumer on real nsqds: few messages in flight over many, pauses, timeouts, and consumers that come and go.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nsq::{BoxError, ConnectionConfig, Consumer, ConsumerBuilder, Message};
use tokio::sync::Semaphore;

use crate::broker::{Brokers, DEADLINE, Nsqd, Nsqlookupd, POLL, eventually};
use crate::publishing::{Seen, recorder, seen_all};
use crate::tap::Tapping;

fn consume(nsqd: &Nsqd) -> ConsumerBuilder {
    Consumer::builder("orders", "billing").nsqd(nsqd.tcp_address().to_string())
}

async fn publish_all(nsqd: &Nsqd, bodies: impl IntoIterator<Item = String>) {
    let bodies: Vec<_> = bodies.into_iter().collect();
    nsqd.post_ok("/mpub?topic=orders", bodies.join("\n")).await;
}

fn text(message: &Message) -> String {
    String::from_utf8_lossy(message.body()).into_owned()
}

fn has_seen(seen: &Seen, body: &str) -> bool {
    seen.lock().unwrap().iter().any(|seen| seen == body)
}

/// How many of a number from the channel's only client's statistics, 0 without a client.
async fn client(nsqd: &Nsqd, key: &str) -> u64 {
    let stats = nsqd.topic_stats("orders").await.unwrap_or_default();
    stats["channels"][0]["clients"][0][key].as_u64().unwrap_or_default()
}

async fn in_flight(nsqds: &[Nsqd]) -> u64 {
    let mut sum = 0;
    for nsqd in nsqds {
        let channel = nsqd.channel_stats("orders", "billing").await;
        sum += channel.map_or(0, |channel| channel.in_flight);
    }
    sum
}

async fn finished(nsqds: &[Nsqd]) -> u64 {
    let mut sum = 0;
    for nsqd in nsqds {
        sum += client(nsqd, "finish_count").await;
    }
    sum
}

/// Three nsqds, each known to another one of the nsqlookupds or to both.
async fn three_nsqds_two_nsqlookupds(brokers: &Brokers) -> ([Nsqlookupd; 2], Vec<Nsqd>) {
    let lookupds = [brokers.nsqlookupd().start().await, brokers.nsqlookupd().start().await];
    let mut nsqds = Vec::new();
    for known_to in [&lookupds[..1], &lookupds[1..], &lookupds[..]] {
        let builder = known_to.iter().fold(brokers.nsqd(), |builder, lookupd| {
            builder.lookupd(lookupd.tcp_address())
        });
        let nsqd = builder.start().await;
        nsqd.create_channel("orders", "billing").await;
        nsqds.push(nsqd);
    }
    (lookupds, nsqds)
}

/// Takes a permit for each message, and keeps the most that were being handled at once.
struct Gate {
    permits: Semaphore,
    running: AtomicUsize,
    most: AtomicUsize,
    seen: Seen,
}

impl Gate {
    fn closed() -> Arc<Self> {
        Arc::new(Self {
            permits: Semaphore::new(0),
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            seen: Seen::default(),
        })
    }

    async fn pass(&self, message: &Message) -> Result<(), BoxError> {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        self.permits.acquire().await?.forget();
        self.seen.lock().unwrap().push(text(message));
        self.running.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    fn handled_from(&self, number: usize) -> usize {
        let prefix = format!("{number}/");
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|body| body.starts_with(&prefix)).count()
    }
}

/// As `eventually`, for what needs nsqds to take turns, which may be half a minute long.
async fn in_turn(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + 3 * Duration::from_secs(30) + DEADLINE;
    while !probe().await {
        assert!(Instant::now() < deadline, "not in its turn: {what}");
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c2_c3_three_nsqds_with_two_messages_in_flight_all_get_their_turn_and_an_idle_one_too() {
    const EACH: usize = 2000;
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let (lookupds, nsqds) = three_nsqds_two_nsqlookupds(&brokers).await;
    let gate = Gate::closed();
    let handler = Arc::clone(&gate);
    let (crossed, tapping) = Tapping::new(lookupds.iter().map(|lookupd| lookupd.http_address().to_string()));
    // Messages wait for others' turns here.
    let connection = ConnectionConfig::new().msg_timeout(Duration::from_secs(600));
    let consumer = Consumer::builder("orders", "billing")
        .lookupd(lookupds[0].http_address().to_string())
        .lookupd(lookupds[1].http_address().to_string())
        .connection(connection.connector(tapping))
        .max_in_flight(2)
        .concurrency(10)
        .start(move |message: Message| {
            let gate = Arc::clone(&handler);
            async move { gate.pass(&message).await }
        })
        .await
        .unwrap();
    eventually("all nsqds are found", async || {
        (consumer.stats().connections == 3).then_some(())
    })
    .await;
    eventually("two nsqds have heard of RDY 1, and one of RDY 0", async || {
        let mut rdy = Vec::new();
        for nsqd in &nsqds {
            rdy.push(client(nsqd, "ready_count").await);
        }
        rdy.sort_unstable();
        (rdy == [0, 1, 1]).then_some(())
    })
    .await;
    for (number, nsqd) in nsqds[..2].iter().enumerate() {
        publish_all(nsqd, (0..EACH).map(|message| format!("{number}/{message}"))).await;
    }

    for round in 0..20 {
        let handled = 5 * round;
        in_turn("nsqds know of all that is handled", async || {
            finished(&nsqds).await == handled
        })
        .await;
        // With all handlers waiting nothing more is finished, so what is read of one nsqd after the other can only be too
        // little. Messages that cross a lowered RDY are too many and nobody's fault; they may not have arrived yet.
        let mut checks = 0;
        in_turn("as many messages are in flight as may be", async || {
            let in_flight = in_flight(&nsqds).await as usize;
            checks += usize::from((2..=2 + crossed.in_flight()).contains(&in_flight));
            checks > 5
        })
        .await;
        gate.permits.add_permits(5);
        in_turn("five messages are handled", async || {
            gate.seen.lock().unwrap().len() as u64 == handled + 5
        })
        .await;
    }

    let most = gate.most.load(Ordering::SeqCst);
    assert!(
        most <= 2 + crossed.most(),
        "{most} handlers at once, and {} messages had crossed",
        crossed.most()
    );

    // Busy with the others, it gets round to the idle one.
    gate.permits.add_permits(100);
    nsqds[2].publish("orders", "2/late").await;
    in_turn("the late message of the idle nsqd is handled", async || {
        // Some twenty a second keep the others busy for longer than all turns take.
        gate.permits.add_permits(1);
        tokio::time::sleep(Duration::from_millis(50)).await;
        gate.handled_from(2) == 1
    })
    .await;
    gate.permits.add_permits(10 * EACH);
    in_turn("everything is handled", async || {
        (0..2).all(|number| gate.handled_from(number) == EACH)
    })
    .await;
    let stats = consumer.stats();
    assert_eq!(stats.received, 2 * EACH as u64 + 1, "each message came once");
    assert!(consumer.shutdown(DEADLINE).await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn c2_three_busy_nsqds_that_take_turns_have_no_more_than_two_messages_in_flight() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let (_lookupds, nsqds) = three_nsqds_two_nsqlookupds(&brokers).await;
    let gate = Gate::closed();
    let handler = Arc::clone(&gate);
    let (crossed, tapping) = Tapping::new([]);
    let connection = ConnectionConfig::new().msg_timeout(Duration::from_secs(600));
    let builder = nsqds
        .iter()
        .fold(Consumer::builder("orders", "billing"), |builder, nsqd| {
            builder.nsqd(nsqd.tcp_address().to_string())
        });
    let consumer = builder
        .connection(connection.connector(tapping))
        .max_in_flight(2)
        .concurrency(10)
        .low_rdy_timeout(Duration::from_secs(2))
        .start(move |message: Message| {
            let gate = Arc::clone(&handler);
            async move { gate.pass(&message).await }
        })
        .await
        .unwrap();
    for (number, nsqd) in nsqds.iter().enumerate() {
        publish_all(nsqd, (0..100).map(|message| format!("{number}/{message}"))).await;
    }
    for _ in 0..8 {
        // Long enough for turns to change while handlers hold on to messages.
        let held = Instant::now();
        in_turn("as many messages are in flight as may be", async || {
            let in_flight = in_flight(&nsqds).await as usize;
            (2..=2 + crossed.in_flight()).contains(&in_flight) && held.elapsed() > Duration::from_millis(2500)
        })
        .await;
        gate.permits.add_permits(5);
    }
    gate.permits.add_permits(1000);
    in_turn("everything is handled", async || {
        (0..3).all(|number| gate.handled_from(number) == 100)
    })
    .await;
    assert!(consumer.shutdown(DEADLINE).await.is_clean());
}

/// Publishes ten and waits until nsqd keeps all but one of them. That one may have been on its way out of nsqd's queue
/// when it heard of the pause.
async fn keeps_what_is_published(nsqd: &Nsqd, name: &str) {
    publish_all(nsqd, (0..10).map(|message| format!("{name}/{message}"))).await;
    eventually("nsqd keeps the messages", async || {
        let channel = nsqd.channel_stats("orders", "billing").await?;
        (channel.depth >= 9 && channel.in_flight == 0).then_some(())
    })
    .await;
    for _ in 0..10 {
        tokio::time::sleep(POLL).await;
        assert!(nsqd.channel_stats("orders", "billing").await.unwrap().depth >= 9);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c3_a_channel_paused_by_nsqd_and_a_consumer_paused_by_itself_go_on_where_they_were() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    let seen = Seen::default();
    let consumer = consume(&nsqd).max_in_flight(5).start(recorder(&seen)).await.unwrap();
    consumer.ready(DEADLINE).await.unwrap();
    let connected = client(&nsqd, "connect_ts").await;
    let mut expected = 0;
    for round in 0..3 {
        nsqd.post_ok("/channel/pause?topic=orders&channel=billing", "").await;
        keeps_what_is_published(&nsqd, &format!("{round} nsqd")).await;
        nsqd.post_ok("/channel/unpause?topic=orders&channel=billing", "").await;
        expected += 10;
        seen_all(&seen, expected).await;

        consumer.set_max_in_flight(0).await;
        eventually("nsqd has heard of RDY 0", async || {
            (client(&nsqd, "ready_count").await == 0).then_some(())
        })
        .await;
        keeps_what_is_published(&nsqd, &format!("{round} consumer")).await;
        consumer.set_max_in_flight(5).await;
        expected += 10;
        seen_all(&seen, expected).await;
    }
    assert_eq!(consumer.stats().received, expected as u64, "nothing came twice");
    assert_eq!(client(&nsqd, "connect_ts").await, connected, "on the same connection");
    assert!(consumer.shutdown(DEADLINE).await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn c6_a_handler_slower_than_msg_timeout_costs_a_redelivery_and_nothing_else() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    let (seen, gate) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let handler = {
        let (seen, gate) = (Arc::clone(&seen), Arc::clone(&gate));
        move |message: Message| {
            let (seen, gate) = (Arc::clone(&seen), Arc::clone(&gate));
            async move {
                if text(&message) == "slow" && message.attempts() == 1 {
                    gate.acquire().await?.forget();
                }
                seen.lock()
                    .unwrap()
                    .push(format!("{} {}", text(&message), message.attempts()));
                Ok::<(), BoxError>(())
            }
        }
    };
    let connection = ConnectionConfig::new().msg_timeout(Duration::from_secs(1));
    let builder = consume(&nsqd).connection(connection).max_in_flight(10);
    let consumer = builder.start(handler).await.unwrap();
    consumer.ready(DEADLINE).await.unwrap();
    let connected = client(&nsqd, "connect_ts").await;
    nsqd.publish("orders", "slow").await;
    publish_all(&nsqd, (0..50).map(|message| format!("quick-{message}"))).await;
    seen_all(&seen, 50).await;

    eventually("the slow message is delivered again", async || {
        has_seen(&seen, "slow 2").then_some(())
    })
    .await;
    eventually("it is finished by its second delivery", async || {
        let channel = nsqd.channel_stats("orders", "billing").await?;
        (channel.in_flight == 0 && channel.depth == 0 && channel.timeout_count == 1).then_some(())
    })
    .await;
    assert!(!has_seen(&seen, "slow 1"), "the first delivery is still being handled");
    gate.add_permits(1);
    eventually("nsqd refuses the late FIN and the consumer tells so", async || {
        (nsqd.log().contains("E_FIN_FAILED") && consumer.stats().refused == 1).then_some(())
    })
    .await;

    publish_all(&nsqd, (50..100).map(|message| format!("quick-{message}"))).await;
    seen_all(&seen, 102).await;
    assert_eq!(client(&nsqd, "connect_ts").await, connected, "on the same connection");
    assert!(consumer.shutdown(DEADLINE).await.is_clean());
    let channel = nsqd.channel_stats("orders", "billing").await.unwrap();
    assert_eq!((channel.depth, channel.in_flight, channel.deferred), (0, 0, 0));
}

/// Posts one message after another to whichever nsqd it is, from several tasks, until told to stop.
struct Posting {
    stop: Arc<AtomicBool>,
    /// What nsqd has answered OK for.
    confirmed: Arc<Mutex<BTreeSet<String>>>,
    tasks: tokio::task::JoinSet<()>,
}

impl Posting {
    fn start(nsqd: &Nsqd) -> Self {
        let (stop, confirmed) = (Arc::<AtomicBool>::default(), Arc::<Mutex<BTreeSet<String>>>::default());
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..3 {
            let (stop, confirmed, address) = (Arc::clone(&stop), Arc::clone(&confirmed), nsqd.http_address());
            tasks.spawn(async move {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let body = format!("{task}/{number}");
                    let post = hyper::Method::POST;
                    let answer = crate::broker::request(address, post, "/pub?topic=orders", body.clone().into()).await;
                    if answer.is_ok_and(|answer| answer.status == hyper::StatusCode::OK) {
                        confirmed.lock().unwrap().insert(body);
                    }
                    // Several hundred a second are load enough beside other tests.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        Self { stop, confirmed, tasks }
    }

    async fn stop(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        std::mem::take(&mut *self.confirmed.lock().unwrap())
    }
}

async fn all_handled(seen: &Seen, expected: &BTreeSet<String>) {
    eventually("every confirmed message is handled", async || {
        let handled: BTreeSet<String> = seen.lock().unwrap().iter().cloned().collect();
        expected.is_subset(&handled).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c7_nothing_is_lost_while_consumers_come_and_go_in_every_way() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    nsqd.create_channel("orders", "billing").await;
    let posting = Posting::start(&nsqd);
    let seen = Seen::default();
    let slowly = || {
        let seen = Arc::clone(&seen);
        move |message: Message| {
            let seen = Arc::clone(&seen);
            async move {
                tokio::time::sleep(Duration::from_millis(3)).await;
                seen.lock().unwrap().push(text(&message));
                Ok::<(), BoxError>(())
            }
        }
    };
    for round in 0..12 {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        // nsqd keeps what a lost connection had in flight until the messages time out. Each delivery is an attempt.
        let connection = ConnectionConfig::new().msg_timeout(Duration::from_secs(2));
        let builder = consume(&nsqd).connection(connection).max_in_flight(20).concurrency(2);
        let builder = builder.max_attempts(0);
        let started = runtime.spawn(builder.start(slowly()));
        let consumer = started.await.unwrap().unwrap();
        let before = seen.lock().unwrap().len();
        eventually("it handles some", async || {
            (seen.lock().unwrap().len() > before + 20).then_some(())
        })
        .await;
        match round % 3 {
            0 => assert!(consumer.shutdown(DEADLINE).await.is_clean()),
            1 => drop(consumer),
            // As a process that is killed, as far as nsqd can tell.
            _ => {
                runtime.shutdown_background();
                continue;
            }
        }
        // A consumer that was dropped ends in the background.
        eventually("it is gone", async || {
            let channel = nsqd.channel_stats("orders", "billing").await?;
            (channel.client_count == 0).then_some(())
        })
        .await;
        runtime.shutdown_background();
    }
    let confirmed = posting.stop().await;
    let last = consume(&nsqd).max_attempts(0).start(recorder(&seen)).await.unwrap();
    all_handled(&seen, &confirmed).await;
    assert!(last.shutdown(DEADLINE).await.is_clean());
    eventually("nothing is left in nsqd", async || {
        let channel = nsqd.channel_stats("orders", "billing").await?;
        (channel.depth == 0 && channel.in_flight == 0 && channel.deferred == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn n2_an_nsqd_restarted_a_hundred_times_in_a_row_under_load_is_consumed_each_time_and_nothing_is_lost() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let lookupd = brokers.nsqlookupd().start().await;
    let mut nsqd = brokers.nsqd().lookupd(lookupd.tcp_address()).start().await;
    nsqd.create_channel("orders", "billing").await;
    let seen = Seen::default();
    let consumer = Consumer::builder("orders", "billing")
        .lookupd(lookupd.http_address().to_string())
        .lookupd_poll_interval(Duration::from_millis(100))
        .max_in_flight(50)
        .start(recorder(&seen))
        .await
        .unwrap();
    let posting = Posting::start(&nsqd);
    for restart in 0..100 {
        // The consumer is back: it handles what was published since.
        let before = seen.lock().unwrap().len();
        eventually(&format!("it consumes after restart {restart}"), async || {
            (seen.lock().unwrap().len() > before + 5).then_some(())
        })
        .await;
        nsqd.terminate().await;
        nsqd.start_again().await;
    }
    let confirmed = posting.stop().await;
    assert!(confirmed.len() > 500, "there was load");
    all_handled(&seen, &confirmed).await;
    assert!(consumer.shutdown(DEADLINE).await.is_clean());
    assert_eq!(nsqd.topic_depth("orders").await, Some(0));
}
