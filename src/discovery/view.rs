//! The united picture of what all nsqlookupds know about one topic. Pure: events and the time go in, changes come out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// In how many clean rounds an nsqd has to be missing before it is dropped.
const CLEAN_ROUNDS_TO_DROP: u32 = 3;

/// What one nsqlookupd said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The nsqds that have the topic, as `host:port`.
    pub(crate) addresses: Vec<Arc<str>>,
    /// How many entries named no usable address.
    pub(crate) malformed: usize,
    /// False if the nsqlookupd has never heard of the topic. That is an answer like any other, and an empty one.
    pub(crate) topic_known: bool,
}

/// What a finished round changed in [`View::nodes`]. Both lists are sorted and have no entry in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// nsqds to connect to.
    pub(crate) added: Vec<Arc<str>>,
    /// nsqds to let go of.
    pub(crate) removed: Vec<Arc<str>>,
}

impl Changes {
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

/// Whether one nsqlookupd answers.
#[derive(Clone, Debug)]
pub(crate) enum LookupdStatus {
    /// It has not been asked, or has not had the time to answer.
    NeverAsked,
    /// Its latest answer, at this time, was good.
    Answering { at: Instant },
    /// It has given no good answer from this time on; the error is the latest one.
    Failing { since: Instant, error: Error },
}

/// What is known of one nsqlookupd.
#[derive(Clone, Debug)]
pub(crate) struct Lookupd {
    address: Arc<str>,
    status: LookupdStatus,
    answered_at: Option<Instant>,
    topic_known: bool,
    malformed: usize,
    /// The last good answer. It outlives failures: not being able to ask is not the same as hearing "none".
    announced: BTreeSet<Arc<str>>,
    /// Entries of the last good answer that were not stored because the view is full.
    excess: usize,
    /// Whether it answered well in the round that is under way.
    clean: bool,
}

impl Lookupd {
    fn new(address: Arc<str>) -> Self {
        Self {
            address,
            status: LookupdStatus::NeverAsked,
            answered_at: None,
            topic_known: true,
            malformed: 0,
            announced: BTreeSet::new(),
            excess: 0,
            clean: false,
        }
    }

    pub(crate) fn address(&self) -> &Arc<str> {
        &self.address
    }

    pub(crate) fn status(&self) -> &LookupdStatus {
        &self.status
    }

    /// When the answer that is in use was given, if there ever was a good one. Also told while it fails.
    #[cfg(test)]
    pub(crate) fn answered_at(&self) -> Option<Instant> {
        self.answered_at
    }

    /// False if its last good answer was that it does not know the topic.
    pub(crate) fn topic_known(&self) -> bool {
        self.topic_known
    }

    /// How many entries of its last good answer named no usable address.
    pub(crate) fn malformed(&self) -> usize {
        self.malformed
    }
}

/// One nsqd of the union.
#[derive(Clone, Debug)]
struct Node {
    /// Index of the nsqlookupd that announces it, or was the last to do so.
    announced_by: usize,
    absence: Option<Absence>,
}

/// For how long no nsqlookupd has announced an nsqd.
#[derive(Clone, Copy, Debug)]
struct Absence {
    since: Instant,
    clean_rounds: u32,
}

/// The nsqds to have, united from the last good answers of all nsqlookupds.
///
/// A round is one [`handle_answer`](View::handle_answer) per nsqlookupd, closed by
/// [`poll_round_finished`](View::poll_round_finished); the set of nsqds changes only there. A round is *clean* if every
/// nsqlookupd answered well. One nsqd goes through:
///
/// ```text
///             announced by any               in no last good answer,
///            nsqlookupd, and room              at a clean round
///   unknown ----------------------> present ----------------------> missing(1) --> missing(2) --> ...
///      ^                              ^                                 |  each further clean round
///      |                              +---------------------------------+
///      |                                announced again, by anyone      |
///      +----------------------------------------------------------------+
///         missing in 3 clean rounds and for `min_absence`
/// ```
///
/// A round that is not clean moves nothing to the right: the nsqlookupd that failed might have announced it.
#[derive(Clone, Debug)]
pub(crate) struct View {
    lookupds: Vec<Lookupd>,
    nodes: BTreeMap<Arc<str>, Node>,
    max_nodes: usize,
    min_absence: Duration,
    ignored: usize,
    clean: bool,
}

impl View {
    /// A view without nsqds. `max_nodes` bounds them; `min_absence` is how long an nsqd must be missing at least before
    /// it is dropped, however fast the rounds follow each other.
    pub(crate) fn new(lookupds: Vec<Arc<str>>, max_nodes: usize, min_absence: Duration) -> Self {
        Self {
            lookupds: lookupds.into_iter().map(Lookupd::new).collect(),
            nodes: BTreeMap::new(),
            max_nodes,
            min_absence,
            ignored: 0,
            clean: false,
        }
    }

