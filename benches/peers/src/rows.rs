//! What is done with the messages, row by row.

use crate::client::Client;
use crate::job::{Compression, Work};
use crate::{Result, files};

/// One row of the table.
pub(crate) struct Row {
    /// What it is chosen by.
    pub(crate) id: &'static str,
    pub(crate) name: &'static str,
    /// Those that it is measured with.
    pub(crate) clients: &'static [Client],
    pub(crate) work: Work,
    /// The callers are spread over so many.
    pub(crate) topics: usize,
    /// Messages come from so many nsqds.
    pub(crate) nodes: usize,
    /// Not nsqd but our own, which is never what limits a client. Its nodes are one process.
    pub(crate) raw_broker: bool,
    /// What it has more of than the rows before it, if it is compared with them.
    pub(crate) growth: Option<&'static str>,
    /// How long each message is.
    pub(crate) body_len: usize,
    pub(crate) tls: bool,
    pub(crate) compression: Compression,
    messages: Messages,
}

/// How many messages take each client a second or two. They differ by up to five orders of magnitude.
struct Messages {
    /// Raw, on tokio and with a shared queue too, and this crate.
    best: u64,
    go_nsq: u64,
    tokio_nsq: u64,
    tokio_nsq_tuned: u64,
}

impl Row {
    /// Whether it is about what connections hold that have nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.work, Work::Idle { .. })
    }

    /// How often it is measured, of so many times. What a client holds hardly differs from one time to the other.
    pub(crate) fn rounds(&self, all: usize) -> usize {
        if self.is_idle() { all.div_ceil(3) } else { all }
    }

    /// How many messages to time if it is one in `share`: a multiple of what all callers publish at once.
    pub(crate) fn messages(&self, client: Client, share: u64) -> u64 {
        let wanted = match client {
            // nsqd is slow with many small PUBs, and raw puts none together.
            Client::Raw if self.has_many_small_pubs() && !self.raw_broker => self.messages.best / 4,
            Client::Raw | Client::RawTokio | Client::SharedQueue | Client::Ours => self.messages.best,
            Client::GoNsq => self.messages.go_nsq,
            Client::TokioNsq => self.messages.tokio_nsq,
            Client::TokioNsqTuned => self.messages.tokio_nsq_tuned,
        } / share;
        match self.work {
            Work::Publish { batch, in_flight } => {
                let step = batch as u64 * u64::from(in_flight);
                (wanted / step).max(1) * step
            }
            Work::Consume { .. } | Work::Sleep { .. } => wanted.max(2),
            // Not fewer of them, or too few would be slower than the slowest thousandth, or the end of the block be missed.
            Work::Latency { .. } => wanted * share,
            Work::Idle { burst, .. } => u64::from(burst) * (self.topics * self.nodes) as u64,
        }
    }

    /// What the rows around it have in common.
    pub(crate) fn section(&self) -> &'static str {
        match self.work {
            _ if self.raw_broker => "broker",
            _ if self.tls || !matches!(self.compression, Compression::None) => "negotiated",
            _ if self.body_len != files::BODY_LEN => "bodies",
            Work::Publish { .. } => "publish",
            Work::Consume { .. } => "consume",
            Work::Sleep { .. } | Work::Latency { block: Some(_), .. } => "handlers",
            Work::Latency { .. } => "latency",
            Work::Idle { .. } => "memory",
        }
    }

    fn has_many_small_pubs(&self) -> bool {
        match self.work {
            Work::Publish { batch: 1, in_flight } => in_flight > 1 && self.body_len <= files::BODY_LEN,
            _ => false,
        }
    }
}

/// The rows that the words choose, all if there is none. A word is an id, or else what some ids begin with.
pub(crate) fn choose(words: &[String]) -> Result<Vec<&'static Row>> {
    let begins = |row: &Row, word: &String| row.id.starts_with(word.as_str());
    if let Some(word) = words.iter().find(|word| !ROWS.iter().any(|row| begins(row, word))) {
        let ids: Vec<&str> = ROWS.iter().map(|row| row.id).collect();
        return Err(format!("no row's id is or begins with {word}; there are {}", ids.join(", ")).into());
    }
    let is_id = |word: &String| ROWS.iter().any(|row| row.id == word);
    let chooses = |row: &Row, word: &String| row.id == word || (!is_id(word) && begins(row, word));
    let wanted = |row: &&Row| words.is_empty() || words.iter().any(|word| chooses(row, word));
    Ok(ROWS.iter().filter(wanted).collect())
}

