//! One test for each rule, and a modelled cluster of nsqds that plays random histories against all of them.

mod idle;
mod model;
mod newcomers;
mod pause;
mod rules;

use std::time::{Duration, Instant};

use super::{ConnectionId, Flow, FlowOptions, Outcome, PauseReason, RdyChange, is_starved};
use crate::backoff::Exponential;
use Outcome::{Failure, FailureWithoutBackoff, Success};

const A: ConnectionId = ConnectionId(1);
const B: ConnectionId = ConnectionId(2);
const C: ConnectionId = ConnectionId(3);
const SECOND: Duration = Duration::from_secs(1);

impl Flow {
    /// A report on one connection alone.
    fn handle_in_flight(&mut self, id: ConnectionId, in_flight: u32, received: bool, now: Instant) {
        self.handle_all_in_flight([(id, in_flight, received)], now);
    }
}

fn flow(max_in_flight: u32) -> (Flow, Instant) {
    let options = FlowOptions {
        max_in_flight,
        ..FlowOptions::default()
    };
    (Flow::new(options, Box::new(Exponential::default()), 1), Instant::now())
}

/// A connection that has delivered a message, and has had it answered.
fn connect(flow: &mut Flow, id: ConnectionId, max_rdy_count: u32, now: Instant) {
    flow.handle_connected(id, max_rdy_count, now);
    flow.handle_in_flight(id, 0, true, now);
}

fn drain(flow: &mut Flow) -> Vec<(ConnectionId, u32)> {
    std::iter::from_fn(|| flow.poll_rdy())
        .map(|RdyChange { id, rdy }| (id, rdy))
        .collect()
}

/// Drains, and reports empty connections wherever that is asked for, until nothing changes.
fn drain_idle(flow: &mut Flow, now: Instant) -> Vec<(ConnectionId, u32)> {
    let mut all = Vec::new();
    loop {
        all.extend(drain(flow));
        let asked: Vec<_> = [A, B, C]
            .into_iter()
            .filter(|&id| flow.notify_below(id).is_some())
            .collect();
        if asked.is_empty() {
            return all;
        }
        for id in asked {
            flow.handle_in_flight(id, 0, false, now);
        }
    }
}

fn fire(flow: &mut Flow) -> Instant {
    let now = flow.poll_timeout().unwrap();
    flow.handle_timeout(now);
    now
}
