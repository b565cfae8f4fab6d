//! nsqd's answers that are JSON objects.

use std::fmt;

use serde::de::DeserializeOwned;

/// Reads the data of the response frame that answers `command`.
pub(super) fn decode<T: DeserializeOwned>(command: &'static str, data: &[u8]) -> Result<T, AnswerError> {
    // serde would also take an array for a struct.
    if data.first() != Some(&b'{') {
        return Err(AnswerError { command, source: None });
    }
    serde_json::from_slice(data).map_err(|source| AnswerError {
        command,
        source: Some(source),
    })
}

/// An answer to IDENTIFY or AUTH that is not JSON of the expected shape.
#[derive(Debug)]
pub struct AnswerError {
    command: &'static str,
    source: Option<serde_json::Error>,
}

impl fmt::Display for AnswerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the answer to {} is not what nsqd sends", self.command)
    }
}

impl std::error::Error for AnswerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
