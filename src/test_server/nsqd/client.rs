//! What the broker knows of a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::message::weight;
use super::stats::ClientStats;
use crate::protocol::Message;

/// How many bytes of messages may wait to be encoded for a connection. A peer that does not read gets no more than
/// this beyond what the transport holds, as nsqd's output buffer would have it.
const OUTBOX_LIMIT: usize = 64 * 1024;

/// The state of a connection that decides which commands are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Init,
    Subscribed,
    Closing,
}

/// How the broker reaches a connection's task.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) wake: Notify,
    pub(super) frozen: AtomicBool,
}

impl Link {
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    pub(super) fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Release);
        self.wake.notify_one();
    }
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) link: Arc<Link>,
    pub(super) task: Option<AbortHandle>,
    pub(super) remote: String,
    pub(super) client_id: String,
    pub(super) hostname: String,
    pub(super) user_agent: String,
    pub(super) phase: Phase,
    /// The key of the subscribed channel.
    pub(super) channel: Option<usize>,
    pub(super) rdy: u32,
    pub(super) in_flight: u64,
    /// For deliveries: the first IDENTIFY decides.
    pub(super) msg_timeout: Duration,
    /// For TOUCH: the latest IDENTIFY decides.
    pub(super) touch_timeout: Duration,
    pub(super) sample_rate: u8,
    pub(super) message_count: u64,
    pub(super) finish_count: u64,
    pub(super) requeue_count: u64,
    outbox: Vec<Message>,
    outbox_bytes: usize,
}

impl Client {
    pub(super) fn new(link: Arc<Link>, remote: String, msg_timeout: Duration) -> Self {
        let host = remote.rsplit_once(':').map_or(&*remote, |(host, _)| host).to_owned();
        Self {
            link,
            task: None,
            remote,
            client_id: host.clone(),
            hostname: host,
            user_agent: String::new(),
            phase: Phase::Init,
            channel: None,
            rdy: 0,
            in_flight: 0,
            msg_timeout,
            touch_timeout: msg_timeout,
            sample_rate: 0,
            message_count: 0,
            finish_count: 0,
            requeue_count: 0,
            outbox: Vec::new(),
            outbox_bytes: 0,
        }
    }

    /// Whether the channel may send it a message: RDY is a window over what is in flight, not a credit.
    pub(super) fn is_ready(&self) -> bool {
        self.in_flight < u64::from(self.rdy) && !self.outbox_is_full()
    }

    pub(super) fn outbox_is_full(&self) -> bool {
        self.outbox_bytes >= OUTBOX_LIMIT
    }

    pub(super) fn send(&mut self, message: Message) {
        self.in_flight += 1;
        self.message_count += 1;
        self.outbox_bytes += weight(&message);
        if self.outbox.is_empty() {
            self.link.wake.notify_one();
        }
        self.outbox.push(message);
    }

    /// Exchanges the messages to be sent for an empty list, whose memory is used on.
    pub(super) fn take_outbox(&mut self, batch: &mut Vec<Message>) {
        debug_assert!(batch.is_empty(), "the exchange would lose messages");
        std::mem::swap(&mut self.outbox, batch);
        self.outbox_bytes = 0;
    }

    /// A message that was in flight is no more.
    pub(super) fn release(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub(super) fn stats(&self, connection: u64, subscription: Option<(String, String)>) -> ClientStats {
        ClientStats {
            connection,
            remote: self.remote.clone(),
            client_id: self.client_id.clone(),
            hostname: self.hostname.clone(),
            user_agent: self.user_agent.clone(),
            subscription,
            rdy: self.rdy,
            in_flight: self.in_flight,
            message_count: self.message_count,
            finish_count: self.finish_count,
            requeue_count: self.requeue_count,
        }
    }
}
