//! The united picture of what all nsqlookupds know. Pure: events and the time go in, changes come out.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::facts::{LookupdFacts, Status};
use crate::error::Result;

/// In how many clean rounds an item has to be missing before it is dropped.
const CLEAN_ROUNDS_TO_DROP: u32 = 3;

/// What is asked for: nsqds by their address, or topics. Equal are those that are the same nsqd or topic, whatever else is
/// told of them.
pub(crate) trait Item: Ord + Clone {
    /// Takes over what another nsqlookupd tells of the same item, where this one tells nothing.
    fn complete(&mut self, _other: &Self) {}
}

/// An nsqd of which nothing but the address matters.
impl Item for Arc<str> {}

/// What one nsqlookupd said.
#[derive(Clone, Debug)]
pub(crate) struct Answer<T = Arc<str>> {
    pub(crate) items: Vec<T>,
    /// The items that register with nsqlookupd, which are nsqds, each with what tells this registration of it from
    /// another one.
    pub(crate) registrations: Vec<(T, u64)>,
    /// How many entries were not usable.
    pub(crate) malformed: usize,
    /// One of them, and why.
    pub(crate) example: Option<String>,
    /// How many entries the user's filter left out.
    pub(crate) filtered: usize,
    /// False if the nsqlookupd has never heard of the topic. That is an answer like any other, and an empty one.
    pub(crate) topic_known: bool,
    /// Whether it has the channel that was to be created; `None` if none was.
    pub(crate) channel: Option<Result<()>>,
}

impl<T> Answer<T> {
    pub(super) fn new(topic_known: bool) -> Self {
        Self {
            items: Vec::new(),
            registrations: Vec::new(),
            malformed: 0,
            example: None,
            filtered: 0,
            topic_known,
            channel: None,
        }
    }
}

/// What a finished round changed in [`View::items`]. The lists are sorted and have no entry in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes<T = Arc<str>> {
    /// nsqds to connect to, or topics to consume.
    pub(crate) added: Vec<T>,
    /// nsqds or topics to let go of.
    pub(crate) removed: Vec<T>,
    /// nsqds that stay and have registered anew with an nsqlookupd: they were probably started again.
    pub(crate) anew: Vec<T>,
}

impl<T> Changes<T> {
    /// Whether the items are the same as before.
    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

/// What is known of one nsqlookupd.
#[derive(Clone, Debug)]
pub(crate) struct Lookupd<T = Arc<str>> {
    facts: LookupdFacts,
    /// The last good answer. It outlives failures: not being able to ask is not the same as hearing "none".
    announced: BTreeSet<T>,
    /// Entries of the last good answer that were not stored because the view is full.
    excess: usize,
    /// Whether it answered well in the round that is under way.
    clean: bool,
}

impl<T> Lookupd<T> {
    fn new(address: Arc<str>) -> Self {
        Self {
            facts: LookupdFacts::new(address),
            announced: BTreeSet::new(),
            excess: 0,
            clean: false,
        }
    }

    pub(crate) fn facts(&self) -> &LookupdFacts {
        &self.facts
    }

