//! Publishes messages as fast as nsqd confirms them, or at a given rate.
//!
//! ```sh
//! cargo run --release --example publisher -- --nsqd 127.0.0.1:4150 --topic orders --count 100000 --size 200
//! ```
//!
//! The last line on stdout is `published N`: how many messages nsqd has confirmed, also after Ctrl-C and after a
//! failure. The exit code is 0 if nothing failed, 1 if something did, and 2 for a mistake on the command line.

#[allow(dead_code, reason = "each example uses its part")]
mod cli;

use std::process::ExitCode;
use std::time::Duration;

use async_nsq::{Error, ErrorKind, Producer, Topic};
use bytes::Bytes;
use clap::{Parser, value_parser};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Interval, interval};

use cli::{Failure, Progress};

/// How many publishes wait for nsqd's answer at the same time. With one after the other, the time that an answer takes
/// would be all that counts.
const IN_FLIGHT: usize = 1_000;

/// How long what is on its way may take to be confirmed after Ctrl-C.
const PATIENCE: Duration = Duration::from_secs(10);

/// Publishes messages to an nsqd and tells how many it has confirmed.
#[derive(Parser)]
struct Args {
    /// The nsqd to publish to, such as 127.0.0.1:4150
    #[arg(long, value_name = "ADDR")]
    nsqd: String,

    /// The topic to publish to
    #[arg(long)]
    topic: Topic,

    /// How many messages to publish
    #[arg(long, value_parser = value_parser!(u64).range(1..))]
    count: u64,

    /// The size of each message; nsqd allows up to a mebibyte unless configured otherwise
    #[arg(long, value_name = "BYTES", value_parser = value_parser!(u32).range(1..=1024 * 1024))]
    size: u32,

    /// How many messages per second [default: as many as possible]
    #[arg(long, value_parser = value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,

    /// Any option of the crate by go-nsq's name, such as tls_v1=true or snappy=true; may be repeated
    #[arg(long = "opt", value_name = "NAME=VALUE")]
    options: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    cli::exit_code(run().await)
}

async fn run() -> Result<(), Failure> {
    let args: Args = cli::arguments()?;
    let mut stop = Box::pin(cli::stop_signal()?);
    let options = cli::options(&args.options)?;
    let builder = Producer::builder().nsqd(&args.nsqd).options(&options);
    let producer = tokio::select! {
        connected = builder.connect() => connected?,
        () = &mut stop => return cli::result("published 0"),
    };
    let tally = publish(&producer, &args, stop).await;
    cli::result(&format!("published {}", tally.confirmed))?;
    tally.verdict()
}

/// Publishes until all is done, something fails that will fail again, or `stop` ends.
async fn publish(producer: &Producer, args: &Args, mut stop: impl Future<Output = ()> + Unpin) -> Tally {
    let body = Bytes::from(vec![b'x'; args.size as usize]);
    let mut progress = Progress::start("published", Some(args.count));
    let mut pace = Pace::new(args.rate);
    let mut tally = Tally::default();
    let mut pending = FuturesUnordered::new();
    let mut begun = 0;
    loop {
        let more = begun < args.count && tally.is_worth_going_on();
        if !more && pending.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            () = &mut stop => {
                progress.note("stopping: waiting for what is on its way to be confirmed");
                tally.stopped = true;
                break;
            }
            () = progress.due() => progress.show(tally.confirmed),
            Some(outcome) = pending.next() => tally.add(outcome),
            () = pace.next(), if more && pending.len() < IN_FLIGHT => {
                pending.push(producer.publish(&args.topic, body.clone()));
                begun += 1;
            }
        }
    }
    // What is pending only after a stop: the shutdown waits for nsqd's answers, which come out here.
    let answers = async {
        while let Some(outcome) = pending.next().await {
            tally.add(outcome);
        }
    };
    tokio::join!(producer.shutdown(PATIENCE), answers);
    progress.finish(tally.confirmed);
    tally
}

/// When the next message may go.
struct Pace(Option<Interval>);

impl Pace {
    fn new(rate: Option<u32>) -> Self {
        Self(rate.map(|rate| interval(Duration::from_secs(1) / rate)))
    }

    async fn next(&mut self) {
        if let Some(interval) = &mut self.0 {
            interval.tick().await;
        }
    }
}

/// What has become of the messages.
#[derive(Default)]
struct Tally {
    confirmed: u64,
    /// How many failed in each way, with the first error of that way.
    failed: Vec<(u64, Error)>,
    stopped: bool,
}

impl Tally {
    fn add(&mut self, outcome: Result<(), Error>) {
        let error = match outcome {
            Ok(()) => {
                self.confirmed += 1;
                return;
            }
            // The user did not want it to be sent any more.
            Err(error) if self.stopped && error.kind() == ErrorKind::NotSent => return,
            Err(error) => error,
        };
        match self.failed.iter_mut().find(|(_, first)| first.kind() == error.kind()) {
            Some((count, _)) => *count += 1,
            None => self.failed.push((1, error)),
        }
    }

    /// A lost connection leaves those unknown that were on it, and is made again: the next ones may be fine. What is
    /// invalid or rejected stays so, and a message that could not be sent has waited for its whole deadline already.
    fn is_worth_going_on(&self) -> bool {
        self.failed.iter().all(|(_, error)| error.is_ambiguous())
    }

    fn verdict(self) -> Result<(), Failure> {
        let Some((_, first)) = self.failed.first() else {
            return Ok(());
        };
        let kinds: Vec<String> = self
            .failed
            .iter()
            .map(|(count, error)| describe(*count, error.kind()))
            .collect();
        Err(Failure::runtime(format!(
            "{}; the first: {}",
            kinds.join(", "),
            cli::chain(first)
        )))
    }
}

fn describe(count: u64, kind: ErrorKind) -> String {
    match kind {
        ErrorKind::Invalid => format!("{count} invalid (refused before sending)"),
        ErrorKind::Rejected => format!("{count} rejected by nsqd"),
        ErrorKind::NotSent => format!("{count} not sent (safe to publish again)"),
        ErrorKind::Unknown => format!("{count} unknown (sent but never confirmed: nsqd may have them or not)"),
        other => format!("{count} failed ({other:?})"),
    }
}
