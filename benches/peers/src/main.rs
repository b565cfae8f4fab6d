//! The crate next to other NSQ clients, on a real nsqd. `README.md` beside `Cargo.toml` says how to run and to read it.

mod allocations;
#[path = "../../shared/body.rs"]
mod body;
// Shared with the benchmark that needs no other client.
#[expect(dead_code, reason = "only that one measures brokers")]
#[path = "../../nsqd/broker.rs"]
mod broker;
mod chart;
mod client;
mod files;
mod gate;
mod job;
mod latency;
mod machine;
mod memory;
#[path = "../../nsqd/ours.rs"]
mod ours;
#[path = "../../nsqd/raw.rs"]
mod raw;
mod raw_broker;
mod raw_many;
mod raw_tokio;
mod report;
mod rows;
mod shared_queue;
mod sleep;
mod span;
mod stage;
mod system_calls;
mod tokio_peer;
#[path = "../../nsqd/watchdog.rs"]
mod watchdog;

use std::error::Error;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Parser, Subcommand};

use broker::Nsqd;
use client::Client;
use files::Files;
use job::{Job, Work};
use latency::Publisher;
use machine::Machine;
use report::{Measured, Report, Runs};
use rows::Row;
use stage::Stage;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// `max_in_flight` from which the consumer asks nsqd for a large output buffer, which the raw rows then ask for too.
const LARGE_BUFFER_FROM: u32 = 301;

/// Measures async-nsq next to other NSQ clients on a real nsqd.
#[derive(Parser)]
struct Options {
    /// 3 rounds if `--rounds` does not say otherwise, with a third of the messages each.
    #[arg(long)]
    quick: bool,
    /// How often each row is measured, 7 times if not said; the table shows medians.
    #[arg(long)]
    rounds: Option<NonZeroUsize>,
    /// Only rows with one of these ids. What is no id is the beginning of some.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Only these clients.
    #[arg(long, value_delimiter = ',')]
    clients: Vec<Client>,
    /// Where the table, the JSON and the charts are written, relative to the root of the crate.
    #[arg(long, default_value = "target/peers")]
    output: PathBuf,
    /// Measures only what has a limit, quickly, and fails if one is exceeded. Writes no files.
    #[arg(long, conflicts_with_all = ["rounds", "rows", "clients", "output"])]
    gate: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// Is a client, for one measurement.
    #[command(hide = true)]
    Client {
        client: Client,
        /// As JSON.
        job: String,
        #[arg(long)]
        count_allocations: bool,
    },
    /// Is a raw broker of so many nodes, until its input ends.
    #[command(hide = true)]
    Broker { bodies: PathBuf, nodes: usize },
}

fn main() -> Result<()> {
    let mut options = Options::parse();
    match options.role.take() {
        None => compare(options),
        Some(Role::Broker { bodies, nodes }) => raw_broker::run(&bodies, nodes),
        Some(Role::Client {
            client,
            job,
            count_allocations,
        }) => {
            let job: Job = serde_json::from_str(&job)?;
            let span = client::be(client, &job, count_allocations)?;
            println!("{}", serde_json::to_string(&span)?);
            Ok(())
        }
    }
}

/// Measures all rows and clients that are wanted, and writes what there is to say.
fn compare(mut options: Options) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let Some(program) = broker::find(&root) else {
        return Err("nsqd not found: tests/interop/install-brokers.sh builds it into target/brokers".into());
    };
    if options.gate {
        options.quick = true;
        options.rows = gate::rows();
        options.clients = gate::CLIENTS.to_vec();
    }
    let rows = rows::choose(&options.rows)?;
    machine::put_first();
    let files = Files::create()?;
    let certificate = format!("--tls-cert={}", files.certificate().display());
    let key = format!("--tls-key={}", files.key().display());
    let bench = Bench {
        nsqds: start_nsqds(&program, &rows, &[certificate, key])?,
        small_nsqds: start_small_nsqds(&program, &rows)?,
        files,
        go: client::build_go(&root)?,
        clients: options.clients,
        rounds: options
            .rounds
            .map_or(if options.quick { 3 } else { 7 }, NonZeroUsize::get),
        share: if options.quick { 3 } else { 1 },
    };
    let mut report = Report {
        machine: Machine::describe(&program),
        rounds: bench.rounds,
        rows: Vec::new(),
    };
    for rows in rows.chunk_by(|one, next| one.growth.is_some() && next.growth.is_some()) {
        report.rows.extend(bench.measure(rows)?);
    }
    let table = report.markdown();
    println!("{table}");
    if options.gate {
        return gate::check(&report);
    }
    let directory = root.join(&options.output);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("peers.md"), &table)?;
    fs::write(
        directory.join("peers.json"),
        serde_json::to_string_pretty(&report)? + "\n",
    )?;
    for chart in chart::draw(&report) {
        fs::write(directory.join(chart.file), chart.svg)?;
    }
    Ok(())
}

