//! The direct way in: a broker of this process registers without a connection.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::registry::{Book, Identity, Lifetimes, NodeId, Origin};

/// A registry that its servers, its handle and brokers share. Clones are the same registry.
#[derive(Clone)]
pub(in crate::test_server) struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    book: Mutex<Book>,
    changed: Notify,
}

impl Registry {
    pub(super) fn new(lifetimes: Lifetimes) -> Self {
        Self {
            inner: Arc::new(Inner {
                book: Mutex::new(Book::new(lifetimes)),
                changed: Notify::new(),
            }),
        }
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Book) -> T) -> T {
        read(&self.lock())
    }

    /// Changes it, and tells those who wait for a condition.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let result = change(&mut self.lock());
        self.inner.changed.notify_waiters();
        result
    }

    /// Wakes those who wait for a condition.
    pub(super) fn changed(&self) -> &Notify {
        &self.inner.changed
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.inner.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read(|book| f.debug_list().entries(book.see_topics()).finish())
    }
}

/// What ties one broker of this process to a registry: it is there what a connection by TCP would be.
#[derive(Debug)]
pub(in crate::test_server) struct Registration {
    registry: Registry,
    id: NodeId,
    identity: Identity,
}

impl Registration {
    /// Makes the broker known, without topics.
    pub(in crate::test_server) fn new(registry: Registry, identity: Identity) -> Self {
        let id = registry.change(Book::reserve_id);
        let registration = Self { registry, id, identity };
        registration.announce();
        registration
    }

    /// Makes the broker known again, after [`withdraw`](Self::withdraw).
    pub(in crate::test_server) fn announce(&self) {
        self.registry.change(|book| self.appear(book));
    }

    pub(in crate::test_server) fn register(&self, topic: &str, channel: Option<&str>) {
        self.registry.change(|book| {
            self.appear(book);
            // A test that has a million topics knows it.
            let _ = book.register(self.id, topic, channel);
        });
    }

    pub(in crate::test_server) fn unregister(&self, topic: &str, channel: Option<&str>) {
        self.registry.change(|book| book.unregister(self.id, topic, channel));
    }

    /// The channels of a topic that any broker has and a new one creates at its first message: all but ephemeral ones.
    pub(in crate::test_server) fn channels_of(&self, topic: &str) -> Vec<String> {
        self.registry.read(|book| {
            let channels = book.channels(topic).into_iter();
            let lasting = channels.filter(|channel| !channel.ends_with("#ephemeral"));
            lasting.map(str::to_owned).collect()
        })
    }

    /// The broker is gone: so are all its registrations.
    pub(in crate::test_server) fn withdraw(&self) {
        self.registry.change(|book| book.disappear(self.id));
    }

    fn appear(&self, book: &mut Book) {
        book.appear(self.id, &self.identity, &self.identity.tcp_address(), Origin::Direct);
    }
}
