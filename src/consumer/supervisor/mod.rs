//! The one task that owns a consumer's connections, discovery and flow.

pub(super) mod control;
pub(super) mod mailbox;
pub(super) mod node;
pub(super) mod shutdown;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::control::{Control, End};
use self::mailbox::Event;
use self::node::Node;
use crate::consumer::flow::{ConnectionId, Flow, Outcome, RdyChange};
use crate::consumer::group::Ration;
use crate::consumer::link::refusal::AnswerRefused;
use crate::consumer::link::{Command, Link, Written};
use crate::consumer::state::{FlowPicture, State};
use crate::discovery::{Changes, Discovery};
use crate::error::{Error, ErrorKind, Step};
use crate::protocol::ErrorCode;

pub(in crate::consumer) struct Supervisor {
    pub(in crate::consumer) shared: Arc<node::Shared>,
    pub(in crate::consumer) flow: Flow,
    /// Where a group says how many messages may be in flight, if this consumer is one of its members.
    pub(in crate::consumer) ration: Option<Arc<Ration>>,
    pub(in crate::consumer) discovery: Option<Discovery>,
    /// The nsqds by address, each with the ways to tell its node something.
    pub(in crate::consumer) nodes: BTreeMap<Arc<str>, node::Reins>,
    /// Addresses set by the user, which discovery never removes.
    pub(in crate::consumer) pinned: Vec<Arc<str>>,
    pub(in crate::consumer) node_tasks: JoinSet<()>,
    pub(in crate::consumer) workers: JoinSet<()>,
    pub(in crate::consumer) links: BTreeMap<ConnectionId, Known>,
    /// The addresses of connections that are gone while handlers are still at work on what they have delivered.
    pub(in crate::consumer) outlived: BTreeMap<ConnectionId, Arc<str>>,
    /// Connections that were lost during the shutdown, and answers with them.
    pub(in crate::consumer) broken: usize,
    pub(in crate::consumer) control: mpsc::Receiver<Control>,
    pub(in crate::consumer) state: watch::Sender<State>,
}

/// A connection as the supervisor knows it.
pub(in crate::consumer) struct Known {
    pub(in crate::consumer) link: Arc<Link>,
    /// How many messages it had delivered at the last look.
    received: u64,
}

/// Why the supervisor's loop woke up.
enum Woken {
    Mail,
    FlowTimer,
    Discovered(Changes),
    Control(Option<Control>),
}

impl Supervisor {
    /// Runs until the consumer is shut down or dropped.
    pub(in crate::consumer) async fn run(mut self) {
        for address in self.pinned.clone() {
            self.add_node(address);
        }
        loop {
            self.look_around();
            // Nodes that have left end by themselves.
            while self.node_tasks.try_join_next().is_some() {}
            match self.wait().await {
                Woken::Mail => self.handle_mail(),
                Woken::FlowTimer => {
                    // The flow judges silence by what it was told.
                    self.look_around();
                    self.flow.handle_timeout(Instant::now().into_std());
                }
                Woken::Discovered(changes) => self.handle_discovered(changes),
                Woken::Control(control) => match self.handle_control(control) {
                    Some(End::By(deadline)) => {
                        self.shut_down(Some(deadline)).await;
                        return;
                    }
                    Some(End::Dropped) => {
                        self.shut_down(None).await;
                        return;
                    }
                    None => {}
                },
            }
        }
    }

    async fn wait(&mut self) -> Woken {
        let timer = self.flow.poll_timeout().map(Instant::from_std);
        // In a fixed order, so that a simulation can be repeated, and mail last: it alone may never cease.
        tokio::select! {
            biased;
            control = self.control.recv() => Woken::Control(control),
            () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => Woken::FlowTimer,
            changes = discovered(&mut self.discovery) => Woken::Discovered(changes),
            () = self.shared.desk.mailbox.arrived() => Woken::Mail,
        }
    }

