//! Messages that are answered by whoever holds them, and what nsqd says to answers that come too late.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::protocol::{Command, CommandName, ErrorCode, MessageId};
use async_nsq::test_server::{Nsqd, NsqdBuilder};
use async_nsq::transport::MemoryNetwork;
use async_nsq::{AnswerRefused, BoxError, ConnectionConfig, Consumer, ConsumerBuilder, ErrorKind, Message};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::scripted::SECOND;
use crate::support::settle;

const ADDRESS: &str = "nsqd:4150";

pub struct House {
    pub network: MemoryNetwork,
    pub nsqd: Nsqd,
}

impl House {
    pub async fn new() -> Self {
        Self::with(Nsqd::builder()).await
    }

    pub async fn with(builder: NsqdBuilder) -> Self {
        let network = MemoryNetwork::new();
        let nsqd = builder.start_in(&network, ADDRESS).await.unwrap();
        nsqd.create_channel("orders", "billing").unwrap();
        Self { network, nsqd }
    }

    pub fn consumer(&self) -> ConsumerBuilder {
        Consumer::builder("orders", "billing")
            .connection(ConnectionConfig::new().connector(self.network.connector()))
            .nsqd(ADDRESS)
    }

    /// A consumer whose handler hands every message on, and the messages.
    async fn hand_on(&self, builder: ConsumerBuilder) -> (Consumer, mpsc::Receiver<Message>) {
        let (sender, messages) = mpsc::channel(100);
        let handler = move |message: Message| {
            let sender = sender.clone();
            async move {
                sender.send(message.take_over()).await?;
                Ok::<(), BoxError>(())
            }
        };
        (builder.start(handler).await.unwrap(), messages)
    }

