//! What a server remembers of what it was sent: the newest entries, within a bound.

use std::collections::VecDeque;

/// The newest entries, bounded by number and by what they weigh.
#[derive(Debug)]
pub(super) struct Record<T> {
    entries: VecDeque<(T, usize)>,
    weight: usize,
    max_entries: usize,
    max_weight: usize,
}

impl<T: Clone> Record<T> {
    pub(super) fn new(max_entries: usize, max_weight: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            weight: 0,
            max_entries,
            max_weight,
        }
    }

    /// Adds an entry of so many bytes, and forgets the oldest ones where there is no room.
    pub(super) fn push(&mut self, entry: T, weight: usize) {
        self.entries.push_back((entry, weight));
        self.weight += weight;
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
}
