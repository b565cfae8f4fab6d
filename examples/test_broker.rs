//! The test broker as a program: nsqd or nsqlookupd in memory, with their own flags.
//!
//! ```sh
//! cargo run --example test_broker -- nsqlookupd &
//! cargo run --example test_broker -- nsqd --lookupd-tcp-address=127.0.0.1:4160 -max-msg-size 2048
//! ```
//!
//! It takes every flag of nsqd 1.3.0 and nsqlookupd 1.3.0, with one dash or two, as `--flag=value` or `--flag value`;
//! those of the disk and of statsd have no effect. Unlike the real ones it listens on loopback only, unless told
//! otherwise: at 4150 (TCP), 4151 (HTTP) and with a certificate 4152 (HTTPS), and at 4160 (TCP) and 4161 (HTTP). Port 0
//! is a free one. The addresses are the first lines on stdout; on stderr comes a line for each client, and more with
//! `--log-level=debug`. It ends at SIGTERM and Ctrl-C with exit code 0; a mistake on the command line is exit code 2.
//!
//! It is no database: everything is in memory, and gone at the end.

#[allow(dead_code, reason = "each example uses its part")]
mod cli;

use std::process::ExitCode;

use async_nsq::test_server::{FlagError, Lookupd, LookupdBuilder, Nsqd, NsqdBuilder};
use cli::Failure;
use tracing::Level;

const USAGE: &str = "usage: test_broker nsqd|nsqlookupd [--flag=value | --flag value | -flag value]...";

/// Flags that are true without a value.
const TRUTHS: [&str; 8] = [
    "deflate",
    "snappy",
    "statsd-exclude-ephemeral",
    "statsd-mem-stats",
    "tls-required",
    "verbose",
    "version",
    "worker-id",
];

#[tokio::main]
async fn main() -> ExitCode {
    cli::exit_code(run().await)
}

async fn run() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let daemon = arguments.next().unwrap_or_default();
    let flags = read_flags(arguments)?;
    if flags.iter().any(|(name, _)| name == "version") {
        return cli::result(&format!("{daemon} v1.3.0 (the test broker of async-nsq)"));
    }
    log(&flags);
    match daemon.as_str() {
        "nsqd" => run_nsqd(&flags).await,
        "nsqlookupd" => run_nsqlookupd(&flags).await,
        "help" | "-h" | "--help" => cli::result(USAGE),
        _ => Err(Failure::mistake(USAGE)),
    }
}

async fn run_nsqd(flags: &[(String, String)]) -> Result<(), Failure> {
    let listen = [
        ("tcp-address", "127.0.0.1:4150"),
        ("http-address", "127.0.0.1:4151"),
        ("https-address", "127.0.0.1:4152"),
    ];
    let mut builder = Nsqd::builder();
    for (name, value) in with_defaults(flags, &listen) {
        builder = NsqdBuilder::flag(builder, name, value).map_err(mistake)?;
    }
    // Taken before anybody can send it.
    let stop = cli::stop_signal()?;
    let nsqd = builder.start().await?;
    cli::result(&format!("TCP {}", nsqd.address()))?;
    cli::result(&format!("HTTP {}", nsqd.http_address()))?;
    if let Some(https) = nsqd.https_address() {
        cli::result(&format!("HTTPS {https}"))?;
    }
    stop.await;
    nsqd.stop().await;
    Ok(())
}

async fn run_nsqlookupd(flags: &[(String, String)]) -> Result<(), Failure> {
    let listen = [("tcp-address", "127.0.0.1:4160"), ("http-address", "127.0.0.1:4161")];
    let mut builder = Lookupd::builder();
    for (name, value) in with_defaults(flags, &listen) {
        builder = LookupdBuilder::flag(builder, name, value).map_err(mistake)?;
    }
    let stop = cli::stop_signal()?;
    let lookupd = builder.start().await?;
    cli::result(&format!("TCP {}", lookupd.tcp_address()))?;
    cli::result(&format!("HTTP {}", lookupd.address()))?;
    stop.await;
    Ok(())
}

fn mistake(error: FlagError) -> Failure {
    Failure::mistake(error.to_string())
}

/// The flags as given, after the defaults of those that are not.
fn with_defaults<'a>(
    flags: &'a [(String, String)],
    defaults: &'a [(&str, &str)],
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let missing = |name: &str| flags.iter().all(|(given, _)| given != name);
    let defaults = defaults.iter().copied().filter(move |(name, _)| missing(name));
    defaults.chain(flags.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// Takes the command line apart as Go does, and more willingly: a truth may be followed by its value.
fn read_flags(arguments: impl Iterator<Item = String>) -> Result<Vec<(String, String)>, Failure> {
    let mut arguments = arguments.peekable();
    let mut flags = Vec::new();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            return Err(Failure::mistake(format!("{argument:?} is no flag; {USAGE}")));
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None if TRUTHS.contains(&flag) => {
                let value = arguments.next_if(|next| matches!(next.as_str(), "true" | "false" | "tcp-https"));
                (flag, value.unwrap_or_else(|| "true".to_owned()))
            }
            None => {
                let value = arguments.next();
                let value = value.ok_or_else(|| Failure::mistake(format!("flag -{flag} needs a value")))?;
                (flag, value)
            }
        };
        flags.push((name.to_owned(), value));
    }
    Ok(flags)
}

/// Writes the broker's log to stderr.
fn log(flags: &[(String, String)]) {
    let asked = flags.iter().rfind(|(name, _)| name == "log-level");
    let level = match asked.map(|(_, level)| level.as_str()) {
        Some("debug") => Level::DEBUG,
        Some("warn") => Level::WARN,
        Some("error" | "fatal") => Level::ERROR,
        _ => Level::INFO,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
}
