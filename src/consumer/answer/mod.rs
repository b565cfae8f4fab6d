//! Who answers a message, with what, and what becomes of one that cannot be answered.

pub(super) mod answering;
pub(super) mod dead_letter;
pub(super) mod desk;
pub(super) mod keep_alive;
pub(super) mod lease;
