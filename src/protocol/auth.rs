//! AUTH: what nsqd answers to a secret that it accepts.

use std::fmt;

use serde::{Deserialize, Serialize};

/// nsqd's answer to AUTH: as whom its auth server knows the secret.
///
/// ```
/// use async_nsq::protocol::AuthResponse;
///
/// let answer = AuthResponse::decode(br#"{"identity":"billing","identity_url":"","permission_count":2}"#)?;
/// assert_eq!((answer.identity.as_str(), answer.permission_count), ("billing", 2));
/// # Ok::<(), async_nsq::protocol::AuthError>(())
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
    /// [`AuthError`] if it is not a JSON object of the expected shape.
    pub fn decode(data: &[u8]) -> Result<Self, AuthError> {
        // serde would also take an array for a struct.
        if data.first() != Some(&b'{') {
            return Err(AuthError { source: None });
        }
        serde_json::from_slice(data).map_err(|source| AuthError { source: Some(source) })
    }
}

/// An answer to AUTH that is not JSON of the expected shape.
#[derive(Debug)]
pub struct AuthError {
    source: Option<serde_json::Error>,
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer to AUTH is not what nsqd sends")
    }
}

impl std::error::Error for AuthError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
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
