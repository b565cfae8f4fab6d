//! Wakes those who wait for a connection, first come, first served.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Rings whenever an nsqd gets a connection, and when the producer stops.
///
/// A `watch` channel would wake them in an order of its own, so that publishes which waited would overtake each other.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rings: AtomicU64,
    waiting: Notify,
}

/// Hears each ring from its beginning on.
#[derive(Debug)]
pub(super) struct Listener<'a> {
    bell: &'a Bell,
    heard: u64,
}

impl Bell {
    pub(super) fn ring(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        self.waiting.notify_waiters();
    }

    pub(super) fn listen(&self) -> Listener<'_> {
        Listener {
            bell: self,
            heard: self.rings.load(Ordering::SeqCst),
        }
    }
}

impl Listener<'_> {
    /// Waits for a ring that this listener has not heard yet.
    ///
    /// # Cancel safety
    /// Dropping the future loses no ring.
    pub(super) async fn rung(&mut self) {
        let mut notified = pin!(self.bell.waiting.notified());
        // From here on no ring is missed, also not one between the two lines below.
        notified.as_mut().enable();
        if self.bell.rings.load(Ordering::SeqCst) == self.heard {
            notified.await;
        }
        self.heard = self.bell.rings.load(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_are_woken_in_their_order() {
        let (bell, woken) = (Arc::new(Bell::default()), Arc::new(Mutex::new(Vec::new())));
        let waiting = (0..20).map(|number| {
            let (bell, woken) = (Arc::clone(&bell), Arc::clone(&woken));
            tokio::spawn(async move {
                bell.listen().rung().await;
                woken.lock().unwrap().push(number);
            })
        });
        let waiting: Vec<_> = waiting.collect();
        tokio::task::yield_now().await;
        bell.ring();
        for waiter in waiting {
            waiter.await.unwrap();
        }
        assert_eq!(*woken.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_ring_is_heard_once_also_if_nobody_waited_at_that_moment() {
        let bell = Bell::default();
        bell.ring();
        let mut listener = bell.listen();
        assert!(listener.rung().now_or_never().is_none(), "it was before");
        bell.ring();
        bell.ring();
        assert!(listener.rung().now_or_never().is_some());
        assert!(listener.rung().now_or_never().is_none());
    }
}
