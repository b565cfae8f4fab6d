//! What may fail in both simulations: the brokers and the links. Clients are each simulation's own.

use std::sync::Arc;
use std::time::Duration;

use crate::hosts::{Brokers, NsqdOrder};
use crate::network::{Link, Network};
use crate::plan::{LOOKUPDS, lookupd_name};

/// The numbers are those of nsqds (`n`) and nsqlookupds (`l`).
#[derive(Clone, Copy, Debug)]
pub enum Outage<L> {
    /// Its process ends and its sockets are closed; messages are kept.
    StopNsqd(usize),
    /// Its machine vanishes without a word; messages are kept.
    LoseNsqd(usize),
    /// Its process dies with everything that it had in memory.
    KillNsqd(usize),
    CrashLookupd(usize),
    Partition(L),
    /// Nothing arrives, and then everything at once.
    Hold(L),
    Slow(L, Duration),
}

/// The network with the brokers in it, and which of those are down.
pub struct World<L> {
    pub network: Network<L>,
    brokers: Arc<Brokers>,
    nsqds_down: Vec<usize>,
    lookupds_down: Vec<usize>,
    /// The hosts that have a step to go.
    crashing: Vec<String>,
}

impl<L: Link> World<L> {
    pub fn new(seed: u64, brokers: Arc<Brokers>) -> Self {
        Self {
            network: Network::new(seed),
            brokers,
            nsqds_down: Vec::new(),
            lookupds_down: Vec::new(),
            crashing: Vec::new(),
        }
    }

    pub fn host_lookupds(&mut self) {
        for l in 0..LOOKUPDS {
            let brokers = Arc::clone(&self.brokers);
            self.network.sim.get_mut().host(lookupd_name(l), move || {
                let brokers = Arc::clone(&brokers);
                async move { brokers.lookupds[l].run(&lookupd_name(l)).await }
            });
        }
    }

    /// Lets a tick pass. Returns the hosts that have crashed at its end.
    pub fn step(&mut self) -> Result<Vec<String>, String> {
        self.network.step()?;
        // Their connections are cut by now.
        let crashed = std::mem::take(&mut self.crashing);
        for host in &crashed {
            self.network.sim.get_mut().crash(host.as_str());
        }
        Ok(crashed)
    }

    /// False if what it concerns has failed already.
    pub fn begin(&mut self, outage: Outage<L>) -> bool {
        match outage {
            Outage::StopNsqd(n) => self.take_down(n, NsqdOrder::Stop),
            Outage::KillNsqd(n) => self.take_down(n, NsqdOrder::Kill),
            Outage::LoseNsqd(n) => {
                !self.is_down(n) && self.network.cut_off(&L::of_nsqd(n)) && self.take_down(n, NsqdOrder::Stop)
            }
            Outage::CrashLookupd(l) => {
                let is_up = !self.lookupds_down.contains(&l);
                if is_up {
                    self.lookupds_down.push(l);
                    self.brokers.lookupds[l].is_about_to_crash();
                    self.crash(lookupd_name(l));
                }
                is_up
            }
            Outage::Partition(link) => self.network.cut_off(&[link]),
            Outage::Hold(link) => self.network.hold(link),
            Outage::Slow(link, latency) => self.network.slow_down(link, latency),
        }
    }

    pub fn end(&mut self, outage: Outage<L>) {
        match outage {
            Outage::StopNsqd(n) | Outage::KillNsqd(n) => self.bring_up(n),
            Outage::LoseNsqd(n) => {
                self.network.mend(&L::of_nsqd(n));
                self.bring_up(n);
            }
            Outage::CrashLookupd(l) => {
                self.lookupds_down.retain(|down| *down != l);
                self.network.sim.get_mut().bounce(lookupd_name(l));
            }
            Outage::Partition(link) => self.network.mend(&[link]),
            Outage::Hold(link) => self.network.release(link),
            Outage::Slow(link, _) => self.network.speed_up(link),
        }
    }

    pub fn is_down(&self, n: usize) -> bool {
        self.nsqds_down.contains(&n)
    }

    /// Takes an nsqd down by this order. False if it is.
    pub fn take_down(&mut self, n: usize, order: NsqdOrder) -> bool {
        let is_up = !self.is_down(n);
        if is_up {
            self.nsqds_down.push(n);
            self.brokers.nsqds[n].orders.give(order);
        }
        is_up
    }

    fn bring_up(&mut self, n: usize) {
        self.nsqds_down.retain(|down| *down != n);
        self.brokers.nsqds[n].orders.give(NsqdOrder::Restart);
    }

    /// Has a host crash with the next step, in which it can still close its connections.
    pub fn crash(&mut self, host: String) {
        self.crashing.push(host);
    }
}
