//! Consumes messages, from given nsqds or from those that nsqlookupd knows, and counts them.
//!
//! ```sh
//! cargo run --release --example consumer -- --lookupd 127.0.0.1:4161 --topic orders --channel audit --count 1000
//! ```
//!
//! The last line on stdout is `handled N`. With `--count N` exactly N messages are handled; those beyond are given back
//! to nsqd. The exit code is 0 at the end and after Ctrl-C, 1 if something failed, and 2 for a mistake on the command
//! line.

#[allow(dead_code, reason = "each example uses its part")]
mod cli;

use std::error::Error as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nsq::{Channel, ConnectionConfig, Consumer, ConsumerStats, Handler, HandlerError, Message, Topic};
use clap::{ArgGroup, Parser, value_parser};
use tokio::sync::{Notify, watch};

use cli::{Failure, Progress};

/// How long to look for an nsqd before saying that there is none.
const SEARCH: Duration = Duration::from_secs(5);

/// How long an nsqd may take to accept a connection, and again to answer on it. Together shorter than [`SEARCH`], so that
/// one that keeps silent is told as the reason.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the end may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Consumes messages and tells how many were handled.
#[derive(Parser)]
#[command(group(ArgGroup::new("source").required(true).multiple(true).args(["nsqd", "lookupd"])))]
struct Args {
    /// An nsqd to consume from, such as 127.0.0.1:4150; may be repeated
    #[arg(long, value_name = "ADDR")]
    nsqd: Vec<String>,

    /// An nsqlookupd (its HTTP address, such as 127.0.0.1:4161) that knows the nsqds; may be repeated
    #[arg(long, value_name = "ADDR")]
    lookupd: Vec<String>,

    /// The topic to consume
    #[arg(long)]
    topic: Topic,

    /// The channel of the topic
    #[arg(long)]
    channel: Channel,

    /// Stop after so many messages [default: never]
    #[arg(long, value_parser = value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// How many messages may be delivered and not answered yet
    #[arg(long, default_value_t = 200, value_parser = value_parser!(u32).range(1..))]
    max_in_flight: u32,

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
    let stop = cli::stop_signal()?;
    let (ending, ended) = watch::channel(false);
    let work = Arc::new(Work::new(args.count, ended));
    let consumer = start(&args, Counter(Arc::clone(&work))).await?;
    let mut progress = Progress::start("handled", args.count);

    let outcome = tokio::select! {
        outcome = follow(&consumer, &work, &mut progress) => outcome,
        () = stop => Ok(()),
    };

    // The messages beyond the count go back while the shutdown waits for their handlers.
    let (report, _) = tokio::join!(consumer.shutdown(PATIENCE), async { ending.send(true) });
    outcome?;
    let handled = work.handled();
    progress.finish(handled);
    cli::result(&format!("handled {handled}"))?;
    if !report.is_clean() {
        let lost = "nsqd may not have been told of all that was handled and will deliver some messages again";
        return Err(Failure::runtime(format!("{lost}: {report:?}")));
    }
    Ok(())
}

async fn start(args: &Args, handler: Counter) -> Result<Consumer, Failure> {
    let connection = ConnectionConfig::new()
        .dial_timeout(ANSWER_TIMEOUT)
        .handshake_timeout(ANSWER_TIMEOUT);
    let mut builder = Consumer::builder(&args.topic, &args.channel)
        .connection(connection)
        .max_in_flight(args.max_in_flight)
        // By default a message is given up at its sixth delivery. This program must not decide that: no limit.
        .max_attempts(0)
        .options(&cli::options(&args.options)?);
    for address in &args.nsqd {
        builder = builder.nsqd(address);
    }
    for address in &args.lookupd {
        builder = builder.lookupd(address);
    }
    Ok(builder.start(handler).await?)
}

/// Waits until the work is complete, and shows how it goes.
async fn follow(consumer: &Consumer, work: &Work, progress: &mut Progress) -> Result<(), Failure> {
    match consumer.ready(SEARCH).await {
        Ok(()) => {}
        // Nothing has failed: an nsqlookupd answers and knows no nsqd with the topic yet. That may change.
        Err(error) if error.source().is_none() => progress.note(&format!("waiting: {error}")),
        Err(error) => return Err(error.into()),
    }
    let mut watch = consumer.watch();
    let mut connected = watch.stats().connections;
    loop {
        tokio::select! {
            () = work.complete.notified() => return Ok(()),
            () = progress.due() => progress.show(work.handled()),
            true = watch.changed() => {
                let stats = watch.stats();
                let before = std::mem::replace(&mut connected, stats.connections);
                if stats.connections < before {
                    progress.note(&lost(&stats));
                }
            }
        }
    }
}

/// A connection is gone: how many are left, and what is known of the others.
fn lost(stats: &ConsumerStats) -> String {
    let failures = stats.nsqds.iter().filter_map(|nsqd| nsqd.failure.as_ref());
    let failures: Vec<String> = failures.map(|error| cli::chain(error)).collect();
    let reasons = failures.join("; ");
    format!(
        "connected to {} of {} nsqds: {reasons}",
        stats.connections,
        stats.nsqds.len()
    )
}

/// The handler: it counts messages.
struct Counter(Arc<Work>);

impl Handler for Counter {
    type Error = HandlerError;

    async fn handle(&self, _message: Message) -> Result<(), HandlerError> {
        if self.0.claim() {
            self.0.count();
            Ok(())
        } else {
            self.0.hold_until_the_end().await;
            Err(HandlerError::requeue_after(Duration::ZERO).without_backoff())
        }
    }
}

/// What is to be done and what was.
struct Work {
    limit: u64,
    claimed: AtomicU64,
    handled: AtomicU64,
    complete: Notify,
    ended: watch::Receiver<bool>,
}

impl Work {
    fn new(limit: Option<u64>, ended: watch::Receiver<bool>) -> Self {
        Self {
            limit: limit.unwrap_or(u64::MAX),
            claimed: AtomicU64::new(0),
            handled: AtomicU64::new(0),
            complete: Notify::new(),
            ended,
        }
    }

    /// Whether another message may be handled. Asked before the work, so that never more than `limit` are.
    fn claim(&self) -> bool {
        self.claimed.fetch_add(1, Ordering::Relaxed) < self.limit
    }

    fn count(&self) {
        if self.handled.fetch_add(1, Ordering::Relaxed) + 1 == self.limit {
            self.complete.notify_one();
        }
    }

    fn handled(&self) -> u64 {
        self.handled.load(Ordering::Relaxed)
    }

    /// A message given back earlier would be delivered here again, at the cost of one of its attempts each time.
    async fn hold_until_the_end(&self) {
        let mut ended = self.ended.clone();
        // A sender that is gone is the end too.
        let _ended = ended.wait_for(|ended| *ended).await;
    }
}
