//! A door, and a task for each connection that comes through it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::{AbortHandle, JoinSet};

use super::listener::Door;
use crate::transport::{BoxIo, Io};

/// Serves the connections of a [`Door`]. Dropping it gives the address up and ends them.
pub(super) struct Server {
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    door: Door,
    serve: Serve,
    guests: Mutex<Guests>,
}

type Serve = Box<dyn Fn(BoxIo, String) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

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
        F: Fn(BoxIo, String) -> Serving + Send + Sync + 'static,
        Serving: Future<Output = ()> + Send + 'static,
    {
        let shared = Arc::new(Shared {
            door,
            serve: Box::new(move |io, remote| Box::pin(serve(io, remote))),
            guests: Mutex::default(),
        });
        let hall = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            loop {
                let (io, remote) = hall.door.accept().await;
                hall.admit(io, remote);
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

    /// Serves a stream that did not come through the door, unless that is closed.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn serve(&self, io: impl Io + 'static, remote: impl Into<String>) {
        self.shared.admit(Box::new(io), remote.into());
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

    fn admit(&self, io: BoxIo, remote: String) {
        let serving = (self.serve)(io, remote);
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
