//! Longer texts: how things work, and what to do when they do not.

#[doc = include_str!("guide/consuming.md")]
pub mod consuming {}

#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
#[doc = include_str!("guide/security.md")]
pub mod security {}
