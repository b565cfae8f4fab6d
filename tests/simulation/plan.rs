//! What a seed decides: the consumers' options, what handlers make of messages, and when which fault strikes.

use std::time::Duration;

use crate::network;
use crate::outages::Outage;

pub const NSQDS: usize = 3;
pub const LOOKUPDS: usize = 2;
pub const CONSUMERS: usize = 5;

/// nsqd takes a message back after this.
pub const MSG_TIMEOUT: Duration = Duration::from_secs(2);
/// Nobody can tell a dead peer sooner than after two of these.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

const CHAOS_BEGINS: u64 = 1_000;
const CHAOS_ENDS: u64 = 12_000;

pub struct Plan {
    pub seed: u64,
    pub consumers: Vec<ConsumerPlan>,
    /// In the order in which they strike.
    pub faults: Vec<Fault>,
    /// Time between publishes to one nsqd, on average.
    pub publish_every: Duration,
    /// Whether the recovered cluster is watched for so long that RDY has to go round.
    pub is_long: bool,
    /// From then on nothing fails any more.
    pub heals_at: Duration,
}

#[derive(Clone, Debug)]
pub struct ConsumerPlan {
    pub max_in_flight: u32,
    pub concurrency: u32,
    pub backs_off: bool,
}

#[derive(Clone, Debug)]
pub struct Fault {
    pub at: Duration,
    pub lasts: Duration,
    pub kind: Kind,
}

/// The numbers are those of consumers.
#[derive(Clone, Debug)]
pub enum Kind {
    Outage(Outage<Link>),
    /// The process dies; its sockets are closed.
    CrashConsumer(usize),
    /// The machine vanishes without a word.
    LoseConsumer(usize),
    /// It is shut down within this time, and started again.
    Shutdown(usize, Duration),
    SetMaxInFlight(usize, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    ConsumerNsqd(usize, usize),
    ConsumerLookupd(usize, usize),
    NsqdLookupd(usize, usize),
    PublisherNsqd(usize),
}

impl network::Link for Link {
    fn ends(self) -> (String, String) {
        match self {
            Self::ConsumerNsqd(c, n) => (consumer_name(c), nsqd_name(n)),
            Self::ConsumerLookupd(c, l) => (consumer_name(c), lookupd_name(l)),
            Self::NsqdLookupd(n, l) => (nsqd_name(n), lookupd_name(l)),
            Self::PublisherNsqd(n) => (PUBLISHER.to_owned(), nsqd_name(n)),
        }
    }

    fn of_nsqd(n: usize) -> Vec<Self> {
        let consumers = (0..CONSUMERS).map(|c| Self::ConsumerNsqd(c, n));
        let lookupds = (0..LOOKUPDS).map(|l| Self::NsqdLookupd(n, l));
        consumers.chain(lookupds).chain([Self::PublisherNsqd(n)]).collect()
    }
}

impl Link {
    pub fn of_consumer(c: usize) -> Vec<Self> {
        let nsqds = (0..NSQDS).map(|n| Self::ConsumerNsqd(c, n));
        nsqds
            .chain((0..LOOKUPDS).map(|l| Self::ConsumerLookupd(c, l)))
            .collect()
    }
}

pub const PUBLISHER: &str = "publisher";

pub fn nsqd_name(n: usize) -> String {
    format!("nsqd-{n}")
}

pub fn lookupd_name(l: usize) -> String {
    format!("lookupd-{l}")
}

pub fn consumer_name(c: usize) -> String {
    format!("consumer-{c}")
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let consumers = (0..CONSUMERS).map(|c| consumer(c, &mut random)).collect();
        let count = random.usize(8..30);
        let mut faults: Vec<Fault> = (0..count).map(|_| fault(&mut random)).collect();
        faults.sort_by_key(|fault| fault.at);
        let last = faults.iter().map(|fault| fault.at + fault.lasts).max();
        let chaos_ends = Duration::from_millis(CHAOS_ENDS);
        Self {
            seed,
            consumers,
            heals_at: last.unwrap_or_default().max(chaos_ends),
            faults,
            publish_every: Duration::from_millis(random.u64(60..300)),
            is_long: seed % 8 == 0,
        }
    }
}

