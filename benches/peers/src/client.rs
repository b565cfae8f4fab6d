//! The clients, and how each is started for one measurement.

use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs};

use async_nsq::{ConnectionConfig, Consumer, ConsumerBuilder, Producer, TlsConfig};
use bytes::Bytes;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::job::{Compression, Job, Work};
use crate::latency::Record;
use crate::sleep::Sleepers;
use crate::span::Span;
use crate::watchdog::Watchdog;
use crate::{
    Result, allocations, files, latency, memory, ours, raw, raw_many, raw_tokio, shared_queue, sleep, system_calls,
    tokio_peer,
};

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Client {
    /// A blocking socket and a loop that does nothing but the protocol's bytes.
    Raw,
    /// The same on tokio, for one message in flight.
    RawTokio,
    /// As many workers as handlers, which take single messages from one queue.
    SharedQueue,
    /// This crate.
    Ours,
    /// nsqio/go-nsq.
    GoNsq,
    /// tokio-nsq, as it is.
    TokioNsq,
    /// tokio-nsq, flushing every millisecond instead of every 250.
    TokioNsqTuned,
}

impl Client {
    pub(crate) const ALL: &[Self] = &[
        Self::Raw,
        Self::RawTokio,
        Self::SharedQueue,
        Self::Ours,
        Self::GoNsq,
        Self::TokioNsq,
        Self::TokioNsqTuned,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::RawTokio => "raw on tokio",
            Self::SharedQueue => "shared queue",
            Self::Ours => "async-nsq",
            Self::GoNsq => "go-nsq",
            Self::TokioNsq => "tokio-nsq",
            Self::TokioNsqTuned => "tokio-nsq, 1 ms",
        }
    }

    /// Whether its allocations can be counted: it runs in a program with our allocator.
    pub(crate) fn is_rust(self) -> bool {
        self != Self::GoNsq
    }

    /// Measures it in a process of its own, so that all that the process uses is the client's.
    pub(crate) fn measure(self, job: &Job, go: &Path) -> Result<Span> {
        self.run(self.command(job, go, false)?)
    }

    /// Does the same once more with everything counted that would disturb the clocks: what it says of time is wrong.
    pub(crate) fn count(self, job: &Job, go: &Path) -> Result<Counts> {
        let (command, counter) = system_calls::count(&self.command(job, go, true)?)?;
        let span = self.run(command)?;
        let per_message = |count: u64| count as f64 / span.messages as f64;
        Ok(Counts {
            allocations: self.is_rust().then_some(per_message(span.allocations)),
            system_calls: counter.read().map(per_message),
        })
    }

    fn command(self, job: &Job, go: &Path, counted: bool) -> Result<Command> {
        let job = serde_json::to_string(job)?;
        let mut command = if self.is_rust() {
            let mut command = Command::new(env::current_exe()?);
            command.args(["client", self.to_possible_value().ok_or("no such client")?.get_name()]);
            command.args(counted.then_some("--count-allocations"));
            command
        } else {
            Command::new(go)
        };
        command.arg(job);
        Ok(command)
    }

    fn run(self, mut command: Command) -> Result<Span> {
        // A group of its own, because what counts system calls starts the client in its turn.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let child = command.spawn()?;
        let watchdog = Watchdog::over_group(child.id());
        let output = child.wait_with_output()?;
        drop(watchdog);
        if !output.status.success() {
            return Err(format!("{} failed: {}", self.name(), output.status).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is counted per message, in a run that is not timed. `None` where it cannot be counted.
#[derive(Clone, Copy, Default, Serialize)]
pub(crate) struct Counts {
    pub(crate) allocations: Option<f64>,
    pub(crate) system_calls: Option<f64>,
}

/// Is a client written in Rust, for one measurement.
pub(crate) fn be(client: Client, job: &Job, count_allocations: bool) -> Result<Span> {
    if count_allocations || matches!(job.work, Work::Idle { .. }) {
        allocations::count();
    }
    let bodies = files::read_bodies(&job.bodies)?;
    let topic = job.topics.first().ok_or("a job without a topic")?;
    match (client, job.work) {
        (Client::Raw, Work::Publish { batch, in_flight }) => {
            raw::publish(job.nsqd, topic, bodies, job.messages / batch as u64, batch, in_flight)
        }
        (Client::Raw, Work::Consume { max_in_flight }) => raw_many::consume(job, max_in_flight),
        (
            Client::Raw,
            Work::Latency {
                rate,
                max_in_flight,
                block: None,
                ..
            },
        ) => {
            let mut record = Record::new(job.messages, rate);
            raw::handle(job.nsqd, topic, max_in_flight, |body| record.handled(body))
        }
        (Client::Raw, Work::Sleep { .. } | Work::Latency { .. } | Work::Idle { .. }) => {
            Err("raw has one connection and one thread, which cannot sleep and go on".into())
        }
        (Client::RawTokio, _) => runtime()?.block_on(raw_tokio::be(job.clone(), bodies)),
        (Client::SharedQueue, _) => runtime()?.block_on(shared_queue::be(job)),
        (Client::Ours, _) => runtime()?.block_on(be_ours(job, bodies)),
        (Client::TokioNsq, _) => runtime()?.block_on(tokio_peer::be(job, bodies, None)),
        (Client::TokioNsqTuned, _) => runtime()?.block_on(tokio_peer::be(job, bodies, Some(Duration::from_millis(1)))),
        (Client::GoNsq, _) => Err("go-nsq is a program of its own".into()),
    }
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

async fn be_ours(job: &Job, bodies: &'static [Bytes]) -> Result<Span> {
    let mut connection = ConnectionConfig::new().compression(match job.compression {
        Compression::None => async_nsq::Compression::None,
        Compression::Snappy => async_nsq::Compression::Snappy,
        Compression::Deflate => async_nsq::Compression::Deflate { level: 6 },
    });
    if let Some(authority) = &job.root_ca {
        connection = connection.tls(TlsConfig::new().root_ca_file(authority));
    }
    match job.work {
        Work::Publish { batch, in_flight } => {
            let builder = Producer::builder().nsqd(job.nsqd.to_string());
            let producer = builder.connection(connection).connect().await?;
            let calls = job.messages / batch as u64;
            ours::publish(producer, &job.topics, bodies, calls, batch, in_flight).await
        }
        Work::Consume { max_in_flight } => {
            let builder = consumer(job);
            let builder = builder.connection(connection).max_in_flight(max_in_flight);
            ours::consume(builder, job.messages).await
        }
        Work::Sleep {
            max_in_flight,
            handlers,
            one_in,
            microseconds,
        } => {
            let builder = consumer(job);
            let builder = builder.connection(connection).max_in_flight(max_in_flight);
            let builder = builder.concurrency(handlers);
            let pause = Duration::from_micros(microseconds);
            sleep::consume(builder, Sleepers::new(job.messages, one_in, pause)).await
        }
        Work::Latency {
            rate,
            max_in_flight,
            output_buffer_timeout,
            block,
        } => {
            if let Some(timeout) = output_buffer_timeout {
                connection = connection.output_buffer_timeout(Duration::from_millis(timeout.into()));
            }
            let builder = consumer(job);
            let builder = builder.connection(connection).max_in_flight(max_in_flight);
            latency::consume(builder, Record::new(job.messages, rate), block).await
        }
        Work::Idle { .. } => memory::ours(job, connection, bodies).await,
    }
}

fn consumer(job: &Job) -> ConsumerBuilder {
    let builder = Consumer::builder(&job.topics[0], "bench");
    job.addresses().fold(builder, ConsumerBuilder::nsqd)
}

/// Builds the Go program, and returns where it is. Go itself knows whether anything has changed.
pub(crate) fn build_go(root: &Path) -> Result<PathBuf> {
    let directory = root.join("target/peers");
    fs::create_dir_all(&directory)?;
    let program = directory.join("go-nsq");
    let status = Command::new("go")
        .args(["build", "-mod=readonly", "-trimpath", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(root.join("benches/peers/go"))
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0")
        .status()
        .map_err(|error| format!("go does not run: {error}"))?;
    if status.success() {
        Ok(program)
    } else {
        Err("the Go program does not build".into())
    }
}
