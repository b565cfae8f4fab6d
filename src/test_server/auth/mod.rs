//! An auth server that a test scripts, and how nsqd asks one.

mod faults;
mod grant;
mod pattern;
mod server;
pub(super) mod session;

pub use faults::AuthFaults;
pub use grant::{Grant, Permission};
pub use server::{AuthRequest, AuthServer, AuthWaitError};
