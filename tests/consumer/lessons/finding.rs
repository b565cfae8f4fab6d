//! Section 3.4: finding nsqds through nsqlookupd.

use async_nsq::test_server::{Lookupd, Nsqd};
use async_nsq::transport::MemoryNetwork;
use async_nsq::{ConnectionConfig, Consumer, ErrorKind, LookupdStatus};
use tokio::time::{Instant, sleep};

use super::{LOOKUPD, PATIENCE, announced, consumer_in, lookupd, until};
use crate::scripted::{SECOND, chain, succeed};

#[tokio::test(start_paused = true)]
async fn lesson_53_an_unreachable_nsqlookupd_is_an_error_for_whoever_waits_and_none_once_it_works() {
    let network = MemoryNetwork::new();
    let consumer = consumer_in(&network).lookupd(LOOKUPD).start(succeed).await.unwrap();
    let begun = Instant::now();
    let error = consumer.ready(30 * SECOND).await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 30, "it is waited for until the deadline");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(chain(&error).contains(LOOKUPD), "{}", chain(&error));
    let lookupd = lookupd(&network).await;
    let _nsqd = announced(&network, &lookupd, "nsqd").await;
    consumer.ready(PATIENCE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn lesson_54_one_bad_nsqlookupd_neither_delays_nor_ends_discovery() {
    for breaks in 0..4 {
        let network = MemoryNetwork::new();
        let good = lookupd(&network).await;
        let bad = Lookupd::start_in(&network, "bad:4161").await.unwrap();
        match breaks {
            0 => bad.faults().hang(),
            1 => bad.faults().answer_status(500),
            2 => bad.faults().answer_body("no JSON"),
            _ => bad.faults().down(),
        }
        let first = announced(&network, &good, "first").await;
        // The bad one comes first in the list.
        let builder = consumer_in(&network).lookupd("bad:4161").lookupd(LOOKUPD);
        let consumer = builder.start(succeed).await.unwrap();
        let begun = Instant::now();
        until(&consumer, |stats| stats.connections == 1).await;
        assert!(begun.elapsed() <= 3 * SECOND, "{:?}", begun.elapsed());
        // And it goes on so: what comes later is found as soon as without the bad one.
        sleep(600 * SECOND).await;
        let second = announced(&network, &good, "second").await;
        let begun = Instant::now();
        until(&consumer, |stats| stats.connections == 2).await;
        assert!(begun.elapsed() <= 63 * SECOND, "{:?}", begun.elapsed());
        let stats = consumer.stats();
        assert!(
            matches!(stats.lookupds[0].status, LookupdStatus::Failing { .. }),
            "{stats:#?}"
        );
        assert!(matches!(stats.lookupds[1].status, LookupdStatus::Answering { .. }));
        drop((first, second));
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_55_a_topic_that_comes_to_be_just_after_the_start_is_consumed_within_seconds() {
    for later in [1, 3, 6] {
        let network = MemoryNetwork::new();
        let lookupd = lookupd(&network).await;
        let consumer = consumer_in(&network).lookupd(LOOKUPD).start(succeed).await.unwrap();
        sleep(later * SECOND).await;
        let stats = consumer.stats();
        // Not there yet is no failure of anybody.
        assert!(
            matches!(stats.lookupds[0].status, LookupdStatus::Answering { .. }),
            "{stats:#?}"
        );
        assert_eq!(stats.lookupds[0].topic_known, Some(false));
        let _nsqd = announced(&network, &lookupd, "nsqd").await;
        let created = Instant::now();
        until(&consumer, |stats| stats.connections == 1).await;
        // Polling every 60 s, as others do, would take half a minute on average.
        let allowed = (2 * later + 2) * SECOND;
        assert!(created.elapsed() <= allowed, "{:?}", created.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_55_a_second_channel_gets_the_first_message_of_a_topic_if_it_is_created_beforehand() {
    for beforehand in [true, false] {
        let network = MemoryNetwork::new();
        let lookupd = lookupd(&network).await;
        let consumer = |channel: &str| {
            Consumer::builder("orders", channel)
                .connection(ConnectionConfig::new().connector(network.connector()))
                .lookupd(LOOKUPD)
                .create_topic_and_channel(beforehand)
        };
        let first = consumer("billing").start(succeed).await.unwrap();
        let second = consumer("audit").start(succeed).await.unwrap();
        sleep(10 * SECOND).await;
        // The topic comes to be with its first message, at an nsqd that is new.
        let builder = Nsqd::builder().lookupd(&lookupd).broadcast_address("nsqd");
        let nsqd = builder.start_in(&network, "nsqd:4150").await.unwrap();
        nsqd.publish("orders", "the first").unwrap();
        until(&first, |stats| stats.connections == 1).await;
        until(&second, |stats| stats.connections == 1).await;
        sleep(60 * SECOND).await;
        let finished = first.stats().finished + second.stats().finished;
        assert_eq!(finished, if beforehand { 2 } else { 1 });
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_56_after_a_change_the_next_one_is_heard_of_sooner() {
    let network = MemoryNetwork::new();
    let lookupd = lookupd(&network).await;
    let _first = announced(&network, &lookupd, "first").await;
    let consumer = consumer_in(&network).lookupd(LOOKUPD).start(succeed).await.unwrap();
    until(&consumer, |stats| stats.connections == 1).await;
    sleep(600 * SECOND).await;
    // A roll-out: one nsqd after the other.
    let _second = announced(&network, &lookupd, "second").await;
    until(&consumer, |stats| stats.connections == 2).await;
    let mut nsqds = Vec::new();
    for number in 3..8 {
        let nsqd = announced(&network, &lookupd, &format!("nsqd-{number}")).await;
        let begun = Instant::now();
        until(&consumer, |stats| stats.connections == number).await;
        assert!(begun.elapsed() <= 2 * SECOND, "{number}: {:?}", begun.elapsed());
        nsqds.push(nsqd);
    }
    // And then it is quiet again: one question a minute.
    sleep(600 * SECOND).await;
    let before = lookupd.requests();
    sleep(600 * SECOND).await;
    assert!((10..=15).contains(&(lookupd.requests() - before)));
}

#[tokio::test(start_paused = true)]
async fn lesson_58_an_nsqlookupd_that_fails_or_knows_nothing_for_a_moment_takes_no_nsqd_away() {
    let network = MemoryNetwork::new();
    let lookupd = lookupd(&network).await;
    let nsqd = announced(&network, &lookupd, "nsqd").await;
    let consumer = consumer_in(&network).lookupd(LOOKUPD).start(succeed).await.unwrap();
    until(&consumer, |stats| stats.connections == 1).await;
    for breaks in 0..4 {
        match breaks {
            0 => lookupd.faults().answer_status(500),
            1 => lookupd.faults().answer_body(r#"{"channels": [], "producers": "none"}"#),
            2 => lookupd.faults().hang(),
            _ => lookupd.faults().down(),
        }
        sleep(PATIENCE).await;
        lookupd.faults().clear().unwrap();
        sleep(120 * SECOND).await;
    }
    // Restarted, it knows nothing until the nsqds have registered again.
    lookupd
        .faults()
        .times(1)
        .answer_body(r#"{"channels": [], "producers": []}"#);
    sleep(600 * SECOND).await;
    let stats = nsqd.stats();
    assert_eq!((stats.accepted, stats.clients.len()), (1, 1), "{:#?}", consumer.stats());
}

#[tokio::test(start_paused = true)]
async fn lesson_67_a_port_of_nsqlookupd_that_is_not_http_is_told_apart() {
    let network = MemoryNetwork::new();
    let lookupd = lookupd(&network).await;
    let tcp = lookupd.tcp_address().to_owned();
    let consumer = consumer_in(&network).lookupd(&*tcp).start(succeed).await.unwrap();
    let error = consumer.ready(10 * SECOND).await.unwrap_err();
    assert!(chain(&error).contains(&tcp), "{}", chain(&error));
    assert!(chain(&error).contains("4161"), "{}", chain(&error));
}

#[tokio::test(start_paused = true)]
async fn lesson_69_the_answers_of_old_and_new_nsqlookupds_are_understood() {
    let producer =
        r#"{"broadcast_address": "nsqd", "hostname": "h", "tcp_port": 4150, "http_port": 4151, "version": "v"}"#;
    let new = format!(r#"{{"channels": [], "producers": [{producer}]}}"#);
    let old = format!(r#"{{"status_code": 200, "status_txt": "OK", "data": {new}}}"#);
    for answer in [new, old] {
        let network = MemoryNetwork::new();
        let lookupd = lookupd(&network).await;
        lookupd.faults().answer_body(answer);
        let nsqd = Nsqd::builder().start_in(&network, "nsqd:4150").await.unwrap();
        nsqd.publish("orders", "one").unwrap();
        let consumer = consumer_in(&network).lookupd(LOOKUPD).start(succeed).await.unwrap();
        until(&consumer, |stats| stats.finished == 1).await;
    }
    // The way of the old ones to say that they do not know a topic.
    let network = MemoryNetwork::new();
    let lookupd = lookupd(&network).await;
    let unknown = r#"{"status_code": 500, "status_txt": "TOPIC_NOT_FOUND", "data": null}"#;
    lookupd.faults().answer_body(unknown);
    let consumer = consumer_in(&network).lookupd(LOOKUPD).start(succeed).await.unwrap();
    let stats = until(&consumer, |stats| stats.lookupds[0].answer_age.is_some()).await;
    assert_eq!((stats.lookupds[0].topic_known, stats.nsqds.len()), (Some(false), 0));
}

#[tokio::test(start_paused = true)]
async fn lesson_70_an_ephemeral_topic_is_found_because_its_name_is_encoded() {
    let network = MemoryNetwork::new();
    let lookupd = lookupd(&network).await;
    let builder = Nsqd::builder().lookupd(&lookupd).broadcast_address("nsqd");
    let nsqd = builder.start_in(&network, "nsqd:4150").await.unwrap();
    nsqd.create_topic("orders#ephemeral").unwrap();
    let connection = ConnectionConfig::new().connector(network.connector());
    let consumer = Consumer::builder("orders#ephemeral", "tail#ephemeral")
        .connection(connection)
        .lookupd(LOOKUPD)
        .start(succeed)
        .await
        .unwrap();
    until(&consumer, |stats| stats.connections == 1).await;
    nsqd.publish("orders#ephemeral", "one").unwrap();
    until(&consumer, |stats| stats.finished == 1).await;
    // In clear it would be cut off as a fragment, by the client or by something on the way.
    let requests = lookupd.requests_received();
    let target = &requests[0].target;
    assert!(
        target.contains("topic=orders%23ephemeral") && !target.contains('#'),
        "{target}"
    );
}
