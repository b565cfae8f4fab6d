//! Waiting until an answer given by hand is written.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::consumer::link::Link;
use crate::error::{Error, ErrorKind, Result, Step};

/// An answer to a message on its way: see [`Message::finish`](crate::consumer::Message::finish).
///
/// The answer is queued already, and leaves whether or not this is awaited. Awaited, it is `Ok` once the answer has been
/// written to the socket.
///
/// # Cancel safety
/// Dropping it changes nothing.
#[derive(Debug)]
pub struct Answering {
    sent: Sent,
}

/// How far an answer has come.
#[derive(Debug)]
pub(in crate::consumer) enum Sent {
    /// It is in this connection's queue.
    Queued(Arc<Link>),
    /// It takes the way over the supervisor, or is being written: whoever writes it will tell.
    Told(oneshot::Receiver<Result<()>>),
    /// It cannot be sent.
    Failed(Error),
}

impl Answering {
    pub(in crate::consumer) fn new(sent: Sent) -> Self {
        Self { sent }
    }

    pub(in crate::consumer) fn failed(error: Error) -> Self {
        Self::new(Sent::Failed(error))
    }
}

impl Future for Answering {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.sent {
                Sent::Queued(link) => {
                    let written = link.written();
                    self.sent = Sent::Told(written);
                }
                Sent::Told(written) => {
                    return Pin::new(written)
                        .poll(cx)
                        .map(|told| told.unwrap_or_else(|_| Err(gone())));
                }
                Sent::Failed(error) => return Poll::Ready(Err(error.clone())),
            }
        }
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::ConnectionLost,
        Step::Handle,
        "the connection ended before the answer was written; nsqd will deliver the message again",
    )
}
