//! The nsqds of a pool: they come, go, and have a connection or not.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLockWriteGuard};
use std::time::Duration;

use super::super::lane::{Lane, SHUT_DOWN};
use super::super::stats::{Past, ProducerStats};
use super::routing::{RoutedMessage, RoutedNsqd};
use super::{Counts, Pool};
use crate::error::{Error, ErrorKind, Result, Step};

/// Where an nsqd stands, if that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::producer) struct Place {
    pub(in crate::producer) region: Option<Arc<str>>,
    pub(in crate::producer) zone: Option<Arc<str>>,
}

#[derive(Debug, Default)]
pub(super) struct Members {
    /// Copied on each change, so that a publish holds no lock while it looks at them.
    present: Arc<[Member]>,
    /// Removed, with something still pending there.
    leaving: Vec<Arc<Lane>>,
    /// What those did that were removed and have ended.
    past: Past,
}

#[derive(Clone, Debug)]
struct Member {
    lane: Arc<Lane>,
    place: Place,
    /// Told of by the user. It stays as long as any source tells of it.
    given: bool,
    /// Told of by an nsqlookupd.
    announced: bool,
}

/// Who tells of an nsqd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::producer) enum Source {
    User,
    Lookupd,
}

impl Members {
    fn forget_ended(&mut self) {
        let past = &mut self.past;
        self.leaving.retain(|lane| {
            let ended = lane.has_ended();
            if ended {
                past.add(&lane.stats());
            }
            !ended
        });
    }
}

impl Member {
    fn new(lane: Arc<Lane>) -> Self {
        Self {
            lane,
            place: Place::default(),
            given: false,
            announced: false,
        }
    }

    fn told_by(&mut self, source: Source) -> &mut bool {
        match source {
            Source::User => &mut self.given,
            Source::Lookupd => &mut self.announced,
        }
    }

    fn facts(&self) -> RoutedNsqd<'_> {
        let load = self.lane.load();
        let mut facts = RoutedNsqd::new(&self.lane.address);
        facts.region = self.place.region.as_deref();
        facts.zone = self.place.zone.as_deref();
        facts.pending_messages = load.messages;
        facts.has_room = load.has_room;
        facts
    }
}

