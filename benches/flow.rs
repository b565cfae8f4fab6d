//! What the flow control decides by itself, by the number of connections.
//!
//! In normal operation it hears of no message at all: connections report when what they have in flight crosses a mark, and
//! then the supervisor looks at all of them.
#![expect(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

// Both are pure, so they can be had from their files, and the crate need not show the flow to anybody.
#[expect(dead_code, unreachable_pub, reason = "the consumer uses more of it")]
#[path = "../src/backoff.rs"]
mod backoff;
#[expect(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "the consumer uses more of it, and its tests come along"
)]
#[path = "../src/consumer/flow/mod.rs"]
mod flow;

use flow::{ConnectionId, Flow, FlowOptions, Outcome};

const CONNECTIONS: [u64; 4] = [1, 10, 100, 1000];

/// A consumer with so many connections, each of which has had a message.
struct Consumer {
    flow: Flow,
    connections: u64,
    now: Instant,
}

impl Consumer {
    fn new(connections: u64, max_in_flight: u32) -> Self {
        let options = FlowOptions {
            max_in_flight,
            ..FlowOptions::default()
        };
        let mut consumer = Self {
            flow: Flow::new(options, Box::new(backoff::Exponential::default()), 1),
            connections,
            now: Instant::now(),
        };
        for id in consumer.ids() {
            consumer.flow.handle_connected(id, 2500, consumer.now);
        }
        consumer.look_around(1);
        consumer.look_around(0);
        consumer
    }

    fn ids(&self) -> impl Iterator<Item = ConnectionId> + use<> {
        (0..self.connections).map(ConnectionId)
    }

    /// What the supervisor does whenever a connection has crossed a mark: all connections have so many in flight.
    fn look_around(&mut self, in_flight: u32) {
        let reports = self.ids().map(|id| (id, black_box(in_flight), in_flight > 0));
        self.flow.handle_all_in_flight(reports, self.now);
        self.write_rdy();
        for id in self.ids() {
            black_box((self.flow.notify_below(id), self.flow.notify_above(id)));
        }
        black_box(self.flow.poll_timeout());
    }

    fn write_rdy(&mut self) {
        while let Some(change) = self.flow.poll_rdy() {
            black_box(change);
        }
    }

    /// Lets the time pass until something is due.
    fn time_out(&mut self) {
        if let Some(at) = self.flow.poll_timeout() {
            self.now = at;
            self.flow.handle_timeout(self.now);
            self.write_rdy();
        }
    }
}

/// What is asked and told for each answer.
fn outcome(criterion: &mut Criterion) {
    let mut consumer = Consumer::new(10, 2500);
    criterion.bench_function("flow/a success", |bencher| {
        bencher.iter(|| {
            if consumer.flow.wants_outcome(black_box(Outcome::Success)) {
                consumer.flow.handle_outcome(Outcome::Success, consumer.now);
            }
        });
    });
}

fn look_around(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow/a look at all connections");
    for connections in CONNECTIONS {
        group.throughput(Throughput::Elements(connections));
        let mut consumer = Consumer::new(connections, 2500);
        group.bench_function(BenchmarkId::from_parameter(connections), |bencher| {
            let mut in_flight = 0;
            bencher.iter(|| {
                in_flight = 1 - in_flight;
                consumer.look_around(in_flight);
            });
        });
    }
    group.finish();
}

/// A failure, the pause, the message that is tried, and back to normal.
fn backoff_and_back(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow/backoff and back");
    for connections in CONNECTIONS {
        let mut consumer = Consumer::new(connections, 2500);
        group.bench_function(BenchmarkId::from_parameter(connections), |bencher| {
            bencher.iter(|| {
                consumer.flow.handle_outcome(Outcome::Failure, consumer.now);
                consumer.write_rdy();
                consumer.look_around(0);
                consumer.time_out();
                consumer.flow.handle_outcome(Outcome::Success, consumer.now);
                consumer.write_rdy();
                assert!(!consumer.flow.in_backoff());
            });
        });
    }
    group.finish();
}

/// More connections than `max_in_flight`, so that RDY goes round.
fn turn(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow/a tick, half of the connections have RDY");
    for connections in [10, 100, 1000] {
        let mut consumer = Consumer::new(connections, connections as u32 / 2);
        group.bench_function(BenchmarkId::from_parameter(connections), |bencher| {
            bencher.iter(|| {
                consumer.look_around(0);
                consumer.time_out();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, outcome, look_around, backoff_and_back, turn);
criterion_main!(benches);
