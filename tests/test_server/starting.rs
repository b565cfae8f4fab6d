//! A new topic keeps its messages until the nsqlookupds have told which channels it has.

use async_nsq::test_server::{Lookupd, LookupdState, Nsqd, Stats};

use super::*;

/// A broker, an nsqlookupd, and another broker by which that knows of the channel `audit` of the topic `t`.
struct Cluster {
    house: House,
    lookupd: Lookupd,
    _other: Nsqd,
}

impl Cluster {
    async fn new() -> Self {
        let network = MemoryNetwork::new();
        let lookupd = Lookupd::start_in(&network, "lookupd:4161").await.unwrap();
        let other = Nsqd::builder().lookupd(&lookupd);
        let other = other.start_in(&network, "other:4150").await.unwrap();
        other.create_channel("t", "audit").unwrap();
        let nsqd = Nsqd::builder().lookupd_tcp_address(lookupd.tcp_address());
        let nsqd = nsqd.start_in(&network, ADDRESS).await.unwrap();
        let is_known = |state: &LookupdState| state.node(ADDRESS).is_some();
        lookupd.wait_for(is_known).await.unwrap();
        Self {
            house: House { network, nsqd },
            lookupd,
            _other: other,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn drain_takes_what_a_new_topic_keeps_and_leaves_the_other_channels_their_copies() {
    let cluster = Cluster::new().await;
    cluster.lookupd.faults().path("/channels").delay(MOMENT);
    let nsqd = &cluster.house.nsqd;
    let mut client = cluster.house.client().await;
    client.ask(publish("first"), "OK").await;
    assert_eq!(nsqd.drain("t", "c").unwrap(), ["first"]);
    assert_eq!(nsqd.drain("t", "c").unwrap(), [""; 0]);
    client.ask(publish("second"), "OK").await;
    assert_eq!(nsqd.drain("t", "c").unwrap(), ["second"]);
    // Another channel of the same name has had nothing yet.
    nsqd.delete_channel("t", "c").unwrap();
    assert_eq!(nsqd.drain("t", "c").unwrap(), ["first", "second"]);
    client.ask(publish("third"), "OK").await;
    assert_eq!(nsqd.channel("t", "audit"), None);

    let stats = nsqd.wait_for(|stats| stats.channel("t", "audit").is_some());
    assert_eq!(stats.await.unwrap().topic("t").unwrap().depth, 0);
    assert_eq!(nsqd.drain("t", "audit").unwrap(), ["first", "second", "third"]);
    assert_eq!(nsqd.drain("t", "c").unwrap(), ["third"]);
}

#[tokio::test(start_paused = true)]
async fn drain_leaves_what_is_deferred_and_its_delay_begins() {
    let cluster = Cluster::new().await;
    cluster.lookupd.faults().path("/channels").delay(4 * MOMENT);
    let nsqd = &cluster.house.nsqd;
    let mut client = cluster.house.client().await;
    client.ask(deferred("later", MOMENT), "OK").await;
    assert_eq!(nsqd.drain("t", "c").unwrap(), [""; 0]);
    assert_eq!(nsqd.channel("t", "c").unwrap().deferred, 1);
    // The nsqlookupd has not answered yet.
    let waits = |channel| move |stats: &Stats| stats.channel("t", channel).is_some_and(|channel| channel.depth == 1);
    nsqd.wait_for_within(2 * MOMENT, waits("c")).await.unwrap();
    nsqd.wait_for(waits("audit")).await.unwrap();
    for channel in ["audit", "c"] {
        assert_eq!(nsqd.drain("t", channel).unwrap(), ["later"]);
    }
}

#[tokio::test(start_paused = true)]
async fn drain_leaves_what_a_paused_topic_keeps() {
    let cluster = Cluster::new().await;
    cluster.lookupd.faults().path("/channels").hang();
    let nsqd = &cluster.house.nsqd;
    nsqd.publish("t", "x").unwrap();
    nsqd.pause_topic("t").unwrap();
    assert_eq!(nsqd.drain("t", "c").unwrap(), [""; 0]);
    assert_eq!(nsqd.topic("t").unwrap().depth, 1);
}

/// nsqd finds it in its metadata then, and has nothing to ask.
#[tokio::test(start_paused = true)]
async fn a_topic_is_no_longer_new_once_its_broker_has_stopped() {
    let cluster = Cluster::new().await;
    cluster.lookupd.faults().path("/channels").delay(MOMENT);
    let nsqd = &cluster.house.nsqd;
    let mut consumer = cluster.house.consumer(5).await;
    consumer.ask(publish("kept"), "OK").await;
    consumer.ask(deferred("deferred", 60 * MOMENT), "OK").await;
    assert_eq!(nsqd.topic("t").unwrap().depth, 2);
    nsqd.stop().await;
    let channel = nsqd.channel("t", "c").unwrap();
    assert_eq!((channel.depth, nsqd.topic("t").unwrap().depth), (2, 0));
    sleep(2 * MOMENT).await;
    assert_eq!(nsqd.channel("t", "audit"), None);

    nsqd.restart().await.unwrap();
    let mut consumer = cluster.house.consumer(5).await;
    assert_eq!(consumer.message().await.body, "kept");
    assert_eq!(consumer.message().await.body, "deferred");
}

fn deferred(body: &str, delay: Duration) -> Command {
    Command::Dpub {
        topic: "t".to_owned(),
        delay_ms: delay.as_millis() as u64,
        body: body.to_owned().into(),
    }
}
