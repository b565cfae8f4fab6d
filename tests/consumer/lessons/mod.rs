//! One scenario for each lesson that other clients' users had to learn, where it is about consumers: against the test
//! broker, in memory, under a paused clock. Lessons that a promise covers exactly are in the name of the promise's test.

mod connecting;
mod finding;
mod flow;
mod handling;
mod logs;
mod soak;
mod stopping;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::test_server::{ChannelStats, ClientStats, Lookupd, Nsqd, NsqdBuilder};
use async_nsq::transport::MemoryNetwork;
use async_nsq::{ConnectionConfig, Consumer, ConsumerBuilder, ConsumerStats, NsqdStats};
use tokio::time::timeout;

use crate::scripted::SECOND;

const ADDRESS: &str = "nsqd:4150";
const LOOKUPD: &str = "lookupd:4161";

/// Longer than anything takes that is to come, in virtual time.
const PATIENCE: Duration = Duration::from_secs(3600);

/// One nsqd with its channel, and the network it is in.
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
        let nsqd = builder.start_in(&network, ADDRESS).await.unwrap();
        nsqd.create_channel("orders", "billing").unwrap();
        Self { network, nsqd }
    }

    fn connection(&self) -> ConnectionConfig {
        ConnectionConfig::new().connector(self.network.connector())
    }

    fn consumer(&self) -> ConsumerBuilder {
        consumer_in(&self.network).nsqd(ADDRESS)
    }

    fn publish(&self, count: usize) {
        for number in 0..count {
            self.nsqd.publish("orders", number.to_string()).unwrap();
        }
    }

    fn channel(&self) -> ChannelStats {
        self.nsqd.channel("orders", "billing").unwrap()
    }

    /// The consumer's connection as nsqd sees it.
    fn client(&self) -> ClientStats {
        self.channel().clients.pop().unwrap()
    }

    /// Waits until nsqd has had a FIN for so many.
    async fn finishes(&self, count: u64) {
        let finished = |channel: &ChannelStats| channel.finish_count == count;
        self.nsqd
            .wait_for_within(PATIENCE, |stats| {
                stats.channel("orders", "billing").is_some_and(finished)
            })
            .await
            .unwrap();
    }
}

fn consumer_in(network: &MemoryNetwork) -> ConsumerBuilder {
    Consumer::builder("orders", "billing").connection(ConnectionConfig::new().connector(network.connector()))
}

async fn lookupd(network: &MemoryNetwork) -> Lookupd {
    Lookupd::start_in(network, LOOKUPD).await.unwrap()
}

/// An nsqd at port 4150 of this host, which the nsqlookupd announces.
async fn announced(network: &MemoryNetwork, lookupd: &Lookupd, host: &str) -> Nsqd {
    let builder = Nsqd::builder().lookupd(lookupd).broadcast_address(host);
    let nsqd = builder.start_in(network, &format!("{host}:4150")).await.unwrap();
    nsqd.create_channel("orders", "billing").unwrap();
    nsqd
}

/// Follows the consumer until its state is as wanted.
async fn until(consumer: &Consumer, wanted: impl Fn(&ConsumerStats) -> bool) -> ConsumerStats {
    let mut watch = consumer.watch();
    let followed = timeout(PATIENCE, async {
        while !wanted(&watch.stats()) {
            assert!(watch.changed().await, "the consumer has ended");
        }
        watch.stats()
    });
    match followed.await {
        Ok(stats) => stats,
        Err(_) => panic!("it never came to be so: {:#?}", watch.stats()),
    }
}

/// The one nsqd that there is to say something about.
fn only(stats: &ConsumerStats) -> &NsqdStats {
    let [nsqd] = &stats.nsqds[..] else { panic!("{stats:#?}") };
    nsqd
}

/// What handlers leave for the test to see.
#[derive(Debug)]
struct Notes<T>(Arc<Mutex<Vec<T>>>);

impl<T> Notes<T> {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn add(&self, note: T) {
        self.0.lock().unwrap().push(note);
    }

    fn take(&self) -> Vec<T> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl<T> Clone for Notes<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// A moment's sleep for everybody, so that what is under way comes to rest.
async fn rest() {
    tokio::time::sleep(SECOND).await;
}
