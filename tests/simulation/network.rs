//! The simulated network, and what may be wrong with its links.

use std::cell::RefCell;
use std::time::Duration;

use turmoil::{Builder, Sim};

const TICK: Duration = Duration::from_millis(20);

/// A connection between two hosts.
pub trait Link: Copy + PartialEq {
    /// The names of the hosts.
    fn ends(self) -> (String, String);

    /// All links of an nsqd.
    fn of_nsqd(n: usize) -> Vec<Self>;
}

pub struct Network<L> {
    pub sim: RefCell<Sim<'static>>,
    /// The links that something is wrong with.
    claimed: Vec<L>,
}

impl<L: Link> Network<L> {
    pub fn new(seed: u64) -> Self {
        let mut builder = Builder::new();
        builder
            .rng_seed(seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(30))
            .tcp_capacity(4096)
            .enable_random_order();
        Self {
            sim: RefCell::new(builder.build()),
            claimed: Vec::new(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.sim.borrow().elapsed()
    }

    /// Lets a tick pass.
    pub fn step(&mut self) -> Result<(), String> {
        let stepped = self.sim.get_mut().step();
        stepped.map(|_| ()).map_err(|error| format!("a host ended: {error}"))
    }

    /// Lets nothing through. False if something is wrong with one of the links already; the same below.
    pub fn cut_off(&mut self, links: &[L]) -> bool {
        let are_free = self.claim(links);
        if are_free {
            for &link in links {
                self.with(link, |sim, a, b| sim.partition(a, b));
            }
        }
        are_free
    }

    pub fn mend(&mut self, links: &[L]) {
        for &link in links {
            self.with(link, |sim, a, b| sim.repair(a, b));
            self.give_back(link);
        }
    }

    /// Lets nothing through until it is released, and then everything at once.
    pub fn hold(&mut self, link: L) -> bool {
        self.claim(&[link]) && self.with(link, |sim, a, b| sim.hold(a, b))
    }

    pub fn release(&mut self, link: L) {
        self.with(link, |sim, a, b| sim.release(a, b));
        self.give_back(link);
    }

    pub fn slow_down(&mut self, link: L, latency: Duration) -> bool {
        self.claim(&[link]) && self.with(link, |sim, a, b| sim.set_link_latency(a, b, latency))
    }

    pub fn speed_up(&mut self, link: L) {
        self.with(link, |sim, a, b| sim.set_link_latency(a, b, Duration::from_millis(5)));
        self.give_back(link);
    }

    /// Takes links for one fault, if no other has one of them.
    fn claim(&mut self, links: &[L]) -> bool {
        let are_free = links.iter().all(|link| !self.claimed.contains(link));
        if are_free {
            self.claimed.extend(links);
        }
        are_free
    }

    fn give_back(&mut self, link: L) {
        self.claimed.retain(|claimed| *claimed != link);
    }

    fn with(&self, link: L, act: impl FnOnce(&Sim<'static>, String, String)) -> bool {
        let (a, b) = link.ends();
        act(&self.sim.borrow(), a, b);
        true
    }
}

/// One life of a cluster, step by step.
pub trait Life {
    fn elapsed(&self) -> Duration;

    /// Lets a tick pass.
    ///
    /// # Errors
    /// What was broken.
    fn step(&mut self) -> Result<(), String>;

    /// # Errors
    /// What was broken, or that it was not `done` in time.
    fn step_until(&mut self, what: &str, patience: Duration, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let until = self.elapsed() + patience;
        while !done(self) {
            if self.elapsed() > until {
                return Err(format!("not within {patience:?}: {what}"));
            }
            self.step()?;
        }
        Ok(())
    }
}
