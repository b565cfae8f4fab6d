//! Runtimes: of one thread, of several, and such that go away under a consumer.

use std::time::Duration;

use async_nsq::Consumer;
use tokio::runtime::{Builder, Runtime};

use crate::scripted::{FIRST, Nsqd, SECOND, fin, stuck, succeed};
use crate::support::{Command, Peer};

fn runtimes() -> [Runtime; 2] {
    [
        Builder::new_current_thread().enable_all().build().unwrap(),
        Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap(),
    ]
}

#[test]
fn a_consumer_works_on_every_runtime() {
    for runtime in runtimes() {
        runtime.block_on(async {
            let mut nsqd = Nsqd::start();
            let (consumer, mut peer) = nsqd.consume(100, succeed).await;
            for round in 0..20 {
                let numbers = 100 * round..100 * round + 100;
                peer.deliver(numbers.clone()).await;
                assert_eq!(peer.commands(100).await, numbers.map(fin).collect::<Vec<_>>());
            }
            let closed = tokio::spawn(async move { peer.close_wait().await });
            let report = consumer.shutdown(60 * SECOND).await;
            assert!(report.is_clean());
            assert_eq!(report.finished, FIRST + 2000);
            assert_eq!(closed.await.unwrap(), []);
        });
    }
}

/// A consumer in the middle of its life.
async fn busy() -> (Nsqd, Consumer, Peer) {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().concurrency(2).max_in_flight(10);
    let (consumer, mut peer) = nsqd.consume_with(builder, stuck).await;
    peer.deliver(0..10).await;
    (nsqd, consumer, peer)
}

#[test]
fn c7_a_consumer_outlives_its_runtime_without_a_panic_or_a_hang() {
    for runtime in runtimes() {
        let (_nsqd, consumer, _peer) = runtime.block_on(busy());
        runtime.shutdown_background();
        assert!(!format!("{consumer:?}").is_empty());
        let _stats_can_still_be_read = consumer.stats();
        let [other, _] = runtimes();
        other.block_on(async {
            consumer.set_max_in_flight(3).await;
            assert!(consumer.ready(SECOND).await.is_ok() || consumer.stats().connections == 0);
            let report = consumer.shutdown(Duration::from_millis(10)).await;
            assert!(!report.is_clean(), "ten messages are not answered: {report:?}");
        });
        drop(consumer);
    }
}

#[test]
fn c7_a_runtime_ends_with_a_consumer_dropped_or_ending_in_it() {
    for dropped in [true, false] {
        for runtime in runtimes() {
            let (nsqd, peer) = runtime.block_on(async {
                let (nsqd, consumer, mut peer) = busy().await;
                if dropped {
                    drop(consumer);
                } else {
                    tokio::spawn(async move { consumer.shutdown(60 * SECOND).await });
                }
                assert_eq!(peer.command().await, Command::Cls);
                (nsqd, peer)
            });
            drop(runtime);
            drop((nsqd, peer));
        }
    }
}
