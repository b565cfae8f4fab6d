//! Tests against the real nsqd and nsqlookupd, which `tests/interop/install-brokers.sh` builds, and of the test broker
//! against the clients of other languages, which `tests/interop/install-clients.sh` installs.
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

mod broker;
mod clients;
mod consuming;
mod duplicates;
mod group;
mod harness;
mod identify_again;
mod keep_alive;
mod loss;
mod mixed;
mod negotiation;
mod nodes;
mod publishing;
mod tap;
mod topology;
mod wire;
