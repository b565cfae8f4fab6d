//! Which compression a connection speaks.

use crate::error::{Error, ErrorKind, Result, Step};

/// Which compression to ask nsqd for: see [`ConnectionConfig::compression`](crate::ConnectionConfig::compression).
///
/// A connection has one or none: nsqd refuses a client that asks for both.
///
/// ```
/// use async_nsq::{Compression, ConnectionConfig};
///
/// let connection = ConnectionConfig::new().compression(Compression::Snappy);
/// # let _ = connection;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// None: right where the network is not the limit.
    #[default]
    None,
    /// Snappy: costs little, saves little. Needs feature `snappy`, which is on by default.
    Snappy,
    /// Deflate: saves more and costs several times as much, here and in nsqd, which also holds some hundred kilobytes for
    /// each such connection. Needs feature `deflate`, which is on by default.
    Deflate {
        /// From 1 (fast) to 9 (small); go-nsq's default is 6. nsqd lowers it to its `max-deflate-level`, 6 by default, and
        /// what it grants is used in both directions.
        level: u8,
    },
}

impl Compression {
    pub(crate) fn validate(self) -> Result<()> {
        match self {
            Self::Snappy if !cfg!(feature = "snappy") => Err(unsupported("snappy")),
            Self::Deflate { .. } if !cfg!(feature = "deflate") => Err(unsupported("deflate")),
            Self::Deflate { level } if !(1..=9).contains(&level) => {
                Err(Error::option("deflate_level", level, "1 to 9"))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn deflate_level(self) -> Option<u8> {
        match self {
            Self::Deflate { level } => Some(level),
            _ => None,
        }
    }
}

fn unsupported(feature: &str) -> Error {
    let message = format!("this build has no {feature}; turn on feature {feature} of async-nsq");
    Error::new(ErrorKind::Unsupported, Step::Configure, message)
}