    /// Handles what has arrived.
    fn handle_mail(&mut self) {
        let now = Instant::now().into_std();
        for event in self.shared.desk.mailbox.take() {
            match event {
                // Its nsqd was dropped while this event was on its way, so nobody has told this connection to close.
                Event::Connected { link, leaving } if *leaving.borrow() => {
                    link.leave();
                }
                Event::Connected { link, .. } => {
                    self.flow.handle_connected(link.id, link.max_rdy_count, now);
                    let address = Arc::clone(&link.address);
                    self.links.insert(
                        link.id,
                        Known {
                            link: Arc::clone(&link),
                            received: 0,
                        },
                    );
                    self.state.send_modify(|state| {
                        state.failing.remove(&address);
                        state.links.push(link);
                    });
                }
                Event::Lost {
                    address,
                    link,
                    error,
                    leaving,
                    ..
                } => {
                    if let Some(link) = link {
                        self.shared.inbox.forget(&link);
                        self.flow.handle_closed(link.id, now);
                        self.retire(&link);
                        // An attempt that fails is no reason to ask: where registrations hasten attempts, each would
                        // bring about the next.
                        if let Some(discovery) = &mut self.discovery {
                            discovery.poll_soon();
                        }
                    }
                    if self.nodes.contains_key(&address) && !*leaving.borrow() {
                        let error = self.explain(&address, error);
                        self.state.send_modify(|state| {
                            state.failing.insert(address, error);
                        });
                    }
                }
                Event::Handled {
                    link,
                    answer,
                    outcome,
                    written,
                } => {
                    self.flow.handle_outcome(outcome, now);
                    // RDY goes out before the answer that causes its change.
                    self.write_rdy(Some(link.id));
                    pass_on(&link, answer, written);
                }
                Event::Refused(refused) => self.handle_refused(&refused, now),
            }
            self.write_rdy(None);
        }
    }

    /// A connection is gone.
    pub(in crate::consumer) fn retire(&mut self, link: &Arc<Link>) {
        self.links.remove(&link.id);
        self.outlived.insert(link.id, Arc::clone(&link.address));
        let handling = self.shared.inbox.handling();
        self.outlived
            .retain(|gone, _| handling.iter().any(|(connection, _)| connection == gone));
        self.state.send_modify(|state| state.retire(link));
    }

    /// An answer that came too late is a failure like any other, and the commonest sign of handlers that are too slow: the
    /// message is handled again, here or elsewhere.
    fn handle_refused(&mut self, refused: &AnswerRefused, now: std::time::Instant) {
        // Of a TOUCH the handler still runs, and its own answer will be refused too.
        if refused.code != ErrorCode::TouchFailed {
            self.flow.handle_outcome(Outcome::Failure, now);
        }
        self.shared.desk.tell_refused(refused);
    }

    /// Queues the RDY commands that the flow has decided on. Of the lowered connections `last` is the last, so that the
    /// others are woken before the one that an answer is queued on next.
    fn write_rdy(&mut self, last: Option<ConnectionId>) {
        // Before the RDY: the messages that it brings may be handled at once.
        let reports = self.flow.wants_outcome(Outcome::Success);
        self.shared.desk.reports_success.store(reports, Ordering::Relaxed);
        let mut held = None;
        while let Some(change) = self.flow.poll_rdy() {
            if last == Some(change.id) && change.rdy == 0 {
                held = Some(change);
                continue;
            }
            if change.rdy > 0 {
                self.send_rdy(held.take());
            }
            self.send_rdy(Some(change));
        }
        self.send_rdy(held);
    }

    fn send_rdy(&self, change: Option<RdyChange>) {
        if let Some((change, known)) = change.and_then(|change| Some((change, self.links.get(&change.id)?))) {
            // A connection that is gone needs no RDY.
            let _lost_with_its_connection = known.link.send(Command::Rdy(change.rdy));
        }
    }

