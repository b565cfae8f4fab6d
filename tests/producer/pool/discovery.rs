//! Nsqds from nsqlookupd.

use std::sync::{Arc, Mutex};

use async_nsq::test_server::Lookupd;
use async_nsq::transport::MemoryNetwork;
use async_nsq::{ErrorKind, Producer, ProducerBuilder, Routing};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use super::{Nsqds, SECOND, Served};
use crate::support::{Command, settle};
use crate::{cause, large, publish};

const LOOKUPD: &str = "lookupd:4161";

fn producer(nsqds: &Nsqds) -> ProducerBuilder {
    Producer::builder().connection(nsqds.connection()).lookupd(LOOKUPD)
}

#[tokio::test(start_paused = true)]
async fn all_nsqds_are_used_as_they_come_and_go() {
    let mut nsqds = Nsqds::start(2);
    let lookupd = Lookupd::start_in(&nsqds.network, LOOKUPD).await.unwrap();
    // For other topics than that which is published: it is new.
    lookupd.register("other", "a:1").unwrap();
    let builder = producer(&nsqds).publish_timeout(600 * SECOND);
    let connecting = tokio::spawn(builder.connect());
    let first = Served::new(nsqds.accept("a:1").await);
    let producer = connecting.await.unwrap().unwrap();
    producer.publish("t", "1").await.unwrap();
    assert_eq!(first.take(), ["1"]);

    lookupd.register("other", "b:1").unwrap();
    let mut second = nsqds.accept("b:1").await;
    settle().await;
    assert_eq!(producer.nsqds().len(), 2);
    let all = ["2", "3"].map(|body| publish(&producer, "t", body));
    let pending = second.command().await;
    lookupd.unregister("other", "b:1").unwrap();
    while producer.nsqds().len() == 2 {
        second.heartbeat().await;
        sleep(5 * SECOND).await;
    }
    // What is pending there is still answered, and then it is left.
    assert!(matches!(pending, Command::Pub { .. }));
    assert!(all.iter().any(|published| !published.is_finished()));
    second.ok().await;
    while let Some(command) = second.next().await {
        assert_eq!(command, Command::Nop);
    }
    for published in all {
        published.await.unwrap().unwrap();
    }
    producer.publish("t", "4").await.unwrap();
    assert_eq!(first.take().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_nsqd_given_by_address_stays_whatever_nsqlookupd_says() {
    let mut nsqds = Nsqds::start(1);
    let lookupd = Lookupd::start_in(&nsqds.network, LOOKUPD).await.unwrap();
    lookupd.register("other", "a:1").unwrap();
    let builder = producer(&nsqds).nsqd("a:1");
    let connecting = tokio::spawn(builder.connect());
    let served = Served::new(nsqds.accept("a:1").await);
    let producer = connecting.await.unwrap().unwrap();
    sleep(SECOND).await;
    lookupd.unregister("other", "a:1").unwrap();
    for _ in 0..20 {
        producer.publish("t", "m").await.unwrap();
        sleep(2 * SECOND).await;
    }
    assert_eq!((producer.nsqds().len(), served.count()), (1, 20));
}

#[tokio::test(start_paused = true)]
async fn lesson_53_an_unreachable_nsqlookupd_is_told() {
    let nsqds = Nsqds::start(0);
    let error = producer(&nsqds).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert_eq!(cause(&error).address(), Some(LOOKUPD));

    let lazy = producer(&nsqds).publish_timeout(2 * SECOND).connect_lazily().unwrap();
    let error = lazy.publish("t", "m").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSent);
    assert!(error.to_string().contains("no nsqd is known"), "{error}");
    assert_eq!(cause(&error).address(), Some(LOOKUPD));
    assert!(lazy.shutdown(SECOND).await.is_clean());

    let lookupd = Lookupd::start_in(&nsqds.network, LOOKUPD).await.unwrap();
    let error = producer(&nsqds).connect().await.unwrap_err();
    assert!(error.to_string().contains("no nsqd is known yet"), "{error}");
    let error = producer(&nsqds).lookupd("no address").connect_lazily().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    drop(lookupd);
}

/// Of each nsqd its host, its zone in `eu`, and the port of its registration.
type Announced = Arc<Mutex<Vec<(&'static str, &'static str, u16)>>>;

/// An nsqlookupd that answers what it is told to.
fn announcing(network: &MemoryNetwork) -> Announced {
    let announced = Announced::default();
    let mut listener = network.listen(LOOKUPD).unwrap();
    let nsqds = Arc::clone(&announced);
    tokio::spawn(async move {
        loop {
            let mut io = listener.accept().await;
            let nsqds = nsqds.lock().unwrap().clone().into_iter().map(|(host, zone, port)| {
                format!(
                    r#"{{"remote_address":"10.0.0.7:{port}","hostname":"h","broadcast_address":"{host}","tcp_port":1,"http_port":2,"version":"1.3.1","topology_region":"eu","topology_zone":"{zone}","tombstones":[],"topics":[]}}"#
                )
            });
            let body = format!(r#"{{"producers":[{}]}}"#, nsqds.collect::<Vec<_>>().join(","));
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            tokio::spawn(async move {
                let mut head = [0; 1024];
                let _asked = io.read(&mut head).await;
                let _the_client_may_be_gone = io.write_all(answer.as_bytes()).await;
                let _until_it_closes = io.read_u8().await;
            });
        }
    });
    announced
}

#[tokio::test(start_paused = true)]
async fn the_zones_that_nsqds_announce_are_what_routing_goes_by() {
    let mut nsqds = Nsqds::start(2);
    announcing(&nsqds.network)
        .lock()
        .unwrap()
        .extend([("a", "x", 1), ("b", "y", 2)]);
    let builder = producer(&nsqds).routing(Routing::same_zone_first("eu", "y"));
    let (producer, served) = nsqds.serve(builder).await;
    for _ in 0..6 {
        producer.publish("t", "m").await.unwrap();
    }
    assert_eq!((served[0].count(), served[1].count()), (0, 6));
}

#[tokio::test(start_paused = true)]
async fn an_nsqd_that_has_registered_anew_is_dialled_at_once() {
    let mut nsqds = Nsqds::start(1);
    let announced = announcing(&nsqds.network);
    announced.lock().unwrap().push(("a", "x", 1));
    let builder = producer(&nsqds).lookupd_poll_interval(SECOND);
    let (producer, served) = nsqds.serve(builder).await;
    nsqds.close("a:1");
    served[0].kill().await;
    // The pauses between attempts have become half a minute and more.
    sleep(3600 * SECOND).await;
    assert!(!producer.is_connected());
    nsqds.open("a:1");
    announced.lock().unwrap()[0].2 = 2;
    let back = Instant::now();
    let _served = Served::new(nsqds.accept("a:1").await);
    producer.ready(SECOND).await.unwrap();
    assert!(back.elapsed() <= 3 * SECOND, "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn p1_an_nsqd_that_went_and_came_back_gets_no_second_copy() {
    let mut nsqds = Nsqds::start(2);
    let announced = announcing(&nsqds.network);
    announced.lock().unwrap().extend([("a", "x", 1), ("b", "x", 1)]);
    let builder = producer(&nsqds)
        .lookupd_poll_interval(SECOND)
        .copies(2)
        .publish_timeout(600 * SECOND);
    let (producer, mut peers) = nsqds.connect(builder).await;
    let mut second = peers.pop().unwrap();
    let mut first = peers.pop().unwrap();
    // The second takes nothing, so that the message waits there.
    let _blocking = publish(&producer, "x", large());
    first.command().await;
    first.ok().await;
    let published = publish(&producer, "t", "m");
    assert_eq!(first.command().await, Command::publish("t", "m"));
    first.ok().await;
    settle().await;

    announced.lock().unwrap().remove(0);
    while producer.nsqds().len() == 2 {
        second.heartbeat().await;
        sleep(SECOND).await;
    }
    announced.lock().unwrap().push(("a", "x", 1));
    let first = Served::new(nsqds.accept("a:1").await);
    settle().await;
    nsqds.close("b:1");
    drop(second);
    sleep(5 * SECOND).await;
    assert!(!published.is_finished(), "with both copies at one nsqd");
    assert_eq!(first.count(), 0);
    nsqds.open("b:1");
    let second = Served::new(nsqds.accept("b:1").await);
    published.await.unwrap().unwrap();
    assert!(second.take().contains(&"m".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_report_what_a_removed_nsqd_had_lost_long_before() {
    let mut nsqds = Nsqds::start(2);
    let announced = announcing(&nsqds.network);
    announced.lock().unwrap().extend([("a", "x", 1), ("b", "x", 1)]);
    let builder = producer(&nsqds)
        .lookupd_poll_interval(SECOND)
        .publish_timeout(600 * SECOND);
    let (producer, mut peers) = nsqds.connect(builder).await;
    let all = ["1", "2"].map(|body| publish(&producer, "t", body));
    for peer in &mut peers {
        peer.command().await;
    }
    let mut second = peers.pop().unwrap();
    peers[0].ok().await;
    announced.lock().unwrap().remove(1);
    while producer.nsqds().len() == 2 {
        peers[0].heartbeat().await;
        second.heartbeat().await;
        sleep(SECOND).await;
    }
    drop(second);
    let mut unknown = 0;
    for published in all {
        match published.await.unwrap() {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unknown);
                unknown += 1;
            }
        }
    }
    assert_eq!(unknown, 1);
    assert!(producer.shutdown(SECOND).await.is_clean());
}
