//! What is told to the `metrics` facade, if that feature is on; otherwise nothing is, and nothing of it costs anything.
//!
//! Whatever the router counts anyway is copied from [`Status`](crate::telemetry::status::Status) every few seconds; only how long something
//! took, and of which kind an error was, is told when it happens. A `get` that finds an idle connection tells nothing.

#[cfg(feature = "metrics")]
mod facade;
#[cfg(feature = "metrics")]
mod names;
#[cfg(not(feature = "metrics"))]
pub(crate) mod noop;

#[cfg(feature = "metrics")]
pub(crate) use facade::{CatalogMeters, Meters, answered, limited};
#[cfg(not(feature = "metrics"))]
pub(crate) use noop::{CatalogMeters, Meters, answered, limited};
