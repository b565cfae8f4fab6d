//! Group commit: what waits at the same moment leaves together, each topic's messages as one MPUB, or as two when there are
//! many and nothing else is on its way.
//!
//! nsqd parses, answers and writes once per command, so ninety messages in one MPUB cost it little more than one PUB.
//! Nothing is delayed for it: a batch is whatever has come in while the last ones were on their way.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::pipeline::{Entry, Payload};
use crate::connection::WriteBuffer;
use crate::name::Topic;
use crate::protocol::command;

/// The largest batch in bytes. Larger ones are no cheaper for nsqd and make each caller in it wait longer.
pub(super) const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// How many bytes of bodies leave together, unless one publish alone has more. More would wait in the connection's buffer
/// instead of the queue, where a publish can still be taken back. With two turns unanswered it is enough to keep a connection
/// with 100 ms of delay at 80 MB a second.
pub(super) const MAX_TURN_BYTES: usize = 4 * 1024 * 1024;

/// How many turns may be unanswered. One would leave a connection with delay empty for a round trip; with more, each
/// batch would be smaller.
pub(super) const MAX_UNANSWERED_TURNS: usize = 2;

/// From so many publishes on, a batch leaves in two halves if nothing else is on its way: nsqd stores the second half while
/// the callers of the first come back with their next publishes. In one piece, nsqd and the callers would take turns.
const WORTH_HALVING: usize = 32;

/// In place of what cannot be in a batch.
static NO_BODY: Bytes = Bytes::new();

/// What bounds and shapes the commands of a producer.
#[derive(Clone, Debug)]
pub(super) struct Encoding {
    /// Whether publishes of one topic are joined.
    pub(super) batching: bool,
    /// nsqd's `max-body-size`: the largest body of an MPUB.
    pub(super) max_body_size: usize,
    /// The body of the IDENTIFY that serves as a ping.
    pub(super) ping: Vec<u8>,
}

/// The commands that left in one go, in the order of their answers.
#[derive(Debug, Default)]
struct Turn {
    entries: Vec<Entry>,
    commands: VecDeque<Sent>,
    answered: usize,
}

/// A command that was encoded.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// How many of the turn's entries it carries.
    entries: usize,
    /// The position of its end in what is written to the connection.
    end: u64,
}

/// The turns whose answers are awaited.
#[derive(Debug, Default)]
pub(super) struct Turns {
    unanswered: VecDeque<Turn>,
    // An answered turn's vectors serve the next one, so that batches allocate nothing.
    spare: Vec<Turn>,
    scratch: Vec<Entry>,
    grouping: Grouping,
}

/// What a lost connection leaves behind.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Left entirely and not answered: nsqd may have acted on them.
    pub(super) unknown: Vec<Entry>,
    /// nsqd cannot have acted on them.
    pub(super) unsent: Vec<Entry>,
}

impl Turns {
    pub(super) fn is_full(&self) -> bool {
        self.unanswered.len() >= MAX_UNANSWERED_TURNS
    }

    /// An empty vector to fill with what [`encode`](Self::encode) shall send.
    pub(super) fn scratch(&mut self) -> &mut Vec<Entry> {
        &mut self.scratch
    }

    /// Encodes what is in [`scratch`](Self::scratch), which is not empty, as one turn. Returns how many commands carry
    /// messages, and how many messages.
    pub(super) fn encode(&mut self, encoding: &Encoding, out: &mut WriteBuffer) -> (usize, usize) {
        let mut sent = (0, 0);
        let mut turn = self.spare.pop().unwrap_or_default();
        std::mem::swap(&mut turn.entries, &mut self.scratch);
        if self.grouping.assign(&mut turn.entries, encoding) {
            // Stable, so that a topic's messages stay in order.
            turn.entries.sort_by_key(|entry| entry.group);
        }
        let most = self.most_in_a_command(&turn.entries);
        let groups = turn.entries.chunk_by(|a, b| a.group == b.group);
        for command in groups.flat_map(|group| group.chunks(most)) {
            let messages = encode_command(command, encoding, out);
            sent.0 += usize::from(messages > 0);
            sent.1 += messages;
            turn.commands.push_back(Sent {
                entries: command.len(),
                end: out.end(),
            });
        }
        self.unanswered.push_back(turn);
        sent
    }

    /// How many entries one command may carry of those that leave together, sorted by group.
    fn most_in_a_command(&self, entries: &[Entry]) -> usize {
        // Several groups are answered one after the other, which is as good.
        let is_one_group = entries.first().map(|entry| entry.group) == entries.last().map(|entry| entry.group);
        if self.unanswered.is_empty() && is_one_group && entries.len() >= WORTH_HALVING {
            entries.len().div_ceil(2)
        } else {
            usize::MAX
        }
    }

    /// An answer has come: hands the entries of the oldest command to `resolve`. `None` if no answer is awaited.
    pub(super) fn answered<T>(&mut self, resolve: impl FnOnce(&mut [Entry]) -> T) -> Option<T> {
        let turn = self.unanswered.front_mut()?;
        let command = turn.commands.pop_front()?;
        let from = turn.answered;
        turn.answered += command.entries;
        let resolved = resolve(&mut turn.entries[from..turn.answered]);
        if turn.commands.is_empty() {
            self.retire_front();
        }
        Some(resolved)
    }

