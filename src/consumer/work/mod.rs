//! Handing messages to those who handle them, and their answers on.

pub(super) mod answers;
pub(super) mod inbox;
pub(super) mod lookout;
pub(super) mod panics;
pub(super) mod source;
pub(super) mod worker;
