//! Which keys were finished lately: bounded by count and age, and pure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What makes two deliveries the same message.
pub(super) type Key = Arc<[u8]>;

/// Keys in the order in which they were recorded. Each is in it once.
#[derive(Debug)]
pub(super) struct Window {
    most: usize,
    age: Duration,
    recorded: HashMap<Key, Instant>,
    order: VecDeque<Key>,
}

impl Window {
    pub(super) fn new(most: usize, age: Duration) -> Self {
        Self {
            most,
            age,
            recorded: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Whether the key was recorded, not longer than `age` ago and not more than `most` other keys ago.
    pub(super) fn contains(&mut self, key: &[u8], now: Instant) -> bool {
        self.expire(now);
        self.recorded.contains_key(key)
    }

    /// Remembers the key from now on. One that is remembered already keeps its time.
    pub(super) fn record(&mut self, key: Key, now: Instant) {
        self.expire(now);
        if self.most == 0 || self.recorded.contains_key(&key) {
            return;
        }
        if self.order.len() >= self.most {
            self.forget_oldest();
        }
        self.recorded.insert(Arc::clone(&key), now);
        self.order.push_back(key);
    }

    fn expire(&mut self, now: Instant) {
        while let Some(oldest) = self.order.front() {
            let recorded = self.recorded.get(oldest);
            if recorded.is_some_and(|recorded| now.saturating_duration_since(*recorded) <= self.age) {
                return;
            }
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.order.pop_front() {
            self.recorded.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Key {
        Arc::from([number])
    }

    #[test]
    fn the_oldest_key_makes_room_and_age_counts_from_the_first_record() {
        let mut window = Window::new(2, Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        window.record(key(1), at(0));
        window.record(key(2), at(1));
        window.record(key(1), at(5));
        assert!(window.contains(&[1], at(10)));
        assert!(!window.contains(&[1], at(11)));
        window.record(key(3), at(11));
        window.record(key(4), at(11));
        assert!(!window.contains(&[2], at(11)));
        assert!(window.contains(&[3], at(11)) && window.contains(&[4], at(11)));
    }

    #[test]
    fn a_window_of_none_remembers_nothing() {
        let mut window = Window::new(0, Duration::MAX);
        window.record(key(1), Instant::now());
        assert!(!window.contains(&[1], Instant::now()));
    }

    /// The same, by looking through a list.
    #[derive(Default)]
    struct Model(Vec<(u8, Instant)>);

    impl Model {
        fn contains(&mut self, number: u8, now: Instant, age: Duration) -> bool {
            self.0.retain(|(_, recorded)| now - *recorded <= age);
            self.0.iter().any(|(known, _)| *known == number)
        }

        fn record(&mut self, number: u8, now: Instant, age: Duration, most: usize) {
            if !self.contains(number, now, age) {
                self.0.push((number, now));
                let excess = self.0.len().saturating_sub(most);
                self.0.drain(..excess);
            }
        }
    }

    proptest! {
        #[test]
        fn a_window_is_what_a_list_searched_through_would_be(
            most in 0_usize..6,
            age in 0_u64..20,
            steps in prop::collection::vec((any::<bool>(), 0_u8..8, 0_u64..6), 0..300),
        ) {
            let age = Duration::from_millis(age);
            let (mut window, mut model) = (Window::new(most, age), Model::default());
            let mut now = Instant::now();
            for (records, number, passes) in steps {
                now += Duration::from_millis(passes);
                if records {
                    window.record(key(number), now);
                    model.record(number, now, age, most);
                }
                prop_assert_eq!(window.contains(&[number], now), model.contains(number, now, age));
                prop_assert!(window.order.len() <= most);
                prop_assert_eq!(window.order.len(), window.recorded.len());
            }
        }
    }
}
