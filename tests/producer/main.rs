//! The producer's promises, each against a scripted nsqd in memory and under a paused clock.
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod batching;
mod bounds;
mod cancellation;
mod detached;
mod endings;
mod flush;
mod lessons;
mod limits;
mod linger;
mod link;
mod outcomes;
mod pool;
mod random;
mod sink;
mod stats;

use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use async_nsq::{Error, Producer, Result};
use bytes::Bytes;
use tokio::task::JoinHandle;

/// A body that does not fit into what the connection holds, so that a part of its command stays unwritten.
const LARGE: usize = 300_000;

/// Lives a random life: on a runtime of its own, under a paused clock, and by the seed alone.
fn run_life(seed: u64, life: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    fastrand::seed(seed);
    runtime.block_on(life);
}

/// Publishes in a task of its own.
fn publish(producer: &Producer, topic: &'static str, body: impl Into<Bytes>) -> JoinHandle<Result<()>> {
    let (producer, body) = (producer.clone(), body.into());
    tokio::spawn(async move { producer.publish(topic, body).await })
}

/// Polls a future once.
async fn poll_once<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// The error of this crate that is behind another one.
fn cause(error: &Error) -> &Error {
    let source = error.source().expect("a cause");
    source.downcast_ref().expect("the cause is an error of this crate")
}

fn large() -> Bytes {
    vec![b'x'; LARGE].into()
}
