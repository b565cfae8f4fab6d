//! A producer as a `Sink`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use futures_sink::Sink;

use super::Producer;
use super::pipeline::Hurry;
use crate::error::{Error, Result};
use crate::name::Topic;

/// A producer as a [`Sink`] of topics and bodies: see [`Producer::sink`].
///
/// It is ready while there is room for another publish; many are on their way at once. A flush ends once nsqd has
/// answered for all that went in, which leave at once, without [lingering](crate::ProducerBuilder::linger). Of those that
/// failed, the first is reported, with its topic: by the flush, or by `poll_ready` if that is asked earlier. After an error
/// the sink goes on.
///
/// # Drop
/// What is on its way goes on, but the last item if there was no room for it yet. Failures from then on go to
/// [`on_failure`](crate::ProducerBuilder::on_failure).
#[must_use = "a sink sends only what is put into it"]
pub struct ProducerSink {
    producer: Producer,
    tally: Arc<Tally>,
    /// The last item, until there is room for it.
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl ProducerSink {
    pub(super) fn new(producer: Producer) -> Self {
        Self {
            producer,
            tally: Arc::default(),
            waiting: None,
        }
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(cx));
            self.waiting = None;
        }
        Poll::Ready(())
    }
}

impl Sink<(Topic, Bytes)> for ProducerSink {
    type Error = Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_room(cx));
        Poll::Ready(self.tally.take_failure())
    }

    fn start_send(mut self: Pin<&mut Self>, (topic, body): (Topic, Bytes)) -> Result<()> {
        if let Err(error) = self.producer.check_body(&body) {
            return Err(error.about(&topic));
        }
        self.waiting = self.producer.send_for(&self.tally, topic, body);
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_room(cx));
        if self.tally.poll_all_resolved(cx).is_pending() {
            self.tally.hurry(|| self.producer.shared.lanes.hurry());
            return Poll::Pending;
        }
        Poll::Ready(self.tally.take_failure())
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_flush(cx)
    }
}

impl Drop for ProducerSink {
    fn drop(&mut self) {
        self.tally.lock().gone = true;
    }
}

impl fmt::Debug for ProducerSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProducerSink")
            .field("producer", &self.producer)
            .field("unresolved", &self.tally.lock().unresolved)
            .finish()
    }
}

/// How a sink's publishes stand.
#[derive(Debug, Default)]
pub(super) struct Tally {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    unresolved: usize,
    failure: Option<Error>,
    /// The sink was dropped.
    gone: bool,
    waker: Option<Waker>,
    /// While a flush waits.
    hurry: Option<Hurry>,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self) {
        let mut state = self.lock();
        state.unresolved += 1;
        // What comes after a flush lingers again.
        state.hurry = None;
    }

    /// One has its outcome. `false` if that is a failure and the sink is no longer there to report it.
    pub(super) fn resolve(&self, topic: Option<&Topic>, outcome: &Result<()>, wakers: &mut Vec<Waker>) -> bool {
        let mut state = self.lock();
        state.unresolved -= 1;
        if state.unresolved == 0 {
            state.hurry = None;
            wakers.extend(state.waker.take());
        }
        let Err(error) = outcome else { return true };
        if state.gone {
            return false;
        }
        state.failure.get_or_insert_with(|| match topic {
            Some(topic) => error.clone().about(topic),
            None => error.clone(),
        });
        true
    }

    /// A flush waits: `begin` ends the lingering, until all are resolved.
    fn hurry(&self, begin: impl FnOnce() -> Hurry) {
        if self.lock().hurry.is_some() {
            return;
        }
        // Not under the lock, which is taken under that of a pipeline.
        let hurry = begin();
        let mut state = self.lock();
        if state.unresolved > 0 {
            state.hurry = Some(hurry);
        }
    }

    fn take_failure(&self) -> Result<()> {
        self.lock().failure.take().map_or(Ok(()), Err)
    }

    fn poll_all_resolved(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.unresolved == 0 {
            return Poll::Ready(());
        }
        let replaced = state.waker.replace(cx.waker().clone());
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}
