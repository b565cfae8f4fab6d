//! `/pub` and `/mpub`.

use std::time::Duration;

use async_nsq::test_server::Nsqd;
use tokio::time::Instant;

use crate::House;

#[tokio::test(start_paused = true)]
async fn pub_is_checked_in_nsqds_order() {
    let house = House::with(Nsqd::builder().max_msg_size(4)).await;
    house
        .check(&[
            ("POST /pub?topic=t", b"x", 200, "OK"),
            ("POST /pub?topic=%", b"12345", 413, r#"{"message":"MSG_TOO_BIG"}"#),
            ("POST /pub?topic=%", b"", 400, r#"{"message":"MSG_EMPTY"}"#),
            ("POST /pub?topic=%", b"x", 400, r#"{"message":"INVALID_REQUEST"}"#),
            ("POST /pub?topic=t;u", b"x", 400, r#"{"message":"INVALID_REQUEST"}"#),
            ("POST /pub", b"x", 400, r#"{"message":"MISSING_ARG_TOPIC"}"#),
            ("POST /pub?topic=", b"x", 400, r#"{"message":"INVALID_TOPIC"}"#),
            (
                "POST /pub?topic=a$b&defer=x",
                b"x",
                400,
                r#"{"message":"INVALID_TOPIC"}"#,
            ),
            ("POST /pub?topic=t&topic=$", b"x", 200, "OK"),
            ("POST /pub?topic=t%23ephemeral", b"x", 200, "OK"),
        ])
        .await;
    assert_eq!(house.nsqd.drain("t", "c").unwrap(), ["x", "x"]);
    assert_eq!(house.nsqd.drain("t#ephemeral", "c").unwrap(), ["x"]);
}

#[tokio::test(start_paused = true)]
async fn a_topic_exists_even_if_its_delay_is_refused() {
    let house = House::new().await;
    for defer in [
        "x",
        "3600001",
        "-1",
        "",
        "+5",
        "1_0",
        "9223372036854775807",
        "9223372036855",
    ] {
        house
            .check(&[(
                &format!("POST /pub?topic=t&defer={defer}"),
                b"x",
                400,
                r#"{"message":"INVALID_DEFER"}"#,
            )])
            .await;
    }
    assert_eq!(house.nsqd.topic("t").unwrap().message_count, 0);
    // nsqd's nanoseconds wrap.
    for defer in ["0", "-0", "%2B5", "3600000", "18446744073710"] {
        house
            .check(&[(&format!("POST /pub?topic=t&defer={defer}"), b"x", 200, "OK")])
            .await;
    }
    assert_eq!(house.nsqd.topic("t").unwrap().message_count, 5);
}

#[tokio::test(start_paused = true)]
async fn a_deferred_message_comes_at_its_time() {
    let house = House::new().await;
    let mut consumer = house.client().await;
    consumer.subscribe("t", "c", 1).await;
    let start = Instant::now();
    house
        .check(&[("POST /pub?topic=t&defer=60000", b"later", 200, "OK")])
        .await;
    assert_eq!(house.nsqd.channel("t", "c").unwrap().deferred, 1);
    let message = consumer.message().await;
    assert_eq!(message.body, "later");
    let late = start.elapsed().checked_sub(Duration::from_secs(60)).unwrap();
    assert!(late < Duration::from_secs(1), "{late:?} late");
}

#[tokio::test(start_paused = true)]
async fn mpub_takes_a_message_from_each_line() {
    let house = House::with(Nsqd::builder().max_msg_size(4).max_body_size(16)).await;
    house
        .check(&[
            ("POST /mpub?topic=t", b"a\n\nbc\n\nd\r\n", 200, "OK"),
            ("POST /mpub?topic=t&binary=false", b"e", 200, "OK"),
            ("POST /mpub?topic=t&binary=0&defer=60000", b"f", 200, "OK"),
            ("POST /mpub?topic=t", b"", 200, "OK"),
            ("POST /mpub?topic=u", b"", 200, "OK"),
            ("POST /mpub?topic=t", b"ok\n12345", 413, r#"{"message":"MSG_TOO_BIG"}"#),
            (
                "POST /mpub?topic=%",
                b"01234567890123456",
                413,
                r#"{"message":"BODY_TOO_BIG"}"#,
            ),
            ("POST /mpub", b"x", 400, r#"{"message":"MISSING_ARG_TOPIC"}"#),
            ("POST /mpub?topic=!", b"x", 400, r#"{"message":"INVALID_TOPIC"}"#),
            ("POST /mpub?topic=v", b"12345", 413, r#"{"message":"MSG_TOO_BIG"}"#),
        ])
        .await;
    assert_eq!(house.nsqd.drain("t", "c").unwrap(), ["a", "bc", "d\r", "e", "f"]);
    assert!(house.nsqd.topic("u").is_some() && house.nsqd.topic("v").is_some());
}

#[tokio::test(start_paused = true)]
async fn binary_mpub_takes_a_count_and_lengths() {
    let house = House::with(Nsqd::builder().max_msg_size(4).max_body_size(64)).await;
    let two = b"\0\0\0\x02\0\0\0\x01a\0\0\0\x02b\n";
    house
        .check(&[
            ("POST /mpub?topic=t&binary=true", two, 200, "OK"),
            (
                "POST /mpub?topic=t&binary=1",
                b"\0\0\0\x01\0\0\0\x01cwhat follows",
                200,
                "OK",
            ),
            ("POST /mpub?topic=t&binary", b"\0\0\0\x01\0\0\0\x01d", 200, "OK"),
            ("POST /mpub?topic=t&binary=perhaps", b"\0\0\0\x01\0\0\0\x01e", 200, "OK"),
            ("POST /mpub?topic=t&binary=1", b"\0\0", 413, r#"{"message":"BAD_BODY"}"#),
            (
                "POST /mpub?topic=t&binary=1",
                b"\0\0\0\0",
                413,
                r#"{"message":"BAD_BODY"}"#,
            ),
            (
                "POST /mpub?topic=t&binary=1",
                b"\xff\xff\xff\xff",
                413,
                r#"{"message":"BAD_BODY"}"#,
            ),
            // (64 - 4) / 5 is the most.
            (
                "POST /mpub?topic=t&binary=1",
                b"\0\0\0\x0d",
                413,
                r#"{"message":"BAD_BODY"}"#,
            ),
            (
                "POST /mpub?topic=t&binary=1",
                b"\0\0\0\x0c",
                413,
                r#"{"message":"BAD_MESSAGE"}"#,
            ),
            (
                "POST /mpub?topic=t&binary=1",
                b"\0\0\0\x01\0\0\0\0",
                413,
                r#"{"message":"BAD_MESSAGE"}"#,
            ),
            (
                "POST /mpub?topic=t&binary=1",
                b"\0\0\0\x01\0\0\0\x05abcde",
                413,
                r#"{"message":"BAD_MESSAGE"}"#,
            ),
            (
                "POST /mpub?topic=t&binary=1",
                b"\0\0\0\x02\0\0\0\x01a",
                413,
                r#"{"message":"BAD_MESSAGE"}"#,
            ),
        ])
        .await;
    assert_eq!(house.nsqd.drain("t", "c").unwrap(), ["a", "b\n", "c", "d", "e"]);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_cannot_store_says_so_until_it_can() {
    let house = House::with(Nsqd::builder().max_queue_bytes(10)).await;
    house
        .check(&[
            (
                "POST /pub?topic=t",
                b"more than ten bytes",
                503,
                r#"{"message":"EXITING"}"#,
            ),
            (
                "POST /mpub?topic=t",
                b"more than ten bytes",
                503,
                r#"{"message":"EXITING"}"#,
            ),
            (
                "GET /ping",
                b"",
                500,
                "NOK - the test broker's max_queue_bytes is reached",
            ),
            ("POST /pub?topic=t", b"x", 200, "OK"),
            ("GET /ping", b"", 200, "OK"),
        ])
        .await;
}
