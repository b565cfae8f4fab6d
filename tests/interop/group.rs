//! Consumers that share one budget, on the real nsqd.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nsq::{BoxError, Consumer, ConsumerBuilder, ConsumerGroup, Message};

use crate::broker::{Brokers, DEADLINE, Nsqd, eventually};
use crate::publishing::{Seen, seen_all};

fn member(nsqd: &Nsqd, topic: &str) -> ConsumerBuilder {
    Consumer::builder(topic, "billing").nsqd(nsqd.tcp_address().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn c2_two_topics_under_one_budget_are_both_consumed_and_never_exceed_it_together() {
    const EACH: usize = 100;
    const BUDGET: u32 = 4;
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    for topic in ["orders", "clicks"] {
        nsqd.create_channel(topic, "billing").await;
        let bodies: Vec<_> = (0..EACH).map(|number| format!("{topic}/{number}")).collect();
        nsqd.post_ok(&format!("/mpub?topic={topic}"), bodies.join("\n")).await;
    }
    let (seen, running, most) = (Seen::default(), AtomicUsize::new(0), AtomicUsize::new(0));
    let shared = Arc::new((seen.clone(), running, most));
    let handling = Arc::clone(&shared);
    let handler = move |message: Message| {
        let shared = Arc::clone(&handling);
        async move {
            let (seen, running, most) = &*shared;
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            seen.lock()
                .unwrap()
                .push(String::from_utf8_lossy(message.body()).into_owned());
            running.fetch_sub(1, Ordering::SeqCst);
            Ok::<(), BoxError>(())
        }
    };
    let group = ConsumerGroup::builder()
        .max_in_flight(BUDGET)
        .add(member(&nsqd, "orders"), 3, handler.clone())
        .add(member(&nsqd, "clicks"), 1, handler)
        .start()
        .await
        .unwrap();
    group.ready(DEADLINE).await.unwrap();
    seen_all(&seen, 2 * EACH).await;
    let most = shared.2.load(Ordering::SeqCst);
    assert!((1..=BUDGET as usize).contains(&most), "{most}");
    for topic in ["orders", "clicks"] {
        eventually(&format!("all of {topic} is finished"), async || {
            let stats = nsqd.channel_stats(topic, "billing").await?;
            (stats.depth + stats.in_flight == 0 && stats.message_count == EACH as u64).then_some(())
        })
        .await;
    }
    let report = group.shutdown(DEADLINE).await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.finished, report.requeued), (2 * EACH as u64, 0));
}
