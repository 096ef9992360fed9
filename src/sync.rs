//! Waiting, repeating and sharing work. Knows neither tenants nor Neon.

pub(crate) mod circuit_breaker;
pub(crate) mod retry;
pub(crate) mod shutdown;
pub(crate) mod single_flight;
pub(crate) mod supervise;