    pub(crate) fn address(&self) -> &Arc<str> {
        &self.facts.address
    }
}

/// One item of the union.
#[derive(Clone, Debug)]
struct Entry<T> {
    /// As it is told of now; the key may be older.
    item: T,
    /// The nsqlookupd that announces it, or was the last to do so.
    announced_by: Arc<str>,
    absence: Option<Absence>,
}

/// For how long no nsqlookupd has announced an item.
#[derive(Clone, Copy, Debug)]
struct Absence {
    since: Instant,
    clean_rounds: u32,
}

/// The items to have, united from the last good answers of all nsqlookupds.
///
/// A round is one [`handle_answer`](View::handle_answer) per nsqlookupd, closed by
/// [`poll_round_finished`](View::poll_round_finished); the set of items changes only there. A round is *clean* if there
/// are nsqlookupds and each of them answered well. One item goes through:
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
///
/// Removing an nsqlookupd takes its last good answer away: what only it announced goes missing at the next clean round,
/// by the same rule. Once the last one is removed nobody can say that an item is gone, so all of them stay.
#[derive(Clone, Debug)]
pub(crate) struct View<T = Arc<str>> {
    lookupds: Vec<Lookupd<T>>,
    entries: BTreeMap<T, Entry<T>>,
    max_items: usize,
    min_absence: Duration,
    ignored: usize,
    clean: bool,
    /// Whether an item was found missing in the last finished round and not in the one before.
    vanished: bool,
}

impl<T: Item> View<T> {
    /// A view without items. `max_items` bounds them; `min_absence` is how long one must be missing at least before it
    /// is dropped, however fast the rounds follow each other.
    pub(crate) fn new(lookupds: impl IntoIterator<Item = Arc<str>>, max_items: usize, min_absence: Duration) -> Self {
        Self {
            lookupds: lookupds.into_iter().map(Lookupd::new).collect(),
            entries: BTreeMap::new(),
            max_items,
            min_absence,
            ignored: 0,
            clean: false,
            vanished: false,
        }
    }

    /// The nsqlookupds, in the order in which they were configured.
    pub(crate) fn lookupds(&self) -> &[Lookupd<T>] {
        &self.lookupds
    }

    /// Takes part in the rounds from now on. False if it does already.
    pub(crate) fn add_lookupd(&mut self, address: &Arc<str>) -> bool {
        if self.lookupd(address).is_some() {
            return false;
        }
        self.lookupds.push(Lookupd::new(Arc::clone(address)));
        true
    }

    /// Forgets an nsqlookupd and what it announced. False if it is not there.
    pub(crate) fn remove_lookupd(&mut self, address: &str) -> bool {
        let before = self.lookupds.len();
        self.lookupds.retain(|lookupd| **lookupd.address() != *address);
        self.lookupds.len() < before
    }

    /// What is known of one nsqlookupd.
    pub(crate) fn lookupd(&self, address: &str) -> Option<&Lookupd<T>> {
        self.lookupds.iter().find(|lookupd| **lookupd.address() == *address)
    }

    /// The items to have, sorted.
    pub(crate) fn items(&self) -> impl ExactSizeIterator<Item = &T> {
        self.entries.values().map(|entry| &entry.item)
    }

    /// One item, as it is told of now.
    pub(crate) fn get(&self, item: &T) -> Option<&T> {
        self.entries.get(item).map(|entry| &entry.item)
    }

    /// The nsqlookupd that announces this item, or was the last to do so; `None` if the item is not in the view.
    pub(crate) fn announced_by<K: Ord + ?Sized>(&self, item: &K) -> Option<&Arc<str>>
    where
        T: Borrow<K>,
    {
        self.entries.get(item).map(|entry| &entry.announced_by)
    }

    /// Each item with the nsqlookupd that announces it or was the last to do so, and since when nobody does.
    pub(crate) fn announcements(&self) -> impl Iterator<Item = (&T, &Arc<str>, Option<Instant>)> {
        self.entries.values().map(|entry| {
            (
                &entry.item,
                &entry.announced_by,
                entry.absence.map(|absence| absence.since),
            )
        })
    }

    /// How many announced entries the limit on items left out, over all last good answers, at the end of the last round.
    pub(crate) fn ignored(&self) -> usize {
        self.ignored
    }

    /// Whether every nsqlookupd answered well in the last finished round.
    pub(crate) fn last_round_clean(&self) -> bool {
        self.clean
    }

    /// Whether the last finished round was the first one in which some item was missing.
    pub(crate) fn vanished(&self) -> bool {
        self.vanished
    }

