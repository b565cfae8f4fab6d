//! Messages that the real nsqd delivers again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_nsq::{BoxError, Consumer, ConsumerBuilder, DuplicateWindow, Message};
use tokio::sync::Semaphore;

use crate::broker::{Brokers, ChannelStats, DEADLINE, Nsqd, eventually};

fn consumer(nsqd: &Nsqd) -> ConsumerBuilder {
    Consumer::builder("orders", "billing")
        .nsqd(nsqd.tcp_address().to_string())
        .skip_duplicates(DuplicateWindow::new(100, Duration::from_secs(600)))
}

/// Handlers that wait for a permit each.
#[derive(Clone)]
struct Gate {
    begun: Arc<AtomicU32>,
    permits: Arc<Semaphore>,
}

impl Gate {
    fn closed() -> Self {
        Self {
            begun: Arc::default(),
            permits: Arc::new(Semaphore::new(0)),
        }
    }

    fn handler(
        &self,
    ) -> impl Fn(Message) -> std::pin::Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>> + use<> {
        let gate = self.clone();
        move |_| {
            gate.begun.fetch_add(1, Ordering::SeqCst);
            let permits = Arc::clone(&gate.permits);
            Box::pin(async move {
                permits.acquire().await?.forget();
                Ok(())
            })
        }
    }

    fn begun(&self) -> u32 {
        self.begun.load(Ordering::SeqCst)
    }
}

async fn channel(nsqd: &Nsqd, what: &str, wanted: impl Fn(&ChannelStats) -> bool) -> ChannelStats {
    eventually(what, async || {
        nsqd.channel_stats("orders", "billing").await.filter(&wanted)
    })
    .await
}

fn is_empty(stats: &ChannelStats) -> bool {
    stats.depth + stats.in_flight + stats.deferred == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn lesson_29_a_message_whose_fin_is_lost_with_the_connection_is_not_handled_again() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let mut nsqd = brokers.nsqd().start().await;
    nsqd.create_channel("orders", "billing").await;
    nsqd.publish("orders", "one").await;
    let gate = Gate::closed();
    let consumer = consumer(&nsqd).start(gate.handler()).await.unwrap();
    eventually("the handler begins", async || (gate.begun() == 1).then_some(())).await;
    // It keeps what is in flight, on disk.
    nsqd.terminate().await;
    gate.permits.add_permits(1);
    eventually("its FIN is lost", async || {
        (consumer.stats().in_flight == 0).then_some(())
    })
    .await;
    nsqd.start_again().await;
    eventually("the second delivery is skipped", async || {
        (consumer.stats().duplicates == 1).then_some(())
    })
    .await;
    channel(&nsqd, "and finished", is_empty).await;
    assert_eq!(gate.begun(), 1);
    assert!(consumer.shutdown(DEADLINE).await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_comes_again_on_the_same_connection_is_answered_by_the_handler_that_has_it() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().flag("--msg-timeout=1s").start().await;
    nsqd.create_channel("orders", "billing").await;
    nsqd.publish("orders", "one").await;
    let gate = Gate::closed();
    let consumer = consumer(&nsqd).start(gate.handler()).await.unwrap();
    channel(&nsqd, "nsqd loses its patience twice", |stats| {
        stats.timeout_count >= 2 && stats.in_flight == 1
    })
    .await;
    gate.permits.add_permits(1);
    channel(&nsqd, "one FIN is enough", is_empty).await;
    let report = consumer.shutdown(DEADLINE).await;
    assert_eq!((gate.begun(), report.finished, report.refused), (1, 1, 0), "{report:?}");
    assert!(report.duplicates >= 1 && report.is_clean(), "{report:?}");
}
