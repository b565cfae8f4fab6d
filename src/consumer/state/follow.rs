//! Following a consumer's state.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::{ConsumerStats, State};
use crate::consumer::answer::desk::Desk;

/// Follows a consumer: see [`Consumer::watch`](crate::consumer::Consumer::watch).
///
/// It may outlive the consumer, and does not keep it running.
#[derive(Clone)]
pub struct ConsumerWatch {
    state: watch::Receiver<State>,
    desk: Arc<Desk>,
}

impl ConsumerWatch {
    pub(in crate::consumer) fn new(state: watch::Receiver<State>, desk: Arc<Desk>) -> Self {
        Self { state, desk }
    }

    /// Waits until something about the consumer is new: a connection, an RDY, backoff, a pause, discovery, or its end.
    /// Numbers of messages change all the time and are nothing new. False once the consumer has ended and its last news
    /// was seen.
    ///
    /// Changes that come quickly one after the other may be told as one.
    ///
    /// # Cancel safety
    /// Dropping the future loses no news.
    pub async fn changed(&mut self) -> bool {
        self.state.changed().await.is_ok()
    }

    /// Everything that is known of the consumer, as of now. It waits for nothing.
    #[must_use]
    pub fn stats(&self) -> ConsumerStats {
        self.state.borrow().stats(&self.desk.counts)
    }
}

impl fmt::Debug for ConsumerWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerWatch").field("stats", &self.stats()).finish()
    }
}
