//! Makes of a handler's panic the error of its message.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};

use crate::consumer::handler::BoxError;
use crate::panics;

/// Runs what `make` makes and turns a panic, in either, into an error: it stays within its message.
///
/// What the panic left half-done belongs to the handler, which knows that it shares state with others.
pub(in crate::consumer) async fn catch_panic<F, E>(make: impl FnOnce() -> F) -> Result<(), BoxError>
where
    F: Future<Output = Result<(), E>>,
    E: Into<BoxError>,
{
    let mut future = pin!(Some(caught(|| Ok(make()))?));
    let result = poll_fn(|cx: &mut Context<'_>| {
        let polled = caught(|| match future.as_mut().as_pin_mut() {
            Some(future) => Ok(future.poll(cx).map_err(Into::into)),
            None => Ok(Poll::Pending),
        });
        polled.unwrap_or_else(|error| Poll::Ready(Err(error)))
    })
    .await;
    // Dropping is part of it: what a future owns may have a destructor that panics.
    let dropped = caught(|| {
        future.set(None);
        Ok(())
    });
    result.and(dropped)
}

/// Turns a panic within `run` into an error.
pub(in crate::consumer) fn caught<T>(run: impl FnOnce() -> Result<T, BoxError>) -> Result<T, BoxError> {
    panics::caught(run).unwrap_or_else(|said| Err(format!("the handler panicked: {said}").into()))
}