const ROWS: &[Row] = &[
    publish(
        "publish-1",
        "publish, 1 caller",
        1,
        1,
        messages(20_000, 20_000, 8, 1_500),
    ),
    publish(
        "publish-100",
        "publish, 100 callers",
        1,
        100,
        messages(800_000, 120_000, 60_000, 150_000),
    ),
    publish(
        "publish-1000",
        "publish, 1,000 callers",
        1,
        1000,
        messages(1_500_000, 120_000, 120_000, 200_000),
    ),
    Row {
        topics: 10,
        ..publish(
            "publish-topics",
            "publish, 100 callers over 10 topics",
            1,
            100,
            messages(500_000, 120_000, 20_000, 150_000),
        )
    },
    publish(
        "publish_many-1",
        "publish_many of 100, 1 at once",
        100,
        1,
        messages(1_000_000, 800_000, 800, 4_000),
    ),
    publish(
        "publish_many-8",
        "publish_many of 100, 8 at once",
        100,
        8,
        messages(1_500_000, 1_200_000, 6_400, 1_000_000),
    ),
    consume(
        "consume-1",
        "consume, max_in_flight 1",
        1,
        messages(20_000, 20_000, 8, 1_500),
    ),
    consume(
        "consume-100",
        "consume, max_in_flight 100",
        100,
        messages(800_000, 120_000, 800, 100_000),
    ),
    consume(
        "consume-2500",
        "consume, max_in_flight 2500",
        2500,
        messages(1_000_000, 150_000, 800_000, 800_000),
    ),
    Row {
        nodes: 10,
        ..consume(
            "consume-nsqds",
            "consume from 10 nsqds, max_in_flight 2500",
            2500,
            messages(1_000_000, 150_000, 25_000, 800_000),
        )
    },
    Row {
        clients: HANDLERS,
        ..row(
            "consume-sleep",
            "consume, 200 handlers that sleep 100 us",
            Work::Sleep {
                max_in_flight: 2500,
                handlers: 200,
                one_in: 1,
                microseconds: 100,
            },
            messages(150_000, 150_000, 0, 0),
        )
    },
    Row {
        clients: &[Client::SharedQueue, Client::Ours, Client::GoNsq, Client::TokioNsq],
        ..row(
            "handlers-mixed",
            "200 handlers, 1 message in 8 sleeps 5 ms, max_in_flight 1000",
            Work::Sleep {
                max_in_flight: 1000,
                handlers: 200,
                one_in: 8,
                microseconds: 5000,
            },
            messages(500_000, 150_000, 150_000, 0),
        )
    },
    Row {
        clients: &[Client::SharedQueue, Client::Ours, Client::GoNsq],
        ..row(
            "handlers-blocking",
            "latency at 1,000 messages a second, while one handler blocks its thread for a second",
            Work::Latency {
                rate: 1000,
                max_in_flight: 200,
                output_buffer_timeout: Some(25),
                block: Some(1000),
            },
            // A quarter of a second more than the block lasts: those that it has held up come at its end.
            messages(1250, 1250, 0, 0),
        )
    },
    Row {
        clients: &[Client::Ours, Client::GoNsq, Client::TokioNsq],
        ..idle(
            "memory-1000",
            "1,000 consumers with 1 handler and 1 connection each",
            1000,
            1,
        )
    },
    Row {
        clients: HANDLERS,
        ..idle(
            "memory-handlers",
            "100 consumers with 200 handlers and 1 connection each",
            100,
            200,
        )
    },
    Row {
        clients: QUICK,
        body_len: 20,
        ..publish(
            "publish-20B",
            "publish 20 bytes, 100 callers",
            1,
            100,
            messages(800_000, 120_000, 0, 100_000),
        )
    },
    Row {
        clients: QUICK,
        body_len: 10_000,
        ..publish(
            "publish-10KB",
            "publish 10 KB, 100 callers",
            1,
            100,
            messages(60_000, 60_000, 0, 30_000),
        )
    },
    Row {
        clients: QUICK,
        body_len: 20,
        ..consume(
            "consume-20B",
            "consume 20 bytes, max_in_flight 2500",
            2500,
            messages(1_000_000, 150_000, 0, 800_000),
        )
    },
    Row {
        clients: QUICK,
        body_len: 10_000,
        ..consume(
            "consume-10KB",
            "consume 10 KB, max_in_flight 2500",
            2500,
            messages(60_000, 60_000, 0, 60_000),
        )
    },
    Row {
        clients: QUICK,
        body_len: 1_000_000,
        ..publish(
            "publish-1MB",
            "publish 1 MB, 100 callers",
            1,
            100,
            messages(1200, 900, 0, 900),
        )
    },
    Row {
        clients: QUICK,
        body_len: 1_000_000,
        ..consume(
            "consume-1MB",
            "consume 1 MB, max_in_flight 100",
            100,
            messages(900, 900, 0, 900),
        )
    },
    Row {
        clients: ALONE,
        ..on_raw_broker(publish(
            "broker-publish-1",
            "raw broker: publish, 1 caller",
            1,
            1,
            messages(40_000, 20_000, 0, 1_500),
        ))
    },
    on_raw_broker(publish(
        "broker-publish-100",
        "raw broker: publish, 100 callers",
        1,
        100,
        messages(3_000_000, 150_000, 0, 1_500_000),
    )),
    on_raw_broker(consume(
        "broker-consume-100",
        "raw broker: consume, max_in_flight 100",
        100,
        messages(4_000_000, 200_000, 0, 150_000),
    )),
    growth(
        "growth-1",
        "raw broker: consume, max_in_flight 2500, 1 connection",
        "1 connection",
        1,
        2500,
    ),
    growth(
        "growth-10",
        "raw broker: consume, max_in_flight 2500, 10 connections",
        "10 connections",
        10,
        2500,
    ),
    growth(
        "growth-100",
        "raw broker: consume, max_in_flight 2500, 100 connections",
        "100 connections",
        100,
        2500,
    ),
    growth(
        "growth-100-wide",
        "raw broker: consume, max_in_flight 25,000, 100 connections",
        "100, 25,000 in flight",
        100,
        25_000,
    ),
    latency(
        "latency-1000",
        "latency at 1,000 messages a second, default settings",
        1000,
        None,
        2000,
    ),
    latency(
        "latency-1000-equal",
        "latency at 1,000 messages a second, output_buffer_timeout 25 ms",
        1000,
        Some(25),
        2000,
    ),
    latency(
        "latency-20000",
        "latency at 20,000 messages a second, default settings",
        20_000,
        None,
        30_000,
    ),
    publish_with("tls-publish", "TLS: publish, 100 callers", true, Compression::None),
    consume_with(
        "tls-consume",
        "TLS: consume, max_in_flight 2500",
        true,
        Compression::None,
    ),
    publish_with(
        "snappy-publish",
        "snappy: publish, 100 callers",
        false,
        Compression::Snappy,
    ),
    consume_with(
        "snappy-consume",
        "snappy: consume, max_in_flight 2500",
        false,
        Compression::Snappy,
    ),
    publish_with(
        "deflate-publish",
        "deflate: publish, 100 callers",
        false,
        Compression::Deflate,
    ),
    consume_with(
        "deflate-consume",
        "deflate: consume, max_in_flight 2500",
        false,
        Compression::Deflate,
    ),
    publish_with(
        "tls-snappy-publish",
        "TLS, snappy: publish, 100 callers",
        true,
        Compression::Snappy,
    ),
    consume_with(
        "tls-snappy-consume",
        "TLS, snappy: consume, max_in_flight 2500",
        true,
        Compression::Snappy,
    ),
    publish_with(
        "tls-deflate-publish",
        "TLS, deflate: publish, 100 callers",
        true,
        Compression::Deflate,
    ),
    consume_with(
        "tls-deflate-consume",
        "TLS, deflate: consume, max_in_flight 2500",
        true,
        Compression::Deflate,
    ),
];

