//! Where nsqds are, as nsqlookupd tells, and where clients are, as they tell nsqd.

use async_nsq::protocol::{LookupProducer, parse_lookup, parse_nodes};
use async_nsq::{ConnectionConfig, Consumer, Producer};
use hyper::Method;

use crate::broker::{Brokers, DEADLINE, eventually, request};
use crate::publishing::{Seen, recorder, seen_all};

#[tokio::test(flavor = "multi_thread")]
async fn n5_nsqlookupd_lists_every_nsqd_among_its_nodes_whether_it_has_a_topic_or_not() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let lookupd = brokers.nsqlookupd().start().await;
    let nodes = async || parse_nodes(&lookupd.get("/nodes").await.body).unwrap();
    assert_eq!(nodes().await.nodes, [], "an empty list is one");

    let with_topic = brokers.nsqd().lookupd(lookupd.tcp_address()).start().await;
    with_topic.create_topic("orders").await;
    let mut without = brokers.nsqd().lookupd(lookupd.tcp_address()).start().await;
    let listed = eventually("both are listed", async || {
        let nodes = nodes().await;
        assert_eq!(nodes.malformed, 0);
        (nodes.nodes.len() == 2).then_some(nodes.nodes)
    })
    .await;
    let mut addresses: Vec<_> = listed.iter().map(LookupProducer::tcp_address).collect();
    let mut expected = [&with_topic, &without].map(|nsqd| nsqd.tcp_address().to_string());
    addresses.sort();
    expected.sort();
    assert_eq!(addresses, expected);
    assert!(
        listed
            .iter()
            .all(|nsqd| !nsqd.remote_address.is_empty() && !nsqd.version.is_empty())
    );

    // The same nsqd in the answer to /lookup.
    let lookup = eventually("the topic is listed", async || {
        let lookup = parse_lookup(&lookupd.get("/lookup?topic=orders").await.body).ok()?;
        (!lookup.producers.is_empty()).then_some(lookup)
    })
    .await;
    assert!(listed.contains(&lookup.producers[0]));

    without.terminate().await;
    eventually("a stopped nsqd is no longer listed", async || {
        (nodes().await.nodes.len() == 1).then_some(())
    })
    .await;
    // nsqd has no such list, and says so with a status.
    let answer = request(with_topic.http_address(), Method::GET, "/nodes", Vec::new().into());
    assert_eq!(answer.await.unwrap().status, 404);
}

/// nsqd 1.3.0 knows nothing of regions and zones; later ones tell them in their statistics.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_of_itself_reaches_nsqd_and_a_region_and_zone_do_no_harm() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    let connection = |id: &str| {
        ConnectionConfig::new()
            .client_id(id)
            .hostname("billing.example")
            .user_agent("billing/7")
            .topology("eu-west", "eu-west-1b")
    };
    let producer = Producer::builder()
        .nsqd(nsqd.tcp_address().to_string())
        .connection(connection("publishes"))
        .connect()
        .await
        .unwrap();
    producer.publish("orders", "one").await.unwrap();
    // It is told again with each ping.
    producer.ping().await.unwrap();
    producer.publish("orders", "two").await.unwrap();
    let seen = Seen::default();
    let consumer = Consumer::builder("orders", "billing")
        .nsqd(nsqd.tcp_address().to_string())
        .connection(connection("consumes"))
        .start(recorder(&seen))
        .await
        .unwrap();
    seen_all(&seen, 2).await;

    let stats = nsqd.stats().await;
    let told = [&stats["producers"][0], &stats["topics"][0]["channels"][0]["clients"][0]];
    for (client, id) in told.into_iter().zip(["publishes", "consumes"]) {
        let names = ["client_id", "hostname", "user_agent"].map(|key| &client[key]);
        assert_eq!(names, [id, "billing.example", "billing/7"], "{client}");
        let places = ["topology_region", "topology_zone"].map(|key| client.get(key));
        assert!(
            places == [None, None] || places.map(Option::unwrap) == ["eu-west", "eu-west-1b"],
            "{client}"
        );
    }
    assert!(consumer.shutdown(DEADLINE).await.is_clean());
    assert!(producer.shutdown(DEADLINE).await.is_clean());
}
