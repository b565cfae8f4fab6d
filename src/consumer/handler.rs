//! What a service does with a message, and what it says of the result.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use super::message::Message;

/// Any error of a handler: what `?` makes of every error type.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What a service does with a message.
///
/// `Ok(())` finishes the message (FIN). An error requeues it (REQ) with the consumer's default delay and makes the
/// consumer back off; a [`HandlerError`] says something more particular. A panic counts as an error and stays within
/// its message. At most `concurrency` handlers run at once.
///
/// A closure is a handler:
///
/// ```
/// use async_nsq::{BoxError, Message};
///
/// let handler = |message: Message| async move {
///     let text = std::str::from_utf8(message.body())?;
///     println!("{text}");
///     Ok::<(), BoxError>(())
/// };
/// # fn check(_: impl async_nsq::Handler) {}
/// # check(handler);
/// ```
///
/// A type with state implements the trait with an `async fn`:
///
/// ```
/// use async_nsq::{BoxError, Handler, HandlerError, Message};
///
/// struct Billing { currency: String }
///
/// impl Handler for Billing {
///     type Error = BoxError;
///
///     async fn handle(&self, message: Message) -> Result<(), BoxError> {
///         if message.body().is_empty() {
///             // No use in trying again.
///             return Err(HandlerError::give_up().into());
///         }
///         println!("charging in {}", self.currency);
///         Ok(())
///     }
/// }
/// ```
///
/// # Blocking
/// Handlers run on the runtime's threads. One that blocks its thread keeps the other messages going on a
/// multi-threaded runtime, but it takes a thread away from everything else in the process, and as
/// many of them as the runtime has threads stop everything, heartbeats included, so that nsqd drops the connection: use
/// `tokio::task::spawn_blocking` within the handler for work of more than a few milliseconds.
///
/// # Cancel safety
/// The future of a handler is dropped at an await point when the deadline of
/// [`Consumer::shutdown`](crate::Consumer::shutdown) comes near or the consumer is dropped; its message is given back
/// and delivered again. [`handler_timeout`](crate::ConsumerBuilder::handler_timeout) drops one that takes too long, and
/// [`keep_alive`](crate::ConsumerBuilder::keep_alive) one whose message is lost. Without these nothing else cancels it, not
/// even the loss of the connection.
pub trait Handler: Send + Sync + 'static {
    /// Why a message could not be handled.
    type Error: Into<BoxError>;

    /// Handles one message.
    ///
    /// # Errors
    /// Any error requeues the message or, by a [`HandlerError`], gives it up.
    fn handle(&self, message: Message) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

impl<F, Fut, E> Handler for F
where
    F: Fn(Message) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send,
    E: Into<BoxError>,
{
    type Error = E;

    fn handle(&self, message: Message) -> impl Future<Output = Result<(), E>> + Send {
        self(message)
    }
}

/// An error of a handler that says what shall become of the message.
///
/// ```
/// use std::time::Duration;
/// use async_nsq::HandlerError;
///
/// // The service behind is known to be down for a while; that is no reason to slow down on other messages.
/// let error = HandlerError::requeue_after(Duration::from_secs(30)).without_backoff();
/// # let _ = error;
/// ```
#[derive(Debug)]
pub struct HandlerError {
    verdict: Verdict,
    source: Option<BoxError>,
}

/// What becomes of a message that was not handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Deliver it again; `None` is the consumer's default delay.
    Requeue { delay: Option<Duration>, backoff: bool },
    /// Do not deliver it again: the give-up hook, then FIN.
    GiveUp,
}

impl Verdict {
    /// What an error without instructions means.
    pub(super) const PLAIN: Self = Self::Requeue {
        delay: None,
        backoff: true,
    };

    /// What a handler's error asks for.
    pub(super) fn of(error: &BoxError) -> Self {
        error
            .downcast_ref()
            .map_or(Self::PLAIN, |error: &HandlerError| error.verdict)
    }
}

impl HandlerError {
    /// Requeues the message with the consumer's default delay. The same as any other error.
    #[must_use]
    pub fn requeue() -> Self {
        Self::new(Verdict::PLAIN)
    }

    /// Requeues the message after `delay`. nsqd shortens it to its `max-req-timeout` (one hour by default).
    #[must_use]
    pub fn requeue_after(delay: Duration) -> Self {
        Self::new(Verdict::Requeue {
            delay: Some(delay),
            backoff: true,
        })
    }

    /// Gives the message up at once: the give-up hook is called, the message is published to the dead-letter topic, where
    /// there are such, and finished.
    #[must_use]
    pub fn give_up() -> Self {
        Self::new(Verdict::GiveUp)
    }

    /// Does not count as a failure for the consumer's backoff.
    #[must_use]
    pub fn without_backoff(mut self) -> Self {
        if let Verdict::Requeue { backoff, .. } = &mut self.verdict {
            *backoff = false;
        }
        self
    }

    /// Adds the cause, for the log.
    #[must_use]
    pub fn because(mut self, cause: impl Into<BoxError>) -> Self {
        self.source = Some(cause.into());
        self
    }

    pub(super) fn new(verdict: Verdict) -> Self {
        Self { verdict, source: None }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict {
            Verdict::Requeue { delay: None, .. } => f.write_str("the message is to be requeued"),
            Verdict::Requeue { delay: Some(delay), .. } => write!(f, "the message is to be requeued after {delay:?}"),
            Verdict::GiveUp => f.write_str("the message is given up"),
        }
    }
}

impl StdError for HandlerError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_survive_the_box_and_other_errors_mean_the_default() {
        let asked: BoxError = HandlerError::requeue_after(Duration::from_secs(1))
            .without_backoff()
            .into();
        assert_eq!(
            Verdict::of(&asked),
            Verdict::Requeue {
                delay: Some(Duration::from_secs(1)),
                backoff: false
            }
        );
        assert_eq!(Verdict::of(&HandlerError::give_up().into()), Verdict::GiveUp);
        assert_eq!(Verdict::of(&"out of paper".into()), Verdict::PLAIN);
    }
}
