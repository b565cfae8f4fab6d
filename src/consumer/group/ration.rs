//! What a group and one of its consumers tell each other. Neither waits for the other: the consumer's supervisor takes what
//! it is allowed when it looks around, and leaves there what it uses.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::budget::{MemberId, Order};
use crate::consumer::flow::PauseReason;

/// Wakes the group. It is bounded by the number of members.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Mutex<BTreeSet<MemberId>>,
    notify: Notify,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<MemberId>> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, member: MemberId) {
        self.lock().insert(member);
        self.notify.notify_one();
    }

    /// Makes the group look at its timer again.
    pub(super) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Waits until somebody has rung.
    ///
    /// # Cancel safety
    /// No ring is lost.
    pub(super) async fn rung(&self) {
        self.notify.notified().await;
    }

    pub(super) fn take(&self) -> BTreeSet<MemberId> {
        std::mem::take(&mut *self.lock())
    }
}

/// The allowance of one consumer, and what it uses of that.
#[derive(Debug)]
pub(in crate::consumer) struct Ration {
    member: MemberId,
    bell: Arc<Bell>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last order, and whether it is still to be carried out.
    order: u64,
    allowance: Option<u32>,
    paused: bool,
    /// The order that is being carried out.
    taken: u64,
    /// What was reported: under which order, and how much.
    reported: (u64, u32),
    /// Whether the next message is news.
    first_wanted: bool,
}

impl Ration {
    pub(super) fn new(member: MemberId, bell: Arc<Bell>) -> Self {
        let state = State {
            // It begins with nothing.
            allowance: Some(0),
            ..State::default()
        };
        Self {
            member,
            bell,
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what was not yet taken.
    pub(super) fn give(&self, order: Order, paused: bool) {
        let mut state = self.lock();
        state.order = order.number;
        state.allowance = Some(order.allowance);
        state.paused = paused;
    }

    /// The group wants to hear of the next message.
    pub(super) fn want_first(&self) {
        self.lock().first_wanted = true;
    }

    /// Under which order the consumer was when it reported last, and what it then used.
    pub(super) fn reported(&self) -> (u64, u32) {
        self.lock().reported
    }

    /// The consumer's new `max_in_flight`, if there is one.
    pub(in crate::consumer) fn take(&self) -> Option<u32> {
        let mut state = self.lock();
        state.taken = state.order;
        state.allowance.take()
    }

    /// The consumer has carried out what it took. It uses this much, and may have got messages since the last report.
    pub(in crate::consumer) fn report(&self, charge: u32, messages: bool) {
        let mut state = self.lock();
        let report = (state.taken, charge);
        let first = messages && std::mem::take(&mut state.first_wanted);
        if std::mem::replace(&mut state.reported, report) != report || first {
            drop(state);
            self.bell.ring(self.member);
        }
    }

    /// Whether the group waits for a message of a consumer that has none.
    pub(in crate::consumer) fn wants_first(&self) -> bool {
        self.lock().first_wanted
    }

    /// What the consumer takes for its own `max_in_flight` of 0 is the group's doing.
    pub(in crate::consumer) fn explain(&self, reason: PauseReason) -> PauseReason {
        match reason {
            PauseReason::MaxInFlightZero if self.lock().paused => PauseReason::Paused,
            PauseReason::MaxInFlightZero => PauseReason::WaitingForShare,
            reason => reason,
        }
    }
}
