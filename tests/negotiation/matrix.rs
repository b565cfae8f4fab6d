//! Every combination.

use async_nsq::Producer;
use async_nsq::test_server::Nsqd;

use crate::support::{Combination, House};

/// A test broker at a loopback port.
async fn nsqd(house: &House, combination: &Combination) -> Nsqd {
    let mut builder = Nsqd::builder();
    for (name, value) in house.flags(combination) {
        builder = builder.flag(name, &value).unwrap();
    }
    builder.start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_combination_connects() {
    let house = House::start().await;
    for combination in Combination::all() {
        let nsqd = nsqd(&house, &combination).await;
        let producer = Producer::builder()
            .nsqd(nsqd.address())
            .connection(house.connection(&combination));
        let producer = producer
            .connect()
            .await
            .unwrap_or_else(|error| panic!("{combination:?}: {error}"));
        producer.publish("orders", "one").await.unwrap();
    }
}
