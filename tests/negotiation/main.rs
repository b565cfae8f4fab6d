//! What a connection can negotiate with nsqd, on the test broker.
#![cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "helpers are shared, and helpers of tests may fail them"
)]

mod cuts;
mod exchange;
mod rotation;
mod support;
mod torn;

#[path = "../support/mod.rs"]
mod scripted;

mod hostile;
mod matrix;
mod no_heartbeats;
mod peer;
mod refusals;

/// The error and all that caused it, in one line.
fn chain(error: &async_nsq::Error) -> String {
    let mut told = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        told = format!("{told}: {cause}");
        source = cause.source();
    }
    told
}
