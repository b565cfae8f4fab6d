//! A pause stops everything, changes nothing, and stalls nothing.

use super::*;

#[test]
fn pausing_sets_every_rdy_to_zero_and_resuming_restores_it() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    connect(&mut flow, B, 2500, now);
    flow.handle_connected(C, 2500, now);
    assert_eq!(drain(&mut flow), [(A, 4), (B, 5), (C, 1)]);
    flow.set_paused(true, now);
    assert_eq!(drain_idle(&mut flow, now), [(A, 0), (B, 0), (C, 0)]);
    assert_eq!(flow.pause_reason(A), Some(PauseReason::Paused));
    assert_eq!(flow.poll_timeout(), None);
    flow.set_paused(true, now);
    assert_eq!(drain(&mut flow), [], "twice is once");
    flow.set_paused(false, now);
    assert_eq!(drain(&mut flow), [(A, 4), (B, 5), (C, 1)]);
    assert_eq!(flow.pause_reason(A), None);
    flow.set_paused(false, now);
    assert_eq!(drain(&mut flow), []);
}

#[test]
fn a_pause_and_max_in_flight_know_nothing_of_each_other() {
    let (mut flow, now) = flow(4);
    connect(&mut flow, A, 2500, now);
    drain(&mut flow);
    flow.set_paused(true, now);
    drain_idle(&mut flow, now);
    flow.set_max_in_flight(7, now);
    assert_eq!(drain(&mut flow), []);
    flow.set_paused(false, now);
    assert_eq!(drain(&mut flow), [(A, 7)]);
    flow.set_max_in_flight(0, now);
    flow.set_paused(true, now);
    drain_idle(&mut flow, now);
    assert_eq!(flow.pause_reason(A), Some(PauseReason::Paused));
    flow.set_paused(false, now);
    assert_eq!(drain(&mut flow), []);
    assert_eq!(flow.pause_reason(A), Some(PauseReason::MaxInFlightZero));
}

#[test]
fn who_lends_still_lends_after_a_pause() {
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
    assert_eq!(drain_idle(&mut flow, now), [(B, 1), (A, 99)]);
    flow.set_paused(true, now);
    drain_idle(&mut flow, now);
    now += 3600 * SECOND;
    flow.set_paused(false, now);
    assert_eq!(drain(&mut flow), [(A, 99), (B, 1)]);
    flow.set_paused(true, now);
    drain(&mut flow);
    // A message that was on its way ends the loan.
    flow.handle_in_flight(B, 1, true, now);
    flow.handle_in_flight(A, 0, false, now);
    flow.handle_in_flight(B, 0, false, now);
    flow.set_paused(false, now);
    assert_eq!(drain(&mut flow), [(A, 50), (B, 50)]);
}

#[test]
fn c2_what_is_in_flight_at_a_pause_counts_after_it() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    connect(&mut flow, B, 2500, now);
    drain(&mut flow);
    flow.handle_in_flight(A, 5, true, now);
    flow.set_paused(true, now);
    assert_eq!(drain(&mut flow), [(A, 0), (B, 0)]);
    flow.handle_in_flight(A, 5, false, now);
    flow.handle_in_flight(B, 0, false, now);
    flow.handle_closed(B, now);
    flow.set_paused(false, now);
    assert_eq!(drain(&mut flow), [(A, 10)]);
}

#[test]
fn c4_the_timer_of_a_backoff_runs_during_a_pause_and_the_probe_follows_it() {
    let (mut flow, start) = flow(10);
    connect(&mut flow, A, 2500, start);
    connect(&mut flow, B, 2500, start);
    drain(&mut flow);
    flow.handle_outcome(Failure, start);
    drain_idle(&mut flow, start);
    flow.set_paused(true, start);
    assert_eq!(drain(&mut flow), []);
    assert_eq!(flow.pause_reason(A), Some(PauseReason::Paused));
    assert_eq!(flow.backoff_until(), Some(start + 2 * SECOND));
    // Resumed within the time: only its end lets anything through.
    flow.set_paused(false, start + SECOND);
    assert_eq!(drain(&mut flow), []);
    assert_eq!(flow.pause_reason(A), Some(PauseReason::Backoff));
    flow.set_paused(true, start + SECOND);
    let now = fire(&mut flow);
    assert_eq!(now, start + 2 * SECOND);
    assert_eq!(drain(&mut flow), []);
    assert_eq!(flow.poll_timeout(), None, "nothing is due during the pause");
    flow.set_paused(false, now + 100 * SECOND);
    let probe = drain(&mut flow);
    assert_eq!(probe.len(), 1);
    assert_eq!(probe[0].1, 1);
    flow.handle_outcome(Success, now + 100 * SECOND);
    drain_idle(&mut flow, now + 100 * SECOND);
    assert_eq!((flow.rdy(A), flow.rdy(B)), (5, 5));
}

#[test]
fn c4_a_pause_takes_the_probe_back_and_gives_it_again() {
    let (mut flow, start) = flow(10);
    connect(&mut flow, A, 2500, start);
    drain(&mut flow);
    flow.handle_outcome(Failure, start);
    drain_idle(&mut flow, start);
    let now = fire(&mut flow);
    assert_eq!(drain(&mut flow), [(A, 1)]);
    flow.set_paused(true, now);
    assert_eq!(drain_idle(&mut flow, now), [(A, 0)]);
    flow.set_paused(false, now);
    assert_eq!(drain(&mut flow), [(A, 1)]);
    // A probe that was under way when the pause began decides all the same.
    flow.handle_in_flight(A, 1, true, now);
    flow.set_paused(true, now);
    assert_eq!(drain(&mut flow), [(A, 0)]);
    flow.handle_outcome(Success, now);
    flow.handle_in_flight(A, 0, false, now);
    assert_eq!(drain(&mut flow), []);
    assert!(!flow.in_backoff());
    flow.set_paused(false, now);
    assert_eq!(drain(&mut flow), [(A, 10)]);
}

#[test]
fn c3_pauses_without_end_favour_nobody() {
    let (mut flow, start) = flow(1);
    for id in [A, B, C] {
        connect(&mut flow, id, 2500, start);
    }
    let mut order: Vec<_> = drain(&mut flow);
    let mut now = start;
    // Far shorter than a turn: each pause ends one, and whoever waits longest has the next.
    for _ in 0..30 {
        now += SECOND;
        flow.set_paused(true, now);
        drain_idle(&mut flow, now);
        now += SECOND;
        flow.set_paused(false, now);
        order.extend(drain(&mut flow));
    }
    for three in order.windows(3) {
        let mut three: Vec<_> = three.iter().map(|&(id, _)| id).collect();
        three.sort();
        assert_eq!(three, [A, B, C]);
    }
}

#[test]
fn is_starved_is_go_nsq_s_rule() {
    for (in_flight, rdy, starved) in [
        (0, 0, false),
        (0, 1, false),
        (1, 0, true),
        (1, 1, true),
        (1, 2, true),
        (1, 3, false),
        (7, 10, false),
        (8, 10, true),
        (16, 20, false),
        (17, 20, true),
        (2124, 2500, false),
        (2125, 2500, true),
        (5000, 2500, true),
        (u32::MAX, u32::MAX, true),
    ] {
        assert_eq!(is_starved(in_flight, rdy), starved, "{in_flight} of {rdy}");
    }
    // As go-nsq computes it, in floating point.
    for rdy in 0..5000 {
        let threshold = (f64::from(rdy) * 0.85) as u32;
        assert!(is_starved(threshold.max(1), rdy));
        assert!(threshold < 2 || !is_starved(threshold - 1, rdy));
    }
}
