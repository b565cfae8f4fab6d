//! The harness does what the tests that stand on it believe.

use std::process::Command;

use tokio::net::TcpStream;

use crate::{
    broker::{Brokers, ChannelStats, eventually},
    wire::{MESSAGE, Wire, ok},
};

#[tokio::test(flavor = "multi_thread")]
async fn nsqd_stopped_in_good_order_comes_back_with_its_messages_on_its_ports() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let mut nsqd = brokers.nsqd().start().await;
    let addresses = (nsqd.tcp_address(), nsqd.http_address());
    nsqd.publish("orders", "one").await;
    assert_eq!(nsqd.topic_depth("orders").await, Some(1));

    nsqd.terminate().await;
    assert!(
        TcpStream::connect(addresses.0).await.is_err(),
        "a stopped nsqd accepts nobody"
    );
    nsqd.start_again().await;

    assert_eq!((nsqd.tcp_address(), nsqd.http_address()), addresses);
    assert_eq!(nsqd.topic_depth("orders").await, Some(1));
    assert_eq!(nsqd.topic_message_count("orders").await, Some(0), "counts start anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn nsqd_killed_with_clients_connected_comes_back_on_its_ports() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let mut nsqd = brokers.nsqd().start().await;
    let (address, id) = (nsqd.tcp_address(), nsqd.id());
    let mut client = Wire::connect(address).await;
    client.send_body("PUB orders", "one").await;
    assert_eq!(client.answer().await, ok());

    nsqd.kill();
    assert!(!alive(id));
    assert!(
        TcpStream::connect(address).await.is_err(),
        "a killed nsqd accepts nobody"
    );
    nsqd.start_again().await;

    assert_ne!(nsqd.id(), id);
    assert_eq!(nsqd.tcp_address(), address);
    let depth = nsqd.topic_depth("orders").await.unwrap_or_default();
    assert_eq!(depth, 0, "the message was in memory only");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_nsqd_leaves_no_process() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    let id = nsqd.id();
    assert!(alive(id));
    drop(nsqd);
    assert!(!alive(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_follow_a_message() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    assert_eq!(nsqd.channel_stats("orders", "billing#ephemeral").await, None);
    nsqd.create_channel("orders", "billing").await;
    nsqd.publish("orders", "one").await;
    let waiting = ChannelStats {
        depth: 1,
        message_count: 1,
        ..ChannelStats::default()
    };
    let billing = async |expected: ChannelStats| {
        let is = async || {
            nsqd.channel_stats("orders", "billing")
                .await
                .filter(|stats| *stats == expected)
        };
        eventually(&format!("{expected:?}"), is).await;
    };
    billing(waiting.clone()).await;

    let mut client = Wire::connect(nsqd.tcp_address()).await;
    client.send("SUB orders billing").await;
    assert_eq!(client.answer().await, ok());
    client.send("RDY 1").await;
    let (kind, message) = client.answer().await;
    assert_eq!((kind, &message[26..]), (MESSAGE, &b"one"[..]));
    billing(ChannelStats {
        depth: 0,
        in_flight: 1,
        client_count: 1,
        ..waiting.clone()
    })
    .await;

    let id = String::from_utf8(message[10..26].to_vec()).unwrap();
    client.send("RDY 0").await;
    client.send(&format!("REQ {id} 0")).await;
    billing(ChannelStats {
        requeue_count: 1,
        client_count: 1,
        ..waiting
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_names_survive_the_query() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    nsqd.create_channel("orders#ephemeral", "billing#ephemeral").await;
    assert_eq!(
        nsqd.channel_stats("orders#ephemeral", "billing#ephemeral").await,
        Some(ChannelStats::default())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nsqd_is_listed_by_nsqlookupd_while_it_runs() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let lookupd = brokers.nsqlookupd().flag("--log-level=debug").start().await;
    assert!(lookupd.log().contains("nsqlookupd v"));
    assert_eq!(lookupd.lookup("orders").await, None);
    let mut nsqd = brokers.nsqd().lookupd(lookupd.tcp_address()).start().await;
    nsqd.create_topic("orders").await;

    let nsqds = vec![nsqd.tcp_address().to_string()];
    let listed = async || Some(lookupd.producers("orders").await).filter(|found| *found == nsqds);
    eventually("nsqd is listed", listed).await;

    nsqd.terminate().await;
    let gone = async || Some(lookupd.producers("orders").await).filter(Vec::is_empty);
    eventually("a stopped nsqd is no longer listed", gone).await;

    nsqd.start_again().await;
    eventually("nsqd is listed again", listed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nsqlookupd_forgets_everything_and_keeps_its_ports() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let mut lookupd = brokers.nsqlookupd().start().await;
    let addresses = (lookupd.tcp_address(), lookupd.http_address());
    lookupd.create_topic("orders").await;
    assert!(lookupd.lookup("orders").await.is_some());
    lookupd.terminate().await;
    lookupd.start_again().await;
    assert_eq!((lookupd.tcp_address(), lookupd.http_address()), addresses);
    assert_eq!(lookupd.lookup("orders").await, None);
}

/// Whether a process of this id exists, a zombie included.
fn alive(id: u32) -> bool {
    let probe = Command::new("sh")
        .args(["-c", r#"kill -0 "$0" 2>/dev/null"#, &id.to_string()])
        .status();
    probe.expect("sh runs").success()
}
