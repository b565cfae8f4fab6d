//! Lessons about the log: what is in it, at which level, and what is not.

use std::fmt::Debug;
use std::sync::OnceLock;
use std::time::Duration;

use async_nsq::test_server::FrameKind;
use async_nsq::transport::MemoryNetwork;
use async_nsq::{BoxError, Message};
use tokio::time::sleep;
use tracing::field::{Field, Visit};
use tracing::subscriber::{DefaultGuard, Interest};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber, span};

use super::{ADDRESS, House, LOOKUPD, Notes, PATIENCE, announced, consumer_in, lookupd, rest, until};
use crate::scripted::{SECOND, succeed, text};

/// An event: its level, its message, and its fields by name.
#[derive(Clone, Debug)]
struct Line {
    level: Level,
    fields: Vec<(&'static str, String)>,
}

impl Line {
    fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(field, _)| *field == name);
        found.map(|(_, value)| &**value)
    }

    fn message(&self) -> &str {
        self.field("message").unwrap_or_default()
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.push((field.name(), format!("{value:?}")));
    }
}

/// Keeps what this crate logs in this thread, except for the test broker's own lines.
struct Log(Notes<Line>);

impl Log {
    fn listen() -> (Notes<Line>, DefaultGuard) {
        /// tracing decides once for each line of code whether anybody listens, and while it knows of one listener only, it
        /// asks the thread that gets there first: another test's. With two that never end, everybody is asked each time.
        static OTHERS: OnceLock<[Dispatch; 2]> = OnceLock::new();
        OTHERS.get_or_init(|| [Dispatch::new(Undecided), Dispatch::new(Undecided)]);
        let lines = Notes::new();
        let guard = tracing::subscriber::set_default(Self(lines.clone()));
        (lines, guard)
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("async_nsq") && !metadata.target().contains("test_server")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line {
            level: *event.metadata().level(),
            fields: Vec::new(),
        };
        event.record(&mut line);
        self.0.add(line);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Wants nothing, and may want anything.
struct Undecided;

impl Subscriber for Undecided {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        false
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn lesson_79_heartbeats_are_in_the_log_at_trace_level_and_nothing_else_is_while_all_is_well() {
    let house = House::new().await;
    let (lines, _guard) = Log::listen();
    let consumer = house.consumer().start(succeed).await.unwrap();
    until(&consumer, |stats| stats.connections == 1).await;
    house.publish(100);
    house.finishes(100).await;
    lines.take();
    let heartbeats = house.nsqd.faults().frames(FrameKind::Heartbeat).delay(Duration::ZERO);
    sleep(PATIENCE).await;
    let seen = lines.take();
    assert_eq!(heartbeats.hits(), 120);
    assert_eq!(seen.len(), 120, "one each");
    for line in seen {
        assert_eq!((line.level, line.message()), (Level::TRACE, "heartbeat"), "{line:?}");
        assert_eq!(line.field("nsqd"), Some(ADDRESS));
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_55_a_topic_that_is_not_there_yet_makes_no_noise() {
    let network = MemoryNetwork::new();
    let lookupd = lookupd(&network).await;
    let (lines, _guard) = Log::listen();
    let consumer = consumer_in(&network).lookupd(LOOKUPD).start(succeed).await.unwrap();
    sleep(PATIENCE).await;
    let seen = lines.take();
    assert!(lookupd.requests() > 50);
    assert!(seen.iter().all(|line| line.level >= Level::DEBUG), "{seen:?}");
    assert!(seen.len() <= 2, "and that once: {seen:?}");
    let _nsqd = announced(&network, &lookupd, "nsqd").await;
    until(&consumer, |stats| stats.connections == 1).await;
    assert!(lines.take().iter().all(|line| line.level >= Level::INFO));
}

#[tokio::test(start_paused = true)]
async fn lesson_77_what_goes_wrong_is_logged_with_fields_that_say_who_and_why() {
    let house = House::new().await;
    let (lines, _guard) = Log::listen();
    let handler = |message: Message| async move {
        match text(&message) {
            "0" => Err(BoxError::from("the database is away")),
            _ => Ok(()),
        }
    };
    let consumer = house.consumer().max_attempts(1).start(handler).await.unwrap();
    until(&consumer, |stats| stats.connections == 1).await;
    let connected = lines.take();
    let connected = connected
        .iter()
        .find(|line| line.message() == "consumer connected")
        .unwrap();
    assert_eq!((connected.level, connected.field("nsqd")), (Level::INFO, Some(ADDRESS)));
    house.publish(1);
    house.finishes(1).await;
    rest().await;
    let seen = lines.take();
    let failed = seen.iter().find(|line| line.message() == "handler failed").unwrap();
    assert_eq!(failed.field("nsqd"), Some(ADDRESS));
    assert!(failed.field("id").is_some());
    assert!(failed.field("error").unwrap().contains("the database is away"));
    let given_up = seen.iter().find(|line| line.message().contains("given up")).unwrap();
    assert_eq!((given_up.level, given_up.field("attempts")), (Level::WARN, Some("2")));
    assert_eq!(given_up.field("id"), failed.field("id"));
    house.nsqd.kill().await;
    until(&consumer, |stats| stats.connections == 0).await;
    let seen = lines.take();
    let lost = seen.iter().find(|line| line.level == Level::WARN).unwrap();
    assert_eq!(lost.field("nsqd"), Some(ADDRESS));
    for field in ["error", "retry_in"] {
        assert!(lost.field(field).is_some(), "{field} is missing in {lost:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_10_lesson_77_an_end_that_was_asked_for_is_no_warning() {
    let house = House::new().await;
    let (lines, _guard) = Log::listen();
    let consumer = house.consumer().start(succeed).await.unwrap();
    until(&consumer, |stats| stats.connections == 1).await;
    house.publish(10);
    house.finishes(10).await;
    assert!(consumer.shutdown(10 * SECOND).await.is_clean());
    rest().await;
    let seen = lines.take();
    assert!(seen.iter().all(|line| line.level >= Level::INFO), "{seen:?}");
    assert!(seen.iter().any(|line| line.message() == "consumer ended"), "{seen:?}");
}
