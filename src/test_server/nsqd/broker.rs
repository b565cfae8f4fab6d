//! What the handle, the connections' tasks and the clock of an [`Nsqd`](super::Nsqd) share.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::client::Link;
use super::faults::AcceptFault;
use super::lookup_peer::{Holdings, LookupPeers};
use super::options::Options;
use super::session::Session;
use super::state::State;
use crate::test_server::http::Patience;
use crate::test_server::listener::{Accepted, Door};
use crate::test_server::lookupd::{Identity, Registration};
use crate::transport::Connector;

pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) door: Door,
    /// How auth servers and nsqlookupds are reached.
    pub(super) connector: Arc<dyn Connector>,
    /// What nsqlookupds are told of this broker.
    identity: Identity,
    /// Wakes those who wait for a condition.
    pub(super) changed: Notify,
    /// Wakes the clock to look at an earlier deadline.
    clock: Notify,
    /// Wakes who asks nsqlookupds about new topics.
    newcomers: Notify,
    peers: OnceLock<LookupPeers>,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(
        options: Options,
        door: Door,
        connector: Arc<dyn Connector>,
        identity: Identity,
        registrations: Vec<Registration>,
    ) -> Self {
        let state = State::new(options.clone(), registrations);
        Self {
            options,
            door,
            connector,
            identity,
            changed: Notify::new(),
            clock: Notify::new(),
            newcomers: Notify::new(),
            peers: OnceLock::new(),
            state: Mutex::new(state),
        }
    }

    /// Changes the state, and tells those who wait for a condition.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let wake_clock = std::mem::take(&mut state.wake_clock);
        let topology_changed = std::mem::take(&mut state.topology_changed);
        drop(state);
        if wake_clock {
            self.clock.notify_one();
        }
        if topology_changed {
            self.tell_lookupds();
        }
        self.changed.notify_waiters();
        result
    }

    fn tell_lookupds(&self) {
        if let Some(peers) = self.peers.get() {
            peers.wake();
            self.newcomers.notify_one();
        }
    }

    /// Asks the nsqlookupds which channels new topics have.
    pub(super) async fn run_newcomers(self: Arc<Self>) {
        loop {
            self.newcomers.notified().await;
            let names = self.change(|state| std::mem::take(&mut state.starting_topics));
            let mut asking = JoinSet::new();
            for name in names {
                if let Some(asked) = self.peers.get().map(|peers| peers.channels_of(&name)) {
                    asking.spawn(async move { (name, asked.await) });
                }
            }
            while let Some(answer) = asking.join_next().await {
                if let Ok((name, channels)) = answer {
                    self.change(|state| state.start_topic(&name, channels, Instant::now()));
                }
            }
        }
    }

    /// Connects to the nsqlookupds that are set now, or disconnects from all.
    pub(super) fn connect_lookupds(self: &Arc<Self>, connected: bool) {
        let peers = self.peers.get_or_init(|| {
            let shared = Arc::downgrade(self);
            let snapshot = move || {
                let shared = shared.upgrade();
                shared.map_or_else(Holdings::new, |shared| shared.read(State::holdings))
            };
            let max_reply = self.options.limits.max_body_size;
            let connector = Arc::clone(&self.connector);
            let mut peers = LookupPeers::start(connector, &[], self.identity.clone(), max_reply, Arc::new(snapshot));
            peers.set_patience(Patience {
                connect: self.options.http_client_connect_timeout,
                request: self.options.http_client_request_timeout,
            });
            peers
        });
        let addresses = self.read(|state| state.options.lookupd_tcp_addresses.clone());
        peers.set_addresses(if connected { &addresses } else { &[] });
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requeues what has timed out and releases what was deferred, each at its time.
    pub(super) async fn run_clock(self: Arc<Self>) {
        loop {
            let due = self.change(|state| state.expire(Instant::now()));
            match due {
                Some(due) => tokio::select! {
                    biased;
                    () = sleep_until(due) => {}
                    () = self.clock.notified() => {}
                },
                None => self.clock.notified().await,
            }
        }
    }

    /// Takes on every connection that comes to the door.
    pub(super) async fn run_door(self: Arc<Self>) {
        loop {
            let accepted = self.door.accept().await;
            self.serve(accepted);
        }
    }

    /// Gives a connection its task.
    pub(super) fn serve(self: &Arc<Self>, (io, remote): Accepted) {
        let link = Arc::new(Link::default());
        let now = Instant::now();
        let added = self.change(|state| state.add_client(Arc::clone(&link), remote, now));
        let Some((id, fault)) = added else { return };
        // Not under the lock: a runtime that shuts down drops the session at once, and that takes the lock.
        let session = Session::new(id, Arc::clone(self), link, io);
        let task = tokio::spawn(run_session(session, fault)).abort_handle();
        let is_over = self.change(|state| {
            if let Some(client) = state.clients.get_mut(&id) {
                client.task = Some(task.clone());
            }
            let ended = state.clients.get(&id).is_some_and(|client| client.is_ended);
            state.closed || ended
        });
        if is_over {
            task.abort();
        }
    }

    /// Ends connections without a word. Not to be called under the lock: a task that ends takes it to sign off.
    pub(super) fn end(tasks: Vec<AbortHandle>) {
        for task in tasks {
            task.abort();
        }
    }
}

async fn run_session(session: Session, fault: Option<AcceptFault>) {
    match fault {
        None => {}
        Some(AcceptFault::Close) => return,
        Some(AcceptFault::Delay(delay)) => tokio::time::sleep(delay).await,
        Some(AcceptFault::Ignore) => std::future::pending().await,
    }
    session.run().await;
}
