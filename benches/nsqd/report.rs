//! The table.

use std::fmt;

use crate::span::Span;
use crate::{Party, Scenario};

/// All rows, in the order in which they came first.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

struct Row {
    scenario: &'static str,
    /// In the order of the scenario's parties.
    spans: Vec<(Party, Vec<Span>)>,
}

impl Report {
    pub(crate) fn add(&mut self, scenario: &Scenario, party: Party, span: Span) {
        let index = self
            .rows
            .iter()
            .position(|row| row.scenario == scenario.name)
            .unwrap_or_else(|| {
                self.rows.push(Row {
                    scenario: scenario.name,
                    spans: scenario.parties.iter().map(|party| (*party, Vec::new())).collect(),
                });
                self.rows.len() - 1
            });
        let mut spans = self.rows[index].spans.iter_mut();
        if let Some((_, spans)) = spans.find(|(measured, _)| *measured == party) {
            spans.push(span);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| scenario | client | msg/s | least to most | vs first | CPU us/msg |"
        )?;
        write!(f, "|---|---|---:|---:|---:|---:|")?;
        for Row { scenario, spans } in &self.rows {
            let first = spans.first().map_or(&[][..], |(_, spans)| spans);
            let first_rate = Summary::of(first, Span::messages_per_second).median;
            for (party, spans) in spans {
                let client = party.name();
                let rate = Summary::of(spans, Span::messages_per_second);
                let cpu = Summary::of(spans, Span::cpu_per_message);
                write!(
                    f,
                    "\n| {scenario} | {client} | {:.0} | {:.0} to {:.0} | {:.2} | {:.2} |",
                    rate.median,
                    rate.least,
                    rate.most,
                    rate.median / first_rate,
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
