//! nsqd's HTTP side of the test broker: what tools and clients see, checked against nsqd 1.3.0 by hand.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

mod admin;
mod client;
mod config;
mod publishing;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../support/raw.rs"]
mod raw;
mod serving;
mod stats;
mod tls;
mod topics;

use async_nsq::test_server::{Nsqd, NsqdBuilder};
use async_nsq::transport::MemoryNetwork;
use client::Answer;
use raw::RawClient;

const TCP: &str = "nsqd:4150";
const HTTP: &str = "nsqd:4151";

/// A broker in a network of its own.
struct House {
    network: MemoryNetwork,
    nsqd: Nsqd,
}

impl House {
    async fn new() -> Self {
        Self::with(Nsqd::builder()).await
    }

    async fn with(builder: NsqdBuilder) -> Self {
        let network = MemoryNetwork::new();
        let nsqd = builder.start_in(&network, TCP).await.unwrap();
        Self { network, nsqd }
    }

    async fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, b"").await
    }

    async fn post(&self, target: &str, body: impl AsRef<[u8]>) -> Answer {
        self.ask("POST", target, body.as_ref()).await
    }

    async fn ask(&self, method: &str, target: &str, body: &[u8]) -> Answer {
        client::ask(&self.network.connector(), HTTP, method, target, body).await
    }

    async fn client(&self) -> RawClient {
        RawClient::open(&self.network.connector(), TCP).await
    }

    /// Asks each question and compares status and body: `VERB target <<body = status answer`.
    async fn check(&self, table: &[(&str, &[u8], u16, &str)]) {
        for (question, body, status, answer) in table {
            let (method, target) = question.split_once(' ').unwrap();
            let got = self.ask(method, target, body).await;
            assert_eq!((got.status, &*got.text()), (*status, *answer), "{question}");
        }
    }
}
