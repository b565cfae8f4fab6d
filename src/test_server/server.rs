//! A door, and a task for each connection that comes through it.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::{AbortHandle, JoinSet};

use super::listener::Door;
use crate::transport::BoxIo;

/// Serves the connections of a [`Door`]. Dropping it gives the address up and ends them.
pub(super) struct Server {
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    door: Door,
    guests: Mutex<Guests>,
}

#[derive(Default)]
struct Guests {
    /// Whether one that has come in before the door was closed is sent away.
    closed: bool,
    tasks: JoinSet<()>,
}

impl Server {
    /// Serves each connection, given with the name of its other end, in a task of its own.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn start<F, Serving>(door: Door, serve: F) -> Self
    where
        F: Fn(BoxIo, String) -> Serving + Send + 'static,
        Serving: Future<Output = ()> + Send + 'static,
    {
        let shared = Arc::new(Shared {
            door,
            guests: Mutex::default(),
        });
        let hall = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            loop {
                let (io, remote) = hall.door.accept().await;
                hall.admit(serve(io, remote));
            }
        });
        Self {
            shared,
            accepting: accepting.abort_handle(),
        }
    }

    pub(super) fn address(&self) -> &str {
        self.shared.door.address()
    }

    /// Refuses connections, and ends the existing ones.
    pub(super) fn close(&self) {
        self.shared.door.close();
        self.shared.send_all_away();
    }

    /// Accepts connections again, at the same address.
    pub(super) fn open(&self) -> io::Result<()> {
        self.shared.lock().closed = false;
        self.shared.door.open()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.door.demolish();
        self.shared.send_all_away();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, serving: impl Future<Output = ()> + Send + 'static) {
        let mut guests = self.lock();
        while guests.tasks.try_join_next().is_some() {}
        if !guests.closed {
            guests.tasks.spawn(serving);
        }
    }

    fn send_all_away(&self) {
        let tasks = {
            let mut guests = self.lock();
            guests.closed = true;
            std::mem::take(&mut guests.tasks)
        };
        // Aborts them, and not under the lock.
        drop(tasks);
    }
}
