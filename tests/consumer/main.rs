//! The consumer's promises, each against scripted nsqds in memory and, but for threads that block, under a paused clock.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "the support files are shared between test targets, and helpers of tests may fail them"
)]

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/consumer.rs"]
mod scripted;

#[path = "../support/model.rs"]
mod model;

mod answers;
mod backoff;
mod bad_input;
mod bad_lookups;
mod batch;
mod by_hand;
mod dead_letter;
mod discovery;
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
mod discovery_tls;
mod duplicates;
mod endings;
mod group;
mod keep_alive;
mod lessons;
mod link;
mod random;
mod rdy;
mod shutdown;
mod state;
mod stream;
mod stuck;
mod stuck_for_ever;
