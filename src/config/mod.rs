//! What a user can set: small groups of options, checked before anything is done with them.

pub(crate) mod address;
mod connection;

pub use connection::ConnectionConfig;
