//! Keeps the panics of a user's code where they arose.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a user's code. The error is what a panic in it said.
///
/// What the panic left half-done belongs to that code.
#[inline]
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(said)
}

#[cold]
fn said(payload: Box<dyn Any + Send>) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let said = text.unwrap_or("no text").to_owned();
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // A payload that panics when it is dropped may have made another such: there is no end to that but this.
        std::mem::forget(another);
    }
    said
}
