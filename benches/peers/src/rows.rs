//! What is done with the messages, row by row.

use crate::client::Client;
use crate::job::Work;

/// The length of the bodies where a row does not say otherwise.
const BODY: usize = 200;

/// One row of the table, measured with each client.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) work: Work,
    /// The callers are spread over so many.
    pub(crate) topics: usize,
    pub(crate) body: usize,
    messages: Messages,
}

/// How many messages take each client a second or two. They differ by up to five orders of magnitude.
struct Messages {
    /// Raw and this crate.
    best: u64,
    go_nsq: u64,
    tokio_nsq: u64,
    tokio_nsq_tuned: u64,
}

impl Row {
    /// How many messages to time, a multiple of what all callers publish at once.
    pub(crate) fn messages(&self, client: Client) -> u64 {
        let wanted = match client {
            Client::Raw | Client::Ours => self.messages.best,
            Client::GoNsq => self.messages.go_nsq,
            Client::TokioNsq => self.messages.tokio_nsq,
            Client::TokioNsqTuned => self.messages.tokio_nsq_tuned,
        };
        match self.work {
            Work::Publish { batch, in_flight } => {
                let step = batch as u64 * u64::from(in_flight);
                (wanted / step).max(1) * step
            }
            Work::Consume { .. } => wanted,
        }
    }
}

pub(crate) const ROWS: &[Row] = &[
    publish("publish, 1 caller", 1, 1, messages(20_000, 20_000, 8, 1_500)),
    publish(
        "publish, 100 callers",
        1,
        100,
        messages(800_000, 120_000, 60_000, 150_000),
    ),
    publish(
        "publish, 1,000 callers",
        1,
        1000,
        messages(1_500_000, 120_000, 120_000, 200_000),
    ),
    Row {
        topics: 10,
        ..publish(
            "publish, 100 callers over 10 topics",
            1,
            100,
            messages(500_000, 120_000, 60_000, 150_000),
        )
    },
    publish(
        "publish_many of 100, 1 at once",
        100,
        1,
        messages(1_000_000, 800_000, 800, 4_000),
    ),
    publish(
        "publish_many of 100, 8 at once",
        100,
        8,
        messages(1_500_000, 1_200_000, 6_400, 1_000_000),
    ),
    consume("consume, max_in_flight 1", 1, messages(20_000, 20_000, 8, 1_500)),
    consume(
        "consume, max_in_flight 100",
        100,
        messages(800_000, 120_000, 800, 100_000),
    ),
    consume(
        "consume, max_in_flight 2500",
        2500,
        messages(1_000_000, 150_000, 800_000, 800_000),
    ),
];

const fn messages(best: u64, go_nsq: u64, tokio_nsq: u64, tokio_nsq_tuned: u64) -> Messages {
    Messages {
        best,
        go_nsq,
        tokio_nsq,
        tokio_nsq_tuned,
    }
}

const fn publish(name: &'static str, batch: usize, in_flight: u32, messages: Messages) -> Row {
    Row {
        name,
        work: Work::Publish { batch, in_flight },
        topics: 1,
        body: BODY,
        messages,
    }
}

const fn consume(name: &'static str, max_in_flight: u32, messages: Messages) -> Row {
    Row {
        name,
        work: Work::Consume { max_in_flight },
        topics: 1,
        body: BODY,
        messages,
    }
}
