//! Longer texts: how things work, and what to do when they do not.

#[doc = include_str!("guide/consuming.md")]
pub mod consuming {}
