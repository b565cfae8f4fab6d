//! The rules one by one, as examples.

use super::*;
use crate::backoff::{Exponential, FullJitter};

#[test]
fn the_defaults_are_those_of_go_nsq() {
    let options = FlowOptions::default();
    assert_eq!(options.max_in_flight, 1);
    assert_eq!(options.max_backoff_duration, 120 * SECOND);
    assert_eq!(options.low_rdy_idle_timeout, 10 * SECOND);
    assert_eq!(options.low_rdy_timeout, 30 * SECOND);
    assert_eq!(options.rdy_redistribute_interval, 5 * SECOND);
}

#[test]
fn c2_a_newcomer_gets_its_share_after_the_others_were_lowered() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    assert_eq!(drain(&mut flow), [(A, 10)]);
    connect(&mut flow, B, 2500, now);
    assert_eq!(
        drain(&mut flow),
        [(A, 5)],
        "nothing is free until A is known to be empty"
    );
    flow.handle_in_flight(A, 0, false, now);
    assert_eq!(drain(&mut flow), [(B, 5)]);
    flow.handle_closed(A, now);
    assert_eq!(drain(&mut flow), [(B, 10)]);
    flow.handle_closed(B, now);
    assert_eq!(drain(&mut flow), []);
    assert_eq!(flow.poll_timeout(), None);
}

#[test]
fn c2_a_newcomer_is_topped_up_as_the_others_drain() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    drain(&mut flow);
    connect(&mut flow, B, 2500, now);
    assert_eq!(drain(&mut flow), [(A, 5)]);
    assert_eq!(flow.pause_reason(B), Some(PauseReason::WaitingForShare));
    assert_eq!(flow.notify_below(A), Some(9), "B waits for the first free slot");
    flow.handle_in_flight(A, 9, false, now);
    assert_eq!(drain(&mut flow), [(B, 1)]);
    assert_eq!(flow.notify_below(A), Some(7), "the rest comes in halves");
    flow.handle_in_flight(A, 7, false, now);
    assert_eq!(drain(&mut flow), [(B, 3)]);
    flow.handle_in_flight(A, 2, false, now);
    assert_eq!(drain(&mut flow), [(B, 5)]);
    assert_eq!(flow.notify_below(A), None);
    assert_eq!(flow.notify_above(A), Some(5));
}

#[test]
fn c2_a_report_from_before_the_lowering_was_sent_frees_nothing() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    drain(&mut flow);
    connect(&mut flow, B, 2500, now);
    flow.handle_in_flight(A, 0, false, now);
    assert_eq!(drain(&mut flow), [(A, 5)]);
    flow.handle_in_flight(A, 0, false, now);
    assert_eq!(drain(&mut flow), [(B, 5)]);
}

#[test]
fn c2_two_connections_at_once_share_without_a_detour() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    connect(&mut flow, B, 2500, now);
    assert_eq!(drain(&mut flow), [(A, 5), (B, 5)]);
}

#[test]
fn c2_lowerings_come_before_raisings() {
    let (mut flow, now) = flow(9);
    connect(&mut flow, A, 1, now);
    connect(&mut flow, B, 2500, now);
    assert_eq!(drain(&mut flow), [(A, 1), (B, 8)]);
    flow.set_max_in_flight(4, now);
    assert_eq!(drain_idle(&mut flow, now), [(B, 3)]);
    flow.handle_closed(A, now);
    connect(&mut flow, A, 2500, now);
    // A comes first by number, and last because it rises: by what was free, then by what B left.
    assert_eq!(drain(&mut flow), [(B, 2), (A, 1)]);
    assert_eq!(drain_idle(&mut flow, now), [(A, 2)]);
}

#[test]
fn the_server_s_max_rdy_count_is_the_limit() {
    let (mut flow, now) = flow(5000);
    connect(&mut flow, A, 2500, now);
    assert_eq!(drain(&mut flow), [(A, 2500)]);
    connect(&mut flow, B, 100, now);
    assert_eq!(drain(&mut flow), [(B, 100)]);
}

