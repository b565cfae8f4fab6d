//! Messages that come again although they were finished: recognised by a key, and not handled a second time.
//!
//! ```text
//!  delivery ── key ──▶ claimed by another delivery? ──yes──▶ parked until that one is answered
//!                        │ no: a ticket                          │ finished: FIN     │ not: into the inbox again
//!                        ▼
//!                      finished before? ──yes──▶ FIN
//!                        │ no
//!                        ▼
//!                      handled; the key is recorded before FIN is queued
//! ```

mod ticket;
mod window;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use self::ticket::Claims;
pub(super) use self::ticket::{Admission, Duplicates, Ticket, Unstarted};
use self::window::{Key, Window};
use super::handler::BoxError;
use super::message::Message;

/// How long a store may take for one question or record. A message is worth more than its key: what takes longer counts
/// as an error.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a [`DuplicateStore`] returns.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send + 'a>>;

/// Where the keys of finished messages are kept, if not in memory: shared by several processes, or across restarts.
///
/// A call that fails, panics or takes longer than 5 s is logged at `warn`, and the message is handled as if it were new:
/// rather twice than not at all.
///
/// ```
/// use std::collections::HashSet;
/// use std::sync::Mutex;
/// use async_nsq::{DuplicateStore, StoreFuture};
///
/// #[derive(Default)]
/// struct Keys(Mutex<HashSet<Vec<u8>>>);
///
/// impl DuplicateStore for Keys {
///     fn is_finished<'a>(&'a self, key: &'a [u8]) -> StoreFuture<'a, bool> {
///         Box::pin(async move { Ok(self.0.lock().unwrap().contains(key)) })
///     }
///
///     fn record_finished<'a>(&'a self, key: &'a [u8]) -> StoreFuture<'a, ()> {
///         Box::pin(async move {
///             self.0.lock().unwrap().insert(key.to_vec());
///             Ok(())
///         })
///     }
/// }
/// ```
pub trait DuplicateStore: Send + Sync + 'static {
    /// Whether a message with this key was finished.
    fn is_finished<'a>(&'a self, key: &'a [u8]) -> StoreFuture<'a, bool>;

    /// Remembers that the message with this key was finished. FIN is sent once this has ended.
    fn record_finished<'a>(&'a self, key: &'a [u8]) -> StoreFuture<'a, ()>;
}

/// Which messages count as duplicates: see [`ConsumerBuilder::skip_duplicates`](super::ConsumerBuilder::skip_duplicates).
///
/// By default a message is known by its topic, channel, nsqd and id. That recognises what one nsqd delivers again,
/// because the FIN was lost with a connection or came after `msg_timeout`. [`key`](Self::key) says otherwise: for messages
/// that are published to several nsqds, or published twice by a retry, take something from the body.
///
/// Clones share what they remember, so several consumers may use one window. With a key of one's own, a key of one of
/// them is then a duplicate to all.
#[derive(Clone)]
#[must_use = "a window does nothing until it is given to a consumer"]
pub struct DuplicateWindow {
    memory: Arc<Memory>,
    key: Option<KeyFunction>,
}

type KeyFunction = Arc<dyn Fn(&Message) -> Vec<u8> + Send + Sync>;

/// What clones of a window share.
struct Memory {
    store: Store,
    claims: Claims,
}

enum Store {
    /// Asked without waiting.
    InMemory(Mutex<Window>),
    Other(Arc<dyn DuplicateStore>),
}

impl DuplicateWindow {
    /// Remembers up to `count` keys, each for up to `age`, in memory: about 100 bytes and twice a pointer per key of the
    /// default length. The oldest makes room for the newest. What is forgotten is handled again if it comes again. There
    /// is no default and no bound to either; with 0 nothing is remembered.
    ///
    /// A good `age` is longer than nsqd's `msg-timeout` (60 s) and than a reconnection takes; a good `count` what the
    /// consumer finishes in that time.
    pub fn new(count: usize, age: Duration) -> Self {
        Self::of(Store::InMemory(Mutex::new(Window::new(count, age))))
    }

    /// Keeps the keys in a store of one's own, which also decides how long.
    ///
    /// The store is asked before each message, and told before each FIN. Workers ask side by side; a
    /// [`MessageStream`](super::MessageStream) and batches ask for one message after the other.
    pub fn in_store(store: impl DuplicateStore) -> Self {
        Self::of(Store::Other(Arc::new(store)))
    }

    fn of(store: Store) -> Self {
        Self {
            memory: Arc::new(Memory {
                store,
                claims: Claims::default(),
            }),
            key: None,
        }
    }

    /// What makes two messages the same: any bytes made from the message. If the function panics, the message is handled
    /// as one that has no duplicates.
    ///
    /// ```
    /// use std::time::Duration;
    /// use async_nsq::{Consumer, DuplicateWindow, Message};
    ///
    /// // Each order is published to two nsqds, so that one of them may die.
    /// let window = DuplicateWindow::new(100_000, Duration::from_secs(600))
    ///     .key(|message: &Message| message.body().clone());
    /// let builder = Consumer::builder("orders", "billing").skip_duplicates(window);
    /// # let _ = builder;
    /// ```
    pub fn key<K: AsRef<[u8]>>(mut self, key: impl Fn(&Message) -> K + Send + Sync + 'static) -> Self {
        self.key = Some(Arc::new(move |message| key(message).as_ref().to_vec()));
        self
    }
}

impl fmt::Debug for DuplicateWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store = match self.memory.store {
            Store::InMemory(_) => "in memory",
            Store::Other(_) => "external",
        };
        f.debug_struct("DuplicateWindow")
            .field("store", &store)
            .finish_non_exhaustive()
    }
}

/// An answer that may be there at once.
enum Maybe<T> {
    Now(T),
    Later(Pin<Box<dyn Future<Output = T> + Send>>),
}

impl Memory {
    fn is_finished(&self, key: &Key) -> Maybe<bool> {
        match &self.store {
            Store::InMemory(window) => {
                let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
                Maybe::Now(window.contains(key, Instant::now().into_std()))
            }
            Store::Other(store) => {
                let (store, key) = (Arc::clone(store), Arc::clone(key));
                Maybe::Later(Box::pin(async move {
                    let asking = ask("asked", move || async move { store.is_finished(&key).await });
                    asking.await.unwrap_or(false)
                }))
            }
        }
    }

    fn record(&self, key: &Key) -> Maybe<()> {
        match &self.store {
            Store::InMemory(window) => {
                let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
                window.record(Arc::clone(key), Instant::now().into_std());
                Maybe::Now(())
            }
            Store::Other(store) => {
                let (store, key) = (Arc::clone(store), Arc::clone(key));
                Maybe::Later(Box::pin(async move {
                    ask("told", move || async move { store.record_finished(&key).await }).await;
                }))
            }
        }
    }
}

/// Calls a store, and keeps its errors and panics from the message.
async fn ask<F, T>(verb: &str, call: impl FnOnce() -> F) -> Option<T>
where
    F: Future<Output = Result<T, BoxError>>,
{
    let mut answer = None;
    let slot = &mut answer;
    let called = super::work::panics::catch_panic(move || {
        let calling = call();
        async move {
            *slot = Some(calling.await?);
            Ok::<(), BoxError>(())
        }
    });
    let failed = match timeout(PATIENCE, called).await {
        Ok(Ok(())) => return answer,
        Ok(Err(error)) => error,
        Err(_elapsed) => format!("no answer within {PATIENCE:?}").into(),
    };
    tracing::warn!(
        error = &*failed as &dyn std::error::Error,
        "the store of finished messages could not be {verb}; a duplicate may be handled"
    );
    None
}
