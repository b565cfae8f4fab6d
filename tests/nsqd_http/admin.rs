//! Topics and channels by the handle.

use std::time::Duration;

use async_nsq::ErrorKind;
use async_nsq::test_server::Nsqd;

use crate::House;
use crate::raw::Event;

#[tokio::test(start_paused = true)]
async fn a_topic_lives_by_hand() {
    let nsqd = Nsqd::builder().start_detached("nsqd:4150").unwrap();
    nsqd.create_topic("t").unwrap();
    nsqd.create_topic("t").unwrap();
    nsqd.publish("t", "1").unwrap();
    nsqd.empty_topic("t").unwrap();
    assert_eq!(nsqd.topic("t").unwrap().depth, 0);

    nsqd.create_channel("t", "c").unwrap();
    nsqd.pause_topic("t").unwrap();
    nsqd.publish("t", "2").unwrap();
    assert_eq!(nsqd.channel("t", "c").unwrap().depth, 0);
    nsqd.unpause_topic("t").unwrap();
    assert_eq!(nsqd.channel("t", "c").unwrap().depth, 1);
    nsqd.empty_channel("t", "c").unwrap();
    assert_eq!(nsqd.channel("t", "c").unwrap().depth, 0);

    nsqd.delete_channel("t", "c").unwrap();
    assert_eq!(nsqd.channel("t", "c"), None);
    nsqd.delete_topic("t").unwrap();
    assert_eq!(nsqd.topic("t"), None);
}

#[tokio::test(start_paused = true)]
async fn a_paused_channel_sends_nothing_and_a_deleted_one_disconnects() {
    let house = House::new().await;
    let moment = Duration::from_millis(300);
    let mut consumer = house.client().await;
    consumer.subscribe("t", "c", 1).await;
    house.nsqd.pause_channel("t", "c").unwrap();
    house.nsqd.publish("t", "x").unwrap();
    consumer.assert_silent(moment).await;
    house.nsqd.unpause_channel("t", "c").unwrap();
    assert_eq!(consumer.message().await.body, "x");
    house.nsqd.delete_channel("t", "c").unwrap();
    assert_eq!(consumer.next(moment).await, Event::Closed);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_exist_is_named() {
    let nsqd = Nsqd::builder().start_detached("nsqd:4150").unwrap();
    nsqd.create_topic("t").unwrap();
    for (result, text) in [
        (nsqd.delete_topic("u"), r#"there is no topic "u""#),
        (nsqd.empty_topic("u"), r#"there is no topic "u""#),
        (nsqd.pause_topic("u"), r#"there is no topic "u""#),
        (nsqd.unpause_topic("u"), r#"there is no topic "u""#),
        (nsqd.delete_channel("u", "c"), r#"there is no topic "u""#),
        (nsqd.empty_channel("t", "c"), r#"the topic "t" has no channel "c""#),
        (nsqd.pause_channel("t", "c"), r#"the topic "t" has no channel "c""#),
        (nsqd.unpause_channel("t", "c"), r#"the topic "t" has no channel "c""#),
        (nsqd.delete_channel("t", "c"), r#"the topic "t" has no channel "c""#),
    ] {
        let error = result.unwrap_err();
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::Invalid, text));
    }
    assert_eq!(nsqd.create_topic("no spaces").unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(nsqd.create_channel("t", "!").unwrap_err().kind(), ErrorKind::Invalid);
}
