//! Flushes end all lingering.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Pipeline;

/// How many flushes wait, for all pipelines of one producer: a publish that is waited for may come to any of them, also
/// later, when it has found a connection. While there is a flush, no batch lingers.
#[derive(Clone, Debug, Default)]
pub(in crate::producer) struct Haste(Arc<AtomicUsize>);

/// A flush that waits, until this is dropped.
#[derive(Debug)]
#[must_use = "batches linger again when this is dropped"]
pub(in crate::producer) struct Hurry(Haste);

impl Haste {
    /// Before [`Pipeline::hurry`] is called: what comes into a pipeline after that sees it by the pipeline's lock.
    pub(in crate::producer) fn begin(&self) -> Hurry {
        self.0.fetch_add(1, Ordering::SeqCst);
        Hurry(self.clone())
    }

    pub(super) fn is_due(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pipeline {
    /// Ends the lingering in all pipelines of the producer for as long as the flush lasts, and here what lingers already.
    pub(in crate::producer) fn begin_hurry(&self) -> Hurry {
        let hurry = self.haste.begin();
        self.hurry();
        hurry
    }

    /// Sends off a batch that lingers.
    pub(in crate::producer) fn hurry(&self) {
        if self.linger.is_none() {
            return;
        }
        let mut state = self.lock();
        state.urgent |= state.live() > 0;
        let driver = if state.lingers { state.driver.take() } else { None };
        drop(state);
        driver.into_iter().for_each(std::task::Waker::wake);
    }
}
