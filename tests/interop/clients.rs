//! The clients of other languages, unmodified, against the test broker; and against the real nsqd, which shows that the
//! programs ask for nothing that a broker need not do.
//!
//! The programs are ours, in `go/client`, `python` and `node`; `install-clients.sh` installs the clients that they run.
//! Each runs the same scenarios at the same time, one topic for each, and says of each whether it came out as it should.
//! What the broker saw must fit to that: see `records`.
//!
//! All three clients work in every mode against nsqd 1.3.0. pynsq does so only with tornado before 6.1: see
//! `python/requirements.txt`.

mod brokers;
mod mode;
mod programs;
mod records;

use std::time::Duration;

use self::brokers::{Broker, RealBroker, TestBroker};
use self::mode::Mode;
use self::programs::{Client, Program};
use crate::broker::{Brokers, eventually};

const CHANNEL: &str = "billing";

/// How often connections are looked at while a program runs. It holds each for a second at least.
const LOOK: Duration = Duration::from_millis(50);

/// Tests of one client: one in each mode with the test broker and one with the real nsqd.
macro_rules! client {
    ($module:ident, $client:expr) => {
        mod $module {
            use super::*;

            client!(test_broker $client,
                works_with_the_test_broker: Plain,
                works_with_the_test_broker_over_tls: Tls,
                works_with_the_test_broker_over_snappy: Snappy,
                works_with_the_test_broker_over_deflate: Deflate,
                works_with_the_test_broker_over_tls_and_snappy: TlsSnappy,
                works_with_the_test_broker_over_tls_and_deflate: TlsDeflate,
                works_with_the_test_broker_that_requires_auth: Auth,
                works_with_the_test_broker_through_nsqlookupd: Lookupd,
            );
            client!(nsqd $client, works_with_nsqd: Plain,);
            // What the programs were proven with, when they or the versions of the clients change:
            // cargo test --test interop works_with_nsqd -- --ignored
            client!(nsqd $client,
                #[ignore = "tests the client and nsqd only"] works_with_nsqd_over_tls: Tls,
                #[ignore = "tests the client and nsqd only"] works_with_nsqd_over_snappy: Snappy,
                #[ignore = "tests the client and nsqd only"] works_with_nsqd_over_deflate: Deflate,
                #[ignore = "tests the client and nsqd only"] works_with_nsqd_over_tls_and_snappy: TlsSnappy,
                #[ignore = "tests the client and nsqd only"] works_with_nsqd_over_tls_and_deflate: TlsDeflate,
                #[ignore = "tests the client and nsqd only"] works_with_nsqd_that_requires_auth: Auth,
                #[ignore = "tests the client and nsqd only"] works_with_nsqd_through_nsqlookupd: Lookupd,
            );
        }
    };
    (test_broker $client:expr, $($name:ident: $mode:ident,)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            with_the_test_broker($client, Mode::$mode).await;
        })*
    };
    (nsqd $client:expr, $($(#[$attribute:meta])* $name:ident: $mode:ident,)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        $(#[$attribute])*
        async fn $name() {
            with_nsqd($client, Mode::$mode).await;
        })*
    };
}

client!(go_nsq, Client::GoNsq);
client!(pynsq, Client::Pynsq);
client!(nsqjs, Client::Nsqjs);

async fn with_the_test_broker(client: Client, mode: Mode) {
    let Some(program) = client.find_or_skip() else { return };
    let broker = TestBroker::start(mode).await;
    run(client, &program, mode, &broker).await;
    records::check_commands(client, broker.commands());
}

async fn with_nsqd(client: Client, mode: Mode) {
    let Some(program) = client.find_or_skip() else { return };
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let broker = RealBroker::start(&brokers, mode).await;
    run(client, &program, mode, &broker).await;
}

/// Runs the program to its end while looking at its connections, and compares what is left in the broker.
async fn run(client: Client, program: &Program, mode: Mode, broker: &impl Broker) {
    let arguments = broker.arguments();
    let mut running = std::pin::pin!(program.run(&arguments));
    let (mut consumers, mut publishers) = (0, 0);
    let printed = loop {
        tokio::select! {
            printed = &mut running => break printed,
            () = tokio::time::sleep(LOOK) => for connection in broker.connections().await {
                records::check_connection(client, mode, &connection);
                *if connection.consumer { &mut consumers } else { &mut publishers } += 1;
            },
        }
    };
    printed.check();
    assert!(consumers > 0 && publishers > 0, "nobody was seen connected");
    for expected in records::LEFT {
        let topic = format!("{}.{}", programs::TOPIC, expected.scenario);
        eventually(&format!("{topic} is left as {expected:?}"), async || {
            let left = broker.channel(&topic, CHANNEL).await?;
            (left == expected.channel()).then_some(())
        })
        .await;
    }
}