/// The first two have fewer slots than there are nsqds, the third one as many.
fn consumer(c: usize, random: &mut fastrand::Rng) -> ConsumerPlan {
    let max_in_flight = [1, 2, 3, 20][c.min(3)];
    let max_in_flight = if c == 4 { random.u32(1..=40) } else { max_in_flight };
    ConsumerPlan {
        max_in_flight,
        concurrency: random.u32(1..=max_in_flight.min(8)),
        backs_off: random.u32(0..5) > 0,
    }
}

fn fault(random: &mut fastrand::Rng) -> Fault {
    let (c, n, l) = (
        random.usize(..CONSUMERS),
        random.usize(..NSQDS),
        random.usize(..LOOKUPDS),
    );
    let kind = match random.u32(0..100) {
        0..12 => Kind::Outage(Outage::StopNsqd(n)),
        12..18 => Kind::Outage(Outage::LoseNsqd(n)),
        18..20 => Kind::Outage(Outage::KillNsqd(n)),
        20..27 => Kind::Outage(Outage::CrashLookupd(l)),
        27..33 => Kind::CrashConsumer(c),
        33..37 => Kind::LoseConsumer(c),
        37..45 => Kind::Shutdown(c, Duration::from_millis(random.u64(0..3_000))),
        45..55 => Kind::SetMaxInFlight(c, [0, 1, 2, 3, 10, 50][random.usize(..6)]),
        55..75 => Kind::Outage(Outage::Partition(link(c, n, l, random))),
        75..85 => Kind::Outage(Outage::Hold(link(c, n, l, random))),
        _ => Kind::Outage(Outage::Slow(
            link(c, n, l, random),
            Duration::from_millis(random.u64(50..600)),
        )),
    };
    Fault {
        at: Duration::from_millis(random.u64(CHAOS_BEGINS..CHAOS_ENDS)),
        lasts: Duration::from_millis(random.u64(100..4_000)),
        kind,
    }
}

fn link(c: usize, n: usize, l: usize, random: &mut fastrand::Rng) -> Link {
    match random.u32(0..10) {
        0..6 => Link::ConsumerNsqd(c, n),
        6 => Link::ConsumerLookupd(c, l),
        7 => Link::NsqdLookupd(n, l),
        _ => Link::PublisherNsqd(n),
    }
}

/// What a handler does with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Succeed(Duration),
    Fail(Duration),
    Panic(Duration),
    RequeueWithoutBackoff(Duration),
}

/// The same message is handled the same way at each attempt of the same number, whoever has it. What comes after the
/// recovery succeeds, and so does everything in the end.
pub fn deed(seed: u64, body: &str, attempts: u16) -> Deed {
    let hash = body.bytes().fold(seed, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut random = fastrand::Rng::with_seed(hash);
    let kind = random.u32(0..100);
    let short = Duration::from_millis(random.u64(0..40));
    if is_of_recovery(body) {
        return Deed::Succeed(short);
    }
    match (kind, attempts) {
        (0..6, 1) | (6..9, 1..=2) => Deed::Fail(short),
        (9..12, 1) => Deed::Panic(short),
        (12..18, 1..=2) => Deed::RequeueWithoutBackoff(short),
        // nsqd takes it back meanwhile, and refuses the FIN.
        (18..23, 1) => Deed::Succeed(MSG_TIMEOUT + MSG_TIMEOUT / 2),
        // As good as stuck: a shutdown has to stop it.
        (23..25, 1) => Deed::Succeed(Duration::from_secs(8)),
        (25..35, _) => Deed::Succeed(Duration::ZERO),
        _ => Deed::Succeed(short),
    }
}

/// The body of a message: where it was published, and its number there.
pub fn body(nsqd: usize, number: usize, of_recovery: bool) -> String {
    let phase = if of_recovery { "recovery" } else { "chaos" };
    format!("{phase}-{nsqd}-{number}")
}

pub fn is_of_recovery(body: &str) -> bool {
    body.starts_with("recovery")
}

/// The nsqd to which a message was published.
pub fn published_at(body: &str) -> usize {
    body.split('-').nth(1).and_then(|n| n.parse().ok()).unwrap()
}
