//! Who may answer a message, and what its holders know of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::time::Instant;

use super::keep_alive::Grip;
use crate::consumer::link::Link;
use crate::protocol::MessageId;

/// Shared by a message and whoever sees to its answer. The first to claim it answers; there is no second.
#[derive(Debug)]
pub(in crate::consumer) struct Lease {
    /// The connection that delivered the message.
    pub(in crate::consumer) link: Arc<Link>,
    /// When it was read.
    pub(in crate::consumer) delivered_at: Instant,
    claimed: AtomicBool,
    /// When the message was last touched, in milliseconds after its delivery.
    pub(in crate::consumer) touched_ms: AtomicU32,
}

impl Lease {
    pub(in crate::consumer) fn new(link: Arc<Link>, delivered_at: Instant) -> Self {
        Self {
            link,
            delivered_at,
            claimed: AtomicBool::new(false),
            touched_ms: AtomicU32::new(0),
        }
    }

    /// Whether the caller is the one to answer the message; nobody else is then.
    #[inline]
    pub(in crate::consumer) fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    #[inline]
    pub(in crate::consumer) fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Acquire)
    }

    /// The message, for whoever touches it until this is claimed.
    pub(in crate::consumer) fn grip(&self, id: MessageId) -> Grip<'_> {
        Grip {
            link: &self.link,
            id,
            delivered_at: self.delivered_at,
            touched_ms: &self.touched_ms,
            lease: Some(self),
        }
    }

    #[inline]
    fn renew(&mut self, link: &Arc<Link>, delivered_at: Instant) {
        if !Arc::ptr_eq(&self.link, link) {
            self.link = Arc::clone(link);
        }
        self.delivered_at = delivered_at;
        *self.claimed.get_mut() = false;
        *self.touched_ms.get_mut() = 0;
    }
}

/// Leases for one message after the other. One whose message is gone serves again, so that messages that nobody keeps cost
/// no allocation.
#[derive(Debug, Default)]
pub(in crate::consumer) struct Leases(Option<Arc<Lease>>);

impl Leases {
    /// A lease for the next message.
    #[inline]
    pub(in crate::consumer) fn next(&mut self, link: &Arc<Link>, delivered_at: Instant) -> Arc<Lease> {
        if let Some(lease) = &mut self.0 {
            if let Some(unshared) = Arc::get_mut(lease) {
                unshared.renew(link, delivered_at);
                return Arc::clone(lease);
            }
        }
        let lease = Arc::new(Lease::new(Arc::clone(link), delivered_at));
        self.0 = Some(Arc::clone(&lease));
        lease
    }
}
