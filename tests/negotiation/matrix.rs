//! Every combination, on the test broker at a loopback port.

use std::sync::Arc;

use async_nsq::Compression;
use async_nsq::test_server::{Nsqd, NsqdBuilder};
use async_nsq::transport::MemoryNetwork;

use crate::cuts::Place;
use crate::exchange::{self, Broker};
use crate::rotation::{self, Clients};
use crate::support::{Combination, Encryption, HOST, House};

impl Broker for Nsqd {
    fn tcp_address(&self) -> String {
        self.address().to_owned()
    }

    fn http_address(&self) -> String {
        Nsqd::http_address(self).to_owned()
    }
}

fn builder(house: &House, combination: &Combination) -> NsqdBuilder {
    // Bodies of 1 MiB are no use in a record of commands.
    let mut builder = Nsqd::builder().record_commands(0);
    for (name, value) in house.flags(combination) {
        builder = builder.flag(name, &value).unwrap();
    }
    builder
}

async fn nsqd(house: &House, combination: &Combination) -> Nsqd {
    builder(house, combination).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_combination_carries_every_size_and_every_publish() {
    let all = Combination::all();
    assert_eq!(all.len(), 18);
    for combination in all {
        let house = House::start().await;
        let nsqd = nsqd(&house, &combination).await;
        exchange::every_size_and_every_publish(&house, &combination, &nsqd).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_level_of_deflate_is_spoken_or_lowered() {
    let house = House::start().await;
    let nsqd = nsqd(&house, &Combination::PLAIN).await;
    exchange::every_level_of_deflate(&house, &nsqd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_messages_come_once_and_as_they_were_through_each_codec() {
    for combination in Combination::compressed() {
        let house = House::start().await;
        let nsqd = nsqd(&house, &combination).await;
        exchange::many_messages(&house, &combination, &nsqd, exchange::count(50_000)).await;
    }
}

/// Runs with an nsqd in memory, where no kernel puts together what was cut.
async fn in_memory(combination: Combination, run: impl AsyncFnOnce(&mut Place)) {
    let network = MemoryNetwork::new();
    let house = House::start_in(&network).await;
    let address = format!("{HOST}:4150");
    let nsqd = builder(&house, &combination);
    let _nsqd = nsqd.start_in(&network, &address).await.unwrap();
    let connector = Arc::new(network.connector());
    run(&mut Place::new(house, combination, connector, address).await).await;
}

#[tokio::test(start_paused = true)]
async fn snappy_may_be_cut_at_every_offset() {
    let combination = Combination {
        compression: Compression::Snappy,
        auth: true,
        ..Combination::PLAIN
    };
    in_memory(combination, async |place| assert!(place.cut_everywhere(1).await > 400)).await;
}

#[tokio::test(start_paused = true)]
async fn deflate_may_be_cut_at_every_offset() {
    let combination = Combination {
        compression: Compression::Deflate { level: 6 },
        auth: true,
        ..Combination::PLAIN
    };
    in_memory(combination, async |place| assert!(place.cut_everywhere(1).await > 400)).await;
}

#[tokio::test(start_paused = true)]
async fn snappy_under_tls_may_be_cut_at_every_offset() {
    let combination = Combination {
        encryption: Encryption::Tls,
        compression: Compression::Snappy,
        auth: false,
    };
    in_memory(combination, async |place| assert!(place.cut_everywhere(5).await > 1500)).await;
}

#[tokio::test(start_paused = true)]
async fn every_combination_may_come_and_go_in_pieces() {
    for combination in Combination::all().into_iter().filter(|combination| combination.auth) {
        in_memory(combination, async |place| place.cut_again_and_again().await).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_combination_may_have_its_answers_come_together() {
    for combination in Combination::all() {
        in_memory(combination, async |place| {
            let together = place.not_cut_at_all().await;
            // nsqd's OK to the compression needs nobody to ask for it. With TLS it is the client's turn first.
            let compressed = combination.compression != Compression::None;
            let expected = compressed && combination.encryption == Encryption::Plain;
            for bytes in together {
                assert_eq!(bytes > 0, expected, "{combination:?}: {bytes}");
            }
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn certificates_in_files_are_read_again_for_each_connection() {
    let network = MemoryNetwork::new();
    let mut house = House::start_in(&network).await;
    let address = format!("{HOST}:4150");
    let start = async |house: &House| {
        let nsqd = builder(house, &rotation::COMBINATION);
        nsqd.start_in(&network, &address).await.unwrap()
    };
    let nsqd = start(&house).await;
    let mut clients = Clients::start(&house, network.connector(), &address).await;
    house.replace_authority();
    house.write_servers();
    nsqd.stop().await;
    drop(nsqd);
    let _nsqd = start(&house).await;
    clients.are_refused().await;
    house.write_clients("billing-2");
    clients.return_as(&house, "billing-2").await;
}