    /// What the oldest unanswered command carries; nothing if there is none.
    pub(super) fn oldest(&self) -> &[Entry] {
        let Some(turn) = self.unanswered.front() else {
            return &[];
        };
        let count = turn.commands.front().map_or(0, |command| command.entries);
        &turn.entries[turn.answered..turn.answered + count]
    }

    /// Takes the entries of the oldest command back, to be sent again.
    pub(super) fn take_oldest(&mut self) -> Vec<Entry> {
        let Some(turn) = self.unanswered.front_mut() else {
            return Vec::new();
        };
        let Some(command) = turn.commands.pop_front() else {
            return Vec::new();
        };
        let entries = turn
            .entries
            .drain(turn.answered..turn.answered + command.entries)
            .collect();
        if turn.commands.is_empty() {
            self.retire_front();
        }
        entries
    }

    /// The connection has ended, and of what was written nothing behind `written` bytes can have left.
    pub(super) fn lost(&mut self, written: u64) -> Lost {
        let mut lost = Lost::default();
        for mut turn in self.unanswered.drain(..) {
            let mut entries = turn.entries.drain(turn.answered..);
            for command in &turn.commands {
                // A command cut short is none: nsqd drops an incomplete body.
                let part = if command.end <= written {
                    &mut lost.unknown
                } else {
                    &mut lost.unsent
                };
                part.extend(entries.by_ref().take(command.entries));
            }
        }
        lost
    }

    /// Gives back what a burst has made the vectors grow to.
    pub(super) fn shrink(&mut self) {
        self.spare.clear();
        self.scratch = Vec::new();
        self.grouping = Grouping::default();
    }

    fn retire_front(&mut self) {
        if let Some(mut turn) = self.unanswered.pop_front() {
            turn.entries.clear();
            turn.answered = 0;
            if self.spare.len() < MAX_UNANSWERED_TURNS {
                self.spare.push(turn);
            }
        }
    }
}

/// Returns how many messages the command carries.
fn encode_command(entries: &[Entry], encoding: &Encoding, out: &mut WriteBuffer) -> usize {
    let Some(first) = entries.first() else { return 0 };
    let topic = first.topic.as_ref().map_or("", Topic::as_str);
    match (&first.payload, entries.len()) {
        (Payload::One(body), 1) => {
            command::publish_line(out.bytes(), topic);
            out.put_body(body);
        }
        (Payload::One(_), _) => {
            let bodies = entries.iter().map(|entry| match &entry.payload {
                Payload::One(body) => body,
                _ => &NO_BODY,
            });
            put_many(out, topic, bodies);
        }
        (Payload::Many(bodies), _) => put_many(out, topic, bodies.iter()),
        (Payload::Deferred { delay, body }, _) => {
            command::publish_deferred_line(out.bytes(), topic, ceil_millis(*delay));
            out.put_body(body);
        }
        (Payload::Ping, _) => command::identify(out.bytes(), &encoding.ping),
        (Payload::Gone, _) => {}
    }
    match &first.payload {
        Payload::One(_) => entries.len(),
        other => other.messages(),
    }
}

fn put_many<'a>(out: &mut WriteBuffer, topic: &str, bodies: impl ExactSizeIterator<Item = &'a Bytes> + Clone) {
    command::publish_many_line(out.bytes(), topic, bodies.clone().map(Bytes::len));
    bodies.for_each(|body| out.put_body(body));
}

/// nsqd counts in milliseconds; a delay is never shortened.
fn ceil_millis(delay: std::time::Duration) -> u64 {
    u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Decides which entries share a command.
#[derive(Debug, Default)]
struct Grouping {
    /// The command of each topic that takes further messages.
    open: HashMap<Topic, Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    group: u32,
    body_len: usize,
}

impl Grouping {
    /// Numbers the commands by their oldest entry. Returns whether the entries have to be sorted by that number.
    fn assign(&mut self, entries: &mut [Entry], encoding: &Encoding) -> bool {
        let limit = MAX_BATCH_BYTES.min(encoding.max_body_size);
        let mut groups = 0;
        let mut unsorted = false;
        // The run of one topic that is being extended; it is looked up only when the topic changes.
        let mut run: Option<(Topic, Open)> = None;
        for entry in entries {
            let Some(topic) = &entry.topic else {
                entry.group = next(&mut groups);
                continue;
            };
            if run.as_ref().is_none_or(|(current, _)| current != topic) {
                if let Some((topic, open)) = run.take() {
                    self.open.insert(topic, open);
                }
                run = self.open.get(topic).map(|open| (topic.clone(), *open));
            }
            let joinable = match &entry.payload {
                Payload::One(body) if encoding.batching && !entry.alone => Some(4 + body.len()),
                _ => None,
            };
            match (joinable, &mut run) {
                (Some(len), Some((_, open))) if open.body_len + len <= limit => {
                    open.body_len += len;
                    entry.group = open.group;
                    unsorted |= open.group + 1 != groups;
                }
                _ => {
                    entry.group = next(&mut groups);
                    // What cannot be joined closes its topic's batch, so that the topic's order is kept.
                    let body_len = joinable.map_or(usize::MAX / 2, |len| 4 + len);
                    let open = Open {
                        group: entry.group,
                        body_len,
                    };
                    run = Some((topic.clone(), open));
                }
            }
        }
        self.open.clear();
        unsorted
    }
}

fn next(groups: &mut u32) -> u32 {
    *groups += 1;
    *groups - 1
}