    /// The nsqlookupds, in the order in which they were configured.
    pub(crate) fn lookupds(&self) -> &[Lookupd] {
        &self.lookupds
    }

    /// The addresses of the nsqds to have, sorted.
    pub(crate) fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.nodes.keys()
    }

    /// The nsqlookupd that announces this nsqd, or was the last to do so; `None` if the nsqd is not in the view.
    pub(crate) fn announced_by(&self, address: &str) -> Option<&Arc<str>> {
        let node = self.nodes.get(address)?;
        self.lookupds.get(node.announced_by).map(Lookupd::address)
    }

    /// How many announced entries the limit on nsqds left out, over all last good answers, at the end of the last round.
    pub(crate) fn ignored(&self) -> usize {
        self.ignored
    }

    /// Whether every nsqlookupd answered well in the last finished round.
    pub(crate) fn last_round_clean(&self) -> bool {
        self.clean
    }

    /// Takes what the nsqlookupd at this index of [`lookupds`](View::lookupds) said, or why it said nothing.
    pub(crate) fn handle_answer(&mut self, index: usize, answer: Result<Answer>, now: Instant) {
        let Some(lookupd) = self.lookupds.get_mut(index) else {
            return;
        };
        match answer {
            Ok(answer) => {
                lookupd.status = LookupdStatus::Answering { at: now };
                lookupd.answered_at = Some(now);
                lookupd.topic_known = answer.topic_known;
                lookupd.malformed = answer.malformed;
                lookupd.clean = true;
                (lookupd.announced, lookupd.excess) = bounded(answer.addresses, &self.nodes, self.max_nodes);
            }
            Err(error) => {
                let since = match lookupd.status {
                    LookupdStatus::Failing { since, .. } => since,
                    _ => now,
                };
                lookupd.status = LookupdStatus::Failing { since, error };
                lookupd.clean = false;
            }
        }
    }

    /// Ends a round: every nsqlookupd has answered or failed.
    pub(crate) fn poll_round_finished(&mut self, now: Instant) -> Changes {
        self.clean = self.lookupds.iter().all(|lookupd| lookupd.clean);
        for lookupd in &mut self.lookupds {
            lookupd.clean = false;
        }
        // Dropping comes first, because it makes room.
        let removed = self.drop_missing(now);
        let added = self.take_announced();
        Changes { added, removed }
    }

    fn drop_missing(&mut self, now: Instant) -> Vec<Arc<str>> {
        let mut removed = Vec::new();
        let (lookupds, clean, min_absence) = (&self.lookupds, self.clean, self.min_absence);
        self.nodes.retain(|address, node| {
            if let Some(index) = lookupds.iter().position(|lookupd| lookupd.announced.contains(address)) {
                node.announced_by = index;
                node.absence = None;
                return true;
            }
            if !clean {
                return true;
            }
            let absence = node.absence.get_or_insert(Absence {
                since: now,
                clean_rounds: 0,
            });
            absence.clean_rounds = absence.clean_rounds.saturating_add(1);
            let keep = absence.clean_rounds < CLEAN_ROUNDS_TO_DROP
                || now.saturating_duration_since(absence.since) < min_absence;
            if !keep {
                removed.push(Arc::clone(address));
            }
            keep
        });
        removed
    }

