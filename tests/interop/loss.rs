//! An nsqd that is lost for good, with all that it had, and a producer that has put two copies of each message into NSQ.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nsq::{Consumer, ConsumerBuilder, DuplicateWindow, Message, Producer, ProducerBuilder};

use crate::broker::{Brokers, DEADLINE, Nsqd, Nsqlookupd};
use crate::publishing::{Seen, recorder};
use crate::topology::{Load, Outcomes, seen_all_of};

struct Cluster {
    lookupd: Nsqlookupd,
    nsqds: [Nsqd; 3],
}

impl Cluster {
    async fn start(brokers: &Brokers) -> Self {
        let lookupd = brokers.nsqlookupd().start().await;
        let nsqd = async || {
            let nsqd = brokers.nsqd().lookupd(lookupd.tcp_address()).start().await;
            // It keeps its messages for the consumer, whenever that comes.
            nsqd.create_channel("orders", "billing").await;
            nsqd
        };
        let nsqds = [nsqd().await, nsqd().await, nsqd().await];
        Self { lookupd, nsqds }
    }

    fn producer(&self) -> ProducerBuilder {
        Producer::builder().copies(2).at_least_once(true)
    }

    /// Which of the copies comes first makes no difference.
    fn consumer(&self) -> ConsumerBuilder {
        let window =
            DuplicateWindow::new(1_000_000, Duration::from_secs(300)).key(|message: &Message| message.body().clone());
        Consumer::builder("orders", "billing")
            .lookupd(self.lookupd.http_address().to_string())
            .max_in_flight(200)
            .skip_duplicates(window)
    }

    /// Publishes, kills one nsqd under load, and goes on publishing.
    async fn lose_one_under_load(&mut self, producer: &Producer) -> Outcomes {
        let load = Load::start(producer);
        load.confirmed_at_least(1_500).await;
        self.nsqds[1].kill();
        let before = load.confirmed();
        load.confirmed_at_least(before + 1_500).await;
        load.stop().await
    }
}

#[expect(
    clippy::print_stdout,
    reason = "how much was unknown differs from run to run and is worth a look"
)]
async fn judge(seen: &Seen, outcomes: &Outcomes) {
    seen_all_of(seen, &outcomes.confirmed).await;
    let handled = seen.lock().unwrap().clone();
    let different: BTreeSet<_> = handled.iter().collect();
    println!(
        "one of three nsqds killed: {} confirmed, {} unknown, {} not sent; {} handled, {} of them twice",
        outcomes.confirmed.len(),
        outcomes.unknown.len(),
        outcomes.not_sent.len(),
        different.len(),
        handled.len() - different.len()
    );
    assert!(
        different.iter().all(|body| !outcomes.not_sent.contains(*body)),
        "not sent, and it arrived"
    );
    // One consumer, whose window holds them all.
    assert_eq!(handled.len(), different.len(), "handled twice");
}

/// Nothing is consumed before the nsqd is killed, so whatever only it had is gone.
#[tokio::test(flavor = "multi_thread")]
async fn p1_with_two_copies_nothing_that_was_confirmed_is_lost_with_an_nsqd() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let mut cluster = Cluster::start(&brokers).await;
    let addresses = cluster.nsqds.iter().map(|nsqd| nsqd.tcp_address().to_string());
    let builder = addresses.fold(cluster.producer(), ProducerBuilder::nsqd);
    let producer = builder.connect().await.unwrap();
    let outcomes = cluster.lose_one_under_load(&producer).await;
    assert!(producer.shutdown(DEADLINE).await.is_clean());

    let seen = Seen::default();
    let consumer = cluster.consumer().start(recorder(&seen)).await.unwrap();
    judge(&seen, &outcomes).await;
    assert!(consumer.shutdown(DEADLINE).await.is_clean());
}

/// Both are found through nsqlookupd, and the consumer meets both copies of most messages.
#[tokio::test(flavor = "multi_thread")]
async fn p1_with_two_copies_each_message_is_handled_once_also_when_an_nsqd_is_killed_meanwhile() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let mut cluster = Cluster::start(&brokers).await;
    let seen = Seen::default();
    let consumer = cluster.consumer().start(recorder(&seen)).await.unwrap();
    let builder = cluster.producer().lookupd(cluster.lookupd.http_address().to_string());
    let producer = builder.connect().await.unwrap();
    let outcomes = cluster.lose_one_under_load(&producer).await;
    judge(&seen, &outcomes).await;
    assert!(producer.shutdown(DEADLINE).await.is_clean());
    assert!(consumer.shutdown(DEADLINE).await.is_clean());
}
