//! The router's counters, metrics and spans.

pub(crate) mod labels;
pub(crate) mod metrics;
pub(crate) mod spans;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod top;
