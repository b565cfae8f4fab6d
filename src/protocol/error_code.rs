//! The error codes of nsqd and what each means for the connection.

use std::fmt;

/// An error code that nsqd sends in an error frame.
///
/// An error frame reads `CODE description`. Only the first word decides: nsqd appends the message id and the cause to
/// it, so comparing whole texts misses every real occurrence.
///
/// ```
/// use async_nsq::protocol::ErrorCode;
///
/// let code = ErrorCode::of("E_FIN_FAILED FIN 0d1a2b3c4d5e6f70 failed ID not in flight");
/// assert_eq!(code, ErrorCode::FinFailed);
/// assert!(!code.is_fatal());
/// assert!(ErrorCode::of("E_BAD_TOPIC PUB topic name \"a b\" is not valid").is_fatal());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// `E_INVALID`: the command is unknown, malformed, or not allowed in this state of the connection.
    Invalid,
    /// `E_BAD_PROTOCOL`: the connection did not begin with the protocol's magic.
    BadProtocol,
    /// `E_BAD_BODY`: a body could not be read, was too big or did not decode.
    BadBody,
    /// `E_BAD_TOPIC`: the topic's name is not valid.
    BadTopic,
    /// `E_BAD_CHANNEL`: the channel's name is not valid.
    BadChannel,
    /// `E_BAD_MESSAGE`: a message is empty, too big or cut short.
    BadMessage,
    /// `E_PUB_FAILED`: nsqd could not store the message.
    PubFailed,
    /// `E_MPUB_FAILED`: nsqd could not store the messages.
    MpubFailed,
    /// `E_DPUB_FAILED`: nsqd could not store the deferred message.
    DpubFailed,
    /// `E_SUB_FAILED`: the subscription was refused (channel full, nsqd exiting, topic being deleted).
    SubFailed,
    /// `E_FIN_FAILED`: the message is no longer in flight to this connection. Not fatal.
    FinFailed,
    /// `E_REQ_FAILED`: the message is no longer in flight to this connection. Not fatal.
    ReqFailed,
    /// `E_TOUCH_FAILED`: the message is no longer in flight to this connection. Not fatal.
    TouchFailed,
    /// `E_AUTH_FIRST`: nsqd wants AUTH before this command.
    AuthFirst,
    /// `E_AUTH_FAILED`: the auth server refused or could not be asked.
    AuthFailed,
    /// `E_AUTH_DISABLED`: AUTH was sent to an nsqd that does not use it.
    AuthDisabled,
    /// `E_AUTH_ERROR`: nsqd could not send the auth reply.
    AuthError,
    /// `E_UNAUTHORIZED`: the identity may not do this.
    Unauthorized,
    /// `E_IDENTIFY_FAILED`: a negotiated upgrade failed.
    IdentifyFailed,
    /// A code that this version does not know. It is treated as fatal, as nsqd treats all but three.
    Unknown,
}

impl ErrorCode {
    const NAMES: [(&'static str, Self); 19] = [
        ("E_INVALID", Self::Invalid),
        ("E_BAD_PROTOCOL", Self::BadProtocol),
        ("E_BAD_BODY", Self::BadBody),
        ("E_BAD_TOPIC", Self::BadTopic),
        ("E_BAD_CHANNEL", Self::BadChannel),
        ("E_BAD_MESSAGE", Self::BadMessage),
        ("E_PUB_FAILED", Self::PubFailed),
        ("E_MPUB_FAILED", Self::MpubFailed),
        ("E_DPUB_FAILED", Self::DpubFailed),
        ("E_SUB_FAILED", Self::SubFailed),
        ("E_FIN_FAILED", Self::FinFailed),
        ("E_REQ_FAILED", Self::ReqFailed),
        ("E_TOUCH_FAILED", Self::TouchFailed),
        ("E_AUTH_FIRST", Self::AuthFirst),
        ("E_AUTH_FAILED", Self::AuthFailed),
        ("E_AUTH_DISABLED", Self::AuthDisabled),
        ("E_AUTH_ERROR", Self::AuthError),
        ("E_UNAUTHORIZED", Self::Unauthorized),
        ("E_IDENTIFY_FAILED", Self::IdentifyFailed),
    ];

    /// Reads the code from an error frame's text: its first word.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let word = text.split(' ').next().unwrap_or_default();
        Self::NAMES
            .iter()
            .find(|(name, _)| *name == word)
            .map_or(Self::Unknown, |(_, code)| *code)
    }

    /// The code as nsqd spells it; `E_?` for [`ErrorCode::Unknown`].
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(_, code)| *code == self)
            .map_or("E_?", |(name, _)| name)
    }

    /// Whether nsqd closes the connection after sending this code.
    ///
    /// All codes are fatal but the answers to FIN, REQ and TOUCH of a message that is no longer in flight.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        !matches!(self, Self::FinFailed | Self::ReqFailed | Self::TouchFailed)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_decides() {
        assert_eq!(ErrorCode::of("E_BAD_PROTOCOL"), ErrorCode::BadProtocol);
        assert_eq!(
            ErrorCode::of("E_BAD_TOPIC E_BAD_TOPIC MPUB topic name \"a b\" is not valid"),
            ErrorCode::BadTopic
        );
        assert_eq!(ErrorCode::of("E_FIN_FAILEDX"), ErrorCode::Unknown);
        assert_eq!(ErrorCode::of(""), ErrorCode::Unknown);
    }

    #[test]
    fn c6_only_three_codes_leave_the_connection_open() {
        let open: Vec<_> = ErrorCode::NAMES
            .iter()
            .filter(|(_, code)| !code.is_fatal())
            .map(|(name, _)| *name)
            .collect();
        assert_eq!(open, ["E_FIN_FAILED", "E_REQ_FAILED", "E_TOUCH_FAILED"]);
        assert!(ErrorCode::Unknown.is_fatal());
    }

    #[test]
    fn names_round_trip() {
        for (name, code) in ErrorCode::NAMES {
            assert_eq!(ErrorCode::of(name), code);
            assert_eq!(code.name(), name);
        }
    }
}
