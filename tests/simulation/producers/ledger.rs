//! What callers were told, what the nsqds have, and whether that fits together.
//!
//! - P1: `Ok` means that the message is on as many nsqds as were asked for. Only the victim may have lost it, so what two
//!   nsqds had is still there.
//! - P2: what was *not sent*, *invalid* or *rejected* is nowhere.
//! - P6: nobody is blamed for another's mistake.
//! - Nothing is anywhere more often than there are copies, unless duplicates were allowed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use async_nsq::{Error, ErrorKind};
use bytes::Bytes;

use super::plan::{Plan, ProducerPlan};
use crate::hosts::lock;
use crate::plan::NSQDS;
use crate::story::Story;

/// A producer and its how manieth publish.
pub type PublishId = (usize, usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    Confirmed,
    Rejected,
    NotSent,
    Unknown,
    Invalid,
    /// Nothing: the caller did not wait for it.
    Dropped,
}

impl Told {
    pub fn of(outcome: &async_nsq::Result<()>) -> Option<Self> {
        match outcome.as_ref().map_err(Error::kind) {
            Ok(()) => Some(Self::Confirmed),
            Err(ErrorKind::Rejected) => Some(Self::Rejected),
            Err(ErrorKind::NotSent) => Some(Self::NotSent),
            Err(ErrorKind::Unknown) => Some(Self::Unknown),
            Err(ErrorKind::Invalid) => Some(Self::Invalid),
            Err(_) => None,
        }
    }
}

/// What a publish deserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merit {
    Good,
    /// For the nsqds, and only they know.
    TooLarge,
    Empty,
}

#[derive(Debug, Default)]
pub struct Ledger(Mutex<Book>);

#[derive(Debug, Default)]
pub struct Book {
    pub story: Story,
    publishes: BTreeMap<PublishId, Publish>,
    /// How often each message is, or was when the nsqd died, at which nsqd.
    places: BTreeMap<(PublishId, usize), [Copies; NSQDS]>,
}

#[derive(Debug)]
struct Publish {
    messages: usize,
    merit: Merit,
    told: Option<Told>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Copies {
    kept: usize,
    lost: usize,
}

/// The text that begins the body of each message of a publish.
pub fn body((producer, number): PublishId, message: usize, size: usize) -> String {
    let mut body = format!("{producer}-{number}-{message}-");
    while body.len() < size {
        body.push('x');
    }
    body
}

fn id_of(body: &[u8]) -> Option<(PublishId, usize)> {
    let text = std::str::from_utf8(body).ok()?;
    let mut numbers = text.split('-').map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some(((next()?, next()?), next()?))
}

impl Ledger {
    pub fn lock(&self) -> MutexGuard<'_, Book> {
        lock(&self.0)
    }

    pub fn note(&self, event: fmt::Arguments<'_>) {
        self.lock().story.note(event);
    }

    pub fn broken(&self, promise: fmt::Arguments<'_>) {
        self.lock().story.broken(promise);
    }

    pub fn begins(&self, id: PublishId, messages: usize, merit: Merit) {
        let publish = Publish {
            messages,
            merit,
            told: None,
        };
        self.lock().publishes.insert(id, publish);
    }

    pub fn ended(&self, id: PublishId, told: Told) {
        let mut book = self.lock();
        book.story.note(format_args!("publish {id:?}: {told:?}"));
        if let Some(publish) = book.publishes.get_mut(&id) {
            publish.told = Some(told);
        }
    }

    /// What an nsqd has, or had when it died.
    pub fn found(&self, nsqd: usize, bodies: &[Bytes], lost: bool) {
        let mut book = self.lock();
        let count = bodies.len();
        book.story
            .note(format_args!("nsqd {nsqd}: {count} messages, lost: {lost}"));
        for body in bodies {
            let Some(message) = id_of(body) else {
                book.story
                    .broken(format_args!("nsqd {nsqd} has {body:?}, which nobody published"));
                continue;
            };
            let copies = &mut book.places.entry(message).or_default()[nsqd];
            if lost {
                copies.lost += 1;
            } else {
                copies.kept += 1;
            }
        }
    }
}

impl Book {
    /// How many publishes were told what.
    pub fn counts(&self) -> BTreeMap<Told, usize> {
        let mut counts = BTreeMap::new();
        for told in self.publishes.values().filter_map(|publish| publish.told) {
            *counts.entry(told).or_default() += 1;
        }
        counts
    }

    /// How many copies there are beyond those asked for, and how many confirmed messages are nowhere any more.
    pub fn repeated_and_lost(&self, plan: &Plan) -> (usize, usize) {
        let (mut repeated, mut lost) = (0, 0);
        for (((producer, number), _), places) in &self.places {
            let all: usize = places.iter().map(|copies| copies.kept + copies.lost).sum();
            repeated += all.saturating_sub(plan.producers[*producer].copies);
            let publish = self.publishes.get(&(*producer, *number));
            let confirmed = publish.is_some_and(|publish| publish.told == Some(Told::Confirmed));
            lost += usize::from(confirmed && places.iter().all(|copies| copies.kept == 0));
        }
        (repeated, lost)
    }

    /// Compares everything, once all nsqds have told what they have.
    pub fn compare(&mut self, plan: &Plan) {
        let mut broken = Vec::new();
        for (id, publish) in &self.publishes {
            let options = &plan.producers[id.0];
            for message in 0..publish.messages {
                let places = self.places.get(&(*id, message)).copied().unwrap_or_default();
                if let Some(promise) = misreported(publish, options, &places) {
                    let told = publish.told;
                    broken.push(format!(
                        "{promise}: {id:?}, message {message}, {told:?}: {places:?}, {options:?}"
                    ));
                }
            }
        }
        for (id, message) in self.places.keys() {
            if self
                .publishes
                .get(id)
                .is_none_or(|publish| *message >= publish.messages)
            {
                broken.push(format!("{id:?}, message {message}, was never published"));
            }
        }
        for promise in broken {
            self.story.broken(format_args!("{promise}"));
        }
    }
}

/// What is wrong with what was told of a message that is at these nsqds.
fn misreported(publish: &Publish, options: &ProducerPlan, places: &[Copies; NSQDS]) -> Option<&'static str> {
    let nsqds = places.iter().filter(|copies| copies.kept + copies.lost > 0).count();
    let all: usize = places.iter().map(|copies| copies.kept + copies.lost).sum();
    let is_kept = places.iter().any(|copies| copies.kept > 0);
    if all > options.copies && !options.at_least_once {
        return Some("P3: more copies than asked for");
    }
    match publish.told {
        None => Some("P3: a publish never ended"),
        Some(Told::Confirmed) if nsqds < options.confirmed_copies() => Some("P1: confirmed and not there"),
        Some(Told::Confirmed) if options.confirmed_copies() > 1 && !is_kept => {
            Some("P1: confirmed on two nsqds, one of which was destroyed, and lost")
        }
        Some(Told::NotSent | Told::Rejected | Told::Invalid) if all > 0 => Some("P2: it did arrive"),
        Some(Told::Rejected) if publish.merit != Merit::TooLarge => Some("P6: rejected for another's mistake"),
        // Too large is found here once nsqd has told its limit.
        Some(Told::Invalid) if !matches!(publish.merit, Merit::Empty | Merit::TooLarge) => {
            Some("P6: there was nothing wrong with it")
        }
        Some(_) => None,
    }
}
