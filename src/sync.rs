//! Waiting, retrying and sharing of work. Knows neither tenants nor Neon.

pub(crate) mod circuit_breaker;
pub(crate) mod clock;
pub(crate) mod lru;
pub(crate) mod progress;
pub(crate) mod retry;
pub(crate) mod shutdown;
pub(crate) mod single_flight;
pub(crate) mod supervise;
pub(crate) mod text_hash;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also after a panic: no holder runs foreign code, so the value is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
