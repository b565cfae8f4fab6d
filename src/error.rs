//! The one error type of this crate.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::protocol::ErrorCode;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something did not work: what kind of failure, at which step, with which nsqd, and what to do about it.
///
/// The type is opaque and cheap to clone. Ask it with [`kind`](Error::kind), [`is_retryable`](Error::is_retryable)
/// and [`is_ambiguous`](Error::is_ambiguous); the text of [`Display`](fmt::Display) is for people and may change in
/// any release. `Display` tells its own level only: the cause, where there is one, is in
/// [`source`](StdError::source).
///
/// ```
/// use async_nsq::{ErrorKind, Topic};
///
/// let error = Topic::new("no spaces allowed").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Invalid);
/// assert!(!error.is_retryable());
/// ```
#[derive(Clone)]
pub struct Error {
    // Shared, because one lost connection is the outcome of every publish that was on it.
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    step: Option<Step>,
    address: Option<Arc<str>>,
    code: Option<ErrorCode>,
    message: Cow<'static, str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// What kind of failure an [`Error`] is.
///
/// The first four are the outcomes of a publish: every publish that fails is exactly one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Refused locally, nothing was sent: a bad name, an empty or oversized message, an option out of range.
    /// Trying again without a change fails again.
    Invalid,
    /// nsqd refused it; [`Error::code`] tells why.
    Rejected,
    /// Nothing reached nsqd. Safe to retry.
    NotSent,
    /// It was sent, but no answer came: it may be in the queue or not. A retry may publish it twice.
    Unknown,
    /// No connection could be made: refused, unreachable, not resolved, or not within the dial timeout.
    Unreachable,
    /// A connection ended: closed by the peer, reset, silent for too long, or not taking what is written.
    ConnectionLost,
    /// The peer does not speak the protocol, or broke one of the limits set for it.
    Protocol,
    /// The peer demands something that is not configured or not supported.
    Unsupported,
    /// The producer or consumer is shutting down or has ended.
    Shutdown,
    /// Something did not happen in time: a message was not answered, so that nsqd has taken it back, or a flush did not
    /// end within its deadline.
    TimedOut,
}

/// The step at which an [`Error`] occurred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Checking options before anything is done.
    Configure,
    /// Resolving the address and opening the connection.
    Dial,
    /// TLS: its settings, or its handshake on an open connection.
    Tls,
    /// IDENTIFY: the negotiation that begins each connection.
    Identify,
    /// Snappy or deflate: the change to it.
    Compression,
    /// AUTH.
    Auth,
    /// SUB: subscribing to a topic and channel.
    Subscribe,
    /// Publishing: PUB, MPUB or DPUB.
    Publish,
    /// A ping's round trip.
    Ping,
    /// Reading from an established connection.
    Read,
    /// Writing to an established connection.
    Write,
    /// Waiting for the peer's heartbeat.
    Heartbeat,
    /// Asking nsqlookupd.
    Lookup,
    /// A handler's work on a message.
    Handle,
}

