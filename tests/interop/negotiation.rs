//! What a connection can negotiate, with the real nsqd: the matrix that the test broker passes too.

#[path = "../negotiation/cuts.rs"]
mod cuts;
#[path = "../negotiation/exchange.rs"]
mod exchange;
#[path = "../negotiation/rotation.rs"]
mod rotation;
#[path = "../negotiation/support.rs"]
mod support;

use std::io::{self, Write as _};
use std::sync::Arc;

use async_nsq::transport::TcpConnector;
use async_nsq::{Consumer, Producer};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::cuts::Place;
use self::rotation::Clients;
use self::support::{Combination, Encryption, House};
use crate::broker::{Brokers, DEADLINE, Nsqd};

impl exchange::Broker for Nsqd {
    fn tcp_address(&self) -> String {
        (**self).tcp_address().to_string()
    }

    fn http_address(&self) -> String {
        (**self).http_address().to_string()
    }
}

async fn nsqd(brokers: &Brokers, house: &House, combination: &Combination) -> Nsqd {
    let flags = house.flags(combination).into_iter();
    let builder = flags.fold(brokers.nsqd(), |builder, (name, value)| {
        builder.flag(format!("--{name}={value}"))
    });
    builder.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_combination_carries_every_size_and_every_publish() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    // Some at once: nsqd may need 5 s to find out that a channel has deferred messages.
    for combinations in Combination::all().chunks(6) {
        let mut runs = JoinSet::new();
        for &combination in combinations {
            let house = House::start().await;
            let nsqd = nsqd(&brokers, &house, &combination).await;
            runs.spawn(async move { exchange::every_size_and_every_publish(&house, &combination, &nsqd).await });
        }
        runs.join_all().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_level_of_deflate_is_spoken_or_lowered() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let house = House::start().await;
    let nsqd = nsqd(&brokers, &house, &Combination::PLAIN).await;
    exchange::every_level_of_deflate(&house, &nsqd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_messages_come_once_and_as_they_were_through_each_codec() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    for combination in Combination::compressed() {
        let house = House::start().await;
        let nsqd = nsqd(&brokers, &house, &combination).await;
        let told = exchange::many_messages(&house, &combination, &nsqd, exchange::count(50_000)).await;
        writeln!(io::stderr(), "{told}").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn low_latency_lets_no_message_wait_for_a_heartbeat_with_any_compression() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let house = House::start().await;
    let nsqd = nsqd(&brokers, &house, &Combination::PLAIN).await;
    let address = exchange::Broker::tcp_address(&nsqd);
    let producer = Producer::connect(&address).await.unwrap();
    for combination in Combination::compressed().into_iter().chain([Combination::PLAIN]) {
        if combination.encryption != Encryption::Plain {
            continue;
        }
        let topic = format!("topic-{}", fastrand::u64(..));
        let connection = house.connection(&combination).heartbeat_interval(3 * DEADLINE);
        let consumer = Consumer::builder(&topic, "billing").nsqd(&address).max_in_flight(10);
        let (_consumer, mut came) = exchange::consume(consumer.connection(connection.low_latency())).await;
        for body in ["one", "two", "three"] {
            producer.publish(&topic, body).await.unwrap();
            let came = timeout(DEADLINE, came.recv()).await;
            assert_eq!(
                came.expect("no message waits for the heartbeat").unwrap(),
                body,
                "{combination:?}"
            );
        }
    }
}

#[tokio::test]
async fn every_combination_may_come_and_go_in_pieces() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    for combination in Combination::all().into_iter().filter(|combination| combination.auth) {
        let house = House::start().await;
        let nsqd = nsqd(&brokers, &house, &combination).await;
        let address = exchange::Broker::tcp_address(&nsqd);
        let tcp = Arc::new(TcpConnector::new());
        Place::new(house, combination, tcp, address)
            .await
            .cut_again_and_again()
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_in_files_are_read_again_for_each_connection() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let mut house = House::start().await;
    let mut nsqd = nsqd(&brokers, &house, &rotation::COMBINATION).await;
    let address = exchange::Broker::tcp_address(&nsqd);
    let mut clients = Clients::start(&house, TcpConnector::new(), &address).await;
    house.replace_authority();
    house.write_servers();
    nsqd.terminate().await;
    nsqd.start_again().await;
    clients.are_refused().await;
    house.write_clients("billing-2");
    clients.return_as(&house, "billing-2").await;
}
