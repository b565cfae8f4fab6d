#![doc = include_str!("guide/intro.md")]
//! ```
#![doc = include_str!("guide/billing.rs")]
//! ```
//!
#![doc = include_str!("guide/tests.md")]
