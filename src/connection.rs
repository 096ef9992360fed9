//! One connection to one server: opened, driven, watched, and judged where it fails.

pub(crate) mod dial;
pub(crate) mod driver;
pub(crate) mod session_state;
pub(crate) mod status;
pub(crate) mod stream;
pub(crate) mod tap;
pub(crate) mod verdict;
