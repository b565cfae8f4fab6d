//! What an auth server grants to a secret.

use std::time::Duration;

use serde::Serialize;

/// What somebody may do on a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Permission {
    /// SUB.
    Subscribe,
    /// PUB, MPUB and DPUB.
    Publish,
}

/// What an [`AuthServer`](super::AuthServer) grants to whoever knows a secret.
///
/// ```
/// use std::time::Duration;
///
/// use async_nsq::test_server::{Grant, Permission};
///
/// let grant = Grant::new()
///     .identity("bob")
///     .ttl(Duration::from_secs(30))
///     .allow("^orders$", [".*"], [Permission::Publish, Permission::Subscribe]);
/// # let _ = grant;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[must_use = "it has no effect until it is given to an auth server"]
pub struct Grant {
    ttl: u64,
    identity: String,
    identity_url: String,
    authorizations: Vec<Authorization>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Authorization {
    topic: String,
    channels: Vec<String>,
    permissions: Vec<Permission>,
}

impl Default for Grant {
    fn default() -> Self {
        Self::new()
    }
}

impl Grant {
    /// Grants nothing yet, to nobody in particular, for a minute. nsqd refuses a grant without any
    /// [`allow`](Self::allow) with `E_UNAUTHORIZED`.
    pub fn new() -> Self {
        Self {
            ttl: 60,
            identity: String::new(),
            identity_url: String::new(),
            authorizations: Vec::new(),
        }
    }

    /// The name that nsqd tells the client. Default: none.
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = identity.into();
        self
    }

    /// The URL that nsqd tells the client. Default: none.
    pub fn identity_url(mut self, url: impl Into<String>) -> Self {
        self.identity_url = url.into();
        self
    }

    /// How long nsqd takes it for granted before it asks again, in whole seconds. Default 60 s. nsqd takes 0 for a failure
    /// of the auth server.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl.as_secs();
        self
    }

    /// Adds permissions on the topics and channels that match regular expressions. These are not anchored: `a` matches
    /// `banana`, `^a$` only `a`. To publish, one of the channels' has to match the empty text, as `.*` does.
    pub fn allow<C>(
        mut self,
        topic: impl Into<String>,
        channels: C,
        permissions: impl IntoIterator<Item = Permission>,
    ) -> Self
    where
        C: IntoIterator,
        C::Item: Into<String>,
    {
        self.authorizations.push(Authorization {
            topic: topic.into(),
            channels: channels.into_iter().map(Into::into).collect(),
            permissions: permissions.into_iter().collect(),
        });
        self
    }
}
