//! What nsqd does with an IDENTIFY on a connection that has already published. A producer that repeats its identity gets
//! an `OK` in its turn: a round trip through nsqd's command loop that changes nothing.

use serde_json::{Value, json};

use crate::{
    broker::{Brokers, Nsqd},
    wire::{ERROR, Wire, heartbeat, ok},
};

const IDENTITY: &str = r#"{"client_id":"one","hostname":"host","user_agent":"agent/1","feature_negotiation":false}"#;

/// A connection that has identified itself, with everything that a second IDENTIFY could undo, and published.
async fn producer(nsqd: &Nsqd) -> Wire {
    let mut wire = Wire::connect(nsqd.tcp_address()).await;
    let first = json!({
        "client_id": "one", "hostname": "host", "user_agent": "agent/1", "feature_negotiation": true,
        "heartbeat_interval": 3000, "output_buffer_size": 4096, "output_buffer_timeout": 100,
    });
    wire.send_body("IDENTIFY", &first.to_string()).await;
    let negotiated: Value = serde_json::from_slice(&wire.answer().await.1).expect("JSON");
    assert_eq!(negotiated["max_rdy_count"], 17, "extra flags reach nsqd");
    wire.send_body("PUB orders", "first").await;
    assert_eq!(wire.answer().await, ok());
    wire
}

/// How nsqd describes its only producer.
async fn described(nsqd: &Nsqd) -> Value {
    nsqd.stats().await["producers"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_identify_answers_ok_in_turn_and_changes_nothing() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().flag("--max-rdy-count=17").start().await;
    let mut wire = producer(&nsqd).await;
    let before = described(&nsqd).await;
    assert_eq!(before["client_id"], "one");

    for _ in 0..5 {
        wire.send_body("IDENTIFY", IDENTITY).await;
        assert_eq!(wire.answer().await, ok());
    }
    assert_eq!(described(&nsqd).await, before);

    // Answers come in the order of the commands: an error between two OKs would stand at its place.
    for _ in 0..5 {
        wire.send_body("PUB orders", "next").await;
        wire.send_body("IDENTIFY", IDENTITY).await;
    }
    for _ in 0..10 {
        assert_eq!(wire.answer().await, ok());
    }
    assert_eq!(nsqd.topic_message_count("orders").await, Some(6));

    // The heartbeats still come at the interval of the first IDENTIFY: with nsqd's default of 30 s none would come
    // before the deadline of `frame`.
    assert_eq!(wire.frame().await, heartbeat());
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_identify_overwrites_the_identity_with_what_it_names() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().flag("--max-rdy-count=17").start().await;
    let mut wire = producer(&nsqd).await;
    wire.send_body("IDENTIFY", r#"{"client_id":"two"}"#).await;
    assert_eq!(wire.answer().await, ok());
    let described = described(&nsqd).await;
    let identity = ["client_id", "hostname", "user_agent"].map(|field| described[field].clone());
    assert_eq!(identity, ["two", "", ""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_identify_of_a_consumer_is_fatal() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().flag("--max-rdy-count=17").start().await;
    let mut wire = producer(&nsqd).await;
    wire.send("SUB orders billing").await;
    assert_eq!(wire.answer().await, ok());
    wire.send_body("IDENTIFY", IDENTITY).await;
    assert_eq!(
        wire.answer().await,
        (ERROR, b"E_INVALID cannot IDENTIFY in current state".to_vec())
    );
}
