//! What the consumers did and their connections carried, and what that broke.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nsq::protocol;

use crate::checks::Flows;
use crate::plan::{CONSUMERS, ConsumerPlan, NSQDS, is_of_recovery, published_at};
use crate::story::Story;

/// A connection of a consumer to an nsqd. A reconnection is a new one.
pub type LinkId = u64;

/// A delivery of a message: its id and its attempt.
pub type Delivery = (String, u16);

/// What a consumer writes after the handshake, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    Sub,
    Rdy(u32),
    Fin(String),
    Req(String),
    Touch(String),
    Cls,
}

impl Written {
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (name, word) = (words.next()?, words.next().unwrap_or_default());
        match name {
            "SUB" => Some(Self::Sub),
            "RDY" => Some(Self::Rdy(word.parse().unwrap())),
            "FIN" => Some(Self::Fin(word.to_owned())),
            "REQ" => Some(Self::Req(word.to_owned())),
            "TOUCH" => Some(Self::Touch(word.to_owned())),
            "CLS" => Some(Self::Cls),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
pub struct Journal(Mutex<Book>);

#[derive(Debug, Default)]
pub struct Book {
    pub story: Story,
    /// The messages whose publish was begun, and those whose publish was confirmed.
    pub published: BTreeSet<String>,
    pub confirmed: BTreeSet<String>,
    /// The messages that a handler has returned Ok for.
    pub handled: BTreeSet<String>,
    /// Those that were published before their nsqd was killed.
    pub excused: BTreeSet<String>,
    /// Which consumer has handled messages of which nsqd since the recovery.
    pub served: BTreeSet<(usize, usize)>,
    /// The handlers that run, by consumer.
    pub running: [i64; CONSUMERS],
    pub flows: Flows,
}

impl Journal {
    pub fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self, event: fmt::Arguments<'_>) {
        self.lock().note(event);
    }

    pub fn broken(&self, promise: fmt::Arguments<'_>) {
        self.lock().broken(promise);
    }

    pub fn starts(&self, consumer: usize, options: &ConsumerPlan) {
        let mut book = self.lock();
        book.note(format_args!("consumer {consumer} starts: {options:?}"));
        book.flows.begin(consumer, options);
    }

    pub fn set_max_in_flight(&self, consumer: usize, count: u32) {
        let mut book = self.lock();
        book.note(format_args!("consumer {consumer}: max_in_flight {count}"));
        book.flows.set_max_in_flight(consumer, count, now());
    }

    pub fn opened(&self, consumer: usize, nsqd: &str) -> LinkId {
        let mut book = self.lock();
        let link = book.flows.open(consumer, nsqd);
        book.note(format_args!(
            "consumer {consumer} connected to {nsqd}: connection {link}"
        ));
        link
    }

    pub fn wrote(&self, link: LinkId, command: &Written) {
        let mut book = self.lock();
        // Ids are made of the time of day, and the same seed is to tell the same story.
        match (command, book.flows.body(link, command)) {
            (Written::Fin(_), Some(body)) => book.note(format_args!("connection {link} wrote FIN of {body}")),
            (Written::Req(_), Some(body)) => book.note(format_args!("connection {link} wrote REQ of {body}")),
            (command, _) => book.note(format_args!("connection {link} wrote {command:?}")),
        }
        let broken = book.flows.wrote(link, command, now());
        book.all_broken(broken);
    }

    pub fn delivered(&self, link: LinkId, message: &protocol::Message) {
        let mut book = self.lock();
        let (body, attempts) = (String::from_utf8_lossy(&message.body).into_owned(), message.attempts);
        book.note(format_args!("connection {link} read {body}, attempt {attempts}"));
        let broken = book
            .flows
            .delivered(link, (message.id.to_string(), message.attempts), body, now());
        book.all_broken(broken);
    }

    pub fn refused(&self, link: LinkId, error: &str) {
        let mut book = self.lock();
        // The rest of the text names the message by its id.
        let code = error.split(' ').next().unwrap_or_default();
        book.note(format_args!("connection {link} was refused: {code}"));
        book.flows.refused(link, error);
    }

    pub fn closed(&self, link: LinkId, is_cut: bool) {
        let mut book = self.lock();
        if !is_cut {
            book.note(format_args!("connection {link} closed"));
        }
        let broken = book.flows.close(link, now());
        book.all_broken(broken);
    }

    pub fn handled(&self, consumer: usize, body: &str) {
        let mut book = self.lock();
        book.note(format_args!("consumer {consumer} handled {body}"));
        book.handled.insert(body.to_owned());
        if is_of_recovery(body) {
            book.served.insert((consumer, published_at(body)));
        }
    }

    /// A handler failed, and its REQ has to follow the consumer's RDY 0.
    pub fn failed(&self, consumer: usize, nsqd: &str, body: &str, delivery: Delivery) {
        let mut book = self.lock();
        book.note(format_args!("consumer {consumer} failed with {body}"));
        book.flows.failed(consumer, nsqd, delivery);
    }
}

impl Book {
    pub fn note(&mut self, event: fmt::Arguments<'_>) {
        self.story.note(event);
    }

    pub fn broken(&mut self, promise: fmt::Arguments<'_>) {
        self.story.broken(promise);
    }

    pub fn all_broken(&mut self, promises: Vec<String>) {
        for promise in promises {
            self.broken(format_args!("{promise}"));
        }
    }

    /// The confirmed messages that nobody has handled and nothing excuses.
    pub fn unhandled(&self) -> Vec<&str> {
        let missing = self.confirmed.iter().filter(|body| !self.handled.contains(*body));
        missing
            .filter(|body| !self.excused.contains(*body))
            .map(String::as_str)
            .collect()
    }

    /// The nsqd died with all that it had: its messages so far may be gone.
    pub fn excuse(&mut self, nsqd: usize) {
        let lost = self.published.iter().filter(|body| published_at(body) == nsqd);
        let lost: Vec<_> = lost.cloned().collect();
        self.excused.extend(lost);
    }

    /// Which pairs of consumer and nsqd have not been seen since the recovery.
    pub fn unserved(&self) -> BTreeMap<usize, Vec<usize>> {
        let mut unserved: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for consumer in 0..CONSUMERS {
            let nsqds = (0..NSQDS).filter(|&nsqd| !self.served.contains(&(consumer, nsqd)));
            unserved.insert(consumer, nsqds.collect());
        }
        unserved
    }
}

/// The simulation's time, to the millisecond; on a host its own.
pub fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}
