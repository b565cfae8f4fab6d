//! nsqds that behave: they keep to RDY, count what is in flight, time nothing out, and note whatever a client does that
//! a client must not do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::protocol;
use async_nsq::transport::MemoryNetwork;
use tokio::sync::Notify;
use tokio::time::{Instant, interval_at, sleep};

use crate::scripted::{Nsqd, delivery, id};
use crate::support::{Command, Peer, frames};

/// Some nsqds of one network, at `nsqd-0:4150` and so on.
#[derive(Clone)]
pub struct Model {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Something to deliver, or connections to cut.
    changed: Notify,
}

#[derive(Default)]
struct State {
    queues: Vec<VecDeque<Queued>>,
    /// By number, over all nsqds.
    connections: BTreeMap<usize, Connection>,
    accepted: usize,
    finished: BTreeSet<u64>,
    faults: Vec<String>,
    /// When which nsqd delivered something.
    delivered: Vec<(Instant, usize)>,
    /// The sum of all RDYs at the end of each instant: which of two nsqds reads first says nothing of the client.
    rdy_sums: BTreeMap<Instant, u64>,
    most_in_flight: usize,
}

#[derive(Clone, Copy)]
struct Queued {
    number: u64,
    attempts: u16,
}

#[derive(Default)]
struct Connection {
    nsqd: usize,
    rdy: u64,
    in_flight: BTreeMap<u64, u16>,
    closing: bool,
    cut: bool,
}

impl Model {
    /// Starts nsqds of this largest RDY.
    pub fn start(network: &MemoryNetwork, count: usize, max_rdy_count: u32) -> Self {
        let model = Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    queues: vec![VecDeque::new(); count],
                    ..State::default()
                }),
                changed: Notify::new(),
            }),
        };
        for nsqd in 0..count {
            let mut listener = Nsqd::start_at(network, &format!("nsqd-{nsqd}:4150"));
            let model = model.clone();
            tokio::spawn(async move {
                let granted = format!(r#"{{"max_rdy_count":{max_rdy_count}}}"#);
                loop {
                    let peer = listener.accept_granting(granted.as_bytes()).await;
                    tokio::spawn(model.clone().serve(nsqd, peer));
                }
            });
        }
        model
    }

    fn state<R>(&self, with: impl FnOnce(&mut State) -> R) -> R {
        with(&mut self.shared.state.lock().unwrap())
    }

    pub fn publish(&self, nsqd: usize, numbers: impl IntoIterator<Item = u64>) {
        let queued = numbers.into_iter().map(|number| Queued { number, attempts: 0 });
        self.state(|state| state.queues[nsqd].extend(queued));
        self.shared.changed.notify_waiters();
    }

    /// Cuts one connection, if there is any; `which` chooses.
    pub fn cut(&self, which: usize) {
        self.state(|state| {
            let count = state.connections.len().max(1);
            if let Some(connection) = state.connections.values_mut().nth(which % count) {
                connection.cut = true;
            }
        });
        self.shared.changed.notify_waiters();
    }

    pub fn finished(&self) -> usize {
        self.state(|state| state.finished.len())
    }

    /// The current RDY of each connection, in the order of connecting.
    pub fn rdys(&self) -> Vec<u64> {
        self.state(|state| state.connections.values().map(|c| c.rdy).collect())
    }

    pub fn in_flight(&self) -> usize {
        self.state(|state| state.connections.values().map(|c| c.in_flight.len()).sum())
    }

    /// The largest sum of the RDYs of all connections that there has been.
    pub fn largest_rdy_sum(&self) -> u64 {
        self.state(|state| state.rdy_sums.values().copied().max().unwrap_or(0))
    }

    /// The most that was in flight over all connections. It may be more than any sum of RDYs, by what an nsqd sent
    /// before it read a lowered one.
    pub fn most_in_flight(&self) -> usize {
        self.state(|state| state.most_in_flight)
    }

    /// When this nsqd delivered messages.
    pub fn delivered(&self, nsqd: usize) -> Vec<Instant> {
        self.state(|state| {
            let of_it = state.delivered.iter().filter(|(_, by)| *by == nsqd);
            of_it.map(|(at, _)| *at).collect()
        })
    }

    /// Fails if the client did what it must not do.
    pub fn check(&self) {
        self.state(|state| assert_eq!(state.faults, [""; 0]));
    }

    async fn serve(self, nsqd: usize, mut peer: Peer) {
        let number = self.state(|state| {
            state.accepted += 1;
            let connection = Connection {
                nsqd,
                ..Connection::default()
            };
            state.connections.insert(state.accepted, connection);
            state.accepted
        });
        let period = Duration::from_secs(30);
        let mut heartbeat = interval_at(Instant::now() + period, period);
        loop {
            let changed = self.shared.changed.notified();
            let due = self.state(|state| state.deliver(number));
            let Some(due) = due else { break };
            let due: Vec<_> = due
                .iter()
                .map(|queued| delivery(queued.number, queued.attempts, queued.number.to_string()))
                .collect();
            peer.send_bytes(&frames(&due)).await;
            tokio::select! {
                command = peer.next() => match command {
                    Some(Command::Cls) => {
                        self.state(|state| state.handle(number, &Command::Cls));
                        peer.respond(protocol::CLOSE_WAIT).await;
                    }
                    Some(Command::Req { id, delay_ms }) => self.requeue(number, &id, delay_ms),
                    Some(command) => self.state(|state| state.handle(number, &command)),
                    None => break,
                },
                _ = heartbeat.tick() => peer.heartbeat().await,
                () = changed => {}
            }
        }
        self.state(|state| state.close(number));
        self.shared.changed.notify_waiters();
    }

    fn requeue(&self, connection: usize, id: &str, delay_ms: u64) {
        let Some((nsqd, queued)) = self.state(|state| state.answered(connection, id)) else {
            return;
        };
        let model = self.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(delay_ms)).await;
            model.state(|state| state.queues[nsqd].push_back(queued));
            model.shared.changed.notify_waiters();
        });
    }
}

