//! Room for what is pending: by count and by bytes (P5).

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::{Bounds, Leftover, Load, Payload};

/// What is free of the bounds. It is taken before an entry is made and given back when its command is resolved or its
/// place given up.
#[derive(Debug)]
pub(in crate::producer) struct Room {
    bounds: Bounds,
    messages: Semaphore,
    bytes: Semaphore,
    // Callers for whom there was no room stand in line, and only the first of them may take permits. Without it a
    // newcomer could take what is free while the one whose permits have just come is still to run.
    turnstile: Semaphore,
    in_line: AtomicUsize,
    /// How many of these may have arrived with an earlier attempt.
    doubtful: AtomicUsize,
    /// Whose timers those in line use: a sink may be polled outside of it.
    runtime: Option<Handle>,
}

impl Room {
    pub(in crate::producer) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            messages: Semaphore::new(bounds.messages as usize),
            bytes: Semaphore::new(bounds.bytes as usize),
            turnstile: Semaphore::new(1),
            in_line: AtomicUsize::new(0),
            doubtful: AtomicUsize::new(0),
            runtime: Handle::try_current().ok(),
        }
    }

    pub(in crate::producer) fn cost_of(&self, payload: &Payload) -> Cost {
        let messages = match payload {
            Payload::Many(bodies) => bodies.len(),
            Payload::Gone => 0,
            _ => 1,
        };
        // A publish larger than a bound is let through alone: it takes all of it.
        Cost {
            messages: messages.min(self.bounds.messages as usize),
            bytes: payload.size().min(self.bounds.bytes as usize),
        }
    }

    pub(in crate::producer) fn try_take(&self, cost: Cost) -> bool {
        if self.in_line.load(Ordering::Relaxed) > 0 {
            return false;
        }
        let Ok(messages) = self.messages.try_acquire_many(cost.messages as u32) else {
            return false;
        };
        let Ok(bytes) = self.bytes.try_acquire_many(cost.bytes as u32) else {
            return false;
        };
        messages.forget();
        bytes.forget();
        true
    }

    /// Takes a place among those who wait for room.
    pub(in crate::producer) fn stand_in_line(&self, may_have_arrived: bool) -> InLine<'_> {
        self.in_line.fetch_add(1, Ordering::Relaxed);
        self.doubtful
            .fetch_add(usize::from(may_have_arrived), Ordering::Relaxed);
        InLine {
            room: self,
            may_have_arrived,
            turn: None,
        }
    }

    /// Who waits for room at about this moment, by what would become of them without.
    pub(super) fn in_line(&self) -> Leftover {
        let unknown = self.doubtful.load(Ordering::Relaxed);
        Leftover {
            not_sent: self.in_line.load(Ordering::Relaxed).saturating_sub(unknown),
            unknown,
        }
    }

    /// Whether somebody waits for room.
    pub(super) fn is_awaited(&self) -> bool {
        self.in_line.load(Ordering::Relaxed) > 0
    }

    pub(in crate::producer) fn give_back(&self, cost: Cost) {
        if cost.messages > 0 {
            self.messages.add_permits(cost.messages);
        }
        if cost.bytes > 0 {
            self.bytes.add_permits(cost.bytes);
        }
    }

    /// Lets nobody in any more.
    pub(in crate::producer) fn close(&self) {
        self.messages.close();
        self.bytes.close();
    }

    /// How full it is at about this moment.
    pub(super) fn load(&self) -> Load {
        let free = self.messages.available_permits();
        Load {
            messages: (self.bounds.messages as usize).saturating_sub(free),
            has_room: free > 0 && self.bytes.available_permits() > 0 && !self.is_awaited(),
        }
    }

    /// How much is taken: messages and bytes.
    pub(in crate::producer) fn taken(&self) -> (usize, usize) {
        (
            self.bounds.messages as usize - self.messages.available_permits(),
            self.bounds.bytes as usize - self.bytes.available_permits(),
        )
    }
}

/// A place among the callers that wait for room.
pub(in crate::producer) struct InLine<'a> {
    room: &'a Room,
    may_have_arrived: bool,
    turn: Option<SemaphorePermit<'a>>,
}

impl InLine<'_> {
    /// Waits for room and takes it. The place is to be kept until the publish is in the queue. `false` if none came by
    /// the deadline, or none will.
    pub(in crate::producer) async fn take(&mut self, cost: Cost, deadline: Instant) -> bool {
        let taken = async {
            self.turn = Some(self.room.turnstile.acquire().await.ok()?);
            let messages = self.room.messages.acquire_many(cost.messages as u32).await.ok()?;
            let bytes = self.room.bytes.acquire_many(cost.bytes as u32).await.ok()?;
            Some((messages, bytes))
        };
        let taken = {
            let _timers = self.room.runtime.as_ref().map(Handle::enter);
            timeout_at(deadline, taken)
        };
        match taken.await.ok().flatten() {
            Some((messages, bytes)) => {
                messages.forget();
                bytes.forget();
                true
            }
            None => false,
        }
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        // Before the turn is passed on, so that whoever sees nobody in line is right.
        self.room.in_line.fetch_sub(1, Ordering::Relaxed);
        self.room
            .doubtful
            .fetch_sub(usize::from(self.may_have_arrived), Ordering::Relaxed);
    }
}

/// What a publish takes of the bounds.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::producer) struct Cost {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl Cost {
    pub(super) fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
    }
}
