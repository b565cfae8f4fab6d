//! What goes wrong on purpose.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;

use super::AuthServer;
use crate::test_server::http::Scope;

/// Makes an [`AuthServer`] misbehave: what [`AuthServer::faults`] returns.
///
/// Each fault lasts until another one or [`clear`](Self::clear), and applies to all requests, unless
/// [`times`](Self::times) says otherwise: a fault with such a scope stands before those that were there already, until it
/// is used up. A delay and an answer can be combined.
pub struct AuthFaults<'a> {
    auth: &'a AuthServer,
    scope: Scope,
}

impl<'a> AuthFaults<'a> {
    pub(super) fn new(auth: &'a AuthServer) -> Self {
        Self {
            auth,
            scope: Scope::default(),
        }
    }

    /// Restricts the fault that follows to the next `count` requests.
    #[must_use = "it restricts the fault that follows"]
    pub fn times(mut self, count: u64) -> Self {
        self.scope.times = Some(count);
        self
    }

    /// Answers with this status and no body. A number that is no HTTP status is answered as 500.
    pub fn answer_status(&self, status: u16) {
        self.auth.shared.script.answer_status(&self.scope, status);
    }

    /// Answers with status 200 and this body.
    pub fn answer_body(&self, body: impl Into<Bytes>) {
        self.auth.shared.script.answer_body(&self.scope, body.into());
    }

    /// Answers with status 200 and a body of so many bytes, all of them spaces, without telling its length before.
    pub fn huge_answer(&self, bytes: u64) {
        self.auth.shared.script.huge_answer(&self.scope, bytes);
    }

    /// Takes requests and never answers them. One that hangs does so for ever, also after [`clear`](Self::clear).
    pub fn hang(&self) {
        self.auth.shared.script.hang(&self.scope);
    }

    /// Answers after this time.
    pub fn delay(&self, delay: Duration) {
        self.auth.shared.script.delay(&self.scope, delay);
    }

    /// Refuses connections, and ends the existing ones. The scope does not matter.
    pub fn down(&self) {
        self.auth.server.close();
    }

    /// Works as it should again, at the same address.
    ///
    /// # Errors
    /// If the address was taken by someone else meanwhile, which is prevented as far as the system lets it.
    pub fn clear(&self) -> io::Result<()> {
        self.auth.shared.script.clear();
        self.auth.server.open()
    }
}

impl fmt::Debug for AuthFaults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthFaults").finish_non_exhaustive()
    }
}
