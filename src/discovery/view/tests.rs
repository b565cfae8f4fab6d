use proptest::collection::vec;
use proptest::prelude::*;

use super::super::facts::LookupdStatus;
use super::*;
use crate::error::{Error, ErrorKind, Step};

const MINUTE: Duration = Duration::from_secs(60);

fn view(lookupds: usize) -> View {
    View::new((0..lookupds).map(lookupd_address), 1000, 30 * SECOND)
}

const SECOND: Duration = Duration::from_secs(1);

fn lookupd_address(index: usize) -> Arc<str> {
    format!("lookupd{index}:4161").into()
}

fn answer(addresses: &[&str]) -> Result<Answer> {
    Ok(Answer {
        items: addresses.iter().map(|&address| address.into()).collect(),
        ..Answer::new(true)
    })
}

fn failure() -> Result<Answer> {
    Err(Error::new(ErrorKind::Unreachable, Step::Lookup, "refused"))
}

fn round(view: &mut View, now: Instant, answers: Vec<Result<Answer>>) -> Changes {
    for (index, answer) in answers.into_iter().enumerate() {
        view.handle_answer(&lookupd_address(index), answer, now);
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
    assert_eq!(view.items().len(), 3);
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
    assert_eq!(view.items().len(), 2);
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
    assert_eq!(view.items().collect::<Vec<_>>(), [&Arc::from("b:1")]);
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
    let stats = |view: &View, now| view.lookupds()[0].facts().stats(now);
    let never = stats(&view, start);
    assert!(matches!(never.status, LookupdStatus::NeverAsked));
    assert_eq!((never.answer_age, never.topic_known), (None, None));
    round(&mut view, start, vec![answer(&["a:1"])]);
    round(&mut view, start + MINUTE, vec![answer(&["a:1"])]);
    let well = stats(&view, start + 2 * MINUTE);
    assert!(matches!(well.status, LookupdStatus::Answering { lasting } if lasting == 2 * MINUTE));
    assert_eq!((well.answer_age, well.announced), (Some(MINUTE), 1));
    round(&mut view, start + 2 * MINUTE, vec![failure()]);
    round(&mut view, start + 3 * MINUTE, vec![failure()]);
    let failing = stats(&view, start + 4 * MINUTE);
    let LookupdStatus::Failing { lasting, error } = failing.status else {
        panic!("{view:?}");
    };
    assert_eq!((lasting, error.kind()), (2 * MINUTE, ErrorKind::Unreachable));
    // What it said last is still in use.
    assert_eq!((failing.answer_age, failing.announced), (Some(3 * MINUTE), 1));
    assert_eq!(failing.topic_known, Some(true));
    round(&mut view, start + 5 * MINUTE, vec![answer(&[])]);
    let again = stats(&view, start + 5 * MINUTE);
    assert!(matches!(again.status, LookupdStatus::Answering { lasting } if lasting.is_zero()));
}

#[test]
fn n5_lesson_57_an_nsqd_tells_who_announces_it_and_since_when_nobody_does() {
    let (mut view, start) = (view(2), Instant::now());
    let told = |view: &View| -> Vec<_> {
        view.announcements()
            .map(|(item, by, since)| (item.to_string(), by.to_string(), since))
            .collect()
    };
    round(&mut view, start, vec![answer(&["a:1"]), answer(&["a:1", "b:1"])]);
    let a = ("a:1".to_owned(), "lookupd0:4161".to_owned(), None);
    let b = |since| ("b:1".to_owned(), "lookupd1:4161".to_owned(), since);
    assert_eq!(told(&view), [a.clone(), b(None)]);
    round(&mut view, start + MINUTE, vec![answer(&["a:1"]), failure()]);
    assert_eq!(told(&view), [a.clone(), b(None)]);
    for minutes in 2..4 {
        round(&mut view, start + minutes * MINUTE, vec![answer(&["a:1"]), answer(&[])]);
        assert_eq!(told(&view), [a.clone(), b(Some(start + 2 * MINUTE))]);
    }
}

#[test]
fn n5_a_removed_lookupd_takes_with_it_only_what_nobody_else_announces_and_not_at_once() {
    let (mut view, mut now) = (view(2), Instant::now());
    round(&mut view, now, vec![answer(&["a:1", "b:1"]), answer(&["b:1"])]);
    assert!(view.remove_lookupd("lookupd0:4161"));
    assert!(!view.remove_lookupd("lookupd0:4161"));
    // An answer that was on its way is nobody's.
    view.handle_answer("lookupd0:4161", answer(&["c:1"]), now);
    for expected in [&[][..], &[], &["a:1"]] {
        now += MINUTE;
        view.handle_answer("lookupd1:4161", answer(&["b:1"]), now);
        assert_eq!(names(&view.poll_round_finished(now).removed), expected);
    }
    assert_eq!(view.items().collect::<Vec<_>>(), [&Arc::from("b:1")]);
}

#[test]
fn n5_without_any_lookupd_nothing_is_dropped() {
    let (mut view, mut now) = (view(1), Instant::now());
    round(&mut view, now, vec![answer(&["a:1"])]);
    view.remove_lookupd("lookupd0:4161");
    for _ in 0..10 {
        now += MINUTE;
        assert!(view.poll_round_finished(now).is_empty());
        assert!(!view.last_round_clean());
    }
    // The next one to come decides.
    assert!(view.add_lookupd(&lookupd_address(1)));
    for expected in [0, 0, 1] {
        now += MINUTE;
        view.handle_answer("lookupd1:4161", answer(&[]), now);
        assert_eq!(view.poll_round_finished(now).removed.len(), expected);
    }
}

#[test]
fn n5_an_added_lookupd_counts_from_the_round_it_was_added_in() {
    let (mut view, mut now) = (view(1), Instant::now());
    round(&mut view, now, vec![answer(&["a:1"])]);
    assert!(view.add_lookupd(&lookupd_address(1)));
    assert!(!view.add_lookupd(&lookupd_address(1)));
    for _ in 0..10 {
        now += MINUTE;
        // It has not said anything yet, so it might know a.
        assert!(round(&mut view, now, vec![answer(&[])]).is_empty());
        assert!(!view.last_round_clean());
    }
    assert!(round(&mut view, now, vec![answer(&[]), answer(&["a:1"])]).is_empty());
    assert_eq!(view.announced_by("a:1"), Some(&lookupd_address(1)));
}

#[test]
fn n4_nsqds_past_the_limit_are_ignored_and_never_push_known_ones_out() {
    let mut view = View::new([lookupd_address(0), lookupd_address(1)], 3, Duration::ZERO);
    let now = Instant::now();
    let first = round(&mut view, now, vec![answer(&["d:1", "e:1"]), answer(&[])]);
    assert_eq!(names(&first.added), ["d:1", "e:1"]);
    // One place is left; c comes too late and the known ones stay although they sort last.
    let flood = || vec![answer(&["a:1", "b:1", "d:1", "e:1"]), answer(&["c:1"])];
    assert_eq!(names(&round(&mut view, now, flood()).added), ["a:1"]);
    assert_eq!(view.ignored(), 2);
    let ignored: Vec<_> = view.lookupds().iter().map(|lookupd| lookupd.facts().ignored).collect();
    assert_eq!(ignored, [1, 1]);
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
            items: addresses_of(bits).into_iter().collect(),
            ..Answer::new(bits != 0)
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
            let after: BTreeSet<_> = view.items().cloned().collect();
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
    fn n5_lookupds_that_come_and_go_drop_nothing_before_its_time(
        history in vec((0u8..4, 0usize..3, vec(said(), 3), 0u32..40), 1..80)
    ) {
        let (mut view, mut now) = (view(0), Instant::now());
        // What each nsqlookupd that is there said last.
        let mut last_good = [None::<u8>; 3];
        let mut missing = [None::<(Instant, u32)>; 8];
        for (what, index, said, seconds) in history {
            let address = lookupd_address(index);
            match what {
                0 => {
                    prop_assert_eq!(view.add_lookupd(&address), last_good[index].is_none());
                    last_good[index].get_or_insert(0);
                    continue;
                }
                1 => {
                    prop_assert_eq!(view.remove_lookupd(&address), last_good[index].take().is_some());
                    continue;
                }
                _ => now += seconds * SECOND,
            }
            let there: Vec<usize> = (0..3).filter(|&index| last_good[index].is_some()).collect();
            for (index, &said) in said.iter().enumerate() {
                // Those that are not there may have been asked before they went.
                view.handle_answer(&lookupd_address(index), to_answer(said), now);
                if let (Some(last), Some(said)) = (&mut last_good[index], said) {
                    *last = said;
                }
            }
            let union = last_good.iter().flatten().fold(0, |union, bits| union | bits);
            let clean = !there.is_empty() && there.iter().all(|&index| said[index].is_some());
            for (bit, missing) in missing.iter_mut().enumerate() {
                if union >> bit & 1 == 1 {
                    *missing = None;
                } else if clean {
                    let (since, rounds) = missing.unwrap_or((now, 0));
                    *missing = Some((since, rounds + 1));
                }
            }
            let changes = view.poll_round_finished(now);
            prop_assert_eq!(view.last_round_clean(), clean);
            let after: BTreeSet<_> = view.items().cloned().collect();
            prop_assert!(addresses_of(union).is_subset(&after));
            let long_missing: BTreeSet<_> = (0..8u8)
                .filter(|&bit| missing[usize::from(bit)]
                    .is_some_and(|(since, rounds)| rounds >= 3 && now - since >= 30 * SECOND))
                .flat_map(|bit| addresses_of(1 << bit))
                .collect();
            prop_assert!(clean || changes.removed.is_empty());
            prop_assert!(changes.removed.iter().all(|address| long_missing.contains(address)));
            prop_assert!(!clean || after.is_disjoint(&long_missing), "kept for too long");
            for lookupd in view.lookupds() {
                prop_assert!(lookupd.facts().announced <= 8);
            }
        }
    }

    #[test]
    fn n4_no_history_exceeds_the_limit(history in vec(vec(said(), 3), 1..30), max_nodes in 1usize..8) {
        let mut view = View::new((0..3).map(lookupd_address), max_nodes, Duration::ZERO);
        let now = Instant::now();
        for said in history {
            let changes = round(&mut view, now, said.into_iter().map(to_answer).collect());
            prop_assert!(view.items().len() <= max_nodes);
            prop_assert!(changes.removed.is_empty() || view.last_round_clean());
            for lookupd in view.lookupds() {
                prop_assert!(lookupd.announced.len() <= max_nodes);
            }
        }
    }
}