/// Those that can have one message in flight.
const ONE: &[Client] = &[
    Client::Raw,
    Client::RawTokio,
    Client::Ours,
    Client::GoNsq,
    Client::TokioNsq,
    Client::TokioNsqTuned,
];

/// Those that can have many messages in flight.
const MANY: &[Client] = &[
    Client::Raw,
    Client::Ours,
    Client::GoNsq,
    Client::TokioNsq,
    Client::TokioNsqTuned,
];

/// Those that are measured with what nsqd has to grant first, and with handlers that take their time.
const HANDLERS: &[Client] = &[Client::Ours, Client::GoNsq];

/// Without tokio-nsq as it is: only where it shows something else than its timer.
const QUICK: &[Client] = &[Client::Raw, Client::Ours, Client::GoNsq, Client::TokioNsqTuned];

/// The same with one message in flight.
const ALONE: &[Client] = &[
    Client::Raw,
    Client::RawTokio,
    Client::Ours,
    Client::GoNsq,
    Client::TokioNsqTuned,
];

const fn messages(best: u64, go_nsq: u64, tokio_nsq: u64, tokio_nsq_tuned: u64) -> Messages {
    Messages {
        best,
        go_nsq,
        tokio_nsq,
        tokio_nsq_tuned,
    }
}

const fn row(id: &'static str, name: &'static str, work: Work, messages: Messages) -> Row {
    Row {
        id,
        name,
        clients: match work {
            Work::Publish { in_flight: 1, .. } | Work::Consume { max_in_flight: 1 } => ONE,
            _ => MANY,
        },
        work,
        topics: 1,
        nodes: 1,
        raw_broker: false,
        growth: None,
        body_len: files::BODY_LEN,
        tls: false,
        compression: Compression::None,
        messages,
    }
}

