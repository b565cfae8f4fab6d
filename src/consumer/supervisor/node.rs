//! The task that keeps a consumer subscribed at one nsqd.

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::mailbox::Event;
use crate::backoff::Reconnect;
use crate::config::ConnectionConfig;
use crate::connection::{Driver, Established, open};
use crate::consumer::answer::desk::Desk;
use crate::consumer::flow::ConnectionId;
use crate::consumer::link::Link;
use crate::consumer::link::session::Session;
use crate::consumer::work::inbox::Inbox;
use crate::error::{Error, ErrorKind, Step};
use crate::name::{Channel, Topic};
use crate::protocol;

/// What the nodes of a consumer share.
pub(in crate::consumer) struct Shared {
    pub(in crate::consumer) config: ConnectionConfig,
    pub(in crate::consumer) topic: Topic,
    pub(in crate::consumer) channel: Channel,
    pub(in crate::consumer) inbox: Arc<Inbox>,
    pub(in crate::consumer) desk: Arc<Desk>,
    pub(in crate::consumer) next_id: AtomicU64,
}

/// One nsqd of a consumer, connected or not.
pub(in crate::consumer) struct Node {
    pub(in crate::consumer) shared: Arc<Shared>,
    pub(in crate::consumer) address: Arc<str>,
    /// Turns true when no further connection is to be made. One that exists is ended by its link.
    pub(in crate::consumer) leaving: watch::Receiver<bool>,
    /// Changes when the nsqd has registered anew with an nsqlookupd.
    announced: watch::Receiver<()>,
}

/// What tells a node something.
#[derive(Debug)]
pub(in crate::consumer) struct Reins {
    /// Turned true, it makes the node leave.
    pub(in crate::consumer) leave: watch::Sender<bool>,
    /// Makes a node that waits to connect again do so at once: its nsqd has just registered with an nsqlookupd.
    pub(in crate::consumer) announced: watch::Sender<()>,
}

impl Node {
    pub(in crate::consumer) fn new(shared: Arc<Shared>, address: Arc<str>) -> (Reins, Self) {
        let (leave, leaving) = watch::channel(false);
        let (announce, announced) = watch::channel(());
        let reins = Reins {
            leave,
            announced: announce,
        };
        let node = Self {
            shared,
            address,
            leaving,
            announced,
        };
        (reins, node)
    }

    /// Connects, and connects again whenever the connection is lost, until told to leave.
    pub(in crate::consumer) async fn run(mut self) {
        let mut reconnect = Reconnect::new(fastrand::u64(..));
        let mut leaving = self.leaving.clone();
        loop {
            let shared = &self.shared;
            let opened = tokio::select! {
                biased;
                () = told_to_leave(&mut leaving) => return,
                opened = open(&shared.config, &self.address, Some((&shared.topic, &shared.channel))) => opened,
            };
            let lost = match opened {
                Ok(connection) => {
                    reconnect.handle_connected(Instant::now().into_std());
                    let lost = self.consume_over(connection).await;
                    reconnect.handle_lost(Instant::now().into_std());
                    // What has registered so far is the nsqd of this connection.
                    self.announced.mark_unchanged();
                    lost
                }
                Err(error) => {
                    if !error.is_retryable() {
                        reconnect.handle_refused();
                    }
                    Lost {
                        link: None,
                        error,
                        unanswered: 0,
                        unflushed: false,
                    }
                }
            };
            let delay = reconnect.next_delay();
            if *leaving.borrow() {
                tracing::info!(topic = %shared.topic, channel = %shared.channel, nsqd = %self.address, "consumer disconnected");
            } else {
                tracing::warn!(
                    topic = %shared.topic, channel = %shared.channel, nsqd = %self.address,
                    error = &lost.error as &dyn StdError, unanswered = lost.unanswered,
                    retry_in = ?delay, "consumer is not connected"
                );
            }
            shared.desk.mailbox.send(Event::Lost {
                address: Arc::clone(&self.address),
                link: lost.link,
                error: lost.error,
                leaving: self.leaving.clone(),
                unflushed: lost.unflushed,
            });
            tokio::select! {
                biased;
                () = told_to_leave(&mut leaving) => return,
                // One attempt for each registration, and the next delay is longer all the same: an nsqd that accepts and
                // drops is still backed off from.
                _announced = self.announced.changed() => {}
                () = sleep(delay) => {}
            }
        }
    }

    /// Consumes over a connection until it ends.
    async fn consume_over(&self, connection: Established) -> Lost {
        let shared = &self.shared;
        let link = Arc::new(Link::new(
            ConnectionId(shared.next_id.fetch_add(1, Ordering::Relaxed)),
            Arc::clone(&self.address),
            Arc::clone(&connection.negotiated),
            Arc::clone(&shared.desk),
        ));
        tracing::info!(
            topic = %shared.topic, channel = %shared.channel, nsqd = %self.address,
            version = protocol::shown(connection.negotiated.identify.version.as_bytes()), tls = connection.negotiated.tls.is_some(),
            "consumer connected"
        );
        shared.desk.mailbox.send(Event::Connected {
            link: Arc::clone(&link),
            leaving: self.leaving.clone(),
        });
        let session = Session::new(Arc::clone(&link), Arc::clone(&shared.inbox));
        let ending = EndOfLink(Arc::clone(&link));
        let mut driver = Driver::new(connection, session);
        let end = (&mut driver).await;
        drop(ending);
        let (mut session, write) = driver.into_role();
        let unsent = session.end(&write);
        shared
            .desk
            .counts
            .unsent
            .fetch_add(u64::from(unsent), Ordering::Relaxed);
        let error = end
            .err()
            .unwrap_or_else(|| Error::new(ErrorKind::Shutdown, Step::Read, "the connection was closed as asked"));
        Lost {
            link: Some(link),
            error,
            unanswered: session.in_flight(),
            unflushed: session.in_flight() > 0 || unsent > 0,
        }
    }
}

/// How a connection, or the attempt to make one, has ended.
struct Lost {
    /// `None` if no connection came about.
    link: Option<Arc<Link>>,
    error: Error,
    /// How many messages were delivered and their answers not encoded.
    unanswered: u32,
    /// Whether answers are missing from what the socket has taken.
    unflushed: bool,
}

/// Refuses further answers on a link whose driver has ended, however it ended.
struct EndOfLink(Arc<Link>);

impl Drop for EndOfLink {
    fn drop(&mut self) {
        let unsent = self.0.end();
        if unsent > 0 {
            self.0.desk.counts.unsent.fetch_add(unsent as u64, Ordering::Relaxed);
            tracing::debug!(nsqd = %self.0.address, unsent, "answers were not sent before the connection ended");
        }
    }
}

async fn told_to_leave(leaving: &mut watch::Receiver<bool>) {
    // A supervisor that is gone wants no connections either.
    let _supervisor_gone = leaving.wait_for(|leaving| *leaving).await;
}