impl State {
    /// What RDY lets out; `None` if the connection is to be cut.
    fn deliver(&mut self, number: usize) -> Option<Vec<Queued>> {
        let connection = self.connections.get_mut(&number).filter(|c| !c.cut)?;
        let queue = &mut self.queues[connection.nsqd];
        let mut due = Vec::new();
        while (connection.in_flight.len() as u64) < connection.rdy && !connection.closing {
            let Some(mut queued) = queue.pop_front() else { break };
            queued.attempts += 1;
            connection.in_flight.insert(queued.number, queued.attempts);
            due.push(queued);
        }
        if !due.is_empty() {
            self.delivered.push((Instant::now(), connection.nsqd));
            let in_flight = self.connections.values().map(|c| c.in_flight.len()).sum();
            self.most_in_flight = self.most_in_flight.max(in_flight);
        }
        Some(due)
    }

    fn handle(&mut self, number: usize, command: &Command) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        match command {
            Command::Rdy(count) => {
                connection.rdy = *count;
                let sum = self.connections.values().map(|c| c.rdy).sum();
                self.rdy_sums.insert(Instant::now(), sum);
            }
            Command::Fin(id) => {
                if let Some((_, queued)) = self.answered(number, id) {
                    self.finished.insert(queued.number);
                }
            }
            Command::Cls => {
                connection.closing = true;
                connection.rdy = 0;
            }
            Command::Touch(touched) if connection.in_flight.keys().any(|n| id(*n).to_string() == *touched) => {}
            Command::Nop => {}
            other => self.faults.push(format!("{other:?} on connection {number}")),
        }
    }

    /// Takes a message out of flight. An answer that is the second one, or on a connection that did not deliver the
    /// message, is a fault.
    fn answered(&mut self, number: usize, answered: &str) -> Option<(usize, Queued)> {
        let connection = self.connections.get_mut(&number)?;
        let found = connection
            .in_flight
            .keys()
            .find(|number| id(**number).to_string() == answered);
        let Some(&found) = found else {
            self.faults.push(format!(
                "an answer to {answered}, which is not in flight on connection {number}"
            ));
            return None;
        };
        let attempts = connection.in_flight.remove(&found)?;
        let queued = Queued {
            number: found,
            attempts,
        };
        Some((connection.nsqd, queued))
    }

    fn close(&mut self, number: usize) {
        let Some(connection) = self.connections.remove(&number) else {
            return;
        };
        for (number, attempts) in connection.in_flight {
            self.queues[connection.nsqd].push_back(Queued { number, attempts });
        }
    }
}
