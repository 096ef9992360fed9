//! Limits on what runs at once and what begins in a time.

pub(crate) mod budget;
pub(crate) mod callers;
pub(crate) mod hints;
pub(crate) mod open_files;
pub(crate) mod rate;
pub(crate) mod wait_estimate;
