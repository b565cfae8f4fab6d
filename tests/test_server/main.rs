//! The test broker by itself: what a test that stands on it relies on.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

mod auth;
mod faults;
mod output;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../support/raw.rs"]
mod raw;
mod simulated;
mod starting;

use std::time::Duration;

use async_nsq::protocol::{CLOSE_WAIT, Command, CommandName, Frame, HEARTBEAT, Message, MessageId};
use async_nsq::test_server::{Nsqd, NsqdBuilder, Received};
use async_nsq::transport::{Connector, MemoryNetwork, TcpConnector};
use raw::{Event, RawClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

const ADDRESS: &str = "nsqd:4150";
const MOMENT: Duration = Duration::from_millis(300);

struct House {
    network: MemoryNetwork,
    nsqd: Nsqd,
}

impl House {
    async fn new() -> Self {
        Self::with(Nsqd::builder()).await
    }

    async fn with(builder: NsqdBuilder) -> Self {
        let network = MemoryNetwork::new();
        let nsqd = builder.start_in(&network, ADDRESS).await.unwrap();
        Self { network, nsqd }
    }

    async fn client(&self) -> RawClient {
        RawClient::open(&self.network.connector(), ADDRESS).await
    }

    async fn consumer(&self, rdy: u32) -> RawClient {
        let mut client = self.client().await;
        client.subscribe("t", "c", rdy).await;
        client
    }
}

fn publish(body: &str) -> Command {
    Command::Pub {
        topic: "t".to_owned(),
        body: body.to_owned().into(),
    }
}

fn error(frame: Frame) -> String {
    match frame {
        Frame::Error(text) => String::from_utf8(text.to_vec()).unwrap(),
        other => panic!("{other:?} instead of an error"),
    }
}

#[tokio::test(start_paused = true)]
async fn rdy_is_a_window_and_not_a_credit() {
    let house = House::new().await;
    for n in 0..5 {
        house.nsqd.publish("t", n.to_string()).unwrap();
    }
    let mut consumer = house.consumer(2).await;
    let first = consumer.message().await;
    consumer.message().await;
    consumer.assert_silent(MOMENT).await;
    consumer.send(Command::Rdy { count: 2 }).await;
    consumer.assert_silent(MOMENT).await;
    let channel = house.nsqd.channel("t", "c").unwrap();
    assert_eq!((channel.depth, channel.in_flight), (3, 2));
    assert_eq!((channel.clients[0].rdy, channel.clients[0].in_flight), (2, 2));

    consumer.send(Command::Fin { id: first.id }).await;
    assert_eq!(consumer.message().await.body, "2");
    consumer.assert_silent(MOMENT).await;
    assert_eq!(house.nsqd.channel("t", "c").unwrap().finish_count, 1);
}

#[tokio::test(start_paused = true)]
async fn consumers_of_a_channel_get_messages_in_turn_and_channels_a_copy_each() {
    let house = House::new().await;
    let (mut a, mut b) = (house.consumer(10).await, house.consumer(10).await);
    let mut other = house.client().await;
    other.subscribe("t", "other", 10).await;
    house
        .nsqd
        .wait_for(|stats| stats.clients.iter().all(|client| client.rdy == 10))
        .await
        .unwrap();
    for n in 0..4 {
        house.nsqd.publish("t", n.to_string()).unwrap();
    }
    let (a, b) = (
        [a.message().await, a.message().await],
        [b.message().await, b.message().await],
    );
    assert_eq!([&a[0].body, &b[0].body, &a[1].body, &b[1].body], ["0", "1", "2", "3"]);
    let copy = other.message().await;
    assert_eq!(
        (copy.id, copy.timestamp, copy.body),
        (a[0].id, a[0].timestamp, a[0].body.clone())
    );
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_message_comes_again_after_exactly_its_timeout() {
    let house = House::with(Nsqd::builder().msg_timeout(Duration::from_secs(20))).await;
    let mut consumer = house.consumer(1).await;
    house.nsqd.publish("t", "x").unwrap();
    let first = consumer.message().await;
    let sent = Instant::now();
    let again = consumer.message().await;
    assert_eq!(sent.elapsed(), Duration::from_secs(20));
    assert_eq!((again.id, first.attempts, again.attempts), (first.id, 1, 2));
    assert_eq!(house.nsqd.channel("t", "c").unwrap().timeout_count, 1);
}

#[tokio::test(start_paused = true)]
async fn touch_extends_the_timeout_up_to_its_maximum() {
    let builder = Nsqd::builder()
        .msg_timeout(Duration::from_secs(20))
        .max_msg_timeout(Duration::from_secs(30));
    let house = House::with(builder).await;
    let mut consumer = house.consumer(1).await;
    house.nsqd.publish("t", "x").unwrap();
    let first = consumer.message().await;
    let sent = Instant::now();
    for _ in 0..2 {
        sleep(Duration::from_secs(9)).await;
        consumer.send(Command::Touch { id: first.id }).await;
    }
    assert_eq!(consumer.message().await.attempts, 2);
    assert_eq!(sent.elapsed(), Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn req_and_dpub_delay_exactly() {
    let house = House::new().await;
    let mut consumer = house.consumer(1).await;
    house.nsqd.publish("t", "x").unwrap();
    let id = consumer.message().await.id;
    let given_back = Instant::now();
    consumer.send(Command::Req { id, delay_ms: 5_000 }).await;
    house
        .nsqd
        .wait_for(|stats| stats.channel("t", "c").unwrap().deferred == 1)
        .await
        .unwrap();
    let again = consumer.message().await;
    assert_eq!(given_back.elapsed(), Duration::from_secs(5));
    assert_eq!((again.id, again.attempts), (id, 2));
    consumer.send(Command::Fin { id }).await;

    let published = Instant::now();
    let (topic, body) = ("t".to_owned(), "later".into());
    consumer
        .send(Command::Dpub {
            topic,
            delay_ms: 3_600_000,
            body,
        })
        .await;
    assert_eq!(consumer.frame().await, Frame::Response("OK".into()));
    assert_eq!(consumer.message().await.body, "later");
    assert_eq!(published.elapsed(), Duration::from_secs(3600));
}

#[tokio::test(start_paused = true)]
async fn a_req_beyond_the_maximum_is_lowered_to_it() {
    let house = House::with(Nsqd::builder().max_req_timeout(Duration::from_secs(60))).await;
    let mut consumer = house.consumer(1).await;
    house.nsqd.publish("t", "x").unwrap();
    for (delay_ms, delay) in [(90_000, 60), (u64::MAX, 0)] {
        let id = consumer.message().await.id;
        let given_back = Instant::now();
        consumer.send(Command::Req { id, delay_ms }).await;
        let again = consumer.message().await;
        assert_eq!(given_back.elapsed(), Duration::from_secs(delay));
        consumer
            .send(Command::Req {
                id: again.id,
                delay_ms: 0,
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_cls_nothing_is_sent_and_answers_still_count() {
    let house = House::new().await;
    let mut consumer = house.consumer(5).await;
    house.nsqd.publish("t", "x").unwrap();
    let id = consumer.message().await.id;
    consumer.send(Command::Cls).await;
    assert_eq!(consumer.frame().await, Frame::Response(CLOSE_WAIT.into()));
    consumer.send(Command::Rdy { count: 5 }).await;
    house.nsqd.publish("t", "y").unwrap();
    consumer.assert_silent(MOMENT).await;
    consumer.send(Command::Fin { id }).await;
    let stats = house
        .nsqd
        .wait_for(|stats| stats.channel("t", "c").unwrap().finish_count == 1)
        .await
        .unwrap();
    assert_eq!(stats.channel("t", "c").unwrap().depth, 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_cut_off_after_two_heartbeats() {
    let house = House::new().await;
    let mut client = house.client().await;
    let opened = Instant::now();
    let heartbeat = Event::Frame(Frame::Response(HEARTBEAT.into()));
    assert_eq!(client.next(Duration::from_secs(100)).await, heartbeat);
    assert_eq!(opened.elapsed(), Duration::from_secs(30));
    assert_eq!(client.next(Duration::from_secs(100)).await, Event::Closed);
    assert_eq!(opened.elapsed(), Duration::from_secs(60));
    house.nsqd.wait_for(|stats| stats.clients.is_empty()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_trickling_body_does_not_extend_the_deadline() {
    let house = House::new().await;
    let mut client = house.client().await;
    client
        .ask(
            Command::Identify {
                body: r#"{"heartbeat_interval":1000}"#.into(),
            },
            "OK",
        )
        .await;
    client.send_bytes(b"PUB t\n\0\0\0\x64").await;
    let begun = Instant::now();
    let refusal = loop {
        match client.next(Duration::from_millis(400)).await {
            Event::Nothing => client.send_bytes(b"x").await,
            Event::Frame(Frame::Response(_)) => {}
            Event::Frame(frame) => break error(frame),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal, "E_BAD_MESSAGE PUB failed to read message body");
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn the_first_identify_decides_on_heartbeats() {
    let house = House::new().await;
    let mut client = house.client().await;
    for body in [r#"{"heartbeat_interval":1000}"#, r#"{"heartbeat_interval":5000}"#] {
        client.ask(Command::Identify { body: body.into() }, "OK").await;
    }
    for _ in 0..9 {
        let waited = Instant::now();
        let next = client.next(Duration::from_secs(20)).await;
        assert_eq!(next, Event::Frame(Frame::Response(HEARTBEAT.into())));
        assert_eq!(waited.elapsed(), Duration::from_secs(1));
    }
    assert_eq!(client.next(Duration::from_secs(20)).await, Event::Closed);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_to_a_lost_connection_waits_for_its_timeout() {
    let house = House::with(Nsqd::builder().msg_timeout(Duration::from_secs(20))).await;
    let mut lost = house.consumer(1).await;
    house.nsqd.publish("t", "x").unwrap();
    let id = lost.message().await.id;
    let sent = Instant::now();
    drop(lost);
    let mut other = house.consumer(1).await;
    let not_mine = [
        Command::Fin { id },
        Command::Touch { id },
        Command::Req { id, delay_ms: 0 },
    ];
    for command in not_mine {
        let name = command.name();
        other.send(command).await;
        let refusal = format!("E_{name}_FAILED {name} {id} failed client does not own message");
        assert_eq!(error(other.frame().await), refusal);
    }
    let again = other.message().await;
    assert_eq!(
        (again.id, again.attempts, sent.elapsed()),
        (id, 2, Duration::from_secs(20))
    );
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_channel_goes_with_its_last_client_and_takes_its_topic_along() {
    let house = House::new().await;
    let mut consumer = house.client().await;
    consumer.subscribe("t#ephemeral", "c#ephemeral", 1).await;
    house
        .nsqd
        .wait_for(|stats| stats.channel("t#ephemeral", "c#ephemeral").is_some())
        .await
        .unwrap();
    drop(consumer);
    house.nsqd.wait_for(|stats| stats.topics.is_empty()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn sampling_drops_messages_for_everyone() {
    let house = House::new().await;
    let mut consumer = house.client().await;
    consumer
        .ask(
            Command::Identify {
                body: r#"{"sample_rate":1}"#.into(),
            },
            "OK",
        )
        .await;
    consumer.subscribe("t", "c", 2500).await;
    house.nsqd.wait_for(|stats| stats.clients[0].rdy == 2500).await.unwrap();
    for _ in 0..3000 {
        house.nsqd.publish("t", "x").unwrap();
    }
    let channel = house.nsqd.channel("t", "c").unwrap();
    assert_eq!(channel.depth, 0);
    assert!((10..200).contains(&channel.in_flight), "{}", channel.in_flight);
}

#[tokio::test(start_paused = true)]
async fn n4_a_client_that_does_not_read_is_not_sent_everything_that_rdy_allows() {
    let house = House::new().await;
    let _consumer = house.consumer(2500).await;
    house.nsqd.wait_for(|stats| stats.clients[0].rdy == 2500).await.unwrap();
    for _ in 0..100 {
        house.nsqd.publish("t", vec![0; 100_000]).unwrap();
    }
    sleep(MOMENT).await;
    let channel = house.nsqd.channel("t", "c").unwrap();
    assert!(channel.in_flight < 10, "{} are in flight", channel.in_flight);
    assert_eq!(channel.in_flight + channel.depth, 100);
}

#[tokio::test(start_paused = true)]
async fn n4_a_full_queue_refuses_publishes() {
    let house = House::with(Nsqd::builder().max_queue_bytes(1000)).await;
    let mut client = house.client().await;
    for _ in 0..4 {
        client.send(publish(&"x".repeat(200))).await;
    }
    for _ in 0..3 {
        assert_eq!(client.frame().await, Frame::Response("OK".into()));
    }
    assert!(error(client.frame().await).starts_with("E_PUB_FAILED PUB failed "));
    assert!(house.nsqd.publish("t", "x".repeat(200)).is_err());
    house.nsqd.drain("t", "c").unwrap();
    house.nsqd.publish("t", "x".repeat(200)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn commands_and_clients_can_be_seen() {
    let house = House::new().await;
    let mut client = house.client().await;
    let identify = Command::Identify {
        body: r#"{"client_id":"id","user_agent":"test/1"}"#.into(),
    };
    client.ask(identify.clone(), "OK").await;
    client.subscribe("t", "c", 7).await;
    client.ask(publish("hello"), "OK").await;
    let commands: Vec<_> = house
        .nsqd
        .commands()
        .into_iter()
        .map(|received| received.command)
        .collect();
    let (topic, channel) = ("t".to_owned(), "c".to_owned());
    let expected = [
        identify,
        Command::Sub { topic, channel },
        Command::Rdy { count: 7 },
        publish("hello"),
    ];
    assert_eq!(commands, expected);
    assert_eq!(house.nsqd.published("t"), ["hello"]);
    let stats = house.nsqd.stats();
    let client = &stats.clients[0];
    assert_eq!(
        (&*client.client_id, &*client.user_agent, client.rdy, client.connection),
        ("id", "test/1", 7, 1)
    );
    assert_eq!(client.subscription, Some(("t".to_owned(), "c".to_owned())));
    assert_eq!(stats.channel("t", "c").unwrap().clients[0], *client);
    house.nsqd.clear_commands();
    assert_eq!(house.nsqd.commands(), []);
}

#[tokio::test(start_paused = true)]
async fn a_condition_that_stays_false_ends_in_an_error_that_shows_the_state() {
    let house = House::new().await;
    house.nsqd.publish("t", "x").unwrap();
    let begun = Instant::now();
    let failed = house.nsqd.wait_for(|stats| stats.topics.is_empty()).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    assert_eq!(failed.last().topic("t").unwrap().depth, 1);
    assert!(failed.to_string().contains("depth: 1"));
}

#[tokio::test(start_paused = true)]
async fn fault_publishes_can_be_swallowed_or_refused() {
    let house = House::new().await;
    let mut client = house.client().await;
    let swallowed = house.nsqd.faults().publishes().once().swallow();
    client.send(publish("swallowed")).await;
    client.assert_silent(MOMENT).await;
    client.ask(publish("answered"), "OK").await;
    assert_eq!(house.nsqd.topic("t").unwrap().message_count, 2);
    assert_eq!(swallowed.hits(), 1);

    house
        .nsqd
        .faults()
        .publishes()
        .once()
        .reject("E_PUB_FAILED PUB failed exiting");
    client.send(publish("refused")).await;
    assert_eq!(error(client.frame().await), "E_PUB_FAILED PUB failed exiting");
    assert_eq!(client.next(MOMENT).await, Event::Closed);
    assert_eq!(house.nsqd.drain("t", "c").unwrap(), ["swallowed", "answered"]);
}

#[tokio::test(start_paused = true)]
async fn fault_finishes_can_be_refused() {
    let house = House::new().await;
    let mut consumer = house.consumer(1).await;
    house.nsqd.publish("t", "x").unwrap();
    let id = consumer.message().await.id;
    house
        .nsqd
        .faults()
        .command(CommandName::Fin)
        .once()
        .reject("E_FIN_FAILED FIN x failed ID not in flight");
    consumer.send(Command::Fin { id }).await;
    assert_eq!(
        error(consumer.frame().await),
        "E_FIN_FAILED FIN x failed ID not in flight"
    );
    consumer.send(Command::Fin { id }).await;
    house
        .nsqd
        .wait_for(|stats| stats.channel("t", "c").unwrap().finish_count == 1)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn fault_a_frozen_connection_is_silent_both_ways_and_a_new_one_is_not() {
    let house = House::new().await;
    let mut frozen = house.consumer(1).await;
    house.nsqd.wait_for(|stats| stats.clients[0].rdy == 1).await.unwrap();
    house.nsqd.faults().freeze();
    frozen.send(publish("x")).await;
    frozen.assert_silent(Duration::from_secs(600)).await;
    assert!(house.nsqd.topic("t").is_some_and(|topic| topic.message_count == 0));

    house.client().await.ask(publish("y"), "OK").await;
    frozen.assert_silent(Duration::from_secs(10)).await;
    assert_eq!(house.nsqd.channel("t", "c").unwrap().in_flight, 1);

    house.nsqd.faults().thaw();
    let mut answered = false;
    let mut bodies = Vec::new();
    while !answered || bodies.is_empty() {
        match frozen.frame().await {
            Frame::Message(Message { body, .. }) => bodies.push(body),
            frame => answered = frame == Frame::Response("OK".into()),
        }
    }
    assert_eq!(bodies, ["y"]);
}

#[tokio::test(start_paused = true)]
async fn fault_heartbeats_can_be_dropped() {
    let house = House::new().await;
    house.nsqd.faults().drop_heartbeats();
    let mut client = house.client().await;
    let opened = Instant::now();
    assert_eq!(client.next(Duration::from_secs(100)).await, Event::Closed);
    assert_eq!(opened.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn fault_connections_can_be_refused_and_cut() {
    let house = House::new().await;
    let mut client = house.client().await;
    client.ask(publish("x"), "OK").await;
    house.nsqd.faults().refuse_connections();
    assert!(house.network.connector().connect(ADDRESS).await.is_err());
    client.ask(publish("x"), "OK").await;
    house.nsqd.faults().disconnect();
    assert_eq!(client.next(MOMENT).await, Event::Closed);
    house.nsqd.faults().accept_connections().unwrap();
    house.client().await.ask(publish("x"), "OK").await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_messages_and_a_kill_does_not() {
    let house = House::new().await;
    let mut consumer = house.consumer(1).await;
    house.nsqd.publish("t", "in flight").unwrap();
    let id = consumer.message().await.id;
    house.nsqd.publish("t", "queued").unwrap();
    let (topic, body) = ("t".to_owned(), "deferred".into());
    consumer
        .ask(
            Command::Dpub {
                topic,
                delay_ms: 60_000,
                body,
            },
            "OK",
        )
        .await;
    house.nsqd.stop().await;
    assert_eq!(consumer.next(MOMENT).await, Event::Closed);
    assert!(house.network.connector().connect(ADDRESS).await.is_err());

    house.nsqd.restart().await.unwrap();
    let mut consumer = house.consumer(3).await;
    let got = [
        consumer.message().await,
        consumer.message().await,
        consumer.message().await,
    ];
    assert_eq!(
        [&got[0].body, &got[1].body, &got[2].body],
        ["queued", "in flight", "deferred"]
    );
    assert_eq!((got[1].id, got[1].attempts, got[0].attempts), (id, 2, 1));

    house.nsqd.kill().await;
    house.nsqd.restart().await.unwrap();
    let channel = house.nsqd.channel("t", "c").unwrap();
    assert_eq!((channel.depth, channel.in_flight, channel.deferred), (0, 0, 0));
}

#[tokio::test]
async fn over_tcp_a_stopped_broker_refuses_and_comes_back_at_its_port() {
    let nsqd = Nsqd::start().await.unwrap();
    let tcp = TcpConnector::new();
    let mut client = RawClient::open(&tcp, nsqd.address()).await;
    client.ask(publish("x"), "OK").await;
    nsqd.stop().await;
    assert_eq!(client.next(Duration::from_secs(10)).await, Event::Closed);
    assert!(tcp.connect(nsqd.address()).await.is_err());
    nsqd.restart().await.unwrap();
    let mut client = RawClient::open(&tcp, nsqd.address()).await;
    client.subscribe("t", "c", 1).await;
    assert_eq!(client.message().await.body, "x");

    let address = nsqd.address().to_owned();
    drop(nsqd);
    assert_eq!(client.next(Duration::from_secs(10)).await, Event::Closed);
    assert!(tcp.connect(&address).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_is_lost_or_doubled_between_many_clients_on_several_threads() {
    const PUBLISHERS: usize = 4;
    const EACH: usize = 5_000;
    let nsqd = Nsqd::start().await.unwrap();
    let tcp = TcpConnector::new();
    let mut consumers = tokio::task::JoinSet::new();
    for rdy in [1, 7, 100, 2500] {
        let mut consumer = RawClient::open(&tcp, nsqd.address()).await;
        consumer.subscribe("t", "c", rdy).await;
        consumers.spawn(async move {
            let mut ids = Vec::new();
            while let Event::Frame(frame) = consumer.next(Duration::from_secs(3600)).await {
                if let Frame::Message(message) = frame {
                    assert_eq!(message.attempts, 1);
                    ids.push(message.id);
                    consumer.send(Command::Fin { id: message.id }).await;
                }
            }
            ids
        });
    }
    for _ in 0..PUBLISHERS {
        let mut publisher = RawClient::open(&tcp, nsqd.address()).await;
        tokio::spawn(async move {
            for n in 0..EACH / 10 {
                let bodies = (0..10).map(|i| format!("{n} {i}").into()).collect();
                let topic = "t".to_owned();
                publisher.ask(Command::Mpub { topic, bodies }, "OK").await;
            }
        });
    }
    let all = (PUBLISHERS * EACH) as u64;
    let finished = nsqd.wait_for_within(Duration::from_secs(120), |stats| {
        stats
            .channel("t", "c")
            .is_some_and(|channel| channel.finish_count == all)
    });
    finished.await.unwrap();
    nsqd.stop().await;
    let mut ids: Vec<_> = consumers.join_all().await.into_iter().flatten().collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len() as u64, all);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_broker_ends_its_tasks() {
    let house = House::new().await;
    let mut client = house.consumer(1).await;
    let handle = tokio::runtime::Handle::current();
    drop(house.nsqd);
    assert_eq!(client.next(MOMENT).await, Event::Closed);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(handle.metrics().num_alive_tasks(), 0);
}

/// A second look at ids: clients take them for opaque, but tools do not.
#[tokio::test(start_paused = true)]
async fn ids_are_sixteen_hexadecimal_digits() {
    let house = House::new().await;
    let mut consumer = house.consumer(1).await;
    house.nsqd.publish("t", "x").unwrap();
    let id: MessageId = consumer.message().await.id;
    assert!(id.as_bytes().iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
}

#[tokio::test(start_paused = true)]
async fn a_stopped_broker_is_known_to_no_nsqlookupd_whatever_is_published() {
    let lookupd = async_nsq::test_server::Lookupd::start().await.unwrap();
    let house = House::with(Nsqd::builder().lookupd(&lookupd)).await;
    house.nsqd.publish("t", "x").unwrap();
    house.nsqd.stop().await;
    house.nsqd.publish("u", "x").unwrap();
    assert!(lookupd.topics().iter().all(|topic| topic.producers.is_empty()));
    house.nsqd.restart().await.unwrap();
    let known = |topic: &async_nsq::test_server::LookupdTopic| topic.producers.len() == 1;
    assert!(lookupd.topics().len() == 2 && lookupd.topics().iter().all(known));
}

/// A client that never stops sending leaves no turn to timers, which are due all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_come_in_a_flood_of_commands() {
    let nsqd = Nsqd::builder()
        .heartbeat_interval(Duration::from_millis(10))
        .start_detached(ADDRESS)
        .unwrap();
    let (client, server) = tokio::io::duplex(64 * 1024);
    nsqd.serve(server, "client:1");
    let (mut read, mut write) = tokio::io::split(client);
    let flood = tokio::spawn(async move {
        let nops = b"NOP\n".repeat(4096);
        write.write_all(b"  V2").await.unwrap();
        while write.write_all(&nops).await.is_ok() {}
    });
    let mut heartbeat = [0; 19];
    let beats = tokio::time::timeout(Duration::from_secs(60), read.read_exact(&mut heartbeat));
    beats.await.unwrap().unwrap();
    assert_eq!(&heartbeat[8..], HEARTBEAT);
    flood.abort();
}

#[tokio::test(start_paused = true)]
async fn a_command_that_was_received_or_will_be_can_be_waited_for() {
    let house = House::new().await;
    let mut client = house.client().await;
    client.ask(publish("first"), "OK").await;
    // The condition may look at the broker, too.
    let is_publish = |received: &Received| house.nsqd.topic("t").is_some() && received.command == publish("first");
    let received = house.nsqd.wait_for_command(is_publish).await.unwrap();
    assert_eq!((received.connection, received.command), (1, publish("first")));
    let waiting = house
        .nsqd
        .wait_for_command(|received| received.command == publish("second"));
    let (received, ()) = tokio::join!(waiting, client.send(publish("second")));
    assert_eq!(received.unwrap().command, publish("second"));
    let never = house.nsqd.wait_for_command(|received| received.command == Command::Cls);
    assert!(never.await.is_err());
}
