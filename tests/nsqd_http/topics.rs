//! Topics and channels by HTTP.

use std::time::Duration;

use crate::House;
use crate::raw::Event;

const MOMENT: Duration = Duration::from_millis(300);

#[tokio::test(start_paused = true)]
async fn operations_on_topics_are_checked_in_nsqds_order() {
    let house = House::new().await;
    const INVALID: (u16, &str) = (400, r#"{"message":"INVALID_TOPIC"}"#);
    const UNKNOWN: (u16, &str) = (404, r#"{"message":"TOPIC_NOT_FOUND"}"#);
    for (path, bad_name, unknown) in [
        ("create", INVALID, (200, "")),
        ("empty", INVALID, UNKNOWN),
        ("delete", UNKNOWN, UNKNOWN),
        ("pause", UNKNOWN, UNKNOWN),
        ("unpause", UNKNOWN, UNKNOWN),
    ] {
        let question = |query: &str| format!("POST /topic/{path}{query}");
        house
            .check(&[
                (&question(""), b"", 400, r#"{"message":"MISSING_ARG_TOPIC"}"#),
                (&question("?topic=%"), b"", 400, r#"{"message":"INVALID_REQUEST"}"#),
                (&question("?topic="), b"", bad_name.0, bad_name.1),
                (&question("?topic=!"), b"", bad_name.0, bad_name.1),
                (
                    &question(&format!("?topic=no-{path}&channel=!")),
                    b"",
                    unknown.0,
                    unknown.1,
                ),
                ("POST /topic/create?topic=t", b"", 200, ""),
                (&question("?topic=t"), b"", 200, ""),
            ])
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn operations_on_channels_are_checked_in_nsqds_order() {
    let house = House::new().await;
    for path in ["create", "delete", "empty", "pause", "unpause"] {
        let question = |query: &str| format!("POST /channel/{path}{query}");
        let unknown = match path {
            "create" => (200, ""),
            _ => (404, r#"{"message":"CHANNEL_NOT_FOUND"}"#),
        };
        house
            .check(&[
                ("POST /topic/create?topic=t", b"", 200, ""),
                (&question(""), b"", 400, r#"{"message":"MISSING_ARG_TOPIC"}"#),
                (&question("?topic=%"), b"", 400, r#"{"message":"INVALID_REQUEST"}"#),
                (&question("?topic=!"), b"", 400, r#"{"message":"INVALID_ARG_TOPIC"}"#),
                (&question("?topic=t"), b"", 400, r#"{"message":"MISSING_ARG_CHANNEL"}"#),
                (
                    &question("?topic=zz&channel=!"),
                    b"",
                    400,
                    r#"{"message":"INVALID_ARG_CHANNEL"}"#,
                ),
                (
                    &question("?topic=zz&channel=c"),
                    b"",
                    404,
                    r#"{"message":"TOPIC_NOT_FOUND"}"#,
                ),
                (&question("?topic=t&channel=c"), b"", unknown.0, unknown.1),
                ("POST /channel/create?topic=t&channel=c", b"", 200, ""),
                (&question("?topic=t&channel=c"), b"", 200, ""),
                ("POST /topic/delete?topic=t", b"", 200, ""),
            ])
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn deletion_disconnects_the_subscribers_without_a_word() {
    let house = House::new().await;
    let (mut first, mut second) = (house.client().await, house.client().await);
    first.subscribe("t", "c1", 1).await;
    second.subscribe("t", "c2", 1).await;
    house
        .check(&[("POST /channel/delete?topic=t&channel=c1", b"", 200, "")])
        .await;
    assert_eq!(first.next(MOMENT).await, Event::Closed);
    second.assert_silent(MOMENT).await;
    house.check(&[("POST /topic/delete?topic=t", b"", 200, "")]).await;
    assert_eq!(second.next(MOMENT).await, Event::Closed);
    assert_eq!(house.nsqd.topic("t"), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_paused_is_held_and_then_let_go() {
    let house = House::new().await;
    let mut consumer = house.client().await;
    consumer.subscribe("t", "c", 5).await;
    house
        .check(&[
            ("POST /channel/pause?topic=t&channel=c", b"", 200, ""),
            ("POST /pub?topic=t", b"1", 200, "OK"),
        ])
        .await;
    consumer.assert_silent(MOMENT).await;
    house
        .check(&[("POST /channel/unpause?topic=t&channel=c", b"", 200, "")])
        .await;
    assert_eq!(consumer.message().await.body, "1");
    house
        .check(&[
            ("POST /topic/pause?topic=t", b"", 200, ""),
            ("POST /pub?topic=t", b"2", 200, "OK"),
        ])
        .await;
    consumer.assert_silent(MOMENT).await;
    assert_eq!(house.nsqd.topic("t").unwrap().depth, 1);
    house.check(&[("POST /topic/unpause?topic=t", b"", 200, "")]).await;
    assert_eq!(consumer.message().await.body, "2");
}

#[tokio::test(start_paused = true)]
async fn emptying_a_topic_leaves_its_channels_alone() {
    let house = House::new().await;
    house
        .check(&[
            ("POST /topic/create?topic=t", b"", 200, ""),
            ("POST /channel/create?topic=t&channel=c", b"", 200, ""),
            ("POST /pub?topic=t", b"1", 200, "OK"),
            ("POST /topic/pause?topic=t", b"", 200, ""),
            ("POST /pub?topic=t", b"2", 200, "OK"),
            ("POST /topic/empty?topic=t", b"", 200, ""),
        ])
        .await;
    assert_eq!(house.nsqd.topic("t").unwrap().depth, 0);
    assert_eq!(house.nsqd.channel("t", "c").unwrap().depth, 1);
    house
        .check(&[("POST /channel/empty?topic=t&channel=c", b"", 200, "")])
        .await;
    assert_eq!(house.nsqd.channel("t", "c").unwrap().depth, 0);
}