#[test]
fn max_in_flight_zero_pauses_and_a_number_resumes() {
    let (mut flow, now) = flow(4);
    connect(&mut flow, A, 2500, now);
    connect(&mut flow, B, 2500, now);
    drain(&mut flow);
    flow.set_max_in_flight(0, now);
    assert_eq!(drain_idle(&mut flow, now), [(A, 0), (B, 0)]);
    assert_eq!(flow.pause_reason(A), Some(PauseReason::MaxInFlightZero));
    assert_eq!(flow.poll_timeout(), None);
    connect(&mut flow, C, 2500, now);
    assert_eq!(drain(&mut flow), []);
    flow.set_max_in_flight(7, now);
    assert_eq!(drain(&mut flow), [(A, 2), (B, 2), (C, 3)]);
    assert_eq!(flow.pause_reason(A), None);
}

#[test]
fn c2_a_lowered_max_in_flight_is_worked_off_before_anything_rises() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    flow.handle_in_flight(A, 10, true, now);
    drain(&mut flow);
    flow.set_max_in_flight(2, now);
    assert_eq!(drain(&mut flow), [(A, 2)]);
    assert_eq!(flow.excess(), 8);
    connect(&mut flow, B, 2500, now);
    assert_eq!(drain(&mut flow), [(A, 1)]);
    flow.handle_in_flight(A, 2, false, now);
    assert_eq!(drain(&mut flow), []);
    flow.handle_in_flight(A, 1, false, now);
    assert_eq!(drain(&mut flow), [(B, 1)]);
    assert_eq!(flow.excess(), 0);
}

#[test]
fn c1_an_overrun_stops_the_connection_until_its_handlers_caught_up() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    connect(&mut flow, B, 2500, now);
    drain(&mut flow);
    flow.handle_in_flight(A, 5, true, now);
    assert_eq!(flow.notify_above(A), Some(5));
    flow.handle_in_flight(A, 8, true, now);
    assert_eq!(drain(&mut flow), [(A, 0)]);
    assert_eq!(flow.pause_reason(A), Some(PauseReason::Overrun));
    assert_eq!(flow.excess(), 3);
    // Half of the way is past the share: nothing sooner is of use.
    assert_eq!(flow.notify_below(A), Some(5));
    flow.handle_in_flight(A, 6, false, now);
    assert_eq!(drain(&mut flow), []);
    flow.handle_in_flight(A, 5, false, now);
    assert_eq!(drain(&mut flow), [(A, 5)]);
}

#[test]
fn c2_nothing_rises_on_a_connection_that_has_more_than_its_share() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    drain(&mut flow);
    flow.handle_in_flight(A, 10, true, now);
    flow.handle_outcome(Failure, now);
    assert_eq!(drain(&mut flow), [(A, 0)]);
    connect(&mut flow, B, 2500, now);
    let now = fire(&mut flow);
    assert_eq!(drain(&mut flow), [], "the probe is for B, and A has all there is");
    flow.handle_in_flight(A, 8, false, now);
    assert_eq!(drain(&mut flow), [(B, 1)]);
    flow.handle_outcome(Success, now);
    assert_eq!(drain(&mut flow), [(B, 2)]);
    flow.handle_in_flight(A, 5, false, now);
    assert_eq!(drain(&mut flow), [(A, 5), (B, 5)]);
}

#[test]
fn a_closing_connection_gets_no_rdy_and_is_charged_until_it_is_empty() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    connect(&mut flow, B, 2500, now);
    drain(&mut flow);
    flow.handle_closing(A, now);
    assert_eq!(drain(&mut flow), [], "CLS says it to nsqd");
    assert_eq!(flow.pause_reason(A), Some(PauseReason::Closing));
    assert_eq!(flow.notify_below(A), Some(2));
    flow.handle_in_flight(A, 2, false, now);
    assert_eq!(drain(&mut flow), [(B, 8)]);
    flow.handle_closed(A, now);
    assert_eq!(drain(&mut flow), [(B, 10)]);
}

