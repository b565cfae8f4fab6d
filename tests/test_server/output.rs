//! When messages leave the broker's output buffer.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use async_nsq::protocol::{Command, Frame, HEARTBEAT};
use async_nsq::test_server::Nsqd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::time::{Instant, sleep};

use super::raw::{Event, RawClient};
use super::{ADDRESS, House, MOMENT, publish};

async fn consumer(house: &House, identify: &str, rdy: u32) -> RawClient {
    let mut client = house.client().await;
    let body = identify.to_owned().into();
    client.ask(Command::Identify { body }, "OK").await;
    client.subscribe("t", "c", rdy).await;
    let ready = |stats: &async_nsq::test_server::Stats| stats.clients[0].rdy == rdy;
    house.nsqd.wait_for(ready).await.unwrap();
    client
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_could_take_more_waits_for_the_timer() {
    let house = House::new().await;
    let mut client = consumer(&house, r#"{"output_buffer_timeout":1000}"#, 5).await;
    let begun = Instant::now();
    house.nsqd.publish("t", "x").unwrap();
    client.message().await;
    assert_eq!(begun.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_ran_while_nothing_waited_counts() {
    let house = House::new().await;
    let mut client = consumer(&house, r#"{"output_buffer_timeout":1000}"#, 5).await;
    sleep(Duration::from_millis(1500)).await;
    let published = Instant::now();
    house.nsqd.publish("t", "x").unwrap();
    client.message().await;
    assert_eq!(published.elapsed(), Duration::ZERO);
    house.nsqd.publish("t", "y").unwrap();
    client.message().await;
    assert_eq!(published.elapsed(), Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn the_last_message_that_rdy_allows_leaves_at_once_with_all_before_it() {
    let house = House::new().await;
    let mut client = consumer(&house, r#"{"output_buffer_timeout":30000}"#, 2).await;
    house.nsqd.publish("t", "x").unwrap();
    client.assert_silent(MOMENT).await;
    house.nsqd.publish("t", "y").unwrap();
    let arrived = Instant::now();
    client.message().await;
    client.message().await;
    assert_eq!(arrived.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_answer_takes_waiting_messages_along() {
    let house = House::new().await;
    let mut client = consumer(&house, r#"{"output_buffer_timeout":30000}"#, 9).await;
    house.nsqd.publish("t", "x").unwrap();
    client.assert_silent(MOMENT).await;
    let topic = "other".to_owned();
    client
        .send(Command::Pub {
            topic,
            body: "y".into(),
        })
        .await;
    assert_eq!(client.message().await.body, "x");
    assert_eq!(client.frame().await, Frame::Response("OK".into()));
}

#[tokio::test(start_paused = true)]
async fn what_exceeds_the_buffer_leaves_and_the_rest_waits() {
    let house = House::new().await;
    let mut client = consumer(
        &house,
        r#"{"output_buffer_timeout":30000,"output_buffer_size":1000}"#,
        9,
    )
    .await;
    house.nsqd.publish("t", "x".repeat(600)).unwrap();
    client.assert_silent(MOMENT).await;
    house.nsqd.publish("t", "y".repeat(600)).unwrap();
    // The first is complete, the second is not.
    assert_eq!(client.message().await.body.len(), 600);
    client.assert_silent(MOMENT).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_timer_messages_wait_for_the_heartbeat() {
    let house = House::new().await;
    let mut client = consumer(&house, r#"{"output_buffer_timeout":-1,"heartbeat_interval":2000}"#, 9).await;
    let begun = Instant::now();
    house.nsqd.publish("t", "x").unwrap();
    assert!(matches!(
        client.next(Duration::from_secs(10)).await,
        Event::Frame(Frame::Message(_))
    ));
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
    let heartbeat = Event::Frame(Frame::Response(HEARTBEAT.into()));
    assert_eq!(client.next(MOMENT).await, heartbeat);
}

#[tokio::test(start_paused = true)]
async fn without_a_buffer_the_parts_of_a_frame_are_written_one_after_the_other() {
    let nsqd = Nsqd::builder().start_detached(ADDRESS).unwrap();
    let (client, server) = duplex(4096);
    let writes = Writes::default();
    let server = Recording {
        stream: server,
        writes: writes.clone(),
    };
    nsqd.serve(server, "client:1");
    let (mut read, mut write) = tokio::io::split(client);
    let identify = br#"{"output_buffer_size":-1}"#;
    let len = (identify.len() as u32).to_be_bytes();
    for part in [&b"  V2IDENTIFY\n"[..], &len, identify, b"PUB t\n\0\0\0\x01x"] {
        write.write_all(part).await.unwrap();
    }
    let mut answers = [0; 20];
    read.read_exact(&mut answers).await.unwrap();
    assert_eq!(*writes.lock().unwrap(), [4, 4, 2, 4, 4, 2]);
}

type Writes = Arc<Mutex<Vec<usize>>>;

/// Remembers how much was written at a time.
struct Recording {
    stream: DuplexStream,
    writes: Writes,
}

impl AsyncRead for Recording {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Recording {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.lock().unwrap().push(bytes.len());
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_buffer_nothing_waits() {
    let house = House::new().await;
    let mut client = consumer(&house, r#"{"output_buffer_size":-1}"#, 9).await;
    let begun = Instant::now();
    house.nsqd.publish("t", "x").unwrap();
    client.message().await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    client.ask(publish("y"), "OK").await;
}
