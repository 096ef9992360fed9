//! Support for axum and tower: the tenant of a request, and errors as answers.

#[cfg(feature = "axum")]
pub(crate) mod extract;
#[cfg(any(feature = "axum", feature = "tower"))]
#[cfg_attr(
    not(all(feature = "axum", feature = "tower")),
    allow(dead_code, reason = "each of the two features uses only a part")
)]
pub(crate) mod identify;
#[cfg(feature = "axum")]
mod problem;
#[cfg(feature = "tower")]
pub(crate) mod warm_layer;
