//! The consumer's promises, each against scripted nsqds in memory and, but for threads that block, under a paused clock.
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]
#![allow(unreachable_pub, reason = "the support files are shared between test targets")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/consumer.rs"]
mod scripted;

#[path = "../support/model.rs"]
mod model;

mod answers;
mod backoff;
mod discovery;
mod endings;
mod link;
mod random;
mod rdy;
mod shutdown;
mod stuck;
