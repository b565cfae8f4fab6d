//! Which nsqd a message goes to: facts in, order out.

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::Topic;
use crate::panics::caught;

/// How a producer with several nsqds chooses among those that have a connection.
///
/// Whatever is chosen, an nsqd without connection is passed over, and what cannot be sent to one goes to the next in the
/// routing's order.
///
/// ```
/// use async_nsq::{Producer, Routing};
///
/// let by_customer = Routing::by_key(|_topic, body| body.first().copied().unwrap_or_default().into());
/// let builder = Producer::builder()
///     .nsqd("10.0.0.1:4150")
///     .nsqd("10.0.0.2:4150")
///     .routing(by_customer);
/// ```
#[derive(Clone)]
pub struct Routing {
    name: &'static str,
    router: Arc<dyn Router>,
}

/// What a [`Router`] is told of what is published.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RoutedMessage<'a> {
    /// The topic.
    pub topic: &'a Topic,
    /// The body; of several messages that are published together, the first one's.
    pub body: &'a [u8],
}

impl<'a> RoutedMessage<'a> {
    /// A message, for a router's tests.
    #[must_use]
    pub fn new(topic: &'a Topic, body: &'a [u8]) -> Self {
        Self { topic, body }
    }
}

/// What a [`Router`] is told of an nsqd that has a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoutedNsqd<'a> {
    /// Its address, as configured or discovered.
    pub address: &'a str,
    /// The region that it stands in, if that is known.
    pub region: Option<&'a str>,
    /// The zone within the region, if that is known.
    pub zone: Option<&'a str>,
    /// How many messages are pending there, published by this producer and not answered.
    pub pending_messages: usize,
    /// Whether a publish would be accepted at once, and not have to wait because too much is pending there.
    pub has_room: bool,
}

impl<'a> RoutedNsqd<'a> {
    /// An idle nsqd of unknown place, for a router's tests.
    #[must_use]
    pub fn new(address: &'a str) -> Self {
        Self {
            address,
            region: None,
            zone: None,
            pending_messages: 0,
            has_room: true,
        }
    }
}

/// A choice of one's own among several nsqds: see [`Routing::custom`].
///
/// ```
/// use async_nsq::{RoutedMessage, RoutedNsqd, Router};
///
/// /// Audit logs go to the first nsqd only, everything else to any other.
/// struct AuditApart;
///
/// impl Router for AuditApart {
///     fn order(&self, message: &RoutedMessage<'_>, nsqds: &[RoutedNsqd<'_>]) -> Vec<usize> {
///         let is_audit = message.topic.as_str() == "audit";
///         (0..nsqds.len())
///             .filter(|nsqd| (nsqds[*nsqd].address == "10.0.0.1:4150") == is_audit)
///             .collect()
///     }
/// }
/// ```
pub trait Router: Send + Sync + 'static {
    /// The nsqds for a message, the best first, as positions in `nsqds`.
    ///
    /// `nsqds` are those that have a connection and are not ruled out for this message already; there is at least one.
    /// One that is left out does not get the message; if all are, the publish waits for another connection. A position
    /// that does not exist or comes twice is ignored.
    ///
    /// It is called in the publishing task, once per attempt, and should be quick. A panic in it is caught: the publish
    /// ends as *not sent*, or as *unknown* if an earlier attempt may have arrived, and tells what the panic said.
    fn order(&self, message: &RoutedMessage<'_>, nsqds: &[RoutedNsqd<'_>]) -> Vec<usize>;
}

impl Routing {
    /// To each in turn. The default.
    #[must_use]
    pub fn round_robin() -> Self {
        Self::named("round_robin", RoundRobin::default())
    }

    /// To the first, in the order in which they were given; to the second while that has no connection, and so on.
    /// Discovered nsqds stand behind those given, in the order in which they were found.
    #[must_use]
    pub fn failover() -> Self {
        Self::named("failover", Failover)
    }

    /// To the one with the fewest messages pending.
    #[must_use]
    pub fn least_loaded() -> Self {
        Self::named("least_loaded", LeastLoaded::default())
    }

    /// To each in turn of those in the same zone of the same region; while none of them has a connection, of those in the
    /// region; and then of all others.
    ///
    /// nsqd knows its place by its options `topology-region` and `topology-zone` and tells nsqlookupd, both from the first
    /// version after 1.3.0 on; for an nsqd given by address say it with [`ProducerBuilder::nsqd_in`](crate::ProducerBuilder::nsqd_in).
    #[must_use]
    pub fn same_zone_first(region: impl Into<String>, zone: impl Into<String>) -> Self {
        let router = SameZoneFirst {
            region: region.into(),
            zone: zone.into(),
            turns: RoundRobin::default(),
        };
        Self::named("same_zone_first", router)
    }

    /// Messages of one key go to one nsqd as long as that has a connection; meanwhile its keys are spread over the others,
    /// whose own stay where they are.
    ///
    /// `key` makes the key of a topic and a body; of several messages published together, the first one's body. The
    /// nsqd follows from the key and the addresses alone, so producers that use the same addresses agree.
    #[must_use]
    pub fn by_key(key: impl Fn(&Topic, &[u8]) -> u64 + Send + Sync + 'static) -> Self {
        Self::named("by_key", ByKey { key })
    }

