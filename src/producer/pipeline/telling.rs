//! Telling the failures of publishes that nobody waits for.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::sync::PoisonError;
use std::task::{Poll, Waker};

use super::Pipeline;
use crate::producer::detached::PublishFailure;

impl Pipeline {
    /// Tells the hook of each failure, one after the other.
    pub(in crate::producer) fn tell_failures(&self) {
        // The hook cannot poison it, as its panics are caught.
        let _turn = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut unheard, mut last) = (0u64, None);
        loop {
            let next = self.lock().failed.pop_front();
            let Some(failed) = next else { break };
            if !self.on_failure.call(&failed.failure) {
                unheard += 1;
                last = Some(failed.failure);
            }
            let mut wakers = Vec::new();
            self.lock().generations.leave(failed.generation, &mut wakers);
            self.room.give_back(failed.cost);
            wakers.into_iter().for_each(Waker::wake);
        }
        if let Some(PublishFailure { topic, error, .. }) = last {
            // One line for all of them: an outage may bring thousands at once.
            tracing::warn!(count = unheard, %topic, error = &error as &dyn StdError, "enqueued messages were not published");
        }
    }

    /// Tells failures as they come. Never ready. It has a task of its own, so that a slow hook delays no connection.
    pub(in crate::producer) async fn keep_telling(&self) {
        loop {
            poll_fn(|cx| {
                let mut state = self.lock();
                if !state.failed.is_empty() {
                    return Poll::Ready(());
                }
                state.reporter = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            self.tell_failures();
        }
    }
}
