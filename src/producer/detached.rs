//! Publishes that nobody waits for: their failures go to a hook.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Error;
use crate::name::Topic;
use crate::panics::caught;

/// A message of [`Producer::enqueue`](crate::Producer::enqueue) that was not confirmed, as
/// [`on_failure`](crate::ProducerBuilder::on_failure) gets it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PublishFailure {
    /// Its topic.
    pub topic: Topic,
    /// Its body.
    pub body: Bytes,
    /// What happened: one of the outcomes that [`Producer`](crate::Producer) lists.
    pub error: Error,
}

/// Who is told of failures.
#[derive(Clone, Default)]
pub(super) struct FailureHook(Option<Arc<Hook>>);

type Hook = dyn Fn(&PublishFailure) + Send + Sync;

impl FailureHook {
    pub(super) fn new(hook: impl Fn(&PublishFailure) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    /// `false` if there is none.
    pub(super) fn call(&self, failure: &PublishFailure) -> bool {
        let Some(hook) = &self.0 else { return false };
        if caught(|| hook(failure)).is_err() {
            tracing::error!(topic = %failure.topic, error = %failure.error, "the hook for failed publishes panicked");
        }
        true
    }
}

impl fmt::Debug for FailureHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "set" } else { "none" })
    }
}
