//! A new connection has RDY 1 until its first message.

use super::*;

#[test]
fn c2_a_lone_connection_starts_with_one_and_gets_the_rest_after_its_first_message() {
    let (mut flow, now) = flow(10);
    flow.handle_connected(A, 2500, now);
    assert_eq!(drain(&mut flow), [(A, 1)]);
    assert_eq!(flow.notify_above(A), Some(0), "the first message is reported");
    assert_eq!(flow.notify_below(A), None);
    flow.handle_in_flight(A, 1, true, now);
    assert_eq!(drain(&mut flow), [(A, 10)]);
    assert_eq!(flow.notify_above(A), Some(10), "and no other");
    assert_eq!(flow.notify_below(A), None);
}

#[test]
fn c2_a_first_message_that_was_answered_before_the_report_counts() {
    let (mut flow, now) = flow(10);
    flow.handle_connected(A, 2500, now);
    flow.handle_in_flight(A, 0, true, now);
    assert_eq!(drain(&mut flow), [(A, 10)]);
}

#[test]
fn c2_a_newcomer_takes_one_from_the_others_and_its_share_only_after_its_first_message() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    assert_eq!(drain(&mut flow), [(A, 10)]);
    flow.handle_connected(B, 2500, now);
    assert_eq!(drain_idle(&mut flow, now), [(A, 9), (B, 1)]);
    flow.handle_in_flight(B, 1, true, now);
    assert_eq!(drain_idle(&mut flow, now), [(A, 5), (B, 5)]);
}

#[test]
fn c3_a_newcomer_that_never_delivers_keeps_nothing_but_one_from_the_others() {
    let (mut flow, start) = flow(10);
    connect(&mut flow, A, 2500, start);
    flow.handle_connected(B, 2500, start);
    flow.handle_connected(C, 2500, start);
    drain_idle(&mut flow, start);
    assert_eq!(flow.rdy(A), 8);
    let mut now = start;
    // For an hour, with A idle and with A busy.
    while now < start + 3600 * SECOND {
        now = fire(&mut flow);
        assert_eq!(drain_idle(&mut flow, now), []);
        if now > start + 1800 * SECOND {
            flow.handle_in_flight(A, 8, true, now);
        }
    }
    assert_eq!((flow.rdy(A), flow.rdy(B), flow.rdy(C)), (8, 1, 1));
    flow.handle_closed(A, now);
    assert_eq!(drain_idle(&mut flow, now), []);
}

#[test]
fn c3_nobody_lends_to_a_newcomer_that_could_not_use_it() {
    let (mut flow, start) = flow(10);
    connect(&mut flow, A, 2500, start);
    connect(&mut flow, B, 2500, start);
    drain_idle(&mut flow, start);
    // B lends to A, and A is lost and comes again.
    let mut now = start;
    while now < start + 10 * SECOND {
        now = flow.poll_timeout().unwrap();
        flow.handle_in_flight(A, 5, true, now);
        flow.handle_timeout(now);
    }
    assert_eq!(drain(&mut flow), [(B, 1)]);
    flow.handle_closed(A, now);
    assert_eq!(drain(&mut flow), [(B, 10)]);
    flow.handle_connected(A, 2500, now);
    assert_eq!(drain_idle(&mut flow, now), [(B, 9), (A, 1)]);
    for _ in 0..10 {
        now = fire(&mut flow);
        assert_eq!(drain_idle(&mut flow, now), []);
    }
    flow.handle_in_flight(A, 1, true, now);
    assert_eq!(drain_idle(&mut flow, now), [(B, 5), (A, 5)]);
}

#[test]
fn c2_with_one_in_flight_or_fewer_than_nsqds_a_first_message_changes_nothing() {
    for (max_in_flight, ids) in [(1, &[A][..]), (1, &[A, B]), (2, &[A, B]), (2, &[A, B, C])] {
        let (mut flow, now) = flow(max_in_flight);
        for &id in ids {
            flow.handle_connected(id, 2500, now);
        }
        assert_eq!(drain(&mut flow).len(), ids.len().min(max_in_flight as usize));
        flow.handle_in_flight(A, 1, true, now);
        flow.handle_in_flight(A, 0, false, now);
        assert_eq!(drain(&mut flow), []);
        assert_eq!(flow.notify_above(A), Some(1));
    }
}

#[test]
fn c4_backoff_treats_newcomers_as_it_treats_all_and_the_probe_makes_them_known() {
    let (mut flow, now) = flow(10);
    flow.handle_connected(A, 2500, now);
    drain(&mut flow);
    // The very first message fails.
    flow.handle_in_flight(A, 1, true, now);
    flow.handle_outcome(Failure, now);
    assert_eq!(drain_idle(&mut flow, now), [(A, 0)]);
    flow.handle_closed(A, now);
    flow.handle_connected(B, 2500, now);
    assert_eq!(drain(&mut flow), []);
    let now = fire(&mut flow);
    assert_eq!(drain(&mut flow), [(B, 1)]);
    flow.handle_in_flight(B, 1, true, now);
    assert_eq!(drain(&mut flow), []);
    flow.handle_outcome(Success, now);
    assert_eq!(drain(&mut flow), [(B, 10)]);
}

#[test]
fn c2_a_lone_connection_that_overruns_its_one_is_not_held_back_for_what_its_share_allows() {
    let (mut flow, now) = flow(10);
    flow.handle_connected(A, 2500, now);
    drain(&mut flow);
    flow.handle_in_flight(A, 7, true, now);
    assert_eq!(drain(&mut flow), [(A, 10)]);
    assert_eq!(flow.pause_reason(A), None);
}