    /// As `router` says.
    #[must_use]
    pub fn custom(router: impl Router) -> Self {
        Self::named("custom", router)
    }

    fn named(name: &'static str, router: impl Router) -> Self {
        Self {
            name,
            router: Arc::new(router),
        }
    }

    /// The router's order, with what it must not say left out. *Not sent* if it panics.
    pub(super) fn order(&self, message: &RoutedMessage<'_>, nsqds: &[RoutedNsqd<'_>]) -> Result<Vec<usize>> {
        if nsqds.is_empty() {
            return Ok(Vec::new());
        }
        let mut order = caught(|| self.router.order(message, nsqds)).map_err(|said| {
            let text = format!("the router that was to choose the nsqd panicked: {said}");
            Error::new(ErrorKind::NotSent, Step::Publish, text)
        })?;
        let mut seen = vec![false; nsqds.len()];
        order.retain(|nsqd| seen.get_mut(*nsqd).is_some_and(|seen| !std::mem::replace(seen, true)));
        Ok(order)
    }
}

impl Default for Routing {
    fn default() -> Self {
        Self::round_robin()
    }
}

impl fmt::Debug for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Routing::{}", self.name)
    }
}

#[derive(Debug, Default)]
struct RoundRobin {
    turn: AtomicUsize,
}

impl RoundRobin {
    /// All positions, each time beginning with the next.
    fn turn(&self, count: usize) -> Vec<usize> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % count;
        (first..count).chain(0..first).collect()
    }
}

impl Router for RoundRobin {
    fn order(&self, _message: &RoutedMessage<'_>, nsqds: &[RoutedNsqd<'_>]) -> Vec<usize> {
        let mut order = self.turn(nsqds.len());
        // One that stalls fills up, and must not have every n-th publish wait.
        order.sort_by_key(|nsqd| !nsqds[*nsqd].has_room);
        order
    }
}

#[derive(Debug)]
struct Failover;

impl Router for Failover {
    fn order(&self, _message: &RoutedMessage<'_>, nsqds: &[RoutedNsqd<'_>]) -> Vec<usize> {
        (0..nsqds.len()).collect()
    }
}

#[derive(Debug, Default)]
struct LeastLoaded {
    /// Equal ones take turns.
    turns: RoundRobin,
}

impl Router for LeastLoaded {
    fn order(&self, _message: &RoutedMessage<'_>, nsqds: &[RoutedNsqd<'_>]) -> Vec<usize> {
        let mut order = self.turns.turn(nsqds.len());
        order.sort_by_key(|nsqd| (!nsqds[*nsqd].has_room, nsqds[*nsqd].pending_messages));
        order
    }
}

#[derive(Debug)]
struct SameZoneFirst {
    region: String,
    zone: String,
    turns: RoundRobin,
}

impl SameZoneFirst {
    fn distance(&self, nsqd: &RoutedNsqd<'_>) -> u8 {
        // A zone's name means something within its region only.
        match (nsqd.region == Some(&self.region), nsqd.zone == Some(&self.zone)) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        }
    }
}

impl Router for SameZoneFirst {
    fn order(&self, _message: &RoutedMessage<'_>, nsqds: &[RoutedNsqd<'_>]) -> Vec<usize> {
        let mut order = self.turns.turn(nsqds.len());
        order.sort_by_key(|nsqd| (self.distance(&nsqds[*nsqd]), !nsqds[*nsqd].has_room));
        order
    }
}

/// Rendezvous hashing: each pair of key and nsqd has a score, and the highest wins.
struct ByKey<F> {
    key: F,
}

impl<F> Router for ByKey<F>
where
    F: Fn(&Topic, &[u8]) -> u64 + Send + Sync + 'static,
{
    fn order(&self, message: &RoutedMessage<'_>, nsqds: &[RoutedNsqd<'_>]) -> Vec<usize> {
        let key = (self.key)(message.topic, message.body);
        let mut order: Vec<usize> = (0..nsqds.len()).collect();
        order.sort_by_cached_key(|nsqd| Reverse(score(key, nsqds[*nsqd].address)));
        order
    }
}

/// Written out, since producers of other builds have to come to the same: FNV-1a over the address, mixed with the key by
/// the steps of splitmix64.
fn score(key: u64, address: &str) -> u64 {
    let hash = address.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(mix(key) ^ hash)
}

fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const ADDRESSES: [&str; 6] = ["a:1", "b:1", "c:1", "d:1", "e:1", "f:1"];

    fn nsqds(count: usize) -> Vec<RoutedNsqd<'static>> {
        ADDRESSES[..count]
            .iter()
            .map(|address| RoutedNsqd::new(address))
            .collect()
    }

    fn order(routing: &Routing, nsqds: &[RoutedNsqd<'_>], body: &[u8]) -> Vec<usize> {
        let topic = Topic::new("a").unwrap();
        routing.order(&RoutedMessage::new(&topic, body), nsqds).unwrap()
    }

    fn key(_: &Topic, body: &[u8]) -> u64 {
        body.iter().fold(0, |key, byte| key << 8 | u64::from(*byte))
    }

    #[test]
    fn round_robin_takes_turns_and_passes_over_the_full() {
        let routing = Routing::round_robin();
        let mut three = nsqds(3);
        let firsts = |three: &[RoutedNsqd<'_>]| (0..6).map(|_| order(&routing, three, b"x")[0]).collect::<Vec<_>>();
        assert_eq!(firsts(&three), [0, 1, 2, 0, 1, 2]);
        three[1].has_room = false;
        assert!(!firsts(&three).contains(&1));
        three.iter_mut().for_each(|nsqd| nsqd.has_room = false);
        assert_eq!(firsts(&three), [0, 1, 2, 0, 1, 2], "all are full");
    }

    #[test]
    fn failover_keeps_the_order_given() {
        assert_eq!(order(&Routing::failover(), &nsqds(3), b"x"), [0, 1, 2]);
    }

    #[test]
    fn least_loaded_is_the_one_with_least_pending() {
        let mut three = nsqds(3);
        for (nsqd, pending) in three.iter_mut().zip([7, 2, 5]) {
            nsqd.pending_messages = pending;
        }
        let routing = Routing::least_loaded();
        assert_eq!(order(&routing, &three, b"x"), [1, 2, 0]);
        three[1].has_room = false;
        assert_eq!(order(&routing, &three, b"x"), [2, 0, 1]);
    }

    #[test]
    fn the_same_zone_comes_first_then_the_region_then_the_rest() {
        let mut five = nsqds(5);
        let places = [
            (None, None),
            (Some("eu"), Some("b")),
            (Some("us"), Some("a")),
            (Some("eu"), Some("a")),
        ];
        for (nsqd, (region, zone)) in five.iter_mut().zip(places) {
            (nsqd.region, nsqd.zone) = (region, zone);
        }
        (five[4].region, five[4].zone) = (Some("eu"), Some("a"));
        let routing = Routing::same_zone_first("eu", "a");
        for _ in 0..5 {
            let mut order = order(&routing, &five, b"x");
            order[..2].sort_unstable();
            order[3..].sort_unstable();
            assert_eq!(order, [3, 4, 1, 0, 2]);
        }
    }

    #[test]
    fn keys_spread_evenly_and_are_the_same_in_each_build() {
        let routing = Routing::by_key(key);
        let mut counts = [0; 5];
        for n in 0..10_000_u32 {
            counts[order(&routing, &nsqds(5), &n.to_be_bytes())[0]] += 1;
        }
        assert!(counts.iter().all(|count| (1_800..2_200).contains(count)), "{counts:?}");
        // Worked out by another implementation: producers of other versions and languages must agree.
        assert_eq!(score(42, "10.0.0.1:4150"), 0x2574_792c_faa6_395f);
    }

    #[test]
    fn what_a_router_must_not_say_is_left_out() {
        struct Wild;
        impl Router for Wild {
            fn order(&self, _: &RoutedMessage<'_>, _: &[RoutedNsqd<'_>]) -> Vec<usize> {
                vec![9, 1, 1, usize::MAX]
            }
        }
        let routing = Routing::custom(Wild);
        assert_eq!(order(&routing, &nsqds(3), b"x"), [1]);
        assert!(order(&routing, &[], b"x").is_empty());
        assert_eq!(format!("{routing:?}"), "Routing::custom");
    }

    proptest! {
        #[test]
        fn each_order_names_each_nsqd_once(
            facts in vec((0..9_usize, any::<bool>(), 0..3_usize, 0..3_usize), 1..6),
            body in vec(any::<u8>(), 1..5),
        ) {
            let names = [None, Some("eu"), Some("us")];
            let mut all = nsqds(facts.len());
            for (nsqd, (pending, has_room, region, zone)) in all.iter_mut().zip(&facts) {
                (nsqd.pending_messages, nsqd.has_room) = (*pending, *has_room);
                (nsqd.region, nsqd.zone) = (names[*region], names[*zone]);
            }
            for routing in [
                Routing::round_robin(),
                Routing::failover(),
                Routing::least_loaded(),
                Routing::same_zone_first("eu", "us"),
                Routing::by_key(key),
            ] {
                let mut order = order(&routing, &all, &body);
                order.sort_unstable();
                prop_assert_eq!(&order, &(0..all.len()).collect::<Vec<_>>(), "{:?}", routing);
            }
        }

        #[test]
        fn a_key_moves_only_if_its_nsqd_does(body in vec(any::<u8>(), 8), gone in 0..6_usize) {
            let routing = Routing::by_key(key);
            let all = nsqds(6);
            let before: Vec<&str> = order(&routing, &all, &body).iter().map(|nsqd| all[*nsqd].address).collect();
            let mut rest = all.clone();
            rest.remove(gone);
            let after: Vec<&str> = order(&routing, &rest, &body).iter().map(|nsqd| rest[*nsqd].address).collect();
            let expected: Vec<&str> = before.into_iter().filter(|address| *address != all[gone].address).collect();
            prop_assert_eq!(after, expected);
        }
    }
}
