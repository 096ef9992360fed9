//! Limits on how much runs at once, and on how much begins per minute.

pub(crate) mod budget;
pub(crate) mod callers;
pub(crate) mod hints;
pub(crate) mod open_files;
pub(crate) mod rate;
mod wait_estimate;
