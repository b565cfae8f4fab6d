//! Real nsqd and nsqlookupd processes for tests.
//!
//! ```ignore
//! let Some(brokers) = Brokers::find_or_skip() else { return };
//! let lookupd = brokers.nsqlookupd().start().await;
//! let mut nsqd = brokers.nsqd().lookupd(lookupd.tcp_address()).flag("--mem-queue-size=0").start().await;
//! nsqd.publish("orders", "one").await;
//! nsqd.terminate().await;
//! nsqd.start_again().await; // same ports, same data path
//! ```
//!
//! Whatever goes wrong here is a failed test, so everything panics with a sentence that says what happened; a test that
//! fails prints the end of each broker's log. Deadlines are real time: no use in tests that pause tokio's clock.

mod binaries;
mod http;
mod nsqd;
mod nsqlookupd;
mod process;

use std::time::{Duration, Instant};

pub(crate) use binaries::{Brokers, found_or_skip};
pub(crate) use http::request;
pub(crate) use nsqd::{ChannelStats, Nsqd};
pub(crate) use nsqlookupd::Nsqlookupd;

/// How long anything that a healthy broker does in milliseconds may take on a busy machine before the test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The pause between two looks at something that has no event to wait for.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// Asks `probe` until it answers `Some`, and gives that answer.
///
/// # Panics
///
/// After [`DEADLINE`], naming `what` did not happen.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}