    /// Tells the flow what connections have in flight, and connections when to speak up about it.
    fn look_around(&mut self) {
        let now = Instant::now().into_std();
        if let Some(allowance) = self.ration.as_ref().and_then(|ration| ration.take()) {
            self.flow.set_max_in_flight(allowance, now);
        }
        let mut messages = false;
        let reports = self.links.iter_mut().map(|(id, known)| {
            let (received, in_flight) = (known.link.received(), known.link.in_flight());
            let news = received != std::mem::replace(&mut known.received, received);
            messages |= news || in_flight > 0;
            (*id, in_flight, news)
        });
        self.flow.handle_all_in_flight(reports, now);
        self.write_rdy(None);
        self.publish_flow();
        let mut first_wanted = false;
        if let Some(ration) = &self.ration {
            ration.report(self.flow.charge(), messages);
            first_wanted = ration.wants_first();
        }
        for (id, known) in &self.links {
            let (below, above) = (self.flow.notify_below(*id), self.flow.notify_above(*id));
            let above = if first_wanted { Some(0) } else { above };
            known.link.notify_at(below, above);
            // It may have changed before the marks were set.
            let in_flight = known.link.in_flight();
            if below.is_some_and(|below| in_flight <= below) || above.is_some_and(|above| in_flight > above) {
                self.shared.desk.mailbox.notify();
            }
        }
    }

    /// Tells whoever watches what the flow has decided, if it is something new.
    fn publish_flow(&mut self) {
        let flow = FlowPicture {
            max_in_flight: self.flow.max_in_flight(),
            paused: self.flow.is_paused(),
            backoff_level: self.flow.backoff_level(),
            backoff_until: self.flow.backoff_until(),
        };
        let mut before = flow;
        let mut changed = false;
        for (id, known) in &self.links {
            let reason = self.flow.pause_reason(*id);
            let reason = reason.map(|reason| self.ration.as_ref().map_or(reason, |ration| ration.explain(reason)));
            changed |= known.link.set_decided(self.flow.rdy(*id), reason);
        }
        self.state.send_if_modified(|state| {
            before = std::mem::replace(&mut state.flow, flow);
            changed |= before != flow;
            changed
        });
        self.log_backoff(before, flow);
    }

    /// A line for each pause that a failure brings, so for at most as many as there are pauses, and one at the end.
    fn log_backoff(&self, before: FlowPicture, after: FlowPicture) {
        let (topic, channel, level) = (&self.shared.topic, &self.shared.channel, after.backoff_level);
        let left = |until: std::time::Instant| until.saturating_duration_since(Instant::now().into_std());
        match after
            .backoff_until
            .filter(|_| after.backoff_until != before.backoff_until)
        {
            Some(until) if level >= before.backoff_level => tracing::warn!(
                %topic, %channel, level, pause = ?left(until),
                "messages fail, so the consumer backs off: RDY 0 everywhere, then one message that tries"
            ),
            Some(until) => {
                tracing::debug!(%topic, %channel, level, pause = ?left(until), "a message succeeded; the backoff goes on");
            }
            None if level == 0 && before.backoff_level > 0 => {
                tracing::info!(%topic, %channel, "messages succeed again, the backoff is over");
            }
            None => {}
        }
    }

    fn handle_discovered(&mut self, changes: Changes) {
        for address in changes.added {
            self.add_node(address);
        }
        for address in changes.anew {
            if let Some(node) = self.nodes.get(&address) {
                node.announced.send_replace(());
            }
        }
        for address in changes.removed {
            if !self.pinned.contains(&address) {
                self.remove_node(&address);
            }
        }
        self.publish_discovery();
    }

    pub(in crate::consumer) fn publish_discovery(&mut self) {
        let Some(discovery) = &self.discovery else { return };
        let (lookupds, discovered) = (discovery.lookupd_facts(), discovery.nsqd_facts());
        self.state.send_modify(|state| {
            state.lookupds = lookupds;
            state.discovered = discovered;
        });
    }

    pub(in crate::consumer) fn add_node(&mut self, address: Arc<str>) {
        if self.nodes.contains_key(&address) {
            return;
        }
        let (reins, node) = Node::new(Arc::clone(&self.shared), Arc::clone(&address));
        self.node_tasks.spawn(node.run());
        self.state.send_modify(|state| {
            state.nodes.insert(Arc::clone(&address));
        });
        self.nodes.insert(address, reins);
    }