    pub fn publish(&self, bodies: &[&'static str]) {
        for body in bodies {
            self.nsqd.publish("orders", *body).unwrap();
        }
    }

    /// What nsqd has been told of messages: `FIN` or `REQ` with its delay.
    pub fn answers(&self) -> Vec<String> {
        let told = |command: Command| match command {
            Command::Fin { .. } => Some("FIN".to_owned()),
            Command::Req { delay_ms, .. } => Some(format!("REQ {delay_ms}")),
            _ => None,
        };
        let commands = self.nsqd.commands().into_iter();
        commands.filter_map(|received| told(received.command)).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn c5_a_message_taken_over_is_answered_by_its_holder_and_by_nobody_else() {
    let house = House::new().await;
    let (consumer, mut messages) = house.hand_on(house.consumer()).await;
    house.publish(&["one"]);
    let message = messages.recv().await.unwrap();
    sleep(SECOND).await;
    assert_eq!(house.answers(), [""; 0], "the handler has returned long ago");
    assert_eq!(consumer.stats().in_flight, 1);
    message.finish().await.unwrap();
    settle().await;
    assert_eq!(house.answers(), ["FIN"]);
    let stats = consumer.stats();
    assert_eq!((stats.in_flight, stats.finished), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn c5_an_answer_by_hand_wins_over_the_handlers_result() {
    let house = House::new().await;
    let handler = |message: Message| async move {
        let _written = message.finish();
        Err::<(), BoxError>("too late to say so".into())
    };
    let consumer = house.consumer().start(handler).await.unwrap();
    house.publish(&["one", "two"]);
    sleep(SECOND).await;
    assert_eq!(house.answers(), ["FIN", "FIN"]);
    assert_eq!(consumer.stats().backoff_level, 0);
}

#[tokio::test(start_paused = true)]
async fn c5_lesson_37_a_message_that_outlives_its_handler_cannot_answer_a_second_time() {
    let house = House::new().await;
    let (sender, mut messages) = mpsc::channel(100);
    let handler = move |message: Message| {
        let sender = sender.clone();
        async move {
            sender.send(message).await?;
            Ok::<(), BoxError>(())
        }
    };
    let _consumer = house.consumer().start(handler).await.unwrap();
    house.publish(&["one", "two"]);
    let (first, second) = (messages.recv().await.unwrap(), messages.recv().await.unwrap());
    sleep(SECOND).await;
    assert_eq!(house.answers(), ["FIN", "FIN"]);
    assert_eq!(first.finish().await.unwrap_err().kind(), ErrorKind::Shutdown);
    let second = second.take_over();
    assert_eq!(second.requeue(None).await.unwrap_err().kind(), ErrorKind::Shutdown);
    sleep(SECOND).await;
    assert_eq!(house.answers(), ["FIN", "FIN"]);
}

#[tokio::test(start_paused = true)]
async fn c5_an_owned_message_that_is_dropped_is_requeued_for_real() {
    let house = House::new().await;
    let (consumer, mut messages) = house.hand_on(house.consumer()).await;
    house.publish(&["one"]);
    drop(messages.recv().await.unwrap());
    sleep(SECOND).await;
    assert_eq!(house.answers(), ["REQ 90000"]);
    assert_eq!(consumer.stats().backoff_level, 1);
    let again = messages.recv().await.unwrap();
    assert_eq!(again.attempts(), 2);
    again.requeue_without_backoff(5 * SECOND).await.unwrap();
    let again = messages.recv().await.unwrap();
    assert_eq!(again.attempts(), 3);
    again.requeue(Duration::ZERO).await.unwrap();
    messages.recv().await.unwrap().finish().await.unwrap();
    settle().await;
    assert_eq!(house.answers(), ["REQ 90000", "REQ 5000", "REQ 0", "FIN"]);
}

#[tokio::test(start_paused = true)]
async fn c8_a_message_given_up_by_hand_goes_to_the_hook_and_is_finished() {
    let house = House::new().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let seen = Arc::clone(&seen);
        move |message: Message| {
            seen.lock().unwrap().push(message.body().clone());
            async {}
        }
    };
    let (consumer, mut messages) = house.hand_on(house.consumer().on_give_up(hook)).await;
    house.publish(&["one"]);
    messages.recv().await.unwrap().give_up().await.unwrap();
    settle().await;
    assert_eq!(*seen.lock().unwrap(), ["one"]);
    assert_eq!(house.answers(), ["FIN"]);
    assert_eq!(consumer.stats().given_up, 1);
}

#[tokio::test(start_paused = true)]
async fn lesson_27_a_refused_answer_reaches_its_message_a_hook_the_statistics_and_backoff() {
    let house = House::with(Nsqd::builder().msg_timeout(SECOND)).await;
    let refused: Arc<Mutex<Vec<AnswerRefused>>> = Arc::default();
    let hook = {
        let refused = Arc::clone(&refused);
        move |answer: &AnswerRefused| refused.lock().unwrap().push(answer.clone())
    };
    let (consumer, mut messages) = house.hand_on(house.consumer().on_answer_refused(hook)).await;
    house.publish(&["one"]);
    let late = messages.recv().await.unwrap();
    // nsqd would deliver it to the same connection again at once, and a late FIN would finish that delivery.
    house.nsqd.pause_channel("orders", "billing").unwrap();
    let id = late.id();
    assert_eq!(late.time_left(), SECOND);
    let lost = late.lost();
    sleep(2 * SECOND).await;
    assert_eq!(late.time_left(), Duration::ZERO);
    let error = late.finish_confirmed().await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::FinFailed));
    assert_eq!(lost.await.code(), Some(ErrorCode::FinFailed));
    sleep(Duration::from_millis(100)).await;
    let told = refused.lock().unwrap().clone();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].id, told[0].code), (Some(id), ErrorCode::FinFailed));
    let stats = consumer.stats();
    assert_eq!((stats.refused, stats.backoff_level, stats.connections), (1, 1, 1));
    // The connection is the same one, and goes on.
    house.nsqd.unpause_channel("orders", "billing").unwrap();
    let again = messages.recv().await.unwrap();
    assert_eq!((again.id(), again.attempts()), (id, 2));
    again.finish_confirmed().await.unwrap();
    assert_eq!(house.nsqd.stats().accepted, 1);
    assert_eq!(
        consumer.stats().refused,
        1,
        "the marker of a confirmation is no refusal"
    );
}

