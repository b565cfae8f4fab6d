//! Who may answer the message that a handler is at work on.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Shared by a worker and the message that its handler has. The first to claim it answers; there is no second.
#[derive(Debug, Default)]
pub(in crate::consumer) struct Lease {
    claimed: AtomicBool,
    /// When the message was last touched, in milliseconds after its delivery.
    pub(in crate::consumer) touched_ms: AtomicU32,
}

impl Lease {
    /// Whether the caller is the one to answer the message; nobody else is then.
    pub(in crate::consumer) fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    pub(in crate::consumer) fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Acquire)
    }

    /// Makes it ready for the next message.
    pub(in crate::consumer) fn renew(&mut self) {
        *self = Self::default();
    }
}
