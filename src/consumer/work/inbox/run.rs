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
