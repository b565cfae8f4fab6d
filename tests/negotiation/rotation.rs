//! Certificates that are replaced while a client runs. Shared with the tests on the real nsqd.
#![allow(dead_code, unreachable_pub, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

use std::time::Duration;

use async_nsq::transport::Connector;
use async_nsq::{Consumer, ErrorKind, Producer, Step};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::exchange::{consume, take};
use super::support::{Combination, Encryption, House, PATIENCE};

/// Each side knows the other by the house's authority.
pub const COMBINATION: Combination = Combination {
    encryption: Encryption::MutualTls,
    ..Combination::AUTH
};

/// A consumer and a producer that run while everything is replaced.
pub struct Clients {
    producer: Producer,
    consumer: Consumer,
    came: mpsc::UnboundedReceiver<Bytes>,
}

impl Clients {
    pub async fn start(house: &House, connector: impl Connector, address: &str) -> Self {
        let connection = house.connection(&COMBINATION).connector(connector);
        let producer = Producer::builder().nsqd(address).connection(connection.clone());
        let consumer = Consumer::builder("orders", "billing")
            .nsqd(address)
            .connection(connection);
        let (consumer, came) = consume(consumer).await;
        let mut clients = Self {
            producer: producer.connect().await.unwrap(),
            consumer,
            came,
        };
        clients.pass("before").await;
        // What the auth server was told of the certificates.
        assert_eq!(house.auth.requests().len(), 2);
        clients
    }

    /// nsqd has a certificate of the new authority, and both clients still have the files of the old one.
    pub async fn are_refused(&self) {
        let refused = async {
            loop {
                let producer = self.producer.stats().nsqds[0].failure.clone();
                let consumer = self.consumer.stats().nsqds[0].failure.clone();
                let failures =
                    [producer, consumer].map(|failure| failure.filter(|failure| failure.step() == Some(Step::Tls)));
                if let [Some(producer), Some(consumer)] = failures {
                    return [producer, consumer];
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        for failure in timeout(PATIENCE, refused).await.expect("both find out that TLS fails") {
            assert_eq!(failure.kind(), ErrorKind::Protocol, "{failure}");
            assert!(failure.to_string().contains("root_ca_file"), "{failure}");
        }
    }

    /// The files are those of the new authority, and `name` is that of the client's certificate.
    pub async fn return_as(&mut self, house: &House, name: &str) {
        self.producer.ready(PATIENCE).await.unwrap();
        self.consumer.ready(PATIENCE).await.unwrap();
        self.pass("after").await;
        let asked = house.auth.requests();
        let names: Vec<_> = asked[2..].iter().map(|request| &request.common_name[..]).collect();
        assert_eq!(names, [name, name]);
    }

    async fn pass(&mut self, body: &'static str) {
        self.producer.publish("orders", body).await.unwrap();
        assert_eq!(take(&mut self.came, 1).await, [body]);
    }
}