    fn take_announced(&mut self) -> Vec<Arc<str>> {
        let mut added = Vec::new();
        self.ignored = 0;
        for (index, lookupd) in self.lookupds.iter().enumerate() {
            self.ignored += lookupd.excess;
            for address in &lookupd.announced {
                if self.nodes.contains_key(address) {
                    continue;
                }
                if self.nodes.len() >= self.max_nodes {
                    self.ignored += 1;
                    continue;
                }
                let node = Node {
                    announced_by: index,
                    absence: None,
                };
                self.nodes.insert(Arc::clone(address), node);
                added.push(Arc::clone(address));
            }
        }
        added.sort_unstable();
        added
    }
}

/// The part of an answer that is worth storing, and how many entries are left out.
///
/// nsqds that are in the view go first: an nsqlookupd lists them in any order, and the limit must not make an nsqd come
/// and go.
fn bounded(
    addresses: Vec<Arc<str>>,
    nodes: &BTreeMap<Arc<str>, Node>,
    max_nodes: usize,
) -> (BTreeSet<Arc<str>>, usize) {
    let (known, new): (BTreeSet<_>, BTreeSet<_>) =
        addresses.into_iter().partition(|address| nodes.contains_key(address));
    let total = known.len() + new.len();
    let kept: BTreeSet<_> = known.into_iter().chain(new).take(max_nodes).collect();
    let excess = total - kept.len();
    (kept, excess)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::error::{ErrorKind, Step};

    const MINUTE: Duration = Duration::from_secs(60);

    fn view(lookupds: usize) -> View {
        View::new((0..lookupds).map(lookupd_address).collect(), 1000, 30 * SECOND)
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn lookupd_address(index: usize) -> Arc<str> {
        format!("lookupd{index}:4161").into()
    }

    fn answer(addresses: &[&str]) -> Result<Answer> {
        Ok(Answer {
            addresses: addresses.iter().map(|&address| address.into()).collect(),
            malformed: 0,
            topic_known: true,
        })
    }

    fn failure() -> Result<Answer> {
        Err(Error::new(ErrorKind::Unreachable, Step::Lookup, "refused"))
    }

    fn round(view: &mut View, now: Instant, answers: Vec<Result<Answer>>) -> Changes {
        for (index, answer) in answers.into_iter().enumerate() {
            view.handle_answer(index, answer, now);
        }
        view.poll_round_finished(now)
    }

    fn names(addresses: &[Arc<str>]) -> Vec<&str> {
        addresses.iter().map(|address| &**address).collect()
    }

    #[test]
    fn n5_answers_are_united() {
        let mut view = view(3);
        let changes = round(
            &mut view,
            Instant::now(),
            vec![answer(&["b:1", "a:1"]), answer(&["a:1", "c:1", "c:1"]), answer(&[])],
        );
        assert_eq!(names(&changes.added), ["a:1", "b:1", "c:1"]);
        assert!(changes.removed.is_empty());
        assert_eq!(view.nodes().len(), 3);
        assert_eq!(view.announced_by("c:1"), Some(&lookupd_address(1)));
        assert_eq!(view.announced_by("d:1"), None);
        assert!(view.last_round_clean());
    }

    #[test]
    fn n5_a_failing_lookupd_keeps_its_last_good_answer_for_ever() {
        let (mut view, mut now) = (view(2), Instant::now());
        round(&mut view, now, vec![answer(&["a:1"]), answer(&["b:1"])]);
        for _ in 0..100 {
            now += MINUTE;
            assert!(round(&mut view, now, vec![failure(), answer(&["b:1"])]).is_empty());
            assert!(!view.last_round_clean());
        }
        assert_eq!(view.nodes().len(), 2);
        assert_eq!(view.announced_by("a:1"), Some(&lookupd_address(0)));
    }

    #[test]
    fn n5_a_vanished_nsqd_is_dropped_after_three_clean_rounds() {
        let (mut view, mut now) = (view(2), Instant::now());
        round(&mut view, now, vec![answer(&["a:1"]), answer(&["a:1", "b:1"])]);
        for expected in [&[][..], &[], &["a:1"]] {
            // A round with a failure in between neither counts nor drops.
            now += MINUTE;
            assert!(round(&mut view, now, vec![failure(), answer(&["b:1"])]).is_empty());
            now += MINUTE;
            let changes = round(&mut view, now, vec![answer(&[]), answer(&["b:1"])]);
            assert_eq!(names(&changes.removed), expected);
        }
        assert_eq!(view.nodes().collect::<Vec<_>>(), [&Arc::from("b:1")]);
    }

    #[test]
    fn n5_one_announcement_forgives_all_absence() {
        let (mut view, mut now) = (view(1), Instant::now());
        round(&mut view, now, vec![answer(&["a:1"])]);
        for _ in 0..10 {
            for addresses in [&[][..], &[], &["a:1"]] {
                now += MINUTE;
                assert!(round(&mut view, now, vec![answer(addresses)]).is_empty());
            }
        }
    }

    #[test]
    fn n5_rounds_in_quick_succession_do_not_drop_before_the_least_absence() {
        let (mut view, start) = (view(1), Instant::now());
        round(&mut view, start, vec![answer(&["a:1"])]);
        for seconds in 1..31 {
            assert!(round(&mut view, start + seconds * SECOND, vec![answer(&[])]).is_empty());
        }
        let changes = round(&mut view, start + 31 * SECOND, vec![answer(&[])]);
        assert_eq!(names(&changes.removed), ["a:1"]);
    }

    #[test]
    fn n5_a_round_that_left_a_lookupd_out_is_not_clean() {
        let (mut view, now) = (view(2), Instant::now());
        round(&mut view, now, vec![answer(&["a:1"]), answer(&[])]);
        for minutes in 1..10 {
            assert!(round(&mut view, now + minutes * MINUTE, vec![answer(&[])]).is_empty());
            assert!(!view.last_round_clean());
        }
    }

    #[test]
    fn n5_a_status_tells_since_when_and_why() {
        let (mut view, start) = (view(1), Instant::now());
        assert!(matches!(view.lookupds()[0].status(), LookupdStatus::NeverAsked));
        round(&mut view, start, vec![answer(&["a:1"])]);
        assert!(matches!(view.lookupds()[0].status(), LookupdStatus::Answering { at } if *at == start));
        round(&mut view, start + MINUTE, vec![failure()]);
        round(&mut view, start + 2 * MINUTE, vec![failure()]);
        let LookupdStatus::Failing { since, error } = view.lookupds()[0].status() else {
            panic!("{view:?}");
        };
        assert_eq!((*since, error.kind()), (start + MINUTE, ErrorKind::Unreachable));
        assert_eq!(view.lookupds()[0].answered_at(), Some(start));
    }

    #[test]
    fn n4_nsqds_past_the_limit_are_ignored_and_never_push_known_ones_out() {
        let mut view = View::new(vec![lookupd_address(0), lookupd_address(1)], 3, Duration::ZERO);
        let now = Instant::now();
        let first = round(&mut view, now, vec![answer(&["d:1", "e:1"]), answer(&[])]);
        assert_eq!(names(&first.added), ["d:1", "e:1"]);
        // One place is left; c comes too late and the known ones stay although they sort last.
        let flood = || vec![answer(&["a:1", "b:1", "d:1", "e:1"]), answer(&["c:1"])];
        assert_eq!(names(&round(&mut view, now, flood()).added), ["a:1"]);
        assert_eq!(view.ignored(), 2);
        assert!(round(&mut view, now, flood()).is_empty());
        assert!(view.lookupds().iter().all(|lookupd| lookupd.announced.len() <= 3));
        // A place that becomes free is taken in the same round.
        let without_d = || vec![answer(&["a:1", "e:1"]), answer(&["c:1"])];
        assert!(round(&mut view, now, without_d()).is_empty());
        assert!(round(&mut view, now, without_d()).is_empty());
        let changes = round(&mut view, now, without_d());
        assert_eq!(
            (names(&changes.added), names(&changes.removed)),
            (vec!["c:1"], vec!["d:1"])
        );
        assert_eq!(view.ignored(), 0);
    }

    /// What a lookupd says in one round: a failure, or the set of nsqds given by the bits.
    fn said() -> impl Strategy<Value = Option<u8>> {
        prop_oneof![1 => Just(None), 3 => (0u8..64).prop_map(Some)]
    }

    fn to_answer(said: Option<u8>) -> Result<Answer> {
        said.map_or_else(failure, |bits| {
            Ok(Answer {
                addresses: addresses_of(bits).into_iter().collect(),
                malformed: 0,
                topic_known: bits != 0,
            })
        })
    }

    fn addresses_of(bits: u8) -> BTreeSet<Arc<str>> {
        (0..8)
            .filter(|bit| bits >> bit & 1 == 1)
            .map(|bit| format!("nsqd{bit}:4150").into())
            .collect()
    }

    proptest! {
        #[test]
        fn n5_any_history_unites_the_last_good_answers_and_drops_only_what_was_long_missing(
            history in vec((vec(said(), 3), 0u32..40), 1..60)
        ) {
            let (mut view, mut now) = (view(3), Instant::now());
            let mut last_good = [0u8; 3];
            let mut before = BTreeSet::new();
            // Per nsqd bit: since when and in how many clean rounds nobody announced it.
            let mut missing = [None::<(Instant, u32)>; 8];
            for (said, seconds) in history {
                now += seconds * SECOND;
                for (last, said) in last_good.iter_mut().zip(&said) {
                    *last = said.unwrap_or(*last);
                }
                let union = last_good.iter().fold(0, |union, bits| union | bits);
                let clean = said.iter().all(Option::is_some);
                for (bit, missing) in missing.iter_mut().enumerate() {
                    if union >> bit & 1 == 1 {
                        *missing = None;
                    } else if clean {
                        let (since, rounds) = missing.unwrap_or((now, 0));
                        *missing = Some((since, rounds + 1));
                    }
                }
                let changes = round(&mut view, now, said.into_iter().map(to_answer).collect());
                let after: BTreeSet<_> = view.nodes().cloned().collect();
                prop_assert!(addresses_of(union).is_subset(&after));
                prop_assert!(clean || changes.removed.is_empty(), "dropped while a lookupd was failing");
                let long_missing: BTreeSet<_> = (0..8u8)
                    .filter(|&bit| missing[usize::from(bit)]
                        .is_some_and(|(since, rounds)| rounds >= 3 && now - since >= 30 * SECOND))
                    .flat_map(|bit| addresses_of(1 << bit))
                    .collect();
                prop_assert!(changes.removed.iter().all(|address| long_missing.contains(address)));
                prop_assert!(!clean || after.is_disjoint(&long_missing), "kept for too long");
                let expected_added: Vec<_> = after.difference(&before).cloned().collect();
                let expected_removed: Vec<_> = before.difference(&after).cloned().collect();
                prop_assert_eq!(&changes.added, &expected_added);
                prop_assert_eq!(&changes.removed, &expected_removed);
                for address in &after {
                    prop_assert!(view.announced_by(address).is_some());
                }
                before = after;
            }
        }

        #[test]
        fn n4_no_history_exceeds_the_limit(history in vec(vec(said(), 3), 1..30), max_nodes in 1usize..8) {
            let mut view = View::new((0..3).map(lookupd_address).collect(), max_nodes, Duration::ZERO);
            let now = Instant::now();
            for said in history {
                let changes = round(&mut view, now, said.into_iter().map(to_answer).collect());
                prop_assert!(view.nodes().len() <= max_nodes);
                prop_assert!(changes.removed.is_empty() || view.last_round_clean());
                for lookupd in view.lookupds() {
                    prop_assert!(lookupd.announced.len() <= max_nodes);
                }
            }
        }
    }
}
