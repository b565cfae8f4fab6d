//! Messages as a stream: taken by whoever wants them, answered by whoever holds them.

use async_nsq::test_server::Nsqd;
use async_nsq::{ErrorKind, Message};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use crate::by_hand::House;
use crate::scripted::{self, SECOND, text};
use crate::support::settle;

#[tokio::test(start_paused = true)]
async fn lesson_33_messages_are_taken_from_a_stream_and_answered_by_whoever_has_them() {
    let house = House::new().await;
    let mut messages = house.consumer().stream().await.unwrap();
    house.publish(&["one", "two", "three"]);
    for expected in ["one", "two", "three"] {
        let message = messages.next().await.unwrap();
        assert_eq!(text(&message), expected);
        message.finish().await.unwrap();
    }
    assert_eq!(messages.consumer().stats().finished, 3);
    assert!(timeout(SECOND, messages.next()).await.is_err(), "nothing is left");
    assert!(messages.shutdown(SECOND).await.is_clean());
    assert!(messages.next().await.is_none());
    assert!(messages.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn lesson_33_a_stream_has_the_combinators_of_streams() {
    let house = House::new().await;
    let messages = house.consumer().max_in_flight(3).stream().await.unwrap();
    let publishing = async {
        for body in ["one", "two", "three", "four", "five"] {
            sleep(SECOND).await;
            house.publish(&[body]);
        }
    };
    let bodies = messages.take(5).map(|message| {
        let body = text(&message).to_owned();
        message.finish();
        body
    });
    let (bodies, ()) = tokio::join!(bodies.collect::<Vec<_>>(), publishing);
    assert_eq!(bodies, ["one", "two", "three", "four", "five"]);
}

#[tokio::test(start_paused = true)]
async fn c5_what_is_collected_from_a_stream_can_be_answered_once_the_stream_is_gone() {
    let house = House::new().await;
    let messages = house.consumer().stream().await.unwrap();
    let bodies: Vec<&str> = (0..12).map(|_| "order").collect();
    house.publish(&bodies);
    let held: Vec<Message> = messages.take(10).collect().await;
    sleep(30 * SECOND).await;
    for message in held {
        message.finish().await.unwrap();
    }
    house.nsqd.wait_for(|stats| stats.clients.is_empty()).await.unwrap();
    let mut expected = vec!["REQ 0"; 2];
    expected.extend(["FIN"; 10]);
    assert_eq!(house.answers(), expected, "what was not taken goes back at once");
    assert_eq!(house.nsqd.channel("orders", "billing").unwrap().depth, 2);
}

#[tokio::test(start_paused = true)]
async fn c5_a_message_of_a_stream_that_is_dropped_is_requeued_and_counts_as_a_failure() {
    let house = House::new().await;
    let mut messages = house.consumer().stream().await.unwrap();
    house.publish(&["one"]);
    drop(messages.next().await.unwrap());
    settle().await;
    assert_eq!(house.answers(), ["REQ 90000"]);
    assert_eq!(messages.consumer().stats().backoff_level, 1);
}

#[tokio::test(start_paused = true)]
async fn c2_what_nobody_takes_counts_as_in_flight_and_holds_nsqd_back() {
    let house = House::new().await;
    let mut messages = house.consumer().max_in_flight(3).stream().await.unwrap();
    house.publish(&["first"]);
    messages.next().await.unwrap().finish();
    settle().await;
    house.publish(&["order"; 10]);
    sleep(SECOND).await;
    assert_eq!(messages.consumer().stats().in_flight, 3);
    let first = messages.next().await.unwrap();
    sleep(SECOND).await;
    assert_eq!(messages.consumer().stats().received, 4, "taken is not answered");
    first.finish();
    sleep(SECOND).await;
    assert_eq!(messages.consumer().stats().received, 5);
}

#[tokio::test(start_paused = true)]
async fn c7_a_stream_gives_back_at_once_what_was_not_taken_and_waits_for_what_was() {
    let house = House::new().await;
    let mut messages = house.consumer().stream().await.unwrap();
    house.publish(&["one", "two", "three", "four"]);
    let (one, two) = (messages.next().await.unwrap(), messages.next().await.unwrap());
    let begun = Instant::now();
    let (report, ()) = tokio::join!(messages.shutdown(60 * SECOND), async {
        settle().await;
        assert_eq!(house.answers(), ["REQ 0", "REQ 0"]);
        sleep(SECOND).await;
        one.finish();
        drop(two);
    });
    assert!(begun.elapsed() < 2 * SECOND);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.finished, report.requeued, report.returned), (1, 1, 2));
    assert!(messages.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn c7_a_stream_that_waits_ends_when_its_consumer_does() {
    let house = House::new().await;
    let mut messages = house.consumer().stream().await.unwrap();
    messages.consumer().ready(SECOND).await.unwrap();
    assert!(timeout(SECOND, messages.next()).await.is_err());
    let waiting = tokio::spawn(async move {
        let next = messages.next().await;
        assert!(next.is_none());
        messages
    });
    settle().await;
    house.nsqd.stop().await;
    settle().await;
    assert!(!waiting.is_finished(), "the loss of an nsqd ends nothing");
    house.nsqd.restart().await.unwrap();
    waiting.abort();
    house.nsqd.wait_for(|stats| stats.clients.is_empty()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn c8_a_stream_gives_up_what_was_delivered_too_often() {
    let house = House::new().await;
    let (sender, mut given_up) = tokio::sync::mpsc::unbounded_channel();
    let builder = house.consumer().max_attempts(2).on_give_up(move |message: Message| {
        let _ = sender.send((text(&message).to_owned(), message.attempts()));
        async {}
    });
    let mut messages = builder.stream().await.unwrap();
    house.publish(&["hopeless"]);
    for attempts in [1, 2] {
        let message = timeout(10 * SECOND, messages.next()).await.unwrap().unwrap();
        assert_eq!(message.attempts(), attempts);
        message.requeue_without_backoff(std::time::Duration::ZERO);
    }
    assert!(timeout(SECOND, messages.next()).await.is_err(), "not handed out");
    house.publish(&["good"]);
    let good = timeout(10 * SECOND, messages.next()).await.unwrap().unwrap();
    assert_eq!(text(&good), "good");
    let told = timeout(10 * SECOND, given_up.recv()).await.unwrap().unwrap();
    assert_eq!(told, ("hopeless".to_owned(), 3));
    settle().await;
    let stats = messages.consumer().stats();
    assert_eq!((stats.given_up, stats.finished), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn c6_what_a_lost_connection_delivered_is_not_handed_out_any_more() {
    let mut nsqd = scripted::Nsqd::start();
    let mut messages = nsqd.consumer().max_in_flight(10).stream().await.unwrap();
    let mut peer = nsqd.accept_unproven().await;
    peer.command().await;
    peer.deliver([1, 2, 3]).await;
    assert_eq!(text(&messages.next().await.unwrap()), "1");
    drop(peer);
    let mut peer = nsqd.accept_unproven().await;
    peer.command().await;
    peer.deliver([4]).await;
    assert_eq!(text(&messages.next().await.unwrap()), "4");
}

#[tokio::test]
async fn a_stream_is_refused_for_what_a_consumer_is() {
    let nowhere = async_nsq::Consumer::builder("orders", "billing").stream().await;
    assert_eq!(nowhere.unwrap_err().kind(), ErrorKind::Invalid);
    let nsqd = Nsqd::start().await.unwrap();
    let builder = async_nsq::Consumer::builder("or ders", "billing").nsqd(nsqd.address());
    assert_eq!(builder.stream().await.unwrap_err().kind(), ErrorKind::Invalid);
}
