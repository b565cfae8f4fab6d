//! What a user can set: small groups of options, checked before anything is done with them.

pub(crate) mod address;
mod connection;
mod lookupd;
#[cfg(feature = "tls")]
mod tls;

pub use connection::ConnectionConfig;
pub use lookupd::LookupdConfig;
pub(crate) use lookupd::LookupdTarget;
#[cfg(feature = "tls")]
pub use tls::{DangerousTls, TlsConfig};
#[cfg(feature = "tls")]
pub(crate) use tls::{Pem, PrivatePem};