const fn publish(id: &'static str, name: &'static str, batch: usize, in_flight: u32, messages: Messages) -> Row {
    row(id, name, Work::Publish { batch, in_flight }, messages)
}

const fn consume(id: &'static str, name: &'static str, max_in_flight: u32, messages: Messages) -> Row {
    row(id, name, Work::Consume { max_in_flight }, messages)
}

const fn on_raw_broker(row: Row) -> Row {
    Row {
        clients: QUICK,
        raw_broker: true,
        ..row
    }
}

/// From so many nodes, with `max_in_flight` divided among them.
const fn growth(
    id: &'static str,
    name: &'static str,
    connections: &'static str,
    nodes: usize,
    max_in_flight: u32,
) -> Row {
    let messages = messages(4_000_000, 120_000, 0, 900_000);
    Row {
        nodes,
        growth: Some(connections),
        ..on_raw_broker(consume(id, name, max_in_flight, messages))
    }
}

const fn latency(
    id: &'static str,
    name: &'static str,
    rate: u32,
    output_buffer_timeout: Option<u32>,
    count: u64,
) -> Row {
    let work = Work::Latency {
        rate,
        max_in_flight: 200,
        output_buffer_timeout,
        block: None,
    };
    Row {
        clients: &[Client::Raw, Client::Ours, Client::GoNsq],
        ..row(id, name, work, messages(count, count, 0, 0))
    }
}

const fn idle(id: &'static str, name: &'static str, topics: usize, handlers: u32) -> Row {
    let work = Work::Idle {
        handlers,
        burst: 300,
        heartbeat_interval: 1000,
    };
    Row {
        topics,
        // The burst says how many.
        ..row(id, name, work, messages(0, 0, 0, 0))
    }
}

const fn publish_with(id: &'static str, name: &'static str, tls: bool, compression: Compression) -> Row {
    Row {
        clients: HANDLERS,
        tls,
        compression,
        ..publish(id, name, 1, 100, messages(500_000, 60_000, 0, 0))
    }
}

const fn consume_with(id: &'static str, name: &'static str, tls: bool, compression: Compression) -> Row {
    Row {
        clients: HANDLERS,
        tls,
        compression,
        ..consume(id, name, 2500, messages(500_000, 100_000, 0, 0))
    }
}
