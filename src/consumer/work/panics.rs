//! Makes of a handler's panic the error of its message.

use std::future::Future;
use std::pin::{Pin, pin};
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
    let slot = pin!(Some(caught(|| Ok(make()))?));
    Caught(slot).await
}

/// A future in a slot, whose panics are its error. It leaves the slot empty, also when it is dropped before it is done.
pub(in crate::consumer) struct Caught<'a, F>(pub(in crate::consumer) Pin<&'a mut Option<F>>);

impl<F, E> Future for Caught<'_, F>
where
    F: Future<Output = Result<(), E>>,
    E: Into<BoxError>,
{
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        poll_caught(self.0.as_mut(), cx)
    }
}

impl<F> Drop for Caught<'_, F> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Puts what `make` makes into a slot and polls it.
#[inline]
pub(in crate::consumer) fn start_caught<F, E>(
    slot: Pin<&mut Option<F>>,
    make: impl FnOnce() -> F,
    cx: &mut Context<'_>,
) -> Poll<Result<(), BoxError>>
where
    F: Future<Output = Result<(), E>>,
    E: Into<BoxError>,
{
    prepare_and_poll(slot, |mut slot| slot.set(Some(make())), cx)
}

/// Polls the future in a slot, and empties the slot once it is done.
fn poll_caught<F, E>(slot: Pin<&mut Option<F>>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>>
where
    F: Future<Output = Result<(), E>>,
    E: Into<BoxError>,
{
    prepare_and_poll(slot, |_| {}, cx)
}

#[inline]
fn prepare_and_poll<F, E>(
    mut slot: Pin<&mut Option<F>>,
    prepare: impl FnOnce(Pin<&mut Option<F>>),
    cx: &mut Context<'_>,
) -> Poll<Result<(), BoxError>>
where
    F: Future<Output = Result<(), E>>,
    E: Into<BoxError>,
{
    let mut result = None;
    let polled = caught(|| {
        prepare(slot.as_mut());
        let Some(future) = slot.as_mut().as_pin_mut() else {
            return Ok(());
        };
        if let Poll::Ready(output) = future.poll(cx) {
            result = Some(output.map_err(Into::into));
            // Dropping is part of it: what a future owns may have a destructor that panics.
            slot.set(None);
        }
        Ok(())
    });
    match (result, polled) {
        (None, Ok(())) => Poll::Pending,
        (Some(result), dropped) => Poll::Ready(result.and(dropped)),
        (None, Err(panicked)) => {
            // It may panic once more as it is dropped: the first is the one to tell of.
            let _second = caught(|| {
                slot.set(None);
                Ok(())
            });
            Poll::Ready(Err(panicked))
        }
    }
}

/// Turns a panic within `run` into an error.
#[inline]
pub(in crate::consumer) fn caught<T>(run: impl FnOnce() -> Result<T, BoxError>) -> Result<T, BoxError> {
    panics::caught(run).unwrap_or_else(|said| Err(format!("the handler panicked: {said}").into()))
}
