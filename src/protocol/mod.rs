//! The wire protocol of nsqd.
mod error_code;
pub use error_code::ErrorCode;