/// Who has to act for an [`Error`] to go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Culprit {
    /// The calling program: an argument or an option is wrong.
    Caller,
    /// The nsqd or nsqlookupd at [`Error::address`], or whatever answers there.
    Peer,
    /// The network between the two.
    Network,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, step: Step, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            inner: Arc::new(Inner {
                kind,
                step: Some(step),
                address: None,
                code: None,
                message: message.into(),
                source: None,
            }),
        }
    }

    /// The caller's mistake, found before anything was sent.
    pub(crate) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        let mut error = Self::new(ErrorKind::Invalid, Step::Configure, message);
        error.edit().step = None;
        error
    }

    /// An option that is out of range; names the option, its value and what is allowed.
    pub(crate) fn option(name: &str, value: impl fmt::Display, allowed: &str) -> Self {
        Self::new(
            ErrorKind::Invalid,
            Step::Configure,
            format!("option {name} is {value}, allowed is {allowed}"),
        )
    }

    /// nsqd's error frame, with its code and text.
    pub(crate) fn rejected(step: Step, text: &str) -> Self {
        let code = ErrorCode::of(text);
        let advice = match code {
            ErrorCode::Unauthorized => {
                "; auth_secret does not permit this: give another, or change what the auth server grants to it"
            }
            ErrorCode::AuthFailed => {
                "; nsqd's auth server does not know the secret, or could not be asked: check auth_secret and nsqd's \
                 --auth-http-address"
            }
            ErrorCode::Invalid if text.contains("(TLS required)") => "; give ConnectionConfig::tls",
            _ => "",
        };
        Self::new(ErrorKind::Rejected, step, format!("nsqd answered {text}{advice}")).coded(Some(code))
    }

    /// Names the code with which nsqd refused this, or what this was a part of.
    #[must_use]
    pub(crate) fn coded(mut self, code: Option<ErrorCode>) -> Self {
        self.edit().code = code;
        self
    }

    /// Names the peer. An address that is already there stays: the innermost knows best.
    #[must_use]
    pub(crate) fn at(mut self, address: &Arc<str>) -> Self {
        if self.inner.address.is_none() {
            self.edit().address = Some(Arc::clone(address));
        }
        self
    }

    /// The same failure where it is one part of a whole.
    pub(crate) fn in_part(&self, kind: ErrorKind, message: String) -> Self {
        let mut error = Self::new(kind, Step::Publish, message).because(self.clone());
        let inner = error.edit();
        inner.address = self.inner.address.clone();
        inner.code = self.inner.code;
        error
    }

    /// Names the topic of the message concerned.
    #[must_use]
    pub(crate) fn about(self, topic: impl fmt::Display) -> Self {
        self.found_in(format_args!("topic {topic}"))
    }

    /// Tells where the mistake is found.
    #[must_use]
    pub(crate) fn found_in(mut self, place: impl fmt::Display) -> Self {
        let inner = self.edit();
        inner.message = format!("{place}: {}", inner.message).into();
        self
    }

    #[must_use]
    pub(crate) fn because(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.edit().source = Some(Arc::new(source));
        self
    }

    /// To be changed in place while nobody else holds the error; a shared one is copied first.
    fn edit(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.inner)
    }

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The step that failed, where one can be named.
    #[must_use]
    pub fn step(&self) -> Option<Step> {
        self.inner.step
    }

    /// The address of the nsqd or nsqlookupd concerned, as it was configured or discovered.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.inner.address.as_deref()
    }

    /// nsqd's error code, if nsqd refused with one: this, or with [`ErrorKind::NotSent`] the batch that it was in.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        self.inner.code
    }

    /// Who has to act.
    #[must_use]
    pub fn culprit(&self) -> Culprit {
        match self.kind() {
            ErrorKind::Invalid | ErrorKind::Shutdown | ErrorKind::TimedOut | ErrorKind::Unsupported => Culprit::Caller,
            ErrorKind::Rejected | ErrorKind::Protocol => Culprit::Peer,
            ErrorKind::NotSent | ErrorKind::Unknown | ErrorKind::Unreachable | ErrorKind::ConnectionLost => {
                Culprit::Network
            }
        }
    }

    /// Whether the same call may succeed later *and* repeating it can do no harm.
    ///
    /// For a publish this is true only when nothing reached nsqd. It is false for [`ErrorKind::Unknown`]: repeating
    /// that may publish twice, which only the caller can allow.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::NotSent | ErrorKind::Unreachable | ErrorKind::ConnectionLost
        )
    }

    /// Whether it is open if nsqd has the message: it was sent and not answered.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        self.kind() == ErrorKind::Unknown
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = &self.inner.address {
            let daemon = if self.inner.step == Some(Step::Lookup) {
                "nsqlookupd"
            } else {
                "nsqd"
            };
            write!(f, "{daemon} {address}: ")?;
        }
        if let Some(step) = self.inner.step {
            write!(f, "{step}: ")?;
        }
        f.write_str(&self.inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.inner.kind);
        if let Some(step) = &self.inner.step {
            out.field("step", step);
        }
        if let Some(address) = &self.inner.address {
            out.field("address", address);
        }
        if let Some(code) = &self.inner.code {
            out.field("code", code);
        }
        out.field("message", &self.inner.message);
        if let Some(source) = &self.inner.source {
            out.field("source", source);
        }
        out.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configure => "configuration",
            Self::Dial => "dial",
            Self::Tls => "TLS",
            Self::Identify => "IDENTIFY",
            Self::Compression => "compression",
            Self::Auth => "AUTH",
            Self::Subscribe => "SUB",
            Self::Publish => "publish",
            Self::Ping => "ping",
            Self::Read => "read",
            Self::Write => "write",
            Self::Heartbeat => "heartbeat",
            Self::Lookup => "lookup",
            Self::Handle => "handler",
        })
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_tells_its_own_level_and_source_the_next() {
        let cause = std::io::Error::other("connection reset");
        let error = Error::new(ErrorKind::ConnectionLost, Step::Read, "the connection broke")
            .at(&Arc::from("127.0.0.1:4150"))
            .because(cause);
        assert_eq!(error.to_string(), "nsqd 127.0.0.1:4150: read: the connection broke");
        assert_eq!(error.source().unwrap().to_string(), "connection reset");
        assert!(error.is_retryable() && !error.is_ambiguous());
        assert_eq!(error.culprit(), Culprit::Network);
    }

    #[test]
    fn a_rejection_carries_the_code() {
        let error = Error::rejected(Step::Publish, "E_BAD_TOPIC PUB topic name \"x\" is not valid");
        assert_eq!(error.code(), Some(ErrorCode::BadTopic));
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(!error.is_retryable());
    }

    #[test]
    fn the_innermost_address_stays_and_clones_are_not_changed() {
        let inner = Error::new(ErrorKind::Protocol, Step::Read, "garbage");
        let named = inner.clone().at(&Arc::from("a:1")).at(&Arc::from("b:2"));
        assert_eq!(named.address(), Some("a:1"));
        assert_eq!(inner.address(), None);
    }
}
