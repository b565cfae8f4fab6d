//! What a server remembers of what it was sent: the newest entries, within a bound.

use std::collections::VecDeque;

/// The newest entries, bounded by number and by what they weigh.
#[derive(Debug)]
pub(super) struct Record<T> {
    entries: VecDeque<(T, usize)>,
    weight: usize,
    max_entries: usize,
    max_weight: usize,
    /// How many were added so far, those included that are forgotten.
    total: u64,
}

impl<T: Clone> Record<T> {
    pub(super) fn new(max_entries: usize, max_weight: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            weight: 0,
            max_entries,
            max_weight,
            total: 0,
        }
    }

    /// Adds an entry of so many bytes, and forgets the oldest ones where there is no room.
    pub(super) fn push(&mut self, entry: T, weight: usize) {
        self.entries.push_back((entry, weight));
        self.weight += weight;
        self.total += 1;
        while self.entries.len() > self.max_entries || self.weight > self.max_weight {
            let Some((_, weight)) = self.entries.pop_front() else {
                return;
            };
            self.weight -= weight;
        }
    }

    /// All entries, oldest first.
    pub(super) fn all(&self) -> Vec<T> {
        self.entries.iter().map(|(entry, _)| entry.clone()).collect()
    }

    /// What was added after the first `seen`, as far as it is not forgotten, and how many were added in all.
    pub(super) fn since(&self, seen: u64) -> (Vec<T>, u64) {
        let new = usize::try_from(self.total.saturating_sub(seen)).unwrap_or(usize::MAX);
        let known = self.entries.len().saturating_sub(new);
        let new = self.entries.iter().skip(known).map(|(entry, _)| entry.clone());
        (new.collect(), self.total)
    }

    /// Whether nothing is kept.
    pub(super) fn is_off(&self) -> bool {
        self.max_entries == 0
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.weight = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n4_the_oldest_are_forgotten_beyond_either_bound() {
        let mut record = Record::new(3, 10);
        for n in 0..5 {
            record.push(n, 1);
        }
        assert_eq!(record.all(), [2, 3, 4]);
        record.push(5, 9);
        assert_eq!(record.all(), [4, 5]);
        record.push(6, 11);
        assert_eq!(record.all(), [0; 0]);
        assert_eq!(record.weight, 0);
    }

    #[test]
    fn since_tells_what_is_new_and_not_forgotten() {
        let mut record = Record::new(3, 10);
        record.push(0, 1);
        assert_eq!(record.since(0), (vec![0], 1));
        assert_eq!(record.since(1), (vec![], 1));
        (1..6).for_each(|n| record.push(n, 1));
        assert_eq!(record.since(4), (vec![4, 5], 6));
        assert_eq!(record.since(1), (vec![3, 4, 5], 6));
        record.clear();
        assert_eq!(record.since(0), (vec![], 6));
    }
}
