//! Looks after handlers that block their threads, from a thread that no handler can block.
//!
//! When a handler blocks a thread of the runtime, what that thread has just made ready is stuck with it, and if it was
//! the one that waits for sockets and timers, then no other thread may be doing so: a sleeping thread takes that over
//! only once something wakes it. So neither a task nor a timer could find out about it.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::spawn_blocking;

use super::inbox::{Inbox, Look};

/// How long a handler may keep its thread before the messages and answers behind it are taken to other threads: once
/// to twice this.
const STUCK: Duration = Duration::from_millis(5);

/// The lookout over a consumer's workers. It takes a thread of the blocking pool while handlers are run, and wakes it
/// once per [`STUCK`].
pub(in crate::consumer) struct Lookout {
    inbox: Arc<Inbox>,
    /// Whether there are other threads that could take over.
    useful: bool,
}

impl Lookout {
    /// A lookout for workers of the current runtime.
    pub(in crate::consumer) fn new(inbox: Arc<Inbox>) -> Self {
        Self {
            inbox,
            useful: Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread,
        }
    }

    /// Begins to look, until nothing is left to look after. To be called when the inbox says that nobody does.
    pub(in crate::consumer) fn begin(&self) {
        if !self.useful {
            return;
        }
        let inbox = Arc::clone(&self.inbox);
        spawn_blocking(move || {
            loop {
                std::thread::sleep(STUCK);
                match inbox.relieve_stuck() {
                    Look::Again { stuck: false } => {}
                    // Any task will do: the thread that it wakes goes on to wait for sockets and timers.
                    Look::Again { stuck: true } => drop(tokio::spawn(async {})),
                    Look::Done => return,
                }
            }
        });
    }
}
