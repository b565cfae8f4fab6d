//! A message as a handler sees it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::link::{Command, Link};
use crate::error::Result;
use crate::protocol::{self, MessageId};

/// A message delivered by nsqd.
///
/// The handler's result answers it; the message itself only tells about it, and can be [touched](Self::touch).
pub struct Message {
    content: protocol::Message,
    link: Arc<Link>,
}

impl Message {
    pub(super) fn new(content: protocol::Message, link: Arc<Link>) -> Self {
        Self { content, link }
    }

    /// What was published.
    ///
    /// The bytes are a slice of the buffer that was read from the connection (up to 128 KiB, or the message's size if
    /// it is larger), and keeping them keeps all of it: copy them with `Bytes::copy_from_slice` to keep a small body
    /// for long.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.content.body
    }

    /// What was published, without a copy. See [`body`](Self::body) on keeping it.
    #[must_use]
    pub fn into_body(self) -> Bytes {
        self.content.body
    }

    /// The id, unique within a topic of one nsqd.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.content.id
    }

    /// How often nsqd has delivered this message, this time included: 1 at first.
    #[must_use]
    pub fn attempts(&self) -> u16 {
        self.content.attempts
    }

    /// When nsqd took the message in, by nsqd's clock.
    #[must_use]
    pub fn timestamp(&self) -> SystemTime {
        let nanos = self.content.timestamp;
        let distance = Duration::from_nanos(nanos.unsigned_abs());
        let time = if nanos < 0 {
            SystemTime::UNIX_EPOCH.checked_sub(distance)
        } else {
            SystemTime::UNIX_EPOCH.checked_add(distance)
        };
        time.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// The address of the nsqd that delivered the message, as configured or discovered.
    #[must_use]
    pub fn nsqd(&self) -> &str {
        &self.link.address
    }

    /// Makes nsqd's timeout for this message begin anew (TOUCH), for a handler that takes long. nsqd allows it up to
    /// its `max-msg-timeout` (15 min by default) after the delivery.
    ///
    /// It returns when the command is queued; nsqd does not answer it.
    ///
    /// # Errors
    /// [`ErrorKind::ConnectionLost`](crate::ErrorKind::ConnectionLost) if the connection that delivered the message
    /// is gone: nsqd will deliver it again whatever this handler does.
    /// [`ErrorKind::NotSent`](crate::ErrorKind::NotSent) if thousands of touches wait already.
    pub fn touch(&self) -> Result<()> {
        self.link.send(Command::Touch(self.content.id))
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.content.id)
            .field("attempts", &self.content.attempts)
            .field("nsqd", &self.link.address)
            .field("body_len", &self.content.body.len())
            .finish()
    }
}
