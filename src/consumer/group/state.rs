//! What is known of a group, for whoever asks.

use super::budget::MemberId;
use crate::consumer::state::{ConsumerReport, ConsumerStats};
use crate::name::{Channel, Topic};

/// A group at one moment: see [`ConsumerGroup::stats`](super::ConsumerGroup::stats).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupStats {
    /// How many messages all members together may have in flight.
    pub max_in_flight: u32,
    /// What members hold of it: what they may have in flight, and what they still have from when they could have more. It
    /// is above `max_in_flight` only while that was lowered, or nsqds have sent more than they were asked for.
    pub held: u32,
    /// Whether the group is paused.
    pub paused: bool,
    /// The members, those that are ending included.
    pub members: Vec<MemberStats>,
}

/// One member of a group at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MemberStats {
    /// Its id within the group.
    pub id: MemberId,
    /// The topic that it consumes.
    pub topic: Topic,
    /// The channel that it consumes.
    pub channel: Channel,
    /// Its weight.
    pub weight: u32,
    /// How many messages it may have in flight now.
    pub allowance: u32,
    /// Whether it was silent for a while, or had no message yet, and so lends its share to busy members.
    pub idle: bool,
    /// Whether it is being shut down.
    pub ending: bool,
    /// Its own counts.
    pub consumer: ConsumerStats,
}

/// What one member did until its end.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MemberReport {
    /// Its id within the group.
    pub id: MemberId,
    /// The topic that it consumed.
    pub topic: Topic,
    /// The channel that it consumed.
    pub channel: Channel,
    /// What it did.
    pub report: ConsumerReport,
}

/// What a group did until its end: see [`ConsumerGroup::shutdown`](super::ConsumerGroup::shutdown).
///
/// The sums are over the group's whole life and so include members that had left before.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct GroupReport {
    /// The members that the shutdown has ended, in the order in which they were started.
    pub members: Vec<MemberReport>,
    /// Messages finished, those given up included.
    pub finished: u64,
    /// Messages requeued because they could not be handled.
    pub requeued: u64,
    /// Messages given up.
    pub given_up: u64,
    /// Messages given back without a handler having begun.
    pub returned: u64,
    /// Answers that nsqd has refused, because they came after `msg_timeout`.
    pub refused: u64,
    /// Answers that were lost with their connections.
    pub unsent: u64,
    /// Messages whose handlers were stopped, or could not be. Which they are is in the members' reports.
    pub abandoned: usize,
    /// Connections that did not close in time, or broke with answers unsent.
    pub unflushed: usize,
}

impl GroupReport {
    /// Whether every message was answered by whoever had it and every answer was written.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.abandoned == 0 && self.unflushed == 0
    }

    pub(super) fn add(&mut self, report: &ConsumerReport) {
        self.finished += report.finished;
        self.requeued += report.requeued;
        self.given_up += report.given_up;
        self.returned += report.returned;
        self.refused += report.refused;
        self.unsent += report.unsent;
        self.abandoned += report.abandoned.len();
        self.unflushed += report.unflushed;
    }
}
