//! The table, and the same as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::client::{Client, Counts};
use crate::latency::Latency;
use crate::machine::Machine;
use crate::memory::{Held, Memory};
use crate::rows::Row;
use crate::span::Span;

/// All that was measured.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) rows: Vec<Measured>,
}

/// A row with its clients, in the order of the table.
#[derive(Serialize)]
pub(crate) struct Measured {
    pub(crate) id: &'static str,
    pub(crate) name: &'static str,
    /// Rows of one section follow one another, and share charts.
    pub(crate) section: &'static str,
    /// What it has more of than the rows before it, if it is compared with them.
    pub(crate) growth: Option<&'static str>,
    pub(crate) clients: Vec<Runs>,
}

impl Measured {
    pub(crate) fn new(row: &Row, clients: Vec<Runs>) -> Self {
        Self {
            id: row.id,
            name: row.name,
            section: row.section(),
            growth: row.growth,
            clients,
        }
    }

    pub(crate) fn runs(&self, client: Client) -> Option<&Runs> {
        self.clients.iter().find(|runs| runs.client == client)
    }

    fn is_about_memory(&self) -> bool {
        self.clients.iter().any(Runs::is_about_memory)
    }
}

/// One client's rounds. Those of all clients of a row were run by turns: the same index is the same round.
#[derive(Serialize)]
pub(crate) struct Runs {
    pub(crate) client: Client,
    pub(crate) spans: Vec<Span>,
    pub(crate) counts: Counts,
}

impl Span {
    pub(crate) fn rate(&self) -> f64 {
        self.messages as f64 / self.seconds
    }

    /// Messages per second of processor time.
    fn rate_on_cpu(&self) -> f64 {
        self.messages as f64 / self.cpu_seconds
    }

    /// Microseconds of processor time per message.
    pub(crate) fn cpu(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.messages as f64
    }
}

impl Report {
    pub(crate) fn markdown(&self) -> String {
        let (of_memory, of_speed): (Vec<_>, Vec<_>) = self.rows.iter().partition(|row| row.is_about_memory());
        let tables = [
            (!of_speed.is_empty()).then(|| self.speed_table(&of_speed)),
            self.growth_table(),
            (!of_memory.is_empty()).then(|| memory_table(&of_memory)),
            Some(self.small_print()),
        ];
        let tables: Vec<String> = tables.into_iter().flatten().collect();
        tables.join("\n\n") + "\n"
    }

    fn speed_table(&self, rows: &[&Measured]) -> String {
        let mut text = String::from(
            "| id | row | client | msg/s | least to most | CPU us/msg | system calls/msg | allocations/msg | \
             context switches/msg | peak MB | p50 us | p99 us | p99.9 us | max us |",
        );
        let columns = self.others();
        for other in &columns {
            _ = write!(text, " vs {other}: msg/s, msg/CPU s |");
        }
        text += "\n|---|---|---|";
        text += &"---:|".repeat(11 + columns.len());
        for row in rows {
            for runs in &row.clients {
                _ = write!(
                    text,
                    "\n| {} | {} | {} |{}",
                    row.id,
                    row.name,
                    runs.client,
                    runs.cells()
                );
                for other in &columns {
                    text += &match row.runs(*other) {
                        None => " n/a |".into(),
                        Some(other) if other.client == runs.client => " |".into(),
                        Some(other) => versus(runs, other),
                    };
                }
            }
        }
        text
    }

    /// The rows that are compared with each other, in their order.
    pub(crate) fn growth(&self) -> Vec<(&'static str, &Measured)> {
        let rows = self.rows.iter().filter_map(|row| Some((row.growth?, row)));
        rows.collect()
    }

    /// The rates of those rows next to each other, and the medians of their ratios to the first.
    fn growth_table(&self) -> Option<String> {
        let rows = self.growth();
        let (_, first) = rows.first()?;
        let mut text = String::from("| messages a second |");
        for (label, _) in &rows {
            _ = write!(text, " {label} |");
        }
        text += "\n|---|";
        text += &"---:|".repeat(rows.len());
        for alone in &first.clients {
            _ = write!(text, "\n| {} |", alone.client);
            for (_, row) in &rows {
                text += &row
                    .runs(alone.client)
                    .map_or_else(|| " n/a |".into(), |runs| grown(runs, alone));
            }
        }
        Some(text)
    }

    /// What stands under the table and under each chart.
    pub(crate) fn small_print(&self) -> String {
        let of_memory = self
            .rows
            .iter()
            .flat_map(|row| &row.clients)
            .find(|runs| runs.is_about_memory());
        let of_memory = of_memory.map_or_else(String::new, |runs| format!(", {} for memory", runs.spans.len()));
        format!("Medians of {} rounds{of_memory}. {}", self.rounds, self.machine.lines())
    }

