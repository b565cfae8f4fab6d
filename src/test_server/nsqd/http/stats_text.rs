//! `/stats` as a text, laid out as nsqd does.

use std::fmt::Write;
use std::time::Duration;

use super::stats::{ClientReport, Memory, Report, TopicReport};

/// The times that only the text tells.
pub(super) struct Heading {
    pub(super) uptime: Duration,
    /// In seconds since the Unix epoch.
    pub(super) now: i64,
}

pub(super) fn render(report: &Report<'_>, heading: Heading) -> String {
    let mut text = format!(
        "nsqd v{} (built w/async-nsq)\nstart_time {}\nuptime {}\n\nHealth: {}\n",
        report.version,
        rfc3339(report.start_time),
        go_duration(heading.uptime),
        report.health
    );
    if let Some(memory) = &report.memory {
        text += "\nMemory:\n";
        for (name, value) in lines_of(memory) {
            add(&mut text, format_args!("   {name:<25}\t{value}\n"));
        }
    }
    let topics = report.topics.as_deref().unwrap_or_default();
    text += if topics.is_empty() {
        "\nTopics: None\n"
    } else {
        "\nTopics:"
    };
    for topic in topics {
        add_topic(&mut text, topic, heading.now);
    }
    let producers = report.producers.as_deref().unwrap_or_default();
    text += if producers.is_empty() {
        "\nProducers: None\n"
    } else {
        "\nProducers:\n"
    };
    for producer in producers {
        add(&mut text, format_args!("   {}\n", client(producer, heading.now)));
    }
    text
}

fn add(text: &mut String, more: std::fmt::Arguments<'_>) {
    // A string takes everything.
    let _ = text.write_fmt(more);
}

fn lines_of(memory: &Memory) -> [(&'static str, u64); 9] {
    [
        ("heap_objects", memory.heap_objects),
        ("heap_idle_bytes", memory.heap_idle_bytes),
        ("heap_in_use_bytes", memory.heap_in_use_bytes),
        ("heap_released_bytes", memory.heap_released_bytes),
        ("gc_pause_usec_100", memory.gc_pause_usec_100),
        ("gc_pause_usec_99", memory.gc_pause_usec_99),
        ("gc_pause_usec_95", memory.gc_pause_usec_95),
        ("next_gc_bytes", memory.next_gc_bytes),
        ("gc_total_runs", memory.gc_total_runs.into()),
    ]
}

fn add_topic(text: &mut String, topic: &TopicReport<'_>, now: i64) {
    let mark = |paused| if paused { "*P " } else { "   " };
    add(
        text,
        format_args!(
            "\n{}[{:<15}] depth: {:<5} be-depth: {:<5} msgs: {:<8} e2e%: \n",
            mark(topic.paused),
            topic.topic_name,
            topic.depth,
            topic.backend_depth,
            topic.message_count
        ),
    );
    for channel in &topic.channels {
        add(
            text,
            format_args!(
                "   {}[{:<25}] depth: {:<5} be-depth: {:<5} inflt: {:<4} def: {:<4} re-q: {:<5} timeout: {:<5} \
                 msgs: {:<8} e2e%: \n",
                mark(channel.paused),
                channel.channel_name,
                channel.depth,
                channel.backend_depth,
                channel.in_flight_count,
                channel.deferred_count,
                channel.requeue_count,
                channel.timeout_count,
                channel.message_count
            ),
        );
        for consumer in channel.clients.as_deref().unwrap_or_default() {
            add(text, format_args!("        {}\n", client(consumer, now)));
        }
    }
}

fn client(client: &ClientReport<'_>, now: i64) -> String {
    let port = client.remote_address.rsplit_once(':').map_or("", |(_, port)| port);
    let id = format!("{}:{port} {}", client.hostname, client.user_agent);
    let connected = u64::try_from(now - client.connect_ts).unwrap_or_default();
    let connected = go_duration(Duration::from_secs(connected));
    let version = client.version;
    match &client.pub_counts {
        Some([published]) => format!(
            "[{version} {id:<21}] msgs: {:<8} topics: {}={} connected: {connected}",
            published.count, published.topic, published.count
        ),
        None => format!(
            "[{version} {id:<21}] state: {} inflt: {:<4} rdy: {:<4} fin: {:<8} re-q: {:<8} msgs: {:<8} \
             connected: {connected}",
            client.state,
            client.in_flight_count,
            client.ready_count,
            client.finish_count,
            client.requeue_count,
            client.message_count
        ),
    }
}

/// A duration as Go writes it: `1h2m3.5s`, `250ms`.
fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let (unit, digits, name) = match nanos {
        0 => return "0s".to_owned(),
        1..=999 => (1, 0, "ns"),
        1_000..=999_999 => (1_000, 3, "µs"),
        1_000_000..=999_999_999 => (1_000_000, 6, "ms"),
        _ => (1_000_000_000, 9, "s"),
    };
    let (whole, fraction) = (nanos / unit, nanos % unit);
    let mut text = String::new();
    if whole >= 3600 && name == "s" {
        add(&mut text, format_args!("{}h", whole / 3600));
    }
    if whole >= 60 && name == "s" {
        add(&mut text, format_args!("{}m", whole / 60 % 60));
    }
    add(
        &mut text,
        format_args!("{}", if name == "s" { whole % 60 } else { whole }),
    );
    if fraction > 0 {
        let fraction = format!("{fraction:0digits$}");
        add(&mut text, format_args!(".{}", fraction.trim_end_matches('0')));
    }
    text + name
}

/// A time in seconds since the Unix epoch, as a date of UTC.
fn rfc3339(time: i64) -> String {
    let (day, second) = (time.div_euclid(86_400), time.rem_euclid(86_400));
    // Years are counted from March here, so that a leap day is the last of its year; 146,097 days are 400 years.
    let day = day + 719_468;
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_in_go() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (250_000_000, "250ms"),
            (1_869_295_701, "1.869295701s"),
            (60_000_000_000, "1m0s"),
            (3_723_500_000_000, "1h2m3.5s"),
            (360_000_000_000_000, "100h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_nanos(nanos)), text);
        }
    }

    #[test]
    fn times_are_dates() {
        for (time, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_795_603_298, "2026-11-25T10:41:38Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(time), text);
        }
    }
}