impl Pool {
    fn present(&self) -> Arc<[Member]> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&members.present)
    }

    pub(in crate::producer) fn lanes(&self) -> Vec<Arc<Lane>> {
        self.present().iter().map(|member| Arc::clone(&member.lane)).collect()
    }

    /// The lanes, and those that were removed and have not ended yet.
    pub(super) fn all_lanes(&self) -> Vec<Arc<Lane>> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        let present = members.present.iter().map(|member| &member.lane);
        present.chain(&members.leaving).map(Arc::clone).collect()
    }

    pub(in crate::producer) fn stats(&self) -> ProducerStats {
        let (present, leaving, past) = {
            let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
            (
                Arc::clone(&members.present),
                members.leaving.clone(),
                members.past.clone(),
            )
        };
        let mut stats = ProducerStats::new(self.books.counts(), past);
        for member in present.iter() {
            let node = member.lane.stats();
            stats.add(&node);
            stats.nsqds.push(node);
        }
        for lane in leaving {
            stats.add(&lane.stats());
        }
        let Counts { retried, elsewhere } = &self.counts;
        stats.retried = retried.load(Ordering::Relaxed);
        stats.rerouted = elsewhere.load(Ordering::Relaxed);
        stats.pending_messages += self.waiting.messages.load(Ordering::Relaxed);
        stats.pending_bytes += self.waiting.bytes.load(Ordering::Relaxed);
        stats
    }

    /// The smallest of the `max-body-size`s that the nsqds have told.
    pub(in crate::producer) fn learnt_body_size(&self) -> usize {
        let sizes = self
            .present()
            .iter()
            .map(|member| member.lane.pipeline.learnt().body_size)
            .min();
        sizes.unwrap_or(usize::MAX)
    }

    /// A reason why an nsqd has no connection, or none is known.
    pub(super) fn failure(&self) -> Option<Error> {
        let failure = self.present().iter().find_map(|member| member.lane.failure());
        failure.or_else(|| self.discovery_failure())
    }

    pub(in crate::producer) fn is_connected(&self) -> bool {
        self.present().iter().any(|member| member.lane.is_connected())
    }

    pub(super) fn connected(&self) -> Vec<Arc<Lane>> {
        let mut lanes = self.lanes();
        lanes.retain(|lane| lane.is_connected());
        lanes
    }

    /// Keeps of the removed nsqds only those that have something pending.
    pub(super) fn forget_ended(&self) {
        self.members().forget_ended();
    }

    fn members(&self) -> RwLockWriteGuard<'_, Members> {
        self.members.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an nsqd and begins to connect to it. One that is there already stays, in its newly told place. Returns whether
    /// this source has not told of it before.
    pub(in crate::producer) fn add(&self, address: &Arc<str>, place: Place, source: Source) -> Result<bool> {
        let mut members = self.members();
        // Asked under the lock: whoever closes the gate looks at the members after that.
        self.check_open()?;
        let mut present = members.present.to_vec();
        let known = present.iter().position(|member| member.lane.address == *address);
        let known = known.unwrap_or_else(|| {
            present.push(Member::new(self.new_lane(address)));
            present.len() - 1
        });
        let member = &mut present[known];
        let is_new = !std::mem::replace(member.told_by(source), true);
        if place != Place::default() {
            member.place = place;
        }
        members.present = present.into();
        members.forget_ended();
        Ok(is_new)
    }

    fn new_lane(&self, address: &Arc<str>) -> Arc<Lane> {
        let _tasks = self.detached.runtime.enter();
        let lane = Lane::in_pool(Arc::clone(address), &self.options, self.notices.clone());
        Arc::new(lane)
    }

    /// As [`remove`](Self::remove), for the user.
    pub(in crate::producer) fn remove_given(&self, address: &str) -> Result<bool> {
        self.check_open()?;
        Ok(self.remove(address, Source::User))
    }

    fn check_open(&self) -> Result<()> {
        if self.is_closed() {
            return Err(Error::new(ErrorKind::Shutdown, Step::Configure, SHUT_DOWN));
        }
        Ok(())
    }

    /// This source tells of an nsqd no more. Without any it is removed: what is pending there is still sent; what cannot
    /// be, goes elsewhere. Returns whether the source had told of it.
    pub(in crate::producer) fn remove(&self, address: &str, source: Source) -> bool {
        let mut members = self.members();
        let mut present = members.present.to_vec();
        let Some(index) = present.iter().position(|member| *member.lane.address == *address) else {
            return false;
        };
        let member = &mut present[index];
        let was_told = std::mem::take(member.told_by(source));
        let gone = (!member.given && !member.announced).then(|| Arc::clone(&member.lane));
        if let Some(lane) = &gone {
            present.remove(index);
            members.leaving.push(Arc::clone(lane));
        }
        members.present = present.into();
        members.forget_ended();
        drop(members);
        if let Some(lane) = gone {
            // Not under the lock, since it wakes those who wait there.
            lane.drain("the nsqd has been removed");
        }
        was_told
    }

    /// Up to `most` nsqds with a connection for a message, the best first. *Not sent* if the router panics.
    pub(super) fn choose(
        &self,
        message: &RoutedMessage<'_>,
        most: usize,
        is_ruled_out: impl Fn(&Arc<Lane>) -> bool,
    ) -> Result<Vec<Arc<Lane>>> {
        let present = self.present();
        let free: Vec<&Member> = present
            .iter()
            .filter(|member| member.lane.is_connected() && !is_ruled_out(&member.lane))
            .collect();
        let facts: Vec<RoutedNsqd<'_>> = free.iter().map(|member| member.facts()).collect();
        let order = self.policy.routing.order(message, &facts)?;
        let chosen = order.into_iter().take(most);
        Ok(chosen.map(|nsqd| Arc::clone(&free[nsqd].lane)).collect())
    }

    /// Waits until one of the nsqds has a connection, or all that are known after one round of discovery have failed once.
    pub(in crate::producer) async fn first_attempts(&self) -> Result<()> {
        let mut up = self.notices.up.listen();
        let connected = async {
            while !self.is_connected() {
                up.rung().await;
            }
        };
        let attempts = async {
            self.asked().await;
            // They are under way all at once; the first that succeeds ends the waiting for the others.
            for lane in self.lanes() {
                let _its_failure_is_known = lane.first_attempt().await;
            }
        };
        tokio::select! {
            biased;
            () = connected => Ok(()),
            () = attempts => if self.is_connected() { Ok(()) } else { Err(self.not_ready(None)) },
        }
    }

    pub(super) fn not_ready(&self, deadline: Option<Duration>) -> Error {
        let lanes = self.lanes();
        let lanes: Vec<&Lane> = lanes.iter().map(|lane| &**lane).collect();
        not_ready(&lanes, self.discovery_failure(), deadline)
    }
}

/// Why no nsqd has a connection, with one failure as the cause.
pub(in crate::producer) fn not_ready(lanes: &[&Lane], discovery: Option<Error>, deadline: Option<Duration>) -> Error {
    let mut failures: Vec<Error> = lanes.iter().filter_map(|lane| lane.failure()).collect();
    let within = deadline.map_or(String::new(), |deadline| format!(" within {deadline:?}"));
    let text = match (lanes, failures.len()) {
        ([], _) => format!("no connection{within}: no nsqd is known yet"),
        ([only], 0) => format!("no connection{within}: nsqd {} has not answered yet", only.address),
        ([only], _) => format!("no connection{within} to nsqd {}", only.address),
        (all, 0) => format!(
            "no connection{within}: none of the {} nsqds has answered yet",
            all.len()
        ),
        (all, failed) => format!(
            "no connection{within}: {failed} of the {} nsqds fail, one of them for the reason that follows",
            all.len()
        ),
    };
    let error = Error::new(ErrorKind::Unreachable, Step::Dial, text);
    failures.extend(discovery);
    match failures.into_iter().next() {
        Some(failure) => error.because(failure),
        None => error,
    }
}
