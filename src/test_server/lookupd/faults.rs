//! What goes wrong on purpose.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;

use super::Lookupd;
use super::registry::Book;
use crate::test_server::http::Scope;

/// Makes a [`Lookupd`] misbehave: what [`Lookupd::faults`] returns.
///
/// Each fault of HTTP lasts until another one or [`clear`](Self::clear), and applies to all requests, unless
/// [`path`](Self::path) and [`times`](Self::times) say otherwise: a fault with such a scope stands before those that were
/// there already, until it is used up. A delay and an answer can be combined.
///
/// ```
/// use async_nsq::test_server::Lookupd;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let lookupd = Lookupd::start().await?;
/// lookupd.faults().path("/lookup").times(2).answer_status(503); // twice, then as it should be
/// # Ok(())
/// # }
/// ```
pub struct LookupdFaults<'a> {
    lookupd: &'a Lookupd,
    scope: Scope,
}

impl<'a> LookupdFaults<'a> {
    pub(super) fn new(lookupd: &'a Lookupd) -> Self {
        Self {
            lookupd,
            scope: Scope::default(),
        }
    }

    /// Restricts the fault that follows to requests for this path, as in `"/lookup"`.
    #[must_use = "it restricts the fault that follows"]
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.scope.path = Some(path.into());
        self
    }

    /// Restricts the fault that follows to the next `count` requests.
    #[must_use = "it restricts the fault that follows"]
    pub fn times(mut self, count: u64) -> Self {
        self.scope.times = Some(count);
        self
    }

    /// Answers with this status and no body. A number that is no HTTP status is answered as 500.
    pub fn answer_status(&self, status: u16) {
        self.lookupd.shared.script.answer_status(&self.scope, status);
    }

    /// Answers with status 200 and this body.
    pub fn answer_body(&self, body: impl Into<Bytes>) {
        self.lookupd.shared.script.answer_body(&self.scope, body.into());
    }

    /// Answers with status 200 and a body of so many bytes, all of them spaces, without telling its length before.
    pub fn huge_answer(&self, bytes: u64) {
        self.lookupd.shared.script.huge_answer(&self.scope, bytes);
    }

    /// Takes requests and never answers them. One that hangs does so for ever, also after [`clear`](Self::clear).
    pub fn hang(&self) {
        self.lookupd.shared.script.hang(&self.scope);
    }

    /// Answers after this time.
    pub fn delay(&self, delay: Duration) {
        self.lookupd.shared.script.delay(&self.scope, delay);
    }

    /// Refuses connections by HTTP and TCP, and ends the existing ones. With a connection by TCP goes what it has
    /// registered. The scope does not matter.
    pub fn down(&self) {
        self.lookupd.http.close();
        self.tcp_down();
    }

    /// Refuses connections by TCP, and ends the existing ones with all that they have registered.
    pub fn tcp_down(&self) {
        self.lookupd.tcp.close();
        self.lookupd.shared.registry.change(Book::end_clients);
    }

    /// Takes one more command by TCP on each connection, answers neither that nor what follows, and looks at nothing
    /// more. A connection that hangs does so for ever, also after [`clear`](Self::clear).
    pub fn tcp_hang(&self) {
        self.lookupd.shared.lock().mute = true;
    }

    /// Forgets all topics and channels, also those that were registered by hand. nsqds stay connected, and do not know:
    /// they register only what is new.
    ///
    /// Together with [`down`](Self::down) and [`clear`](Self::clear) it makes the restart of an nsqlookupd, which keeps
    /// nothing on disk.
    pub fn drop_registrations(&self) {
        self.lookupd.shared.registry.change(Book::forget);
    }

    /// Works as it should again, at the same addresses.
    ///
    /// # Errors
    /// If an address was taken by someone else meanwhile, which is prevented as far as the system lets it.
    pub fn clear(&self) -> io::Result<()> {
        self.lookupd.shared.script.clear();
        self.lookupd.shared.lock().mute = false;
        self.lookupd.tcp.open()?;
        self.lookupd.http.open()
    }
}

impl fmt::Debug for LookupdFaults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LookupdFaults").finish_non_exhaustive()
    }
}
