//! What a user can set: small groups of options, checked before anything is done with them.

mod connection;

pub use connection::ConnectionConfig;
