//! The table.

use std::fmt;

use crate::Client;
use crate::span::Span;

/// All rows, in the order in which they came first.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

struct Row {
    scenario: &'static str,
    raw: Vec<Span>,
    ours: Vec<Span>,
}

impl Report {
    pub(crate) fn add(&mut self, scenario: &'static str, client: Client, span: Span) {
        let index = self
            .rows
            .iter()
            .position(|row| row.scenario == scenario)
            .unwrap_or_else(|| {
                self.rows.push(Row {
                    scenario,
                    raw: Vec::new(),
                    ours: Vec::new(),
                });
                self.rows.len() - 1
            });
        let row = &mut self.rows[index];
        match client {
            Client::Raw => row.raw.push(span),
            Client::Ours => row.ours.push(span),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| scenario | client | msg/s | least to most | vs raw | CPU us/msg |")?;
        write!(f, "|---|---|---:|---:|---:|---:|")?;
        for Row { scenario, raw, ours } in &self.rows {
            let rate_of_raw = Summary::of(raw, Span::messages_per_second).median;
            for (client, spans) in [("raw", raw), ("async-nsq", ours)] {
                let rate = Summary::of(spans, Span::messages_per_second);
                let cpu = Summary::of(spans, Span::cpu_per_message);
                write!(
                    f,
                    "\n| {scenario} | {client} | {:.0} | {:.0} to {:.0} | {:.2} | {:.2} |",
                    rate.median,
                    rate.least,
                    rate.most,
                    rate.median / rate_of_raw,
                    cpu.median
                )?;
            }
        }
        Ok(())
    }
}

struct Summary {
    least: f64,
    median: f64,
    most: f64,
}

impl Summary {
    fn of(spans: &[Span], value: impl Fn(&Span) -> f64) -> Self {
        let mut values: Vec<f64> = spans.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(values.len() / 2),
            most: at(values.len().saturating_sub(1)),
        }
    }
}
