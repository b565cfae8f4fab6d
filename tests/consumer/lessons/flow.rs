//! Section 3.3: RDY and backoff.

use std::time::Duration;

use async_nsq::backoff::{Backoff, Exponential, FullJitter};
use async_nsq::transport::MemoryNetwork;
use async_nsq::{BoxError, Consumer, Message};
use tokio::time::{Instant, sleep};

use super::{House, consumer_in, rest, until};
use crate::model::Model;
use crate::scripted::{Nsqd, SECOND, delivery, fin, req, stuck, text};
use crate::support::{Command, Peer, frames};

/// Fails on "fail".
async fn obey(message: Message) -> Result<(), BoxError> {
    match text(&message) {
        "fail" => Err("no".into()),
        _ => Ok(()),
    }
}

/// Delivers a message that fails or not, and reads its answer and the RDY that lets messages come again, with the time
/// that passed until then.
async fn pause_after(peer: &mut Peer, number: u64, body: &'static str) -> (Duration, u64) {
    let begun = Instant::now();
    peer.send_bytes(&frames(&[delivery(number, 1, body)])).await;
    let answer = if body == "fail" {
        req(number, 90_000)
    } else {
        fin(number)
    };
    let (mut answered, mut raised) = (false, None);
    loop {
        match peer.command().await {
            Command::Rdy(0) => {}
            Command::Rdy(count) => raised = Some((begun.elapsed(), count)),
            command => {
                assert_eq!(command, answer);
                answered = true;
            }
        }
        if let (true, Some(raised)) = (answered, raised) {
            return raised;
        }
    }
}

/// A consumer with a backoff of 5 s at most, after 50 failures in a row.
async fn after_fifty_failures(strategy: impl Backoff + 'static) -> (Nsqd, Consumer, Peer, Vec<Duration>) {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10);
    let builder = builder.backoff(strategy).max_backoff_duration(5 * SECOND);
    let (consumer, mut peer) = nsqd.consume_with(builder, obey).await;
    let mut pauses = Vec::new();
    for number in 0..50 {
        let (pause, rdy) = pause_after(&mut peer, number, "fail").await;
        assert_eq!(rdy, 1);
        pauses.push(pause);
    }
    (nsqd, consumer, peer, pauses)
}

#[tokio::test(start_paused = true)]
async fn lesson_45_a_level_never_runs_past_the_cap_so_recovery_is_as_short_as_the_way_in() {
    let (_nsqd, consumer, mut peer, pauses) = after_fifty_failures(Exponential::default()).await;
    let seconds: Vec<_> = pauses.iter().map(Duration::as_secs).collect();
    assert_eq!(seconds[..2], [2, 4]);
    assert!(seconds[2..].iter().all(|pause| *pause == 4), "{seconds:?}");
    // go-nsq would be at level 50 and need as many successes.
    assert_eq!(consumer.stats().backoff_level, 2);
    assert_eq!(pause_after(&mut peer, 50, "ok").await.1, 1);
    assert_eq!(pause_after(&mut peer, 51, "ok").await.1, 10);
}

#[tokio::test(start_paused = true)]
async fn lesson_45_full_jitter_is_bounded_too() {
    let (_nsqd, consumer, mut peer, pauses) = after_fifty_failures(FullJitter::default()).await;
    assert!(pauses.iter().all(|pause| *pause <= 5 * SECOND), "{pauses:?}");
    assert!(pauses.iter().any(|pause| *pause > SECOND), "{pauses:?}");
    assert_eq!(consumer.stats().backoff_level, 2);
    assert_eq!(pause_after(&mut peer, 50, "ok").await.1, 1);
    assert_eq!(pause_after(&mut peer, 51, "ok").await.1, 10);
}

/// Three seconds more for each level.
#[derive(Debug)]
struct Linear;

impl Backoff for Linear {
    fn delay(&self, attempt: u32, _: f64) -> Duration {
        3 * SECOND * attempt
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_46_the_strategy_of_backoff_can_be_the_user_s_own() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().backoff(Linear);
    let (_consumer, mut peer) = nsqd.consume_with(builder, obey).await;
    for number in 0..5 {
        let (pause, _) = pause_after(&mut peer, number, "fail").await;
        assert_eq!(pause.as_secs(), 3 * (number + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_49_an_nsqd_that_comes_later_waits_for_what_is_in_flight_elsewhere() {
    let network = MemoryNetwork::new();
    let model = Model::start(&network, 2, 2500);
    model.publish(0, 0..100);
    model.publish(1, 1000..1100);
    let consumer = consumer_in(&network).max_in_flight(10).nsqd("nsqd-0:4150");
    let consumer = consumer.start(stuck).await.unwrap();
    rest().await;
    assert_eq!(model.in_flight(), 10);
    consumer.add_nsqd("nsqd-1:4150").await.unwrap();
    for _ in 0..100 {
        sleep(SECOND).await;
        assert!(consumer.stats().in_flight <= 10, "{:#?}", consumer.stats());
        assert!(model.in_flight() <= 10);
    }
    // pynsq has counted RDY alone, and go-nsq still does: 10 in flight here and 5 more there.
    assert!(model.most_in_flight() <= 10, "{}", model.most_in_flight());
}

#[tokio::test(start_paused = true)]
async fn lesson_51_more_may_be_in_flight_from_one_moment_to_the_next_and_less_too() {
    let house = House::new().await;
    house.publish(100);
    let consumer = house.consumer().max_in_flight(5).concurrency(100);
    let consumer = consumer.start(stuck).await.unwrap();
    until(&consumer, |stats| stats.in_flight == 5).await;
    consumer.set_max_in_flight(30).await;
    until(&consumer, |stats| stats.in_flight == 30).await;
    assert_eq!(house.client().rdy, 30);
    consumer.set_max_in_flight(2).await;
    rest().await;
    assert_eq!((house.client().rdy, consumer.stats().in_flight), (2, 30));
    assert_eq!(house.nsqd.stats().accepted, 1, "on the same connection");
}
