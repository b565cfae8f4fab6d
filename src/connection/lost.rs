//! How a connection's stream fails.

use std::io;

use crate::error::{Error, ErrorKind, Step};
#[cfg(feature = "tls")]
use crate::transport::tls;

/// What a failed read or write means, without the address.
pub(super) fn lost(step: Step, source: io::Error) -> Error {
    // With TLS 1.3 a peer that does not accept our certificate says so only after the handshake.
    #[cfg(feature = "tls")]
    if let Some(refusal) = tls::refusal(&source) {
        return refusal;
    }
    if source.kind() == io::ErrorKind::InvalidData {
        // TLS or compression cannot make sense of it.
        return Error::new(ErrorKind::Protocol, step, "what nsqd sends cannot be decoded").because(source);
    }
    Error::new(ErrorKind::ConnectionLost, step, "the connection broke").because(source)
}
