//! What the record of received commands may hold on to.

use bytes::Bytes;

use crate::protocol::Command;

/// How many bytes of bodies are kept.
pub(super) const MAX_BYTES: usize = 64 * 1024 * 1024;

/// What a command weighs in the record.
pub(super) fn body_bytes(command: &Command) -> usize {
    match command {
        Command::Identify { body } | Command::Pub { body, .. } | Command::Dpub { body, .. } => body.len(),
        Command::Auth { secret } => secret.reveal().len(),
        // Each body of an MPUB is an allocation's handle as well.
        Command::Mpub { bodies, .. } => bodies.iter().map(|body| body.len() + size_of::<Bytes>()).sum(),
        _ => 0,
    }
}
