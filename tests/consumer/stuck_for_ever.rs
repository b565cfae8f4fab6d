//! C1 against the test broker, which closes what does not answer its heartbeats, as nsqd does.

use std::time::Duration;

use async_nsq::protocol::CommandName;
use async_nsq::test_server::{FrameKind, Nsqd, Stats};
use async_nsq::transport::MemoryNetwork;
use async_nsq::{BoxError, ConnectionConfig, Consumer, Message};

use crate::scripted::SECOND;

const NSQDS: usize = 3;
const TEN_MINUTES: Duration = Duration::from_secs(600);

fn address(number: usize) -> String {
    format!("nsqd-{number}:4150")
}

/// Brokers with far more messages than the consumer may have in flight.
async fn brokers(network: &MemoryNetwork) -> Vec<Nsqd> {
    let mut nsqds = Vec::new();
    for number in 0..NSQDS {
        let builder = Nsqd::builder().record_commands(10_000);
        let nsqd = builder.start_in(network, &address(number)).await.unwrap();
        for message in 0..100 {
            nsqd.publish("orders", format!("{number}/{message}")).unwrap();
        }
        nsqds.push(nsqd);
    }
    nsqds
}

/// Never ends, in the ways in which a handler can be stuck without blocking its thread.
async fn stuck_somehow(message: Message) -> Result<(), BoxError> {
    if message.body().ends_with(b"1") {
        tokio::sync::Semaphore::new(0).acquire().await?.forget();
    }
    if message.body().ends_with(b"2") {
        loop {
            tokio::time::sleep(SECOND).await;
        }
    }
    if message.body().ends_with(b"3") {
        loop {
            // Keeps its message for itself as long as nsqd allows it. Refused once nsqd has taken it back.
            let _taken_back = message.touch();
            tokio::time::sleep(20 * SECOND).await;
        }
    }
    std::future::pending().await
}

fn nops(nsqd: &Nsqd) -> u64 {
    let commands = nsqd.commands();
    assert!(commands.len() < 10_000, "none is forgotten");
    commands
        .iter()
        .filter(|received| received.command.name() == CommandName::Nop)
        .count() as u64
}

/// The connection that a broker has, which is the first one that it ever had.
fn the_only_connection(stats: &Stats) -> u64 {
    assert_eq!(stats.accepted, 1, "nobody has connected again");
    assert_eq!(stats.clients.len(), 1, "{stats:?}");
    stats.clients[0].connection
}

#[tokio::test(start_paused = true)]
async fn c1_lesson_22_every_handler_stuck_for_ever_for_ten_minutes_misses_no_heartbeat_and_loses_no_connection() {
    for concurrency in [1, 8, 30] {
        let network = MemoryNetwork::new();
        let nsqds = brokers(&network).await;
        // A fault that changes nothing and counts.
        let heartbeats: Vec<_> = nsqds
            .iter()
            .map(|nsqd| nsqd.faults().frames(FrameKind::Heartbeat).delay(Duration::ZERO))
            .collect();
        let connection = ConnectionConfig::new()
            .connector(network.connector())
            .heartbeat_interval(5 * SECOND);
        let builder = Consumer::builder("orders", "billing").connection(connection);
        let builder = (0..NSQDS).fold(builder, |builder, number| builder.nsqd(address(number)));
        let builder = builder.max_in_flight(30).concurrency(concurrency);
        let consumer = builder.start(stuck_somehow).await.unwrap();
        for nsqd in &nsqds {
            let busy = |stats: &Stats| {
                stats
                    .channel("orders", "billing")
                    .is_some_and(|channel| channel.in_flight > 0)
            };
            nsqd.wait_for(busy).await.unwrap();
        }
        // Not at a moment at which a heartbeat is due.
        tokio::time::sleep(2 * SECOND).await;
        let before: Vec<_> = heartbeats.iter().map(|fault| fault.hits()).collect();
        for _ in 0..10 {
            tokio::time::sleep(TEN_MINUTES / 10).await;
            let stats = consumer.stats();
            assert_eq!((stats.connections, stats.finished), (NSQDS, 0));
            // msg_timeout passes again and again, and nsqd sends again what RDY allows: see the bound in ARCHITECTURE.md.
            assert!(stats.in_flight <= 2 * 30 + 16 * NSQDS as u64, "{stats:?}");
        }
        for ((nsqd, heartbeats), before) in nsqds.iter().zip(&heartbeats).zip(before) {
            let sent = heartbeats.hits();
            assert!(sent - before >= 119, "a heartbeat every 5 s: {sent}");
            assert_eq!(nops(nsqd), sent, "each was answered, once");
            assert_eq!(the_only_connection(&nsqd.stats()), 1);
        }
        // And it still ends in time, with everything given back.
        let report = consumer.shutdown(10 * SECOND).await;
        assert_eq!(report.unflushed, 0, "{report:?}");
        for nsqd in &nsqds {
            let idle = |stats: &Stats| {
                stats
                    .channel("orders", "billing")
                    .is_some_and(|channel| channel.in_flight == 0)
            };
            nsqd.wait_for(idle).await.unwrap();
        }
    }
}
