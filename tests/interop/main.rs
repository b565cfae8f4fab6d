//! Tests against the real nsqd and nsqlookupd, which `tests/interop/install-brokers.sh` builds.
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

mod broker;
mod harness;
mod identify_again;
mod publishing;
mod topology;
mod wire;