    /// Takes what this nsqlookupd said, or why it said nothing.
    pub(crate) fn handle_answer(&mut self, lookupd: &str, answer: Result<Answer<T>>, now: Instant) {
        let Some(lookupd) = self.lookupds.iter_mut().find(|known| **known.address() == *lookupd) else {
            return;
        };
        let facts = &mut lookupd.facts;
        match answer {
            Ok(answer) => {
                if !matches!(facts.status, Status::Answering { .. }) {
                    facts.status = Status::Answering { since: now };
                }
                facts.answered_at = Some(now);
                facts.topic_known = answer.topic_known;
                facts.malformed = answer.malformed;
                facts.example = answer.example;
                facts.filtered = answer.filtered;
                facts.channel = answer.channel;
                (lookupd.announced, lookupd.excess) = bounded(answer.items, &self.entries, self.max_items);
                lookupd.facts.announced = lookupd.announced.len() + lookupd.excess;
                lookupd.clean = true;
            }
            Err(error) => {
                let since = match facts.status {
                    Status::Failing { since, .. } => since,
                    _ => now,
                };
                facts.status = Status::Failing { since, error };
                lookupd.clean = false;
            }
        }
    }

    /// Ends a round: every nsqlookupd has answered or failed.
    pub(crate) fn poll_round_finished(&mut self, now: Instant) -> Changes<T> {
        self.clean = !self.lookupds.is_empty() && self.lookupds.iter().all(|lookupd| lookupd.clean);
        for lookupd in &mut self.lookupds {
            lookupd.clean = false;
        }
        // Dropping comes first, because it makes room.
        let removed = self.drop_missing(now);
        let added = self.take_announced();
        Changes {
            added,
            removed,
            anew: Vec::new(),
        }
    }

    fn drop_missing(&mut self, now: Instant) -> Vec<T> {
        let mut removed = Vec::new();
        let (lookupds, clean, min_absence) = (&self.lookupds, self.clean, self.min_absence);
        let mut vanished = false;
        self.entries.retain(|item, entry| {
            let told = lookupds
                .iter()
                .find_map(|lookupd| Some((lookupd, lookupd.announced.get(item)?)));
            if let Some((lookupd, told)) = told {
                entry.item = told.clone();
                entry.announced_by = Arc::clone(lookupd.address());
                entry.absence = None;
                return true;
            }
            if !clean {
                return true;
            }
            let absence = entry.absence.get_or_insert_with(|| {
                vanished = true;
                Absence {
                    since: now,
                    clean_rounds: 0,
                }
            });
            absence.clean_rounds = absence.clean_rounds.saturating_add(1);
            let keep = absence.clean_rounds < CLEAN_ROUNDS_TO_DROP
                || now.saturating_duration_since(absence.since) < min_absence;
            if !keep {
                removed.push(item.clone());
            }
            keep
        });
        self.vanished = vanished;
        removed
    }

    fn take_announced(&mut self) -> Vec<T> {
        let mut added = Vec::new();
        self.ignored = 0;
        for lookupd in &mut self.lookupds {
            let mut ignored = lookupd.excess;
            for item in &lookupd.announced {
                if let Some(entry) = self.entries.get_mut(item) {
                    entry.item.complete(item);
                    continue;
                }
                if self.entries.len() >= self.max_items {
                    ignored += 1;
                    continue;
                }
                let entry = Entry {
                    item: item.clone(),
                    announced_by: Arc::clone(&lookupd.facts.address),
                    absence: None,
                };
                self.entries.insert(item.clone(), entry);
                added.push(item.clone());
            }
            lookupd.facts.ignored = ignored;
            self.ignored += ignored;
        }
        added.sort_unstable();
        // What nsqlookupds after the first one have told is in the view.
        added
            .iter()
            .filter_map(|item| self.entries.get(item))
            .map(|entry| entry.item.clone())
            .collect()
    }
}

/// The part of an answer that is worth storing, and how many entries are left out.
///
/// Items that are in the view go first: an nsqlookupd lists them in any order, and the limit must not make one come and
/// go.
fn bounded<T: Ord>(items: Vec<T>, entries: &BTreeMap<T, Entry<T>>, max_items: usize) -> (BTreeSet<T>, usize) {
    let (known, new): (BTreeSet<_>, BTreeSet<_>) = items.into_iter().partition(|item| entries.contains_key(item));
    let total = known.len() + new.len();
    let kept: BTreeSet<_> = known.into_iter().chain(new).take(max_items).collect();
    let excess = total - kept.len();
    (kept, excess)
}

#[cfg(test)]
mod tests;
