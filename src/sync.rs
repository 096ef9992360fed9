//! Waiting, repeating and sharing work. Knows neither tenants nor Neon.

pub(crate) mod circuit_breaker;
pub(crate) mod progress;
pub(crate) mod retry;
pub(crate) mod shutdown;
pub(crate) mod single_flight;
pub(crate) mod supervise;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; what a panicking holder left behind is still whole, as no holder runs foreign code.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
