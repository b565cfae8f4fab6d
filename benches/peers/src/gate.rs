//! What of the comparison is steady enough to be held to limits: what is counted, and processor time next to raw's in the
//! same rounds. Messages a second are not.

use std::fmt::Write as _;

use crate::Result;
use crate::client::Client;
use crate::report::{Measured, Report, Runs, ratio, significant};
use crate::span::Span;
use crate::system_calls;

/// All that is measured for the gates.
pub(crate) const CLIENTS: &[Client] = &[Client::Raw, Client::Ours];

/// What one row may cost.
struct Gate {
    row: &'static str,
    quantity: Quantity,
    limit: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quantity {
    Allocations,
    SystemCalls,
    /// Processor time, as a multiple of raw's.
    Cpu,
}

/// Allocations are what is promised. System calls are half as many again, and processor time is half as much again as was
/// measured last on a quiet machine: that much is between two runs on a busy one.
const GATES: &[Gate] = &[
    gate("publish-100", Quantity::Allocations, 0.1),
    gate("publish-100", Quantity::Cpu, 0.55),
    gate("publish_many-1", Quantity::Cpu, 3.0),
    gate("consume-100", Quantity::Allocations, 0.01),
    gate("consume-100", Quantity::SystemCalls, 0.075),
    gate("consume-100", Quantity::Cpu, 3.0),
    gate("consume-2500", Quantity::Allocations, 0.01),
    gate("consume-2500", Quantity::SystemCalls, 0.03),
    gate("consume-2500", Quantity::Cpu, 3.5),
];

const fn gate(row: &'static str, quantity: Quantity, limit: f64) -> Gate {
    Gate { row, quantity, limit }
}

/// The ids of the rows that have a gate.
pub(crate) fn rows() -> Vec<String> {
    let mut rows: Vec<String> = GATES.iter().map(|gate| gate.row.to_owned()).collect();
    rows.dedup();
    rows
}

/// Prints each gate with what was measured.
///
/// # Errors
/// If a limit is exceeded, or what it limits was not measured.
pub(crate) fn check(report: &Report) -> Result<()> {
    let mut table = String::from("| row | per message | measured | limit | |\n|---|---|---:|---:|---|\n");
    let mut closed = 0;
    for gate in GATES {
        let measured = report.rows.iter().find(|row| row.id == gate.row);
        let value = measured.and_then(|row| gate.quantity.of(row));
        let verdict = gate.verdict(value, system_calls::are_exact());
        closed += usize::from(verdict.is_closed());
        _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} |",
            gate.row,
            gate.quantity.name(),
            value.map_or_else(|| "n/a".into(), significant),
            significant(gate.limit),
            verdict.says()
        );
    }
    println!("{table}");
    match closed {
        0 => Ok(()),
        _ => Err(format!("{closed} limits of benches/peers/src/gate.rs are exceeded: see the table").into()),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Open,
    Exceeded,
    NotMeasured,
    /// What was measured is too vague to fail anything.
    Vague,
}

impl Gate {
    fn verdict(&self, value: Option<f64>, system_calls_are_exact: bool) -> Verdict {
        match value {
            _ if self.quantity == Quantity::SystemCalls && !system_calls_are_exact => Verdict::Vague,
            // Not a number is no measurement.
            Some(value) if value <= self.limit => Verdict::Open,
            Some(value) if value > self.limit => Verdict::Exceeded,
            _ => Verdict::NotMeasured,
        }
    }
}

impl Verdict {
    fn is_closed(&self) -> bool {
        matches!(self, Self::Exceeded | Self::NotMeasured)
    }

    fn says(&self) -> &'static str {
        match self {
            Self::Open => "ok",
            Self::Exceeded => "EXCEEDED",
            Self::NotMeasured => "NOT MEASURED",
            Self::Vague => "skipped: perf may not count here",
        }
    }
}

impl Quantity {
    fn name(self) -> &'static str {
        match self {
            Self::Allocations => "allocations",
            Self::SystemCalls => "system calls",
            Self::Cpu => "CPU, in multiples of raw's",
        }
    }

    fn of(self, row: &Measured) -> Option<f64> {
        let runs = |client| row.clients.iter().find(|runs: &&Runs| runs.client == client);
        let ours = runs(Client::Ours)?;
        match self {
            Self::Allocations => ours.counts.allocations,
            Self::SystemCalls => ours.counts.system_calls,
            Self::Cpu => Some(ratio(ours, runs(Client::Raw)?, Span::cpu)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Counts;

    fn span(cpu_seconds: f64) -> Span {
        Span {
            messages: 1,
            seconds: 1.0,
            cpu_seconds,
            switches: 0,
            peak_kib: 0,
            allocations: 0,
            latency: None,
            memory: None,
        }
    }

    fn runs(client: Client, cpu: &[f64], counts: Counts) -> Runs {
        Runs {
            client,
            spans: cpu.iter().copied().map(span).collect(),
            counts,
        }
    }

    #[test]
    fn a_gate_is_closed_above_its_limit_and_without_a_measurement() {
        let gate = gate("consume-100", Quantity::Allocations, 0.01);
        assert_eq!(gate.verdict(Some(0.0), true), Verdict::Open);
        assert_eq!(gate.verdict(Some(0.01), true), Verdict::Open);
        assert_eq!(gate.verdict(Some(0.0101), true), Verdict::Exceeded);
        assert_eq!(gate.verdict(Some(0.0101), false), Verdict::Exceeded);
        assert_eq!(gate.verdict(Some(f64::NAN), true), Verdict::NotMeasured);
        assert_eq!(gate.verdict(None, true), Verdict::NotMeasured);
        assert!(Verdict::Exceeded.is_closed() && Verdict::NotMeasured.is_closed());
        assert!(!Verdict::Open.is_closed());
    }

    #[test]
    fn system_calls_count_only_where_they_are_exact() {
        let gate = gate("consume-100", Quantity::SystemCalls, 0.05);
        assert_eq!(gate.verdict(Some(0.06), false), Verdict::Vague);
        assert_eq!(gate.verdict(Some(0.06), true), Verdict::Exceeded);
        assert_eq!(gate.verdict(None, true), Verdict::NotMeasured);
        assert!(!Verdict::Vague.is_closed());
    }

    #[test]
    fn cpu_is_compared_within_each_round() {
        let counts = Counts {
            allocations: Some(0.5),
            system_calls: None,
        };
        let row = Measured {
            id: "consume-100",
            name: "",
            section: "",
            growth: None,
            clients: vec![
                runs(Client::Raw, &[1.0, 10.0, 2.0], Counts::default()),
                runs(Client::Ours, &[3.0, 20.0, 10.0], counts),
            ],
        };
        assert_eq!(Quantity::Cpu.of(&row), Some(3.0));
        assert_eq!(Quantity::Allocations.of(&row), Some(0.5));
        assert_eq!(Quantity::SystemCalls.of(&row), None);
    }

    #[test]
    fn each_gate_is_for_a_row_that_there_is() {
        let rows = rows();
        assert_eq!(crate::rows::choose(&rows).unwrap().len(), rows.len());
    }
}
