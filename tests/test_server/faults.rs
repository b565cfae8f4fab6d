//! The broker misbehaves on command.

use std::time::Duration;

use async_nsq::protocol::{Command, CommandName, Frame, FrameError, HEARTBEAT};
use async_nsq::test_server::{Feature, FrameKind, Nsqd};
use async_nsq::transport::Connector;
use tokio::time::Instant;

use super::raw::{Event, RawClient};
use super::{ADDRESS, House, MOMENT, error, publish};

const OK: Frame = Frame::Response(bytes::Bytes::from_static(b"OK"));

fn identify(body: &str) -> Command {
    Command::Identify {
        body: body.to_owned().into(),
    }
}

#[tokio::test(start_paused = true)]
async fn an_ignored_sub_is_never_answered_and_does_nothing() {
    let house = House::new().await;
    let fault = house.nsqd.faults().command(CommandName::Sub).ignore();
    let mut client = house.client().await;
    let (topic, channel) = ("t".to_owned(), "c".to_owned());
    client.send(Command::Sub { topic, channel }).await;
    client.assert_silent(MOMENT).await;
    assert_eq!((fault.hits(), house.nsqd.topic("t")), (1, None));
    fault.lift();
    client.subscribe("t", "c", 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_delayed_command_is_carried_out_later_and_holds_up_the_next_ones_but_not_messages() {
    let house = House::new().await;
    let mut client = house.consumer(1).await;
    let seen = house.nsqd.wait_for(|stats| stats.clients[0].rdy == 1).await;
    seen.unwrap();
    house.nsqd.faults().publishes().once().delay(Duration::from_secs(50));
    let sent = Instant::now();
    client.send(publish("slow")).await;
    client.send(publish("behind")).await;
    house.nsqd.publish("t", "by hand").unwrap();
    assert_eq!(client.message().await.body, "by hand");
    assert_eq!(sent.elapsed(), Duration::ZERO);
    // Heartbeats go on, and the client is not taken for dead while it waits for the broker.
    for _ in 0..2 {
        assert_eq!(client.frame().await, OK);
        assert_eq!(sent.elapsed(), Duration::from_secs(50));
    }
    assert_eq!(house.nsqd.published("t"), ["slow", "behind"]);
}

#[tokio::test(start_paused = true)]
async fn a_kept_answer_comes_after_the_next_one() {
    let house = House::new().await;
    house.nsqd.faults().publishes().once().hold_answer();
    let mut client = house.client().await;
    client.send(publish("x")).await;
    client.assert_silent(MOMENT).await;
    client
        .send(identify(r#"{"feature_negotiation":true,"msg_timeout":1000}"#))
        .await;
    let Frame::Response(json) = client.frame().await else {
        panic!("not the second answer")
    };
    assert!(json.starts_with(b"{"));
    assert_eq!(client.frame().await, OK);
}

#[tokio::test(start_paused = true)]
async fn a_forged_answer_confirms_what_was_not_stored() {
    let house = House::new().await;
    house.nsqd.faults().publishes().once().forge(OK);
    let mut client = house.client().await;
    client.ask(publish("lost"), "OK").await;
    client.ask(publish("kept"), "OK").await;
    assert_eq!(house.nsqd.drain("t", "c").unwrap(), ["kept"]);
}

#[tokio::test(start_paused = true)]
async fn a_late_fin_fails_and_the_message_comes_again() {
    let house = House::new().await;
    let mut consumer = house.consumer(1).await;
    house.nsqd.publish("t", "x").unwrap();
    house.nsqd.faults().command(CommandName::Fin).once().late();
    let id = consumer.message().await.id;
    consumer.send(Command::Fin { id }).await;
    let text = error(consumer.frame().await);
    assert_eq!(text, format!("E_FIN_FAILED FIN {id} failed ID not in flight"));
    let again = consumer.message().await;
    assert_eq!((again.id, again.attempts), (id, 2));
    consumer.send(Command::Fin { id }).await;
    let finished = |stats: &async_nsq::test_server::Stats| stats.channel("t", "c").unwrap().finish_count == 1;
    house.nsqd.wait_for(finished).await.unwrap();
    assert_eq!(house.nsqd.channel("t", "c").unwrap().timeout_count, 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_can_end_before_or_after_a_command_was_carried_out() {
    let house = House::new().await;
    house.nsqd.faults().publishes().once().disconnect();
    house.nsqd.faults().publishes().once().disconnect_after();
    for body in ["before", "after"] {
        let mut client = house.client().await;
        client.ask(identify("{}"), "OK").await;
        client.send(publish(body)).await;
        assert_eq!(client.next(MOMENT).await, Event::Closed);
    }
    assert_eq!(house.nsqd.drain("t", "c").unwrap(), ["after"]);
    house.client().await.ask(publish("x"), "OK").await;
}

#[tokio::test(start_paused = true)]
async fn any_code_can_be_an_answer_and_only_three_leave_the_connection_open() {
    let house = House::new().await;
    for code in ["E_FIN_FAILED", "E_REQ_FAILED", "E_TOUCH_FAILED"] {
        let mut client = house.client().await;
        house.nsqd.faults().command(CommandName::Nop).once().reject(code);
        client.send(Command::Nop).await;
        assert_eq!(error(client.frame().await), code);
        client.ask(publish("x"), "OK").await;
    }
    for code in [
        "E_INVALID",
        "E_BAD_TOPIC",
        "E_UNAUTHORIZED",
        "E_PUB_FAILED",
        "E_WHATEVER",
    ] {
        let mut client = house.client().await;
        house.nsqd.faults().commands().once().reject(format!("{code} because"));
        client.send(publish("x")).await;
        assert_eq!(error(client.frame().await), format!("{code} because"));
        assert_eq!(client.next(MOMENT).await, Event::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_can_be_swallowed_doubled_replaced_or_no_frame_at_all() {
    let house = House::new().await;
    let faults = house.nsqd.faults().frames(FrameKind::Response);
    faults.once().swallow();
    house.nsqd.faults().frames(FrameKind::Response).once().duplicate();
    let mut client = house.client().await;
    client.send(publish("swallowed")).await;
    client.ask(publish("doubled"), "OK").await;
    assert_eq!(client.frame().await, OK);

    let one = || house.nsqd.faults().frames(FrameKind::Any).once();
    one().replace(&b"\0\0\0\x06\0\0\0\0KO"[..]);
    client.ask(publish("replaced"), "KO").await;
    for (break_it, what) in [
        (
            one().size(i32::MAX),
            FrameError::TooLarge {
                size: i32::MAX as u32,
                limit: 1_048_606,
            },
        ),
        (one().size(-1), FrameError::NegativeSize(-1)),
        (one().size(3), FrameError::TooSmall(3)),
        (one().frame_type(7), FrameError::UnknownType(7)),
        (one().garble(), FrameError::NegativeSize(!6)),
    ] {
        let mut client = house.client().await;
        client.send(publish("x")).await;
        assert_eq!(client.next(MOMENT).await, Event::Malformed(what));
        assert_eq!(break_it.hits(), 1);
        break_it.lift();
    }
}

#[tokio::test(start_paused = true)]
async fn a_delayed_frame_holds_back_all_behind_it() {
    let house = House::new().await;
    house
        .nsqd
        .faults()
        .frames(FrameKind::Response)
        .once()
        .delay(Duration::from_secs(40));
    let mut client = house.client().await;
    let opened = Instant::now();
    client.send(publish("x")).await;
    house.nsqd.wait_for(|stats| stats.topic("t").is_some()).await.unwrap();
    assert_eq!(client.next(Duration::from_secs(100)).await, Event::Frame(OK));
    assert_eq!(opened.elapsed(), Duration::from_secs(40));
    // The heartbeat was due after 30 seconds.
    let heartbeat = Event::Frame(Frame::Response(HEARTBEAT.into()));
    assert_eq!(client.next(Duration::from_secs(1)).await, heartbeat);
    assert_eq!(opened.elapsed(), Duration::from_secs(40));
}

#[tokio::test(start_paused = true)]
async fn a_connection_can_be_cut_within_a_frame_or_after_so_many_bytes() {
    let house = House::new().await;
    house.nsqd.publish("t", "hello").unwrap();
    house.nsqd.faults().frames(FrameKind::Message).once().cut();
    let mut consumer = house.consumer(1).await;
    assert_eq!(consumer.next(MOMENT).await, Event::Closed);

    let cut = house.nsqd.faults().cut_after_bytes(25);
    let mut client = house.client().await;
    for _ in 0..3 {
        client.send(publish("x")).await;
    }
    for expected in [Event::Frame(OK), Event::Frame(OK), Event::Closed] {
        assert_eq!(client.next(MOMENT).await, expected);
    }
    cut.lift();
    let mut client = house.client().await;
    for _ in 0..4 {
        client.ask(publish("x"), "OK").await;
    }
    house.nsqd.faults().cut_after_bytes(10);
    client.ask(publish("x"), "OK").await;
    assert_eq!(client.next(MOMENT).await, Event::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_fault_can_concern_one_connection_only() {
    let house = House::new().await;
    house.nsqd.faults().connection(2).publishes().reject("E_PUB_FAILED no");
    let (mut first, mut second) = (house.client().await, house.client().await);
    first.ask(publish("x"), "OK").await;
    second.send(publish("x")).await;
    assert_eq!(error(second.frame().await), "E_PUB_FAILED no");
    let mut third = house.client().await;
    third.ask(publish("x"), "OK").await;
    house.nsqd.faults().connection(3).disconnect();
    assert_eq!(third.next(MOMENT).await, Event::Closed);
    first.ask(publish("x"), "OK").await;
}

#[tokio::test(start_paused = true)]
async fn accepted_connections_can_be_closed_delayed_or_ignored() {
    let house = House::new().await;
    let accepts = || house.nsqd.faults().accepts().once();
    accepts().close();
    assert_eq!(house.client().await.next(MOMENT).await, Event::Closed);

    accepts().delay(Duration::from_secs(5));
    let mut client = house.client().await;
    let opened = Instant::now();
    client.ask(publish("x"), "OK").await;
    assert_eq!(opened.elapsed(), Duration::from_secs(5));

    accepts().ignore();
    let mut client = house.client().await;
    client.send(publish("x")).await;
    client.assert_silent(Duration::from_secs(600)).await;
    house.client().await.ask(publish("x"), "OK").await;
}

#[tokio::test(start_paused = true)]
async fn stalled_reads_and_stalled_writes_are_two_things() {
    let house = House::new().await;
    let mut client = house.client().await;
    client.ask(publish("x"), "OK").await;
    house.nsqd.faults().stall_writes(true);
    client.send(publish("y")).await;
    let stored = |stats: &async_nsq::test_server::Stats| stats.topic("t").unwrap().message_count == 2;
    house.nsqd.wait_for(stored).await.unwrap();
    client.assert_silent(MOMENT).await;
    house.nsqd.faults().thaw();
    assert_eq!(client.frame().await, OK);

    house.nsqd.faults().stall_reads(true);
    client.send(publish("z")).await;
    let heartbeat = Event::Frame(Frame::Response(HEARTBEAT.into()));
    assert_eq!(client.next(Duration::from_secs(31)).await, heartbeat);
    assert_eq!(house.nsqd.topic("t").unwrap().message_count, 2);
    house.nsqd.faults().thaw();
    assert_eq!(client.frame().await, OK);
}

#[tokio::test(start_paused = true)]
async fn bytes_can_be_injected() {
    let house = House::new().await;
    let mut client = house.client().await;
    client.ask(publish("x"), "OK").await;
    house.nsqd.faults().inject(&b"\0\0\0\x0b\0\0\0\0UN"[..]);
    house.nsqd.faults().inject(&b"ASKE"[..]);
    client.assert_silent(MOMENT).await;
    house.nsqd.faults().inject(&b"D"[..]);
    assert_eq!(client.frame().await, Frame::Response("UNASKED".into()));
}

#[tokio::test(start_paused = true)]
async fn each_feature_can_be_refused() {
    let asked = r#"{"feature_negotiation":true,"sample_rate":50,"msg_timeout":5000,"output_buffer_timeout":100,"heartbeat_interval":1000}"#;
    let answer = async |feature: Option<Feature>| {
        let nsqd = House::with(Nsqd::builder()).await;
        if let Some(feature) = feature {
            nsqd.nsqd.faults().refuse_feature(feature);
        }
        let mut client = nsqd.client().await;
        client.send(identify(asked)).await;
        let Frame::Response(json) = client.frame().await else {
            panic!("no answer")
        };
        let heartbeat = Event::Frame(Frame::Response(HEARTBEAT.into()));
        let soon = client.next(Duration::from_secs(2)).await == heartbeat;
        (String::from_utf8(json.to_vec()).unwrap(), soon)
    };
    let (full, soon) = answer(None).await;
    for granted in [
        r#""sample_rate":50"#,
        r#""msg_timeout":5000"#,
        r#""output_buffer_timeout":100"#,
    ] {
        assert!(full.contains(granted) && soon, "{full}");
    }
    for (feature, refused) in [
        (Feature::SampleRate, r#""sample_rate":0"#),
        (Feature::MsgTimeout, r#""msg_timeout":60000"#),
        (Feature::OutputBuffer, r#""output_buffer_timeout":250"#),
        (Feature::Tls, r#""tls_v1":false"#),
        (Feature::Snappy, r#""snappy":false"#),
        (Feature::Deflate, r#""deflate":false"#),
        (Feature::Negotiation, "OK"),
    ] {
        let (answer, _) = answer(Some(feature)).await;
        assert!(answer.contains(refused), "{feature:?}: {answer}");
    }
    assert!(!answer(Some(Feature::HeartbeatInterval)).await.1);
}

#[tokio::test(start_paused = true)]
async fn clear_takes_everything_back() {
    let house = House::new().await;
    let faults = house.nsqd.faults();
    let mut client = house.client().await;
    client.ask(publish("x"), "OK").await;
    faults.publishes().swallow();
    faults.drop_heartbeats();
    faults.cut_after_bytes(1);
    faults.freeze();
    faults.refuse_connections();
    assert!(house.network.connector().connect(ADDRESS).await.is_err());
    faults.connection(9).clear().unwrap();
    client.ask(publish("x"), "OK").await;
    RawClient::open(&house.network.connector(), ADDRESS)
        .await
        .ask(publish("x"), "OK")
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_a_late_command_has_given_back_comes_again_at_once() {
    let house = House::new().await;
    let mut consumer = house.consumer(1).await;
    house.nsqd.publish("t", "x").unwrap();
    house.nsqd.faults().command(CommandName::Fin).once().late();
    let id = consumer.message().await.id;
    let finished = Instant::now();
    consumer.send(Command::Fin { id }).await;
    error(consumer.frame().await);
    assert_eq!(consumer.message().await.attempts, 2);
    assert_eq!(finished.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn nothing_comes_after_a_cut() {
    let house = House::new().await;
    for _ in 0..3 {
        house.nsqd.publish("t", "hello").unwrap();
    }
    house.nsqd.faults().frames(FrameKind::Message).once().cut();
    let mut consumer = house.consumer(3).await;
    assert_eq!(consumer.next(MOMENT).await, Event::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_last_frame_is_delayed_too() {
    let house = House::new().await;
    let delay = Duration::from_secs(100);
    house.nsqd.faults().frames(FrameKind::Error).once().delay(delay);
    let mut client = house.client().await;
    let sent = Instant::now();
    client.send_bytes(b"NONE\n").await;
    error(client.frame().await);
    assert_eq!(sent.elapsed(), delay);
    assert_eq!(client.next(MOMENT).await, Event::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_delayed_though_compression_waits_for_it() {
    let house = House::new().await;
    let delay = Duration::from_secs(100);
    house.nsqd.faults().frames(FrameKind::Response).once().delay(delay);
    let mut client = house.client().await;
    let sent = Instant::now();
    client
        .send(identify(r#"{"feature_negotiation":true,"snappy":true}"#))
        .await;
    client.frame().await;
    assert_eq!(sent.elapsed(), delay);
}

#[tokio::test(start_paused = true)]
async fn a_frame_replaced_by_nothing_holds_up_no_unbuffered_connection() {
    let house = House::new().await;
    let mut client = house.client().await;
    client.ask(identify(r#"{"output_buffer_size":-1}"#), "OK").await;
    house
        .nsqd
        .faults()
        .publishes()
        .once()
        .forge(Frame::Response(bytes::Bytes::new()));
    house
        .nsqd
        .faults()
        .frames(FrameKind::Response)
        .skip(1)
        .once()
        .replace("");
    for _ in 0..3 {
        client.send(publish("x")).await;
    }
    assert_eq!(client.frame().await, Frame::Response(bytes::Bytes::new()));
    assert_eq!(client.frame().await, OK);
}
