//! What goes wrong on purpose.

use std::fmt;
use std::io;

use bytes::Bytes;

use super::broker::Shared;

/// The scripted answers.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) drop_heartbeats: bool,
    swallowed_publishes: usize,
    publish_error: Option<(usize, Bytes)>,
    finish_error: Option<(usize, Bytes)>,
}

impl Script {
    pub(super) fn next_publish_error(&mut self) -> Option<Bytes> {
        next_error(&mut self.publish_error)
    }

    pub(super) fn next_finish_error(&mut self) -> Option<Bytes> {
        next_error(&mut self.finish_error)
    }

    pub(super) fn swallows_publish_answer(&mut self) -> bool {
        let swallows = self.swallowed_publishes > 0;
        self.swallowed_publishes = self.swallowed_publishes.saturating_sub(1);
        swallows
    }
}

fn next_error(script: &mut Option<(usize, Bytes)>) -> Option<Bytes> {
    let (count, text) = script.as_mut()?;
    *count = count.checked_sub(1)?;
    Some(text.clone())
}

/// Makes an [`Nsqd`](super::Nsqd) misbehave: what [`Nsqd::faults`](super::Nsqd::faults) returns.
///
/// Each fault lasts until it is used up or taken back. They can be combined.
///
/// ```
/// use async_nsq::test_server::Nsqd;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let nsqd = Nsqd::start().await?;
/// nsqd.faults().swallow_publish_answers(1);
/// nsqd.faults().fail_finishes(2, "E_FIN_FAILED FIN 0123456789abcdef failed ID not in flight");
/// nsqd.faults().clear()?;
/// # Ok(())
/// # }
/// ```
pub struct Faults<'a> {
    pub(super) shared: &'a Shared,
}

impl Faults<'_> {
    /// Refuses new connections, as a host does on which nothing listens. Existing ones stay.
    pub fn refuse_connections(&self) {
        self.shared.door.close();
    }

    /// Accepts connections again, at the same address.
    ///
    /// # Errors
    /// If the address was taken by someone else meanwhile, which the broker prevents as far as the system lets it.
    pub fn accept_connections(&self) -> io::Result<()> {
        self.shared.door.open()
    }

    /// Ends every connection without a word. What was to be written is lost; what is in flight stays so until it times
    /// out.
    ///
    /// The connections are gone once their tasks have noticed: await it by
    /// [`wait_for`](super::Nsqd::wait_for)`(|stats| stats.clients.is_empty())`.
    pub fn disconnect_all(&self) {
        for task in self.shared.read(|state| state.tasks()) {
            task.abort();
        }
    }

    /// Makes the existing connections half-open: nothing is read from them and nothing is written, heartbeats
    /// included, and they are not closed either. New connections work.
    ///
    /// The broker itself goes on: it still sends the messages that RDY allows, into the void, and they time out.
    pub fn freeze(&self) {
        self.set_frozen(true);
    }

    /// Lets frozen connections go on, with what has gathered meanwhile. Their deadlines begin anew.
    pub fn thaw(&self) {
        self.set_frozen(false);
    }

    fn set_frozen(&self, frozen: bool) {
        self.shared.read(|state| {
            for client in state.clients.values() {
                client.link.set_frozen(frozen);
            }
        });
    }

    /// Carries out the next `count` publishes, and does not answer them.
    pub fn swallow_publish_answers(&self, count: usize) {
        self.shared.change(|state| state.script.swallowed_publishes = count);
    }

    /// Does not carry out the next `count` publishes, and answers them with an error frame of this text. All codes
    /// but `E_FIN_FAILED`, `E_REQ_FAILED` and `E_TOUCH_FAILED` close the connection, as nsqd does.
    pub fn fail_publishes(&self, count: usize, text: impl Into<String>) {
        let script = Some((count, Bytes::from(text.into())));
        self.shared.change(|state| state.script.publish_error = script);
    }

    /// Does not carry out the next `count` FINs, and answers them with an error frame of this text. See
    /// [`fail_publishes`](Self::fail_publishes) for what the code does.
    pub fn fail_finishes(&self, count: usize, text: impl Into<String>) {
        let script = Some((count, Bytes::from(text.into())));
        self.shared.change(|state| state.script.finish_error = script);
    }

    /// Whether heartbeats are left out. A client that is not asked has nothing to answer, so that it is disconnected
    /// unless it sends commands of its own.
    pub fn drop_heartbeats(&self, drop: bool) {
        self.shared.change(|state| state.script.drop_heartbeats = drop);
    }

    /// Takes all faults back: scripted answers are forgotten, connections accepted and thawed. A broker that is
    /// [stopped](super::Nsqd::stop) stays so.
    ///
    /// # Errors
    /// As [`accept_connections`](Self::accept_connections).
    pub fn clear(&self) -> io::Result<()> {
        self.thaw();
        let stopped = self.shared.change(|state| {
            state.script = Script::default();
            state.closed
        });
        if stopped { Ok(()) } else { self.accept_connections() }
    }
}

impl fmt::Debug for Faults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.read(|state| fmt::Debug::fmt(&state.script, f))
    }
}
