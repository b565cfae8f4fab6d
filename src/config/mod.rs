//! What a user can set: small groups of options, checked before anything is done with them.

pub(crate) mod address;
mod compression;
mod connection;
mod lookupd;
mod options;
#[cfg(test)]
pub(crate) use options::tests as options_tests;

#[cfg(feature = "tls")]
pub use crate::transport::tls::{DangerousTls, TlsConfig, TlsVersion};
pub use compression::Compression;
pub use connection::ConnectionConfig;
pub use lookupd::LookupdConfig;
pub(crate) use lookupd::LookupdTarget;
pub(crate) use options::{ConsumerValues, DiscoveryValues, ProducerValues, put};
pub use options::{DangerousOptions, OptionValue, Options};
