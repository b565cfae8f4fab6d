//! Tests against the real nsqd and nsqlookupd, which `tests/interop/install-brokers.sh` builds.

mod broker;
mod harness;
mod identify_again;
mod publishing;
mod topology;
mod wire;