#[test]
fn c4_a_failure_stops_everyone_and_the_timer_lets_one_probe() {
    let (mut flow, start) = flow(10);
    connect(&mut flow, A, 2500, start);
    connect(&mut flow, B, 2500, start);
    drain(&mut flow);
    flow.handle_outcome(Success, start);
    assert!(!flow.in_backoff());
    flow.handle_outcome(Failure, start);
    assert_eq!(drain_idle(&mut flow, start), [(A, 0), (B, 0)]);
    assert_eq!(flow.backoff_level(), 1);
    assert_eq!(flow.backoff_until(), Some(start + 2 * SECOND));
    assert_eq!(flow.pause_reason(A), Some(PauseReason::Backoff));

    let now = fire(&mut flow);
    assert_eq!(now, start + 2 * SECOND);
    let probe = drain(&mut flow);
    assert!(probe == [(A, 1)] || probe == [(B, 1)], "{probe:?}");
    assert_eq!(flow.backoff_until(), None);

    flow.handle_outcome(Success, now);
    assert!(!flow.in_backoff());
    let ids: Vec<_> = drain_idle(&mut flow, now).into_iter().map(|(_, rdy)| rdy).collect();
    assert_eq!(ids, [5, 5]);
}

#[test]
fn c4_the_probe_is_random_at_first_and_goes_round_from_then_on() {
    let mut first = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let start = Instant::now();
        let mut flow = Flow::new(FlowOptions::default(), Box::new(Exponential::default()), seed);
        flow.set_max_in_flight(3, start);
        for id in [A, B, C] {
            connect(&mut flow, id, 2500, start);
        }
        drain(&mut flow);
        flow.handle_outcome(Failure, start);
        drain_idle(&mut flow, start);
        let mut probes = Vec::new();
        for _ in 0..3 {
            let now = fire(&mut flow);
            let probe = drain(&mut flow);
            probes.push(probe[0].0);
            flow.handle_outcome(Failure, now);
            drain_idle(&mut flow, now);
        }
        first.insert(probes[0]);
        probes.sort();
        assert_eq!(probes, [A, B, C]);
    }
    assert_eq!(first.len(), 3);
}

#[test]
fn c4_connections_that_come_during_backoff_wait_for_its_end() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    drain(&mut flow);
    flow.handle_outcome(Failure, now);
    drain_idle(&mut flow, now);
    connect(&mut flow, B, 2500, now);
    flow.set_max_in_flight(20, now);
    assert_eq!(drain_idle(&mut flow, now), []);
    let now = fire(&mut flow);
    assert_eq!(drain(&mut flow).len(), 1);
    connect(&mut flow, C, 2500, now);
    assert_eq!(drain(&mut flow), []);
}

#[test]
fn c4_backoff_survives_the_loss_of_all_connections() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    drain(&mut flow);
    flow.handle_outcome(Failure, now);
    flow.handle_closed(A, now);
    let now = fire(&mut flow);
    assert_eq!(drain(&mut flow), []);
    connect(&mut flow, B, 2500, now);
    assert_eq!(drain(&mut flow), [(B, 1)]);
    flow.handle_closing(B, now);
    flow.handle_in_flight(B, 0, false, now);
    connect(&mut flow, C, 2500, now);
    assert_eq!(drain(&mut flow), [(C, 1)]);
    flow.handle_outcome(Success, now);
    assert_eq!(drain(&mut flow), [(C, 10)]);
}

#[test]
fn c4_the_probe_moves_when_its_connection_dies_or_stays_silent() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    connect(&mut flow, B, 2500, now);
    drain(&mut flow);
    flow.handle_outcome(Failure, now);
    drain_idle(&mut flow, now);
    let start = fire(&mut flow);
    let first = drain(&mut flow)[0].0;
    let mut moved = Vec::new();
    let mut now = start;
    while moved.is_empty() {
        now = fire(&mut flow);
        moved = drain_idle(&mut flow, now);
    }
    let other = if first == A { B } else { A };
    assert_eq!(moved, [(first, 0), (other, 1)]);
    assert!(now - start >= 10 * SECOND && now - start <= 15 * SECOND);
    flow.handle_closed(other, now);
    assert_eq!(drain(&mut flow), [(first, 1)]);
}

