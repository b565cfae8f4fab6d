//! What the broker knows of a connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::message::weight;
use super::stats::{ClientStats, Encryption};
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

impl Phase {
    /// The number by which nsqd's statistics show it.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Init => 0,
            Self::Subscribed => 3,
            Self::Closing => 4,
        }
    }
}

/// How the broker reaches a connection's task.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) wake: Notify,
    reads_stalled: AtomicBool,
    writes_stalled: AtomicBool,
    /// How many more bytes may be written before the connection is cut.
    write_budget: AtomicU64,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            wake: Notify::new(),
            reads_stalled: AtomicBool::new(false),
            writes_stalled: AtomicBool::new(false),
            write_budget: AtomicU64::new(u64::MAX),
        }
    }
}

impl Link {
    pub(super) fn reads_are_stalled(&self) -> bool {
        self.reads_stalled.load(Ordering::Acquire)
    }

    pub(super) fn writes_are_stalled(&self) -> bool {
        self.writes_stalled.load(Ordering::Acquire)
    }

    /// Nothing moves: also the connection's own deadlines stand still.
    pub(super) fn is_frozen(&self) -> bool {
        self.reads_are_stalled() && self.writes_are_stalled()
    }

    pub(super) fn stall_reads(&self, stalled: bool) {
        self.reads_stalled.store(stalled, Ordering::Release);
        self.wake.notify_one();
    }

    pub(super) fn stall_writes(&self, stalled: bool) {
        self.writes_stalled.store(stalled, Ordering::Release);
        self.wake.notify_one();
    }

    pub(super) fn write_budget(&self) -> u64 {
        self.write_budget.load(Ordering::Acquire)
    }

    pub(super) fn set_write_budget(&self, bytes: u64) {
        self.write_budget.store(bytes, Ordering::Release);
        self.wake.notify_one();
    }

    /// Counts bytes that were written.
    pub(super) fn spend(&self, bytes: usize) {
        // A budget that is set anew meanwhile may be less than what was written on the former one.
        let spend = |budget: u64| (budget != u64::MAX).then(|| budget.saturating_sub(bytes as u64));
        let _unlimited = self
            .write_budget
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, spend);
    }
}

/// What a connection has agreed on and proven, for the statistics.
#[derive(Clone, Debug, Default)]
pub(super) struct Agreed {
    pub(super) client_id: String,
    pub(super) hostname: String,
    pub(super) user_agent: String,
    pub(super) sample_rate: u8,
    pub(super) snappy: bool,
    pub(super) deflate: bool,
    pub(super) encryption: Option<Encryption>,
    /// Who it is, by the auth server: identity and URL.
    pub(super) identity: Option<(String, String)>,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) link: Arc<Link>,
    pub(super) task: Option<AbortHandle>,
    /// It was disconnected before it had its task.
    pub(super) is_ended: bool,
    pub(super) remote: String,
    pub(super) connected: Instant,
    pub(super) agreed: Agreed,
    pub(super) phase: Phase,
    /// The key of the subscribed channel.
    pub(super) channel: Option<usize>,
    pub(super) rdy: u32,
    pub(super) in_flight: u64,
    /// For deliveries: the first IDENTIFY decides.
    pub(super) msg_timeout: Duration,
    /// For TOUCH: the latest IDENTIFY decides.
    pub(super) touch_timeout: Duration,
    /// For deliveries: the first IDENTIFY decides.
    pub(super) sample_rate: u8,
    pub(super) message_count: u64,
    pub(super) finish_count: u64,
    pub(super) requeue_count: u64,
    /// How many messages it has published, by topic.
    published: BTreeMap<String, u64>,
    outbox: Vec<Message>,
    outbox_bytes: usize,
    /// Bytes that a fault puts into what is written.
    pub(super) injected: Vec<Bytes>,
}

impl Client {
    pub(super) fn new(link: Arc<Link>, remote: String, msg_timeout: Duration, now: Instant) -> Self {
        let host = remote.rsplit_once(':').map_or(&*remote, |(host, _)| host).to_owned();
        Self {
            link,
            task: None,
            is_ended: false,
            remote,
            connected: now,
            agreed: Agreed {
                client_id: host.clone(),
                hostname: host,
                ..Agreed::default()
            },
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
            published: BTreeMap::new(),
            outbox: Vec::new(),
            outbox_bytes: 0,
            injected: Vec::new(),
        }
    }

    /// Whether RDY allows another message: it is a window over what is in flight, not a credit.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight < u64::from(self.rdy)
    }

    /// Whether the channel may send it a message.
    pub(super) fn is_ready(&self) -> bool {
        self.has_room() && !self.outbox_is_full()
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

    pub(super) fn count_published(&mut self, topic: &str, messages: usize) {
        match self.published.get_mut(topic) {
            Some(count) => *count += messages as u64,
            None => {
                self.published.insert(topic.to_owned(), messages as u64);
            }
        }
    }

    pub(super) fn stats(
        &self,
        connection: u64,
        connected_at: i64,
        subscription: Option<(String, String)>,
    ) -> ClientStats {
        ClientStats {
            connection,
            remote: self.remote.clone(),
            connected_at,
            client_id: self.agreed.client_id.clone(),
            hostname: self.agreed.hostname.clone(),
            user_agent: self.agreed.user_agent.clone(),
            state: self.phase.number(),
            subscription,
            rdy: self.rdy,
            in_flight: self.in_flight,
            message_count: self.message_count,
            finish_count: self.finish_count,
            requeue_count: self.requeue_count,
            published: self
                .published
                .iter()
                .map(|(topic, count)| (topic.clone(), *count))
                .collect(),
            sample_rate: self.agreed.sample_rate,
            snappy: self.agreed.snappy,
            deflate: self.agreed.deflate,
            encryption: self.agreed.encryption.clone(),
            identity: self.agreed.identity.clone(),
        }
    }
}
