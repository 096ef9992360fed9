//! A bound on the look-ups under way.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::model::{
    config::Config,
    error::{Error, ErrorKind},
};

/// Most look-ups under way at the same time. More would only grow a queue at the catalog.
const MAX_UNDER_WAY: usize = 1000;
/// Time after which a caller that found no room may come back.
const COME_BACK: Duration = Duration::from_millis(250);

/// Bounds the look-ups under way: those of a catalog, and those of the application's own `Lookup`. A look-up goes on when
/// its callers have left, so a bound on callers bounds no look-ups.
#[derive(Debug)]
pub(crate) struct LookupLimit(Semaphore);

impl LookupLimit {
    /// As many as callers may wait, and 1000 at most.
    pub(crate) fn new(config: &Config) -> Self {
        Self(Semaphore::new(config.waiting_callers.min(MAX_UNDER_WAY)))
    }

    /// Returns the right to one look-up.
    pub(crate) fn try_enter(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.0.try_acquire().map_err(|_| {
            let message = "too many look-ups wait for the catalog; this one was not begun. See why it is slow";
            Error::new(ErrorKind::Overloaded, message).with_retry_after(COME_BACK)
        })
    }
}