#[test]
fn c4_the_probe_leaves_a_silent_connection_that_holds_the_only_slot() {
    let (mut flow, now) = flow(1);
    connect(&mut flow, A, 2500, now);
    connect(&mut flow, B, 2500, now);
    assert_eq!(drain(&mut flow), [(A, 1)]);
    flow.handle_outcome(Failure, now);
    drain_idle(&mut flow, now);
    let mut probes = Vec::new();
    while probes.len() < 4 {
        let now = fire(&mut flow);
        probes.extend(drain_idle(&mut flow, now).into_iter().filter(|&(_, rdy)| rdy > 0));
    }
    assert!(probes[0] != probes[1] && probes[..2] == probes[2..], "{probes:?}");
}

#[test]
fn c4_a_requeue_without_backoff_on_the_probe_does_not_stall() {
    let (mut flow, now) = flow(10);
    connect(&mut flow, A, 2500, now);
    drain(&mut flow);
    flow.handle_outcome(FailureWithoutBackoff, now);
    assert!(!flow.in_backoff());
    flow.handle_outcome(Failure, now);
    drain_idle(&mut flow, now);
    for _ in 0..5 {
        let now = fire(&mut flow);
        assert_eq!(drain(&mut flow), [(A, 1)]);
        flow.handle_outcome(FailureWithoutBackoff, now);
        assert_eq!(drain_idle(&mut flow, now), [(A, 0)]);
        assert_eq!(flow.backoff_until(), Some(now + 2 * SECOND));
    }
}

#[test]
fn c4_the_probe_waits_for_a_free_slot_and_not_for_a_stuck_handler() {
    let (mut flow, now) = flow(2);
    connect(&mut flow, A, 2500, now);
    drain(&mut flow);
    flow.handle_in_flight(A, 2, true, now);
    flow.handle_outcome(Failure, now);
    assert_eq!(drain(&mut flow), [(A, 0)]);
    flow.handle_in_flight(A, 1, false, now);
    // The other message is stuck. nsqd takes it back one day, and sends the probe then.
    fire(&mut flow);
    assert_eq!(drain(&mut flow), [(A, 1)]);
}

#[test]
fn c4_a_jittered_strategy_that_draws_zero_still_probes() {
    let now = Instant::now();
    let mut flow = Flow::new(
        FlowOptions::default(),
        Box::new(FullJitter::new(Duration::from_nanos(1))),
        3,
    );
    connect(&mut flow, A, 2500, now);
    drain(&mut flow);
    flow.handle_outcome(Failure, now);
    drain_idle(&mut flow, now);
    let now = fire(&mut flow);
    assert_eq!(drain(&mut flow), [(A, 1)]);
    flow.handle_outcome(Success, now);
    assert!(!flow.in_backoff());
}

#[test]
fn c3_more_connections_than_max_in_flight_take_turns() {
    let (mut flow, start) = flow(1);
    for id in [A, B, C] {
        connect(&mut flow, id, 2500, start);
    }
    assert_eq!(drain(&mut flow), [(A, 1)]);
    assert_eq!(flow.pause_reason(B), Some(PauseReason::WaitingForShare));
    // All are busy: whoever has the slot gets messages all the time.
    let mut now = start;
    let mut order = vec![A];
    while now < start + 60 * SECOND {
        now = flow.poll_timeout().unwrap();
        let holder = *order.last().unwrap();
        flow.handle_in_flight(holder, 0, true, now);
        flow.handle_timeout(now);
        order.extend(
            drain_idle(&mut flow, now)
                .into_iter()
                .filter(|&(_, rdy)| rdy > 0)
                .map(|(id, _)| id),
        );
        if now <= start + 30 * SECOND && order.len() >= 3 {
            assert_ne!(order[1], order[2], "both had a turn within low_rdy_timeout");
        }
    }
    assert!(order.len() >= 4);
    for three in order.windows(3) {
        let mut three = three.to_vec();
        three.sort();
        assert_eq!(three, [A, B, C], "the turns go round");
    }
}

