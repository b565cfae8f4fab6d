//! What a producer tells of itself: counters by outcome, latencies, what is pending.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::connection::Negotiated;
use crate::error::{Error, ErrorKind};

/// A producer at one moment: see [`Producer::stats`](crate::Producer::stats).
///
/// Counters count *messages*, so a `publish_many` of a hundred counts a hundred, and grow from the producer's start.
/// What was dropped by its caller before it was sent is in none of them. A ping is no message.
///
/// With several nsqds a message counts once among the outcomes here, by how its publish ended, and not at all if its
/// caller had left by then. What happened at each nsqd is in [`nsqds`](Self::nsqds): there each copy and each attempt
/// counts, so that those numbers add up to more. Commands, latencies and what is pending are the sums over the nsqds,
/// also those that were left since, and what waits for a connection to any.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProducerStats {
    /// The nsqds, in the order in which they were given or found, without those that were left since.
    pub nsqds: Vec<ProducerNodeStats>,
    /// Messages confirmed by nsqd.
    pub ok: u64,
    /// Messages that nsqd has refused: [`ErrorKind::Rejected`].
    pub rejected: u64,
    /// Messages that ended as [`ErrorKind::NotSent`].
    pub not_sent: u64,
    /// Messages that ended as [`ErrorKind::Unknown`].
    pub unknown: u64,
    /// Refused locally: [`ErrorKind::Invalid`]. A `publish_many` with a mistake in it counts one.
    pub invalid: u64,
    /// How often a publish, or a copy, was repeated because its outcome was unknown: see
    /// [`at_least_once`](crate::ProducerBuilder::at_least_once).
    pub retried: u64,
    /// How often a publish, or a copy, went to another nsqd because nothing of it had reached the first.
    pub rerouted: u64,
    /// Publishes accepted and not yet resolved, counted as
    /// [`max_pending_messages`](crate::ProducerBuilder::max_pending_messages) counts them.
    pub pending_messages: usize,
    /// The bytes of their bodies, counted as
    /// [`max_pending_bytes`](crate::ProducerBuilder::max_pending_bytes) counts them.
    pub pending_bytes: usize,
    /// Commands sent: PUB, MPUB and DPUB.
    pub batches: u64,
    /// Messages in them. Divided by [`batches`](Self::batches) it tells how many leave together.
    pub batched_messages: u64,
    /// From the call of a publish to nsqd's OK, for each publish that ended so; a `publish_many` is one, or as many as
    /// its parts. With several nsqds each copy that is confirmed counts, always from the call and not from the attempt.
    pub latency: LatencyHistogram,
}

/// One nsqd in [`ProducerStats`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProducerNodeStats {
    /// Its address, as configured or discovered.
    pub address: Arc<str>,
    /// Whether there is a connection.
    pub connected: bool,
    /// Why there is none, once an attempt has failed or a connection was lost.
    pub failure: Option<Error>,
    /// What was agreed on with it, while there is a connection: its version and limits, TLS, compression, and as whom it knows
    /// this client.
    pub negotiated: Option<Arc<Negotiated>>,
    /// Connections made after the first one.
    pub reconnections: u64,
    /// Publishes accepted and not yet resolved.
    pub pending_messages: usize,
    /// The bytes of their bodies.
    pub pending_bytes: usize,
    /// Commands sent: PUB, MPUB and DPUB.
    pub batches: u64,
    /// Messages in them.
    pub batched_messages: u64,
    /// Messages confirmed.
    pub ok: u64,
    /// Messages refused.
    pub rejected: u64,
    /// Messages that ended as *not sent*.
    pub not_sent: u64,
    /// Messages that ended as *unknown*.
    pub unknown: u64,
    /// Messages refused locally, because this nsqd has told a limit that is lower than the configured one.
    pub invalid: u64,
    /// From a publish's call to nsqd's OK.
    pub latency: LatencyHistogram,
}

/// Below this many microseconds each has a bucket of its own; above, each doubling has [`STEPS`].
const LINEAR: u64 = 2 * STEPS;
/// How many buckets each doubling has: within one, values differ by at most 1.6 %.
const STEPS: u64 = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// The last bucket takes all above: 2^27 µs are 134 s.
const TOP_BITS: u32 = 27;
const BUCKETS: usize = (LINEAR + STEPS * (TOP_BITS - STEP_BITS - 1) as u64) as usize;

/// How long publishes took, in buckets of at most 1.6 % width from 1 µs to 134 s.
///
/// ```
/// # use async_nsq::{Producer, test_server::Nsqd};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let nsqd = Nsqd::start().await?;
/// # let producer = Producer::connect(nsqd.address()).await?;
/// producer.publish("orders", "one").await?;
/// let latency = producer.stats().latency;
/// assert_eq!(latency.count(), 1);
/// assert!(latency.percentile(99.0) <= latency.max());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct LatencyHistogram {
    buckets: Box<[u64]>,
    count: u64,
    max: u64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS].into_boxed_slice(),
            count: 0,
            max: 0,
        }
    }
}

impl LatencyHistogram {
    /// How many publishes were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest, in whole microseconds.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.max)
    }

    /// The time within which `percent` of them (0 to 100) ended, at most 1.6 % above the exact one. Zero if nothing was
    /// counted.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        let wanted = (percent.clamp(0.0, 100.0) / 100.0 * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_micros(highest_in(index).min(self.max));
            }
        }
        self.max()
    }

    pub(super) fn record(&mut self, took: Duration) {
        let micros = took.as_secs() * 1_000_000 + u64::from(took.subsec_micros());
        self.buckets[bucket_of(micros)] += 1;
        self.count += 1;
        self.max = self.max.max(micros);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (own, other) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += other;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }
}

