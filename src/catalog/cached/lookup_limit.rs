//! A bound on concurrent look-ups.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::model::{
    config::Config,
    error::{Error, ErrorKind},
};

/// Most concurrent look-ups. More would only grow a queue at the catalog.
const MAX_UNDER_WAY: usize = 1000;
/// Suggested wait for a caller that got no permit.
const COME_BACK: Duration = Duration::from_millis(250);

/// Bounds concurrent look-ups, both those of a catalog and those of the application's own `Lookup`. A look-up goes on
/// after its callers have left, so a bound on callers does not bound look-ups.
#[derive(Debug)]
pub(crate) struct LookupLimit(Semaphore);

impl LookupLimit {
    /// Creates a limit of as many look-ups as callers may wait, and 1000 at most.
    pub(crate) fn new(config: &Config) -> Self {
        Self(Semaphore::new(config.waiting_callers.min(MAX_UNDER_WAY)))
    }

    /// Returns the permit for one look-up.
    pub(crate) fn try_enter(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.0.try_acquire().map_err(|_| {
            let message = "too many lookups wait for the catalog, so this one was not started; find out why the \
                           catalog is slow";
            Error::new(ErrorKind::Overloaded, message).with_retry_after(COME_BACK)
        })
    }
}
