//! The producer as a `Sink`.

use std::time::Duration;

use async_nsq::{ErrorKind, Topic};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use tokio::time::Instant;

use crate::poll_once;
use crate::support::{Command, ScriptedNsqd, settle};

fn item(topic: &str, body: &'static str) -> (Topic, Bytes) {
    (Topic::new(topic).unwrap(), body.into())
}

#[tokio::test(start_paused = true)]
async fn a_sink_takes_while_there_is_room_and_its_flush_waits_for_all_answers() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_pending_messages(3);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let mut sink = producer.sink();
    for body in ["1", "2", "3"] {
        sink.feed(item("a", body)).await.unwrap();
    }
    // One more is taken in, and then there is no room.
    sink.feed(item("a", "4")).await.unwrap();
    assert!(poll_once(Box::pin(sink.feed(item("a", "5"))).as_mut()).await.is_none());
    assert_eq!(peer.command().await, Command::publish_many("a", ["1", "2", "3"]));
    peer.ok().await;
    let mut flush = Box::pin(sink.flush());
    assert!(poll_once(flush.as_mut()).await.is_none());
    let next = tokio::select! {
        biased;
        _ = &mut flush => panic!("flushed without an answer"),
        next = peer.command() => next,
    };
    assert_eq!(next, Command::publish("a", "4"));
    peer.ok().await;
    flush.await.unwrap();
    sink.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flush_reports_the_first_failure_with_its_topic_once() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let mut sink = producer.sink();
    for (topic, body) in [("a", "1"), ("b", "2"), ("c", "3")] {
        sink.feed(item(topic, body)).await.unwrap();
    }
    let server = tokio::spawn(async move {
        for _ in 0..3 {
            peer.command().await;
        }
        peer.ok().await;
        peer.error("E_UNAUTHORIZED AUTH failed").await;
        drop(peer);
        let mut peer = nsqd.accept().await;
        assert_eq!(peer.command().await, Command::publish("c", "3"));
        peer.error("E_PUB_FAILED PUB failed").await;
        peer = nsqd.accept().await;
        peer.serve().await
    });
    let error = sink.flush().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(
        error.to_string().contains("topic b: nsqd answered E_UNAUTHORIZED"),
        "{error}"
    );
    // It goes on.
    sink.send(item("a", "4")).await.unwrap();
    drop((sink, producer));
    assert_eq!(server.await.unwrap(), [Command::publish("a", "4")]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_stops_a_stream_that_never_pauses() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_pending_messages(4);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let endless = stream::repeat_with(|| Ok(item("a", "again")));
    let forward = tokio::spawn(endless.forward(producer.sink()));
    for _ in 0..5 {
        peer.command().await;
        peer.ok().await;
    }
    peer.command().await;
    peer.error("E_UNAUTHORIZED AUTH failed").await;
    let error = forward.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("topic a"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_is_invalid_or_finds_no_room_in_time_is_an_error_of_the_sink() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd
        .producer()
        .max_pending_messages(1)
        .publish_timeout(Duration::from_secs(1));
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let mut sink = producer.sink();
    let error = sink.feed(item("a", "")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("topic a"), "{error}");
    sink.feed(item("a", "1")).await.unwrap();
    sink.feed(item("b", "no room")).await.unwrap();
    let error = sink.feed(item("c", "not taken")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSent);
    assert!(error.to_string().contains("topic b"), "{error}");
    peer.command().await;
    peer.ok().await;
    sink.flush().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_sinks_messages_go_on_and_their_failures_to_the_hook() {
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd
        .producer()
        .on_failure(move |failure| told.send(failure.clone()).unwrap());
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let mut sink = producer.sink();
    sink.feed(item("a", "1")).await.unwrap();
    drop(sink);
    settle().await;
    peer.command().await;
    peer.error("E_PUB_FAILED PUB failed").await;
    let failure = hears.recv().await.unwrap();
    assert_eq!((failure.topic.as_str(), &failure.body[..]), ("a", &b"1"[..]));
    assert_eq!(failure.error.kind(), ErrorKind::Rejected);
}

#[test]
fn a_sink_that_is_full_may_be_polled_outside_of_the_runtime() {
    for count in [1, 2] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let network = async_nsq::transport::MemoryNetwork::new();
        let builder = ["a:1", "b:1"][..count]
            .iter()
            .fold(async_nsq::Producer::builder(), |builder, name| builder.nsqd(*name))
            .connection(async_nsq::ConnectionConfig::new().connector(network.connector()))
            .max_pending_messages(1);
        let mut sink = runtime.block_on(async { builder.connect_lazily().unwrap().sink() });
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        for body in ["1", "2"] {
            assert!(sink.poll_ready_unpin(&mut cx).is_ready());
            sink.start_send_unpin(item("a", body)).unwrap();
        }
        assert!(sink.poll_ready_unpin(&mut cx).is_pending());
    }
}

#[tokio::test(start_paused = true)]
async fn a_sinks_flush_sends_off_what_lingers_and_nothing_that_comes_after() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().linger(Duration::from_secs(20));
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let begun = Instant::now();
    let mut sink = producer.sink();
    sink.feed(item("a", "1")).await.unwrap();
    settle().await;
    assert_eq!(producer.stats().batches, 0, "it lingers");
    // Also a flush that nobody waits for to the end.
    assert!(poll_once(Box::pin(sink.flush()).as_mut()).await.is_none());
    assert_eq!(peer.command().await, Command::publish("a", "1"));
    sink.feed(item("a", "2")).await.unwrap();
    settle().await;
    assert_eq!(producer.stats().batches, 1, "the next one lingers");
    peer.ok().await;
    let served = tokio::spawn(async move { peer.serve().await });
    sink.flush().await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 0);
    drop((sink, producer));
    assert_eq!(served.await.unwrap(), [Command::publish("a", "2")]);
}
