//! The crate against a real nsqd, side by side with the least that any client could do.
//!
//! `cargo bench --bench nsqd`, with `-- --quick` for a glance, `-- --rounds 9` for steadier medians and
//! `-- consume` to run only the scenarios with that word in their name. It prints a Markdown table.
//!
//! The *raw* rows are a blocking socket and a loop that does nothing but the protocol's bytes. Rates differ from day to
//! day and from machine to machine, so each scenario runs raw and ours by turns against the same nsqd, and what counts
//! is the ratio, and the processor time that a message costs this process, which is steadier than any rate.
#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

mod broker;
mod idle;
mod ours;
mod raw;
mod report;
mod span;
mod test_broker;
#[expect(dead_code, reason = "only the other benchmark has groups of processes")]
mod watchdog;
mod ways;

use std::error::Error;
use std::path::Path;

use async_nsq::{Consumer, Producer};
use bytes::Bytes;
use clap::Parser;
use tokio::runtime::Runtime;

use broker::Nsqd;
use report::Report;
use span::Span;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Every message's body.
static BODIES: [Bytes; 1] = [Bytes::from_static(&[b'x'; 200])];

/// The messages of each MPUB that fills a topic to be consumed from.
const FILL: u64 = 100;

/// Messages that are queued and not timed. Without them the last ones timed would sit in nsqd's output buffer until its
/// timer fires.
const SURPLUS: u64 = 6000;

/// `max_in_flight` from which the consumer asks nsqd for a large output buffer, which the raw rows then ask for too.
const LARGE_BUFFER_FROM: u32 = 301;

#[derive(Parser)]
struct Options {
    /// Only scenarios whose name contains this.
    filter: Option<String>,
    /// How often each row is measured; the table shows medians.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// A tenth of the messages and 3 rounds.
    #[arg(long)]
    quick: bool,
    /// What cargo says when it runs benchmarks.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Who is measured: a client, and the broker it talks to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Party {
    /// The raw loop on nsqd.
    Raw,
    /// The crate on nsqd.
    Ours,
    /// The same, taking messages from a stream.
    Stream,
    /// The same, handling batches of 100.
    Batches,
    /// The raw loop on the test broker.
    RawOnTestBroker,
}

impl Party {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Ours => "async-nsq",
            Self::Stream => "stream",
            Self::Batches => "batches",
            Self::RawOnTestBroker => "raw, test broker",
        }
    }
}

/// The crate next to the least that any client could do.
const CLIENTS: &[Party] = &[Party::Raw, Party::Ours];

/// The ways to take messages, likewise.
const CONSUMERS: &[Party] = &[Party::Raw, Party::Ours, Party::Stream, Party::Batches];

/// The test broker next to nsqd.
const BROKERS: &[Party] = &[Party::Raw, Party::RawOnTestBroker];

/// What is done with the messages.
#[derive(Clone, Copy)]
enum Work {
    /// Publishing batches, so many at once. A batch of one is a plain PUB.
    Publish { batch: usize, in_flight: u32 },
    /// Publishing messages one by one, the callers spread over so many topics.
    Spread { topics: u32, callers: u32 },
    /// Consuming what is queued.
    Consume { max_in_flight: u32 },
}

struct Scenario {
    name: &'static str,
    parties: &'static [Party],
    work: Work,
    messages: u64,
}

const SCENARIOS: [Scenario; 13] = [
    brokers(
        "broker: MPUB of 100, 1 at once",
        Work::Publish {
            batch: 100,
            in_flight: 1,
        },
        500_000,
    ),
    brokers(
        "broker: MPUB of 100, 8 at once",
        Work::Publish {
            batch: 100,
            in_flight: 8,
        },
        800_000,
    ),
    brokers("broker: RDY 2500", Work::Consume { max_in_flight: 2500 }, 500_000),
    brokers(
        "broker: PUB, 100 at once",
        Work::Publish {
            batch: 1,
            in_flight: 100,
        },
        200_000,
    ),
    scenario("publish, 1 caller", Work::Publish { batch: 1, in_flight: 1 }, 10_000),
    scenario(
        "publish, 100 callers",
        Work::Publish {
            batch: 1,
            in_flight: 100,
        },
        200_000,
    ),
    scenario(
        "publish, 1000 callers",
        Work::Publish {
            batch: 1,
            in_flight: 1000,
        },
        400_000,
    ),
    scenario(
        "publish, 100 callers over 10 topics",
        Work::Spread {
            topics: 10,
            callers: 100,
        },
        200_000,
    ),
    scenario(
        "publish_many of 100, 1 at once",
        Work::Publish {
            batch: 100,
            in_flight: 1,
        },
        500_000,
    ),
    scenario(
        "publish_many of 100, 8 at once",
        Work::Publish {
            batch: 100,
            in_flight: 8,
        },
        800_000,
    ),
    scenario("consume, max_in_flight 1", Work::Consume { max_in_flight: 1 }, 10_000),
    scenario(
        "consume, max_in_flight 100",
        Work::Consume { max_in_flight: 100 },
        300_000,
    ),
    Scenario {
        name: "consume, max_in_flight 2500",
        parties: CONSUMERS,
        work: Work::Consume { max_in_flight: 2500 },
        messages: 500_000,
    },
];

