//! Charts of the report as SVG: horizontal bars, in colours for light and for dark, with whatever font the reader has.

use std::fmt::Write as _;

use crate::client::Client;
use crate::report::{Measured, Report, Runs, significant};
use crate::span::Span;

const WIDTH: usize = 900;
/// Where the bars begin, right of the clients' names.
const BARS_AT: usize = 150;
/// The longest bar. Right of it there is room for its figure.
const LONGEST: f64 = 640.0;
const LINE: usize = 20;
/// Between the bars of one row and the name of the next.
const GAP: usize = 12;
/// How many letters of the small print go into a line.
const LETTERS: usize = 130;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}\
.title{font-size:18px;font-weight:600}.row{font-weight:600}.small{font-size:12px;fill:#59636e}\
.page{fill:#ffffff}.ours{fill:#c2410c}.raw{fill:#9aa4af}.go{fill:#0284a8}.tokio{fill:#7c5cc4}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9198a1}\
.page{fill:#0d1117}.ours{fill:#f97316}.raw{fill:#6e7681}.go{fill:#38bdd8}.tokio{fill:#a78bfa}}";

/// A chart, and the name of its file.
pub(crate) struct Chart {
    pub(crate) file: String,
    pub(crate) svg: String,
}

/// Bars with one scale.
struct Group {
    name: &'static str,
    bars: Vec<Bar>,
}

struct Bar {
    label: &'static str,
    client: Client,
    value: f64,
}

/// All charts that there is something for. Rows of one section share theirs.
pub(crate) fn draw(report: &Report) -> Vec<Chart> {
    let mut charts = Vec::new();
    for rows in report.rows.chunk_by(|one, next| one.section == next.section) {
        let section = rows.first().map_or("", |row| row.section);
        let mut draw = |measure: &str, title: &str, value: fn(&Runs) -> Option<f64>| {
            let groups = groups(rows, value);
            if !groups.is_empty() {
                let file = format!("{section}-{measure}.svg");
                let svg = svg(title, &groups, &report.small_print());
                charts.push(Chart { file, svg });
            }
        };
        // At a rate that is given everybody's is the same.
        draw("rate", "Messages a second: longer is better", |runs| {
            let rate_is_given = runs.latency(|latency| latency.p50).is_some();
            (!rate_is_given && !runs.is_about_memory()).then(|| runs.median(Span::rate))
        });
        draw(
            "cpu",
            "Microseconds of the client's processor time per message: shorter is better",
            |runs| (!runs.is_about_memory()).then(|| runs.median(Span::cpu)),
        );
        draw(
            "p50",
            "Microseconds from publishing to the handler, median: shorter is better",
            |runs| runs.latency(|latency| latency.p50),
        );
        draw(
            "p99",
            "Microseconds from publishing to the handler, 99th percentile: shorter is better",
            |runs| runs.latency(|latency| latency.p99),
        );
        draw(
            "live",
            "KB of live memory per connection that is quiet after 300 messages: shorter is better",
            |runs| runs.per_connection(|memory| memory.quiet.live.saturating_sub(memory.before.live)),
        );
    }
    charts.extend(growth(report));
    charts
}

/// The rows that are compared with each other: a group for each client, a bar for each row.
fn growth(report: &Report) -> Option<Chart> {
    let rows = report.growth();
    let (_, first) = rows.first()?;
    let bar = |client, (label, row): &(&'static str, &Measured)| {
        let value = row.runs(client)?.median(Span::rate);
        Some(Bar { label, client, value })
    };
    let group = |client: Client| Group {
        name: client.name(),
        bars: rows.iter().filter_map(|row| bar(client, row)).collect(),
    };
    let groups: Vec<Group> = first.clients.iter().map(|runs| group(runs.client)).collect();
    let title = "Messages a second with more connections: all bars of a client alike is best";
    Some(Chart {
        file: "growth.svg".into(),
        svg: svg(title, &groups, &report.small_print()),
    })
}

/// The rows whose clients have such a value.
fn groups(rows: &[Measured], value: fn(&Runs) -> Option<f64>) -> Vec<Group> {
    let groups = rows.iter().filter_map(|row| {
        let bar = |runs: &Runs| {
            Some(Bar {
                label: runs.client.name(),
                client: runs.client,
                value: value(runs)?,
            })
        };
        Some(Group {
            name: row.name,
            bars: row.clients.iter().map(bar).collect::<Option<_>>()?,
        })
    });
    groups.collect()
}

/// Each group has a scale of its own: from row to row values differ by orders of magnitude.
fn svg(title: &str, groups: &[Group], small_print: &str) -> String {
    let mut body = String::new();
    let mut y = 32;
    text(&mut body, 16, y, "title", title);
    text(&mut body, 16, y + LINE, "small", "Each group has a scale of its own.");
    y += LINE;
    for group in groups {
        y += LINE + GAP;
        text(&mut body, 16, y, "row", group.name);
        let greatest = group.bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
        for bar in &group.bars {
            y += LINE;
            text(&mut body, 16, y, "", bar.label);
            // One that is too short to be seen would look like one that was not measured.
            let length = (bar.value / greatest * LONGEST).max(1.0);
            _ = write!(
                body,
                r#"<rect class="{}" x="{BARS_AT}" y="{}" width="{length:.1}" height="14"/>"#,
                class(bar.client),
                y - 12
            );
            text(&mut body, BARS_AT + length as usize + 8, y, "", &significant(bar.value));
        }
    }
    y += GAP;
    for line in wrapped(small_print) {
        y += LINE;
        text(&mut body, 16, y, "small", &line);
    }
    let height = y + LINE;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\"><title>{}</title><style>{STYLE}</style>\n<rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         {body}</svg>\n",
        escaped(title)
    )
}

fn class(client: Client) -> &'static str {
    match client {
        Client::Ours => "ours",
        Client::Raw | Client::RawTokio | Client::SharedQueue => "raw",
        Client::GoNsq => "go",
        Client::TokioNsq | Client::TokioNsqTuned => "tokio",
    }
}

fn text(body: &mut String, x: usize, y: usize, class: &str, text: &str) {
    _ = writeln!(
        body,
        r#"<text class="{class}" x="{x}" y="{y}">{}</text>"#,
        escaped(text)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < LETTERS => {
                *line += if line.is_empty() { "" } else { " " };
                *line += word;
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