fn start_nsqds(program: &Path, rows: &[&Row], options: &[String]) -> Result<Vec<Nsqd>> {
    let on_nsqd = rows.iter().filter(|row| !row.raw_broker);
    let count = on_nsqd.map(|row| row.nodes).max().unwrap_or(1);
    let mut nsqds = vec![Nsqd::start(program, options)?];
    while nsqds.len() < count {
        // nsqd takes the memory for all places of a queue at once. The last of two such options counts.
        nsqds.push(Nsqd::start(program, &["--mem-queue-size=200000".into()])?);
    }
    Ok(nsqds)
}

/// nsqds for rows with so many topics that large queues for all of them would not fit.
fn start_small_nsqds(program: &Path, rows: &[&Row]) -> Result<Vec<Nsqd>> {
    let rows = rows.iter().filter(|row| row.is_idle());
    let count = rows.map(|row| row.nodes).max().unwrap_or(0);
    let start = || Nsqd::start(program, &["--mem-queue-size=1000".into()]);
    (0..count).map(|_| start()).collect()
}

/// What all measurements share.
struct Bench {
    /// As many as the row with most of them wants. All but the first have little memory.
    nsqds: Vec<Nsqd>,
    /// Likewise, for the rows with many topics.
    small_nsqds: Vec<Nsqd>,
    files: Files,
    go: PathBuf,
    /// Only these, or all if there are none.
    clients: Vec<Client>,
    rounds: usize,
    /// Each measurement takes only this part of a row's messages: one in so many.
    share: u64,
}

impl Bench {
    /// Measures rows that are compared with each other, or one. All their clients take turns.
    fn measure(&self, rows: &[&Row]) -> Result<Vec<Measured>> {
        let wanted = |client: &&Client| self.clients.is_empty() || self.clients.contains(client);
        let clients = |row: &Row| row.clients.iter().filter(wanted).copied().map(Runs::new).collect();
        let mut measured: Vec<Measured> = rows.iter().map(|row| Measured::new(row, clients(row))).collect();
        let places = |(row, measured): (usize, &Measured)| (0..measured.clients.len()).map(move |client| (row, client));
        let places: Vec<(usize, usize)> = measured.iter().enumerate().flat_map(places).collect();
        // The same for all of them.
        let rounds = rows.first().map_or(0, |row| row.rounds(self.rounds));
        let started = Instant::now();
        for round in 0..rounds {
            // By turns who goes first, so that nobody always finds another's leavings.
            for turn in 0..places.len() {
                let (row, client) = places[(turn + round) % places.len()];
                let runs = &mut measured[row].clients[client];
                let span = self.once(rows[row], runs.client, |job| runs.client.measure(job, &self.go))?;
                runs.spans.push(span);
            }
        }
        for (row, client) in places {
            // Counting would delay what is timed, and at a rate that is given both depend on each other.
            if !matches!(rows[row].work, Work::Latency { .. } | Work::Idle { .. }) {
                let runs = &mut measured[row].clients[client];
                runs.counts = self.once(rows[row], runs.client, |job| runs.client.count(job, &self.go))?;
            }
        }
        let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
        eprintln!("{:3.0} s: {}", started.elapsed().as_secs_f64(), names.join("; "));
        Ok(measured)
    }

    /// Measures one client once, on topics of its own.
    fn once<T>(&self, row: &Row, client: Client, measure: impl FnOnce(&Job) -> Result<T>) -> Result<T> {
        let nsqds = if row.is_idle() { &self.small_nsqds } else { &self.nsqds };
        let stage = Stage::set(nsqds, &self.files, row, client, self.share)?;
        let job = &stage.job;
        let publisher = match job.work {
            Work::Latency { rate, .. } => {
                let body = files::read_bodies(&job.bodies)?[0].to_vec();
                Some(Publisher::start(job.nsqd, &job.topics[0], body, rate))
            }
            _ => None,
        };
        let measured = measure(job).map_err(|error| format!("{}, {client}: {error}", row.name))?;
        publisher.map_or(Ok(()), Publisher::stop)?;
        stage.strike()?;
        Ok(measured)
    }
}