const fn scenario(name: &'static str, work: Work, messages: u64) -> Scenario {
    Scenario {
        name,
        parties: CLIENTS,
        work,
        messages,
    }
}

const fn brokers(name: &'static str, work: Work, messages: u64) -> Scenario {
    Scenario {
        parties: BROKERS,
        ..scenario(name, work, messages)
    }
}

fn main() -> Result<()> {
    // `cargo test --benches` runs this too, and only checks that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    if test_broker::is_wanted() {
        return test_broker::run();
    }
    let options = Options::parse();
    let Some(nsqd) = broker::find(Path::new(env!("CARGO_MANIFEST_DIR"))) else {
        println!("skipped: nsqd not found (tests/interop/install-brokers.sh builds it)");
        return Ok(());
    };
    let nsqd = Nsqd::start(&nsqd, &[])?;
    let test_broker = test_broker::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (rounds, divisor) = if options.quick { (3, 10) } else { (options.rounds, 1) };
    let mut report = Report::default();
    for round in 0..rounds {
        for scenario in &SCENARIOS {
            if options
                .filter
                .as_ref()
                .is_some_and(|word| !scenario.name.contains(word))
            {
                continue;
            }
            // By turns who goes first, so that neither always finds the other's leavings in nsqd's memory.
            let mut parties = scenario.parties.to_vec();
            parties.rotate_left(round as usize % 2);
            for party in parties {
                let broker = if party == Party::RawOnTestBroker {
                    &test_broker
                } else {
                    &nsqd
                };
                let span = measure(&runtime, broker, party, scenario, scenario.messages / divisor)?;
                report.add(scenario, party, span);
            }
        }
    }
    println!("{report}");
    if options
        .filter
        .as_ref()
        .is_none_or(|word| "idle".contains(word.as_str()))
    {
        for (name, broker) in [("nsqd", &nsqd), ("test broker", &test_broker)] {
            let idle = idle::measure(broker)?;
            println!("\n{name}: {idle}");
        }
    }
    Ok(())
}

/// Measures one party once, on a topic of its own.
fn measure(runtime: &Runtime, nsqd: &Nsqd, party: Party, scenario: &Scenario, messages: u64) -> Result<Span> {
    let topic = nsqd.new_topic();
    let address = nsqd.tcp_address();
    let producer = || Producer::connect(address.to_string());
    let consumer = |max_in_flight| {
        let builder = Consumer::builder(&topic, "bench").nsqd(address.to_string());
        builder.max_in_flight(max_in_flight)
    };
    let mut topics = vec![topic.clone()];
    let span = match scenario.work {
        Work::Publish { batch, in_flight } => {
            let calls = messages / batch as u64;
            match party {
                Party::Raw | Party::RawOnTestBroker => raw::publish(address, &topic, &BODIES, calls, batch, in_flight),
                _ => runtime.block_on(async {
                    ours::publish(producer().await?, &topics, &BODIES, calls, batch, in_flight).await
                }),
            }
        }
        Work::Spread { topics: count, callers } => match party {
            // To a socket that sends one PUB per message it makes no difference which topic each names.
            Party::Raw | Party::RawOnTestBroker => raw::publish(address, &topic, &BODIES, messages, 1, callers),
            _ => {
                topics = (0..count).map(|number| format!("{topic}-{number}")).collect();
                runtime
                    .block_on(async { ours::publish(producer().await?, &topics, &BODIES, messages, 1, callers).await })
            }
        },
        Work::Consume { max_in_flight } => {
            raw::publish(address, &topic, &BODIES, (messages + SURPLUS) / FILL, FILL as usize, 8)?;
            match party {
                Party::Raw | Party::RawOnTestBroker => raw::consume(address, &topic, messages, max_in_flight),
                Party::Ours => runtime.block_on(ours::consume(consumer(max_in_flight), messages)),
                Party::Stream => runtime.block_on(ways::consume_stream(consumer(max_in_flight), messages)),
                Party::Batches => runtime.block_on(ways::consume_batches(consumer(max_in_flight), messages)),
            }
        }
    };
    for topic in &topics {
        nsqd.delete_topic(topic)?;
    }
    span
}