fn bucket_of(micros: u64) -> usize {
    if micros < LINEAR {
        return micros as usize;
    }
    let bits = u64::BITS - micros.leading_zeros();
    let shift = bits - STEP_BITS - 1;
    let bucket = LINEAR + STEPS * u64::from(shift - 1) + ((micros >> shift) - STEPS);
    (bucket as usize).min(BUCKETS - 1)
}

fn highest_in(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < LINEAR {
        return bucket;
    }
    if bucket as usize == BUCKETS - 1 {
        return u64::MAX;
    }
    let (shift, step) = ((bucket - LINEAR) / STEPS + 1, (bucket - LINEAR) % STEPS);
    ((STEPS + step + 1) << shift) - 1
}

impl fmt::Debug for LatencyHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LatencyHistogram")
            .field("count", &self.count)
            .field("p50", &self.percentile(50.0))
            .field("p99", &self.percentile(99.0))
            .field("max", &self.max())
            .finish()
    }
}

/// Messages by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) ok: u64,
    pub(super) rejected: u64,
    pub(super) not_sent: u64,
    pub(super) unknown: u64,
    pub(super) invalid: u64,
}

impl Counts {
    pub(super) fn count(&mut self, outcome: &Result<(), Error>, messages: u32) {
        let counter = match outcome.as_ref().map_err(Error::kind) {
            Ok(()) => &mut self.ok,
            Err(ErrorKind::Rejected) => &mut self.rejected,
            Err(ErrorKind::NotSent) => &mut self.not_sent,
            Err(ErrorKind::Invalid) => &mut self.invalid,
            Err(_) => &mut self.unknown,
        };
        *counter += u64::from(messages);
    }
}

/// What a connection counts, once per turn and not per message.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    connections: AtomicU64,
    batches: AtomicU64,
    messages: AtomicU64,
}

impl Traffic {
    pub(super) fn handle_connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn handle_sent(&self, batches: usize, messages: usize) {
        self.batches.fetch_add(batches as u64, Ordering::Relaxed);
        self.messages.fetch_add(messages as u64, Ordering::Relaxed);
    }

    pub(super) fn reconnections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed).saturating_sub(1)
    }

    pub(super) fn batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }

    pub(super) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }
}

/// What no nsqd knows of.
#[derive(Debug, Default)]
pub(super) struct Local {
    invalid: AtomicU64,
}

impl Local {
    /// Something was refused before it came near an nsqd.
    pub(super) fn handle_invalid(&self) {
        self.invalid.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn invalid(&self) -> u64 {
        self.invalid.load(Ordering::Relaxed)
    }
}

/// What nsqds have done that a producer has left since.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    batches: u64,
    batched_messages: u64,
    latency: LatencyHistogram,
}

impl Past {
    pub(super) fn add(&mut self, node: &ProducerNodeStats) {
        self.batches += node.batches;
        self.batched_messages += node.batched_messages;
        self.latency.merge(&node.latency);
    }
}

impl ProducerStats {
    /// The stats of a producer with one nsqd.
    pub(super) fn of_one(node: ProducerNodeStats) -> Self {
        let counts = Counts {
            ok: node.ok,
            rejected: node.rejected,
            not_sent: node.not_sent,
            unknown: node.unknown,
            invalid: node.invalid,
        };
        let mut stats = Self::new(counts, Past::default());
        stats.add(&node);
        stats.nsqds.push(node);
        stats
    }

    pub(super) fn new(counts: Counts, past: Past) -> Self {
        Self {
            nsqds: Vec::new(),
            ok: counts.ok,
            rejected: counts.rejected,
            not_sent: counts.not_sent,
            unknown: counts.unknown,
            invalid: counts.invalid,
            retried: 0,
            rerouted: 0,
            pending_messages: 0,
            pending_bytes: 0,
            batches: past.batches,
            batched_messages: past.batched_messages,
            latency: past.latency,
        }
    }

    /// Adds what is pending at an nsqd, and its commands and latencies.
    pub(super) fn add(&mut self, node: &ProducerNodeStats) {
        self.pending_messages += node.pending_messages;
        self.pending_bytes += node.pending_bytes;
        self.batches += node.batches;
        self.batched_messages += node.batched_messages;
        self.latency.merge(&node.latency);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_are_without_gap_and_narrow() {
        let mut from = 0;
        for bucket in 0..BUCKETS - 1 {
            let to = highest_in(bucket);
            assert_eq!((bucket_of(from), bucket_of(to)), (bucket, bucket));
            assert!((to - from) as f64 <= from as f64 * 0.016, "{from} to {to}");
            from = to + 1;
        }
        assert!(from > 100_000_000, "{from}");
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn percentiles_are_within_a_bucket_of_the_exact_ones(
            mut all in prop::collection::vec(prop_oneof![0u64..1_000, 0u64..100_000_000], 1..200),
            percent in 0.0f64..=100.0,
        ) {
            let mut halves = [LatencyHistogram::default(), LatencyHistogram::default()];
            for (n, micros) in all.iter().enumerate() {
                halves[n % 2].record(Duration::from_micros(*micros));
            }
            let [mut histogram, other] = halves;
            histogram.merge(&other);
            all.sort_unstable();
            let rank = ((percent / 100.0 * all.len() as f64).ceil() as usize).max(1);
            let exact = all[rank - 1];
            let told = histogram.percentile(percent).as_micros() as u64;
            prop_assert!(told >= exact && told as f64 <= exact as f64 * 1.016 + 1.0, "{} for {}", told, exact);
            prop_assert_eq!(histogram.max(), Duration::from_micros(all[all.len() - 1]));
            prop_assert_eq!(histogram.count(), all.len() as u64);
        }
    }
}
