//! What the command-line examples have in common: arguments, errors of one line, signals and progress.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use async_nsq::{ErrorKind, Options};
use clap::Parser;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use tokio::time::{Instant, Interval, interval_at};

/// Something is wrong with what the user has typed.
const USAGE: u8 = 2;
/// Something went wrong while working.
const RUNTIME: u8 = 1;

/// Why the program ends unsuccessfully: one line, and an exit code.
pub(crate) struct Failure {
    exit_code: u8,
    text: String,
}

impl Failure {
    pub(crate) fn runtime(text: impl Into<String>) -> Self {
        Self {
            exit_code: RUNTIME,
            text: text.into(),
        }
    }

    /// A mistake on the command line.
    pub(crate) fn mistake(text: impl Into<String>) -> Self {
        Self {
            exit_code: USAGE,
            text: text.into(),
        }
    }

    /// What clap says of a mistake on the command line. It explains it in a paragraph; what matters of it fits on a line.
    fn usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        let paragraphs = text.trim_start_matches("error: ").split("\n\n");
        let telling = paragraphs.filter(|text| !text.starts_with("Usage:") && !text.starts_with("For more"));
        let mut lines: Vec<String> = telling
            .map(|text| text.lines().map(str::trim).collect::<Vec<_>>().join(" "))
            .collect();
        lines.push("see --help".to_owned());
        Self {
            exit_code: USAGE,
            text: lines.join("; "),
        }
    }
}

impl From<async_nsq::Error> for Failure {
    fn from(error: async_nsq::Error) -> Self {
        let exit_code = match error.kind() {
            ErrorKind::Invalid => USAGE,
            _ => RUNTIME,
        };
        Self {
            exit_code,
            text: chain(&error),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::runtime(error.to_string())
    }
}

/// The error and all that caused it. A cause that is told already is not told again.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let told = cause.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        source = cause.source();
    }
    text
}

/// Ends the program: tells a failure in one line on stderr.
pub(crate) fn exit_code(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("error: {}", failure.text.replace(['\n', '\r'], " ")));
            ExitCode::from(failure.exit_code)
        }
    }
}

/// The arguments. `--help` prints the help and ends the program.
pub(crate) fn arguments<A: Parser>() -> Result<A, Failure> {
    A::try_parse().map_err(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        Failure::usage(&error)
    })
}

/// Options of the crate, each as `NAME=VALUE`.
pub(crate) fn options(given: &[String]) -> Result<Options, Failure> {
    let mut options = Options::new();
    for text in given {
        let Some((name, value)) = text.split_once('=') else {
            // What was typed is not shown: it may be a secret.
            return Err(Failure::mistake(
                "--opt takes NAME=VALUE, such as max_attempts=10; see --help",
            ));
        };
        options.set(name, value)?;
    }
    Ok(options)
}

/// Prints the one line that the program is run for.
pub(crate) fn result(line: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{line}").map_err(|error| Failure::runtime(format!("cannot write to stdout: {error}")))
}

/// Ends once the user or the system wants the program to stop: Ctrl-C or SIGTERM, from this call on.
#[cfg(unix)]
pub(crate) fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Ends once the user wants the program to stop: Ctrl-C.
#[cfg(not(unix))]
pub(crate) fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        // Without a handler for it, Ctrl-C ends the program as ever.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// How far the work is, on stderr: a bar on a terminal, and a line now and then elsewhere.
pub(crate) struct Progress {
    verb: &'static str,
    bar: Option<ProgressBar>,
    tick: Interval,
    begun: Instant,
    shown: (Instant, u64),
}

impl Progress {
    /// Begins to measure. Without a `total` the end is open.
    pub(crate) fn start(verb: &'static str, total: Option<u64>) -> Self {
        let bar = io::stderr().is_terminal().then(|| bar(verb, total));
        let period = Duration::from_millis(if bar.is_some() { 100 } else { 5_000 });
        let now = Instant::now();
        Self {
            verb,
            bar,
            tick: interval_at(now + period, period),
            begun: now,
            shown: (now, 0),
        }
    }

    /// Waits until it is time to [`show`](Self::show) something.
    pub(crate) async fn due(&mut self) {
        self.tick.tick().await;
    }

    pub(crate) fn show(&mut self, done: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None => {
                let now = Instant::now();
                let (since, before) = std::mem::replace(&mut self.shown, (now, done));
                say(&format!(
                    "{} {done}, {:.0}/s",
                    self.verb,
                    rate(done - before, now - since)
                ));
            }
        }
    }

    /// Says something beside the progress.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    pub(crate) fn finish(self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let time = self.begun.elapsed();
        let rate = rate(done, time);
        say(&format!(
            "{} {done} in {:.1} s, {rate:.0}/s",
            self.verb,
            time.as_secs_f64()
        ));
    }
}

fn bar(verb: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{wide_bar} {pos}/{len}, {rate}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {pos} in {elapsed}, {rate}"),
    };
    let style = ProgressStyle::with_template(&format!("{verb} {template}"));
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(
        style.with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
            // A rate that cannot be shown is no reason to stop.
            let _unshown = write!(out, "{:.0}/s", state.per_sec());
        }),
    )
}

fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(0.001)
}

fn say(line: &str) {
    // Nobody listens: no reason to stop.
    let _closed = writeln!(io::stderr(), "{line}");
}
