//! What a router counts, measures and tells.

pub(crate) mod labels;
pub(crate) mod metrics;
pub(crate) mod spans;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod top;
