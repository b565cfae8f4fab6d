//! A secret that does not get into logs.

use std::fmt;

use bytes::Bytes;

/// The secret of AUTH, or of an HTTP header. Its `Debug` does not show it.
///
/// ```
/// use async_nsq::protocol::Secret;
///
/// let secret = Secret::new("open sesame");
/// assert_eq!(secret.reveal(), &b"open sesame"[..]);
/// assert_eq!(format!("{secret:?}"), "Secret(11 bytes)");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Bytes);

impl Secret {
    /// Wraps the bytes of a secret.
    pub fn new(secret: impl Into<Bytes>) -> Self {
        Self(secret.into())
    }

    /// The bytes of the secret.
    #[must_use]
    pub fn reveal(&self) -> &Bytes {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(secret: &str) -> Self {
        Self(Bytes::copy_from_slice(secret.as_bytes()))
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self::new(secret)
    }
}

impl From<&String> for Secret {
    fn from(secret: &String) -> Self {
        secret.as_str().into()
    }
}

impl From<&[u8]> for Secret {
    fn from(secret: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(secret))
    }
}

impl From<Vec<u8>> for Secret {
    fn from(secret: Vec<u8>) -> Self {
        Self::new(secret)
    }
}

impl From<Bytes> for Secret {
    fn from(secret: Bytes) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}