    /// Everybody that the clients are compared with.
    fn others(&self) -> Vec<Client> {
        let measured = |client: &Client| {
            let mut all = self.rows.iter().flat_map(|row| &row.clients);
            all.any(|runs| runs.client == *client)
        };
        let all = Client::ALL.iter().copied();
        all.filter(|client| *client != Client::Ours).filter(measured).collect()
    }
}

/// What each connection holds, beyond what the process holds without any.
fn memory_table(rows: &[&Measured]) -> String {
    let mut text = String::from(
        "| id | row | client | live KB/connection: new | right after the messages | quiet again | \
         resident KB/connection: new | right after the messages | quiet again |\n\
         |---|---|---|---:|---:|---:|---:|---:|---:|",
    );
    for row in rows {
        for runs in &row.clients {
            _ = write!(text, "\n| {} | {} | {} |", row.id, row.name, runs.client);
            let times: [fn(&Memory) -> Held; 3] = [|memory| memory.new, |memory| memory.loaded, |memory| memory.quiet];
            let sizes: [fn(Held) -> u64; 2] = [|held| held.live, |held| held.resident];
            for size in sizes {
                for time in times {
                    let value = runs.per_connection(|memory| size(time(memory)).saturating_sub(size(memory.before)));
                    _ = write!(text, " {:.1} |", value.unwrap_or(f64::NAN));
                }
            }
        }
    }
    text
}

impl Runs {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            spans: Vec::new(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn is_about_memory(&self) -> bool {
        self.spans.iter().any(|span| span.memory.is_some())
    }

    /// In KB. `None` where memory was not looked at.
    pub(crate) fn per_connection(&self, bytes: impl Fn(&Memory) -> u64) -> Option<f64> {
        let kilobytes = |memory: Memory| bytes(&memory) as f64 / 1024.0 / memory.connections as f64;
        let values = self.spans.iter().map(|span| span.memory.map(kilobytes));
        Some(middle(&sorted(values.collect::<Option<Vec<f64>>>()?.into_iter())))
    }

    fn cells(&self) -> String {
        let rates = sorted(self.spans.iter().map(Span::rate));
        let optional = |value: Option<f64>| value.map_or_else(|| "n/a".into(), significant);
        let switches = |span: &Span| span.switches as f64 / span.messages as f64;
        let latency = |value: fn(Latency) -> f64| optional(self.latency(value));
        format!(
            " {} | {} to {} | {} | {} | {} | {} | {:.1} | {} | {} | {} | {} |",
            thousands(middle(&rates)),
            thousands(rates.first().copied().unwrap_or(f64::NAN)),
            thousands(rates.last().copied().unwrap_or(f64::NAN)),
            significant(self.median(Span::cpu)),
            optional(self.counts.system_calls),
            optional(self.counts.allocations),
            significant(self.median(switches)),
            self.median(|span| span.peak_kib as f64 / 1024.0),
            latency(|latency| latency.p50),
            latency(|latency| latency.p99),
            latency(|latency| latency.p999),
            optional(self.max_latency()),
        )
    }

    /// `None` where no latency was measured.
    pub(crate) fn latency(&self, value: fn(Latency) -> f64) -> Option<f64> {
        let values = self.spans.iter().map(|span| span.latency.map(value));
        Some(middle(&sorted(values.collect::<Option<Vec<f64>>>()?.into_iter())))
    }

    /// The longest of all rounds.
    fn max_latency(&self) -> Option<f64> {
        let latencies = self.spans.iter().filter_map(|span| span.latency);
        latencies.map(|latency| latency.max).max_by(f64::total_cmp)
    }

    pub(crate) fn median(&self, value: impl Fn(&Span) -> f64) -> f64 {
        middle(&sorted(self.spans.iter().map(value)))
    }
}

fn versus(runs: &Runs, other: &Runs) -> String {
    format!(
        " {}, {} |",
        significant(ratio(runs, other, Span::rate)),
        significant(ratio(runs, other, Span::rate_on_cpu))
    )
}

fn grown(runs: &Runs, alone: &Runs) -> String {
    let rate = thousands(runs.median(Span::rate));
    format!(" {rate} ({}) |", significant(ratio(runs, alone, Span::rate)))
}

/// The median of the ratios within each round: both sides of a round met the machine in the same mood.
pub(crate) fn ratio(one: &Runs, other: &Runs, value: impl Fn(&Span) -> f64) -> f64 {
    let pairs = one.spans.iter().zip(&other.spans);
    middle(&sorted(pairs.map(|(one, other)| value(one) / value(other))))
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn middle(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// With three digits or so.
pub(crate) fn significant(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size < 0.001 => format!("{value:.5}"),
        size if size < 0.1 => format!("{value:.4}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => thousands(value),
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
