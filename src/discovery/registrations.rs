//! Which nsqds have registered anew with an nsqlookupd. Pure.
//!
//! nsqlookupd tells from which address and port it sees each nsqd. That is a TCP connection which ends with the nsqd, so
//! another port means another registration: the nsqd has been started again (or the nsqlookupd has, or the network
//! between them was cut).

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// What tells one registration with an nsqlookupd from another one of the same nsqd: a digest of where the nsqlookupd
/// sees it, since that text may be of any length.
pub(super) fn digest(seen_at: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    seen_at.hash(&mut hasher);
    hasher.finish()
}

/// Compares each nsqlookupd's good answer with its last one.
#[derive(Debug)]
pub(super) struct Registrations<T> {
    /// By nsqlookupd. An nsqd may be listed several times in one answer, and in any order: after a cut network until the
    /// nsqlookupd gives the old connection up, or if several are reached at one address.
    last: BTreeMap<Arc<str>, BTreeSet<(T, u64)>>,
    anew: BTreeSet<T>,
    /// An answer with more is not kept, and nothing is concluded from it.
    max: usize,
}

impl<T: Ord + Clone> Registrations<T> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            last: BTreeMap::new(),
            anew: BTreeSet::new(),
            max,
        }
    }

    /// Takes what a good answer of this nsqlookupd lists.
    pub(super) fn handle_answer(&mut self, lookupd: &Arc<str>, listed: Vec<(T, u64)>) {
        if listed.len() > self.max {
            self.forget(lookupd);
            return;
        }
        let new: BTreeSet<_> = listed.into_iter().collect();
        if let Some(last) = self.last.get(lookupd) {
            self.anew.extend(new.difference(last).map(|(nsqd, _)| nsqd.clone()));
        }
        self.last.insert(Arc::clone(lookupd), new);
    }

    /// Forgets an nsqlookupd that is asked no more.
    pub(super) fn forget(&mut self, lookupd: &str) {
        self.last.remove(lookupd);
    }

    /// Those that have registered since the last call. Whoever has done so several times is in it once.
    pub(super) fn take(&mut self) -> BTreeSet<T> {
        std::mem::take(&mut self.anew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: [&str; 0] = [];

    fn answer<'a>(registrations: &mut Registrations<&'a str>, lookupd: &str, nsqds: &[(&'a str, u64)]) -> Vec<&'a str> {
        registrations.handle_answer(&Arc::from(lookupd), nsqds.to_vec());
        registrations.take().into_iter().collect()
    }

    #[test]
    fn n2_an_nsqd_that_comes_back_or_is_seen_at_another_port_has_registered_anew() {
        let mut registrations = Registrations::new(1000);
        let mut a = |nsqds: &[_]| answer(&mut registrations, "a", nsqds);
        assert_eq!(a(&[("x", 1), ("y", 1)]), NOBODY, "nothing to compare with");
        assert_eq!(a(&[("x", 1), ("y", 1)]), NOBODY);
        assert_eq!(a(&[("y", 1), ("x", 2)]), ["x"]);
        assert_eq!(a(&[("x", 2)]), NOBODY, "one that goes is no news");
        assert_eq!(a(&[("y", 1), ("x", 2)]), ["y"]);
        // Each nsqlookupd sees an nsqd at a port of its own.
        assert_eq!(answer(&mut registrations, "b", &[("y", 7), ("x", 8)]), NOBODY);
        assert_eq!(answer(&mut registrations, "b", &[("y", 7), ("x", 9)]), ["x"]);
        registrations.forget("b");
        assert_eq!(answer(&mut registrations, "b", &[("y", 6), ("x", 6)]), NOBODY);
    }

    #[test]
    fn n2_an_nsqd_listed_twice_is_no_news_in_whatever_order() {
        let mut registrations = Registrations::new(1000);
        let mut a = |nsqds: &[_]| answer(&mut registrations, "a", nsqds);
        assert_eq!(a(&[("x", 1)]), NOBODY);
        assert_eq!(a(&[("x", 2), ("x", 1)]), ["x"]);
        assert_eq!(a(&[("x", 1), ("x", 2)]), NOBODY);
        assert_eq!(a(&[("x", 2)]), NOBODY, "the old connection has been given up");
    }

    #[test]
    fn n4_an_answer_of_too_many_is_not_kept() {
        let mut registrations = Registrations::new(2);
        assert_eq!(answer(&mut registrations, "a", &[("x", 1), ("y", 1)]), NOBODY);
        assert_eq!(answer(&mut registrations, "a", &[("x", 2), ("y", 2), ("z", 2)]), NOBODY);
        assert!(registrations.last.is_empty());
    }

    #[test]
    fn n2_the_digest_tells_ports_apart() {
        assert_eq!(digest("10.0.0.9:50000"), digest("10.0.0.9:50000"));
        assert_ne!(digest("10.0.0.9:50000"), digest("10.0.0.9:50001"));
    }
}
