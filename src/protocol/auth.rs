//! AUTH: what nsqd answers to a secret that it accepts.

use serde::{Deserialize, Serialize};

use super::answer::{self, AnswerError};

/// nsqd's answer to AUTH: as whom its auth server knows the secret.
///
/// ```
/// use async_nsq::protocol::AuthResponse;
///
/// let answer = AuthResponse::decode(br#"{"identity":"billing","identity_url":"","permission_count":2}"#)?;
/// assert_eq!((answer.identity.as_str(), answer.permission_count), ("billing", 2));
/// # Ok::<(), async_nsq::protocol::AnswerError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AuthResponse {
    /// The name that the auth server has for whoever uses the secret.
    pub identity: String,
    /// Where the auth server has more about them; often empty.
    pub identity_url: String,
    /// How many rules of what the secret permits the auth server has told nsqd. Which, nsqd keeps to itself.
    pub permission_count: u64,
}

impl AuthResponse {
    /// Reads the data of the response frame that answers AUTH.
    ///
    /// # Errors
    /// [`AnswerError`] if it is not a JSON object of the expected shape.
    pub fn decode(data: &[u8]) -> Result<Self, AnswerError> {
        answer::decode("AUTH", data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_any_other_shape_is_an_error() {
        assert_eq!(AuthResponse::decode(b"{}").unwrap(), AuthResponse::default());
        for bad in [
            &b"OK"[..],
            b"",
            b"[]",
            b"{",
            br#"{"permission_count":-1}"#,
            br#"{"identity":1}"#,
            b"\xff",
        ] {
            assert!(AuthResponse::decode(bad).is_err(), "{bad:?}");
        }
    }
}
