//! What is in an inbox: messages of one read lie side by side, and share what they have in common.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::time::Instant;

use super::Delivery;
use crate::consumer::link::Link;
use crate::protocol;

/// Messages that one connection has delivered in one read.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) link: Arc<Link>,
    pub(super) delivered_at: Instant,
    /// Never empty in an inbox.
    pub(super) messages: VecDeque<protocol::Message>,
}

impl Run {
    /// What brought it, and when.
    pub(super) fn origin(&self) -> (Arc<Link>, Instant) {
        (Arc::clone(&self.link), self.delivered_at)
    }

    /// Whether it is a part of the same read.
    pub(super) fn is_part_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.link, &other.link) && self.delivered_at == other.delivered_at
    }

    /// Takes the messages of another part of it, which come first.
    pub(super) fn prepend(&mut self, first: &mut Self) {
        while let Some(message) = first.messages.pop_back() {
            self.messages.push_front(message);
        }
    }

    pub(super) fn into_deliveries(self) -> impl Iterator<Item = Delivery> {
        let Self {
            link,
            delivered_at,
            messages,
        } = self;
        messages.into_iter().map(move |message| Delivery {
            message,
            link: Arc::clone(&link),
            delivered_at,
        })
    }
}