    /// Leaves an nsqd: it sends nothing more, what it has in flight is still answered, and then the connection closes.
    pub(in crate::consumer) fn remove_node(&mut self, address: &Arc<str>) {
        let Some(reins) = self.nodes.remove(address) else {
            return;
        };
        reins.leave.send_replace(true);
        self.state.send_modify(|state| {
            state.nodes.remove(address);
            state.failing.remove(address);
        });
        let now = Instant::now().into_std();
        for known in self.links.values().filter(|known| known.link.address == *address) {
            self.flow.handle_closing(known.link.id, now);
            known.link.leave();
        }
    }

    /// Adds where an unreachable address comes from: it is the commonest mistake with nsqlookupd in containers.
    fn explain(&self, address: &Arc<str>, error: Error) -> Error {
        let announced_by = self
            .discovery
            .as_ref()
            .filter(|_| error.kind() == ErrorKind::Unreachable && !self.pinned.contains(address))
            .and_then(|discovery| discovery.view().announced_by(address));
        let Some(lookupd) = announced_by else { return error };
        let explained = Error::new(
            ErrorKind::Unreachable,
            Step::Dial,
            format!(
                "cannot be reached at the address that nsqlookupd {lookupd} announces; if that is not an address for this \
                 host, set nsqd's broadcast-address or use map_address"
            ),
        )
        .at(address);
        if !self.state.borrow().failing.contains_key(address) {
            tracing::warn!(topic = %self.shared.topic, channel = %self.shared.channel, "{explained}");
        }
        explained.because(error)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shared.desk.mailbox.close();
    }
}

/// Sends an answer, and tells whoever waits for it once it is written.
pub(in crate::consumer) fn pass_on(link: &Link, answer: Command, written: Option<Written>) {
    if link.send(answer).is_err() {
        // On a lost connection nsqd takes the message back by itself.
        link.desk.counts.unsent.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(written) = written {
        link.tell_when_written(written);
    }
}

async fn discovered(discovery: &mut Option<Discovery>) -> Changes {
    match discovery {
        Some(discovery) => discovery.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::task::Waker;

    use super::*;
    use crate::backoff::Exponential;
    use crate::config::ConnectionConfig;
    use crate::consumer::answer::desk::Desk;
    use crate::consumer::flow::FlowOptions;
    use crate::consumer::link::Queue;
    use crate::consumer::work::inbox::Inbox;
    use crate::name::{Channel, Topic};

    fn supervisor() -> Supervisor {
        let shared = node::Shared {
            config: ConnectionConfig::new(),
            topic: Topic::new("orders").unwrap(),
            channel: Channel::new("billing").unwrap(),
            inbox: Arc::new(Inbox::new(1)),
            desk: Arc::new(Desk::default()),
            next_id: AtomicU64::new(0),
        };
        Supervisor {
            shared: Arc::new(shared),
            flow: Flow::new(FlowOptions::default(), Box::new(Arc::new(Exponential::default())), 7),
            ration: None,
            discovery: None,
            nodes: BTreeMap::new(),
            pinned: Vec::new(),
            node_tasks: JoinSet::new(),
            workers: JoinSet::new(),
            links: BTreeMap::new(),
            outlived: BTreeMap::new(),
            broken: 0,
            control: mpsc::channel(1).1,
            state: watch::channel(State::default()).0,
        }
    }

    #[test]
    fn n5_a_connection_that_comes_about_while_its_nsqd_is_dropped_is_closed() {
        let mut supervisor = supervisor();
        let desk = Arc::clone(&supervisor.shared.desk);
        let link = Arc::new(Link::new(
            ConnectionId(1),
            Arc::from("nsqd:4150"),
            Arc::default(),
            Arc::clone(&desk),
        ));
        let (reins, node) = Node::new(Arc::clone(&supervisor.shared), Arc::clone(&link.address));
        let leaving = node.leaving.clone();
        supervisor.nodes.insert(Arc::clone(&link.address), reins);
        desk.mailbox.send(Event::Connected {
            link: Arc::clone(&link),
            leaving,
        });
        supervisor.remove_node(&link.address);
        supervisor.handle_mail();
        let mut commands = Vec::new();
        assert_eq!(
            link.take(&mut commands, &mut Vec::new(), 0, Waker::noop()),
            Queue::Taken
        );
        assert_eq!(commands, [Command::StartClose, Command::Close]);
    }
}
