//! Those that are silent lend to those that are not, and get it back.

use super::*;

/// Lets time pass until `end`, with A busy and the others reporting what they have in flight and that nothing came.
fn busy_a(flow: &mut Flow, now: Instant, end: Instant, others: &[(ConnectionId, u32)]) -> Vec<(ConnectionId, u32)> {
    let mut now = now;
    let mut all = Vec::new();
    while now < end {
        now = flow.poll_timeout().map_or(end, |at| at.min(end));
        let rdy = flow.rdy(A);
        flow.handle_in_flight(A, rdy, true, now);
        for &(id, in_flight) in others {
            flow.handle_in_flight(id, in_flight, false, now);
        }
        flow.handle_timeout(now);
        all.extend(drain(flow));
    }
    all
}

#[test]
fn c3_an_idle_nsqd_lends_its_share_and_gets_it_back() {
    let (mut flow, start) = flow(100);
    connect(&mut flow, A, 2500, start);
    connect(&mut flow, B, 2500, start);
    assert_eq!(drain(&mut flow), [(A, 50), (B, 50)]);
    let mut now = start;
    while now < start + 10 * SECOND {
        now = flow.poll_timeout().unwrap();
        flow.handle_in_flight(A, 50, true, now);
        flow.handle_in_flight(B, 0, false, now);
        flow.handle_timeout(now);
    }
    assert_eq!(drain(&mut flow), [(B, 1)]);
    flow.handle_in_flight(B, 0, false, now);
    assert_eq!(drain(&mut flow), [(A, 99)]);
    assert_eq!(flow.notify_above(B), Some(0));
    flow.handle_in_flight(B, 1, true, now);
    assert_eq!(drain(&mut flow), [(A, 50)]);
    flow.handle_in_flight(A, 50, false, now);
    assert_eq!(drain(&mut flow), [(B, 50)]);
}

#[test]
fn c3_the_last_connection_keeps_nothing_from_itself() {
    let (mut flow, start) = flow(100);
    connect(&mut flow, A, 2500, start);
    connect(&mut flow, B, 2500, start);
    drain(&mut flow);
    let mut now = start;
    while now < start + 10 * SECOND {
        now = flow.poll_timeout().unwrap();
        flow.handle_in_flight(A, 50, true, now);
        flow.handle_timeout(now);
    }
    assert_eq!(drain(&mut flow), [(B, 1)]);
    flow.handle_closed(A, now);
    assert_eq!(drain_idle(&mut flow, now), [(B, 100)]);
}

#[test]
fn c3_a_trickle_moves_rdy_no_more_often_than_once_an_idle_timeout() {
    let (mut flow, start) = flow(100);
    connect(&mut flow, A, 2500, start);
    connect(&mut flow, B, 2500, start);
    drain(&mut flow);
    let mut now = start;
    let mut changes = 0;
    // B has a message every twelve seconds for an hour.
    for _ in 0..300 {
        changes += busy_a(&mut flow, now, now + 12 * SECOND, &[(B, 0)]).len();
        now += 12 * SECOND;
        flow.handle_in_flight(B, 1, true, now);
        changes += drain(&mut flow).len();
        flow.handle_in_flight(A, 50, true, now);
        changes += drain(&mut flow).len();
        flow.handle_in_flight(B, 0, false, now);
        changes += drain(&mut flow).len();
    }
    // Down and up for each of the two, a raising in two steps at most.
    assert!(changes <= 300 * 6, "{changes} RDY commands in an hour");
    // And it is shared evenly while B speaks.
    assert_eq!((flow.rdy(A), flow.rdy(B)), (50, 50));
}

#[test]
fn c3_a_trickle_faster_than_the_idle_timeout_keeps_its_share() {
    let (mut flow, start) = flow(100);
    connect(&mut flow, A, 2500, start);
    connect(&mut flow, B, 2500, start);
    drain(&mut flow);
    let mut now = start;
    for _ in 0..100 {
        assert_eq!(busy_a(&mut flow, now, now + 9 * SECOND, &[(B, 0)]), []);
        now += 9 * SECOND;
        flow.handle_in_flight(B, 0, true, now);
    }
}

#[test]
fn c3_when_all_are_silent_nobody_lends_and_the_first_to_speak_up_gets_the_rest_at_the_next_look() {
    let (mut flow, start) = flow(100);
    for id in [A, B, C] {
        connect(&mut flow, id, 2500, start);
    }
    assert_eq!(drain(&mut flow), [(A, 33), (B, 33), (C, 34)]);
    let mut now = start;
    while now < start + 100 * SECOND {
        now = fire(&mut flow);
        assert_eq!(drain(&mut flow), []);
    }
    flow.handle_in_flight(A, 33, true, now);
    let spoke = now;
    let mut all = Vec::new();
    while flow.rdy(A) < 98 {
        now = flow.poll_timeout().unwrap();
        flow.handle_in_flight(A, 33, true, now);
        flow.handle_timeout(now);
        all.extend(drain_idle(&mut flow, now));
        assert!(now - spoke <= 5 * SECOND, "{all:?}");
        flow.handle_in_flight(A, 33, true, now);
        all.extend(drain(&mut flow));
    }
    assert_eq!((flow.rdy(A), flow.rdy(B), flow.rdy(C)), (98, 1, 1));
}

#[test]
fn c3_several_borrowers_share_what_is_lent() {
    let (mut flow, start) = flow(100);
    for id in [A, B, C] {
        connect(&mut flow, id, 2500, start);
    }
    drain(&mut flow);
    let mut now = start;
    while now < start + 10 * SECOND {
        now = flow.poll_timeout().unwrap();
        for id in [A, B] {
            flow.handle_in_flight(id, 20, true, now);
        }
        flow.handle_timeout(now);
    }
    assert_eq!(drain_idle(&mut flow, now), [(C, 1), (A, 49), (B, 50)]);
}