#[test]
fn c3_a_turn_that_would_last_too_long_at_the_next_tick_ends_at_this_one() {
    let options = FlowOptions {
        rdy_redistribute_interval: 4 * SECOND,
        ..FlowOptions::default()
    };
    let start = Instant::now();
    let mut flow = Flow::new(options, Box::new(Exponential::default()), 1);
    connect(&mut flow, A, 2500, start);
    connect(&mut flow, B, 2500, start);
    assert_eq!(drain(&mut flow), [(A, 1)]);
    let mut now = start;
    while flow.rdy(B) == 0 {
        now = flow.poll_timeout().unwrap();
        flow.handle_in_flight(A, 0, true, now);
        flow.handle_timeout(now);
        drain_idle(&mut flow, now);
    }
    assert_eq!(now, start + 28 * SECOND);
}

#[test]
fn c3_whoever_waits_longest_gets_the_first_free_slot() {
    let (mut flow, now) = flow(9);
    connect(&mut flow, A, 2500, now);
    drain(&mut flow);
    connect(&mut flow, C, 2500, now);
    connect(&mut flow, B, 2500, now + SECOND);
    assert_eq!(drain(&mut flow), [(A, 3)]);
    flow.handle_in_flight(A, 8, false, now + SECOND);
    assert_eq!(drain(&mut flow), [(C, 1)]);
    flow.handle_in_flight(A, 7, false, now + SECOND);
    assert_eq!(drain(&mut flow), [(B, 1)], "one for each comes before more for anybody");
}

#[test]
fn c3_a_silent_connection_loses_its_turn_after_the_idle_timeout() {
    let (mut flow, start) = flow(1);
    connect(&mut flow, A, 2500, start);
    connect(&mut flow, B, 2500, start);
    assert_eq!(drain(&mut flow), [(A, 1)]);
    let mut now = start;
    let mut moved = Vec::new();
    while moved.is_empty() {
        now = fire(&mut flow);
        moved = drain_idle(&mut flow, now);
    }
    assert_eq!(moved, [(A, 0), (B, 1)]);
    assert_eq!(now, start + 10 * SECOND);
}

#[test]
fn c3_a_turn_passes_on_only_when_its_message_is_answered() {
    let (mut flow, now) = flow(1);
    connect(&mut flow, A, 2500, now);
    drain(&mut flow);
    flow.handle_in_flight(A, 1, true, now);
    connect(&mut flow, B, 2500, now);
    while drain(&mut flow) != [(A, 0)] {
        fire(&mut flow);
    }
    assert_eq!(flow.notify_below(A), Some(0));
    flow.handle_in_flight(A, 0, false, now);
    assert_eq!(drain(&mut flow), [(B, 1)]);
}

#[test]
fn only_outcomes_that_matter_are_wanted() {
    let (mut flow, now) = flow(1);
    connect(&mut flow, A, 2500, now);
    drain(&mut flow);
    let wanted = |flow: &Flow| [Success, Failure, FailureWithoutBackoff].map(|o| flow.wants_outcome(o));
    assert_eq!(wanted(&flow), [false, true, false]);
    flow.handle_outcome(Failure, now);
    assert_eq!(wanted(&flow), [false; 3]);
    fire(&mut flow);
    assert_eq!(wanted(&flow), [true; 3]);
}

#[test]
fn unknown_connections_and_early_timeouts_are_harmless() {
    let (mut flow, now) = flow(10);
    flow.handle_timeout(now);
    flow.handle_in_flight(A, 5, true, now);
    flow.handle_closing(A, now);
    flow.handle_closed(A, now);
    assert_eq!(drain(&mut flow), []);
    assert_eq!((flow.rdy(A), flow.pause_reason(A)), (0, None));
    assert_eq!((flow.notify_above(A), flow.notify_below(A)), (None, None));
    connect(&mut flow, A, 2500, now);
    connect(&mut flow, B, 2500, now);
    drain(&mut flow);
    let due = flow.poll_timeout();
    flow.handle_timeout(now);
    assert_eq!(flow.poll_timeout(), due);
}
