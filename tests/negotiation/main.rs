//! What a connection can negotiate with nsqd, on the test broker.
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

mod support;

mod matrix;
