//! Eight producers that publish to three nsqds, some of which they learn of from two nsqlookupds, in a simulated network, with crashes, restarts, partitions and slow links,
//! and in half of the lives one nsqd that is destroyed for good. What the callers were told is compared with what the
//! nsqds have: see `ledger.rs`.

mod cluster;
mod ledger;
mod plan;
mod run;

pub use self::run::run;
