//! What a seed decides: the producers' options, and when which fault strikes.

use std::time::Duration;

use crate::network;
use crate::outages::Outage;
use crate::plan::{LOOKUPDS, NSQDS, lookupd_name, nsqd_name};

pub const PRODUCERS: usize = 8;

/// The largest message that nsqds accept. Clients do not know of it.
pub const MAX_MSG_SIZE: usize = 1000;

const CHAOS_BEGINS: u64 = 500;
const CHAOS_ENDS: u64 = 7_000;

pub struct Plan {
    pub seed: u64,
    pub producers: Vec<ProducerPlan>,
    /// In the order in which they strike.
    pub faults: Vec<Fault>,
    /// The only nsqd whose messages are ever lost.
    pub victim: usize,
    pub destroyed: Option<Destroyed>,
    /// From then on nothing fails any more.
    pub heals_at: Duration,
}

/// The end of the victim, for good.
#[derive(Clone, Debug)]
pub struct Destroyed {
    pub at: Duration,
    /// Whether its machine vanishes without a word.
    pub silently: bool,
}

#[derive(Clone, Debug)]
pub struct ProducerPlan {
    pub copies: usize,
    pub quorum: Option<usize>,
    pub accept_fewer: bool,
    pub at_least_once: bool,
    pub routing: Route,
    /// Whether it learns of the nsqds from nsqlookupds.
    pub discovers: bool,
    pub lazily: bool,
    pub batching: bool,
    pub timeout: Duration,
    pub max_pending: u32,
    /// The time between bursts, on average.
    pub pause: Duration,
}

#[derive(Clone, Copy, Debug)]
pub enum Route {
    RoundRobin,
    Failover,
    LeastLoaded,
    SameZoneFirst,
    ByKey,
}

impl ProducerPlan {
    /// On how many nsqds a message is when its publish is `Ok`.
    pub fn confirmed_copies(&self) -> usize {
        match self.quorum {
            Some(quorum) => quorum,
            None if self.accept_fewer => 1,
            None => self.copies,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Fault {
    pub at: Duration,
    pub lasts: Duration,
    pub kind: Kind,
}

/// The numbers are those of producers.
#[derive(Clone, Debug)]
pub enum Kind {
    Outage(Outage<Link>),
    /// It reaches no nsqd.
    Isolate(usize),
    /// It is shut down within this time, and started again.
    Shutdown(usize, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    ProducerNsqd(usize, usize),
    ProducerLookupd(usize, usize),
    NsqdLookupd(usize, usize),
}

impl Link {
    pub fn to_nsqds(p: usize) -> Vec<Self> {
        (0..NSQDS).map(|n| Self::ProducerNsqd(p, n)).collect()
    }
}

impl network::Link for Link {
    fn ends(self) -> (String, String) {
        match self {
            Self::ProducerNsqd(p, n) => (producer_name(p), nsqd_name(n)),
            Self::ProducerLookupd(p, l) => (producer_name(p), lookupd_name(l)),
            Self::NsqdLookupd(n, l) => (nsqd_name(n), lookupd_name(l)),
        }
    }

    fn of_nsqd(n: usize) -> Vec<Self> {
        let producers = (0..PRODUCERS).map(|p| Self::ProducerNsqd(p, n));
        producers
            .chain((0..LOOKUPDS).map(|l| Self::NsqdLookupd(n, l)))
            .collect()
    }
}

pub fn producer_name(p: usize) -> String {
    format!("producer-{p}")
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let producers = (0..PRODUCERS).map(|p| producer(p, &mut random)).collect();
        let victim = random.usize(..NSQDS);
        let destroyed = random.bool().then(|| Destroyed {
            at: Duration::from_millis(random.u64(CHAOS_BEGINS..CHAOS_ENDS)),
            silently: random.bool(),
        });
        let count = random.usize(6..20);
        let mut faults: Vec<Fault> = (0..count).map(|_| fault(victim, &mut random)).collect();
        faults.sort_by_key(|fault| fault.at);
        let last = faults.iter().map(|fault| fault.at + fault.lasts).max();
        Self {
            seed,
            producers,
            heals_at: last.unwrap_or_default().max(Duration::from_millis(CHAOS_ENDS)),
            faults,
            victim,
            destroyed,
        }
    }
}

/// Every other one makes copies.
fn producer(p: usize, random: &mut fastrand::Rng) -> ProducerPlan {
    let copies = 1 + p % 2;
    let routes = [
        Route::RoundRobin,
        Route::Failover,
        Route::LeastLoaded,
        Route::SameZoneFirst,
        Route::ByKey,
    ];
    ProducerPlan {
        copies,
        quorum: (copies > 1 && random.u32(0..4) == 0).then_some(1),
        accept_fewer: copies > 1 && random.u32(0..4) == 0,
        at_least_once: random.u32(0..3) == 0,
        routing: routes[random.usize(..routes.len())],
        discovers: random.bool(),
        lazily: random.bool(),
        batching: random.u32(0..4) > 0,
        timeout: Duration::from_millis(random.u64(200..3_000)),
        max_pending: random.u32(8..60),
        pause: Duration::from_millis(random.u64(60..200)),
    }
}

fn fault(victim: usize, random: &mut fastrand::Rng) -> Fault {
    let (p, n, l) = (
        random.usize(..PRODUCERS),
        random.usize(..NSQDS),
        random.usize(..LOOKUPDS),
    );
    let link = match random.u32(0..10) {
        0 => Link::ProducerLookupd(p, l),
        1 => Link::NsqdLookupd(n, l),
        _ => Link::ProducerNsqd(p, n),
    };
    let kind = match random.u32(0..100) {
        0..15 => Kind::Outage(Outage::StopNsqd(n)),
        15..25 => Kind::Outage(Outage::LoseNsqd(n)),
        25..32 => Kind::Outage(Outage::KillNsqd(victim)),
        32..37 => Kind::Outage(Outage::CrashLookupd(l)),
        37..47 => Kind::Shutdown(p, Duration::from_millis(random.u64(0..1_000))),
        47..57 => Kind::Isolate(p),
        57..74 => Kind::Outage(Outage::Partition(link)),
        74..85 => Kind::Outage(Outage::Hold(link)),
        _ => Kind::Outage(Outage::Slow(link, Duration::from_millis(random.u64(50..600)))),
    };
    Fault {
        at: Duration::from_millis(random.u64(CHAOS_BEGINS..CHAOS_ENDS)),
        lasts: Duration::from_millis(random.u64(100..3_000)),
        kind,
    }
}