#[tokio::test(start_paused = true)]
async fn c6_a_touch_that_comes_too_late_is_told_to_who_waits_for_it() {
    let house = House::with(Nsqd::builder().msg_timeout(SECOND)).await;
    let (consumer, mut messages) = house.hand_on(house.consumer()).await;
    house.publish(&["one"]);
    let message = messages.recv().await.unwrap();
    sleep(SECOND / 2).await;
    message.touch().unwrap();
    assert_eq!(message.time_left(), SECOND);
    assert!(timeout(SECOND / 2, message.lost()).await.is_err());
    house.nsqd.pause_channel("orders", "billing").unwrap();
    sleep(SECOND).await;
    message.touch().unwrap();
    assert_eq!(message.lost().await.code(), Some(ErrorCode::TouchFailed));
    let stats = consumer.stats();
    assert_eq!((stats.refused, stats.backoff_level), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn c6_the_loss_of_the_connection_is_told_to_who_waits_for_it() {
    let house = House::new().await;
    let (consumer, mut messages) = house.hand_on(house.consumer()).await;
    house.publish(&["one"]);
    let message = messages.recv().await.unwrap();
    let lost = message.lost();
    house.nsqd.faults().disconnect();
    assert_eq!(lost.await.kind(), ErrorKind::ConnectionLost);
    assert_eq!(message.finish().await.unwrap_err().kind(), ErrorKind::ConnectionLost);
    let again = messages.recv().await.unwrap();
    assert_eq!(again.attempts(), 2);
    again.finish().await.unwrap();
    assert_eq!(consumer.stats().finished, 1);
}

#[tokio::test(start_paused = true)]
async fn c6_an_answer_is_confirmed_in_backoff_too() {
    let house = House::new().await;
    let (consumer, mut messages) = house.hand_on(house.consumer()).await;
    house.publish(&["one", "two"]);
    drop(messages.recv().await.unwrap());
    let second = messages.recv().await.unwrap();
    second.finish_confirmed().await.unwrap();
    let told: Vec<_> = house.nsqd.commands().into_iter().map(|c| c.command.name()).collect();
    let place = |name| told.iter().position(|told| *told == name);
    assert!(place(CommandName::Fin) < place(CommandName::Touch));
    assert_eq!(consumer.stats().finished, 1);
}

#[tokio::test(start_paused = true)]
async fn c7_what_is_held_at_the_deadline_is_given_back_and_reported() {
    let house = House::new().await;
    let (consumer, mut messages) = house.hand_on(house.consumer()).await;
    house.publish(&["one", "two", "three"]);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(messages.recv().await.unwrap());
    }
    let finished = held.remove(0);
    let expected: Vec<MessageId> = held.iter().map(Message::id).collect();
    let (report, ()) = tokio::join!(consumer.shutdown(10 * SECOND), async {
        sleep(SECOND).await;
        finished.finish().await.unwrap();
    });
    assert_eq!((report.finished, report.unflushed), (1, 0));
    assert_eq!(report.abandoned.iter().map(|m| m.id).collect::<Vec<_>>(), expected);
    assert!(!report.is_clean());
    for message in held {
        assert!(message.finish().await.is_err());
    }
    assert_eq!(house.answers(), ["FIN", "REQ 0", "REQ 0"]);
    assert_eq!(house.nsqd.channel("orders", "billing").unwrap().depth, 2);
}

#[tokio::test(start_paused = true)]
async fn c7_a_shutdown_ends_as_soon_as_the_last_held_message_is_answered() {
    let house = House::new().await;
    let (consumer, mut messages) = house.hand_on(house.consumer()).await;
    house.publish(&["one"]);
    let message = messages.recv().await.unwrap();
    let begun = tokio::time::Instant::now();
    let (report, ()) = tokio::join!(consumer.shutdown(3600 * SECOND), async {
        sleep(SECOND).await;
        drop(message);
    });
    assert!(begun.elapsed() < 2 * SECOND);
    assert!(report.is_clean() && report.requeued == 1, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn c7_messages_held_when_the_consumer_is_dropped_can_be_answered() {
    let house = House::new().await;
    let (consumer, mut messages) = house.hand_on(house.consumer()).await;
    house.publish(&["one", "two"]);
    let (first, second) = (messages.recv().await.unwrap(), messages.recv().await.unwrap());
    drop(consumer);
    sleep(20 * SECOND).await;
    first.finish().await.unwrap();
    drop(second);
    house.nsqd.wait_for(|stats| stats.clients.is_empty()).await.unwrap();
    assert_eq!(house.answers(), ["FIN", "REQ 90000"]);
}
