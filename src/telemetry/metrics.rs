//! The metrics for the `metrics` facade. Without the feature `metrics` nothing is recorded, at no cost.
//!
//! Counters that the router keeps in any case are copied from [`Status`](crate::telemetry::status::Status) every few
//! seconds. Only durations and the kinds of errors are recorded as they occur. A `get` that finds an idle connection
//! records nothing.

#[cfg(feature = "metrics")]
mod facade;
#[cfg(feature = "metrics")]
mod names;
#[cfg(not(feature = "metrics"))]
pub(super) mod noop;

#[cfg(feature = "metrics")]
pub(crate) use facade::{CatalogMeters, Meters, answered, limited};
#[cfg(not(feature = "metrics"))]
pub(crate) use noop::{CatalogMeters, Meters, answered, limited};
