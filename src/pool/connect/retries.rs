//! How long to wait between two tries of a wake, and which failures are asked about.

use std::{iter, mem, time::Duration};

use crate::{connection::verdict::RetryDecision, model::error::Error, sync::retry::backoff};

/// First wait between two attempts to wake a compute. Most faults of a cold start pass within it.
pub(crate) const FIRST_WAIT: Duration = Duration::from_millis(100);

/// First wait after Neon's control plane has failed.
const FIRST_SLOW_WAIT: Duration = Duration::from_millis(500);

/// Longest wait between two attempts, unless the server asks for more.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Wait before the second try with a credential that was refused: a rotation takes that long to get everywhere.
const SECOND_TRY_WAIT: Duration = Duration::from_secs(1);

/// What one wake has tried, and how long it waits for the next try.
pub(super) struct RetryPlan {
    waits: Waits,
    slow_waits: Waits,
    /// Whether the catalog may still be asked.
    may_ask: bool,
    /// Whether a refused credential has had its second try.
    tried_twice: bool,
    /// Whether an attempt was repeated because something had changed.
    took_change: bool,
}

pub(super) type Waits = Box<dyn Iterator<Item = Duration> + Send>;

impl RetryPlan {
    /// `may_ask`: whether the endpoint came from a cache, so that the catalog may know better.
    pub(super) fn new(may_ask: bool) -> Self {
        let slow_waits = backoff(FIRST_SLOW_WAIT, LONGEST_WAIT);
        Self {
            waits: Box::new(backoff(FIRST_WAIT, LONGEST_WAIT)),
            slow_waits: Box::new(iter::once(FIRST_SLOW_WAIT).chain(slow_waits)),
            may_ask,
            tried_twice: false,
            took_change: false,
        }
    }

    /// Whether a change is reason enough for another try: once, or changes in a loop would turn the waits off.
    pub(super) fn takes_change(&mut self) -> bool {
        !mem::replace(&mut self.took_change, true)
    }

    /// Whether the catalog is to be asked now: once.
    pub(super) fn should_relocate(&mut self, next: RetryDecision) -> bool {
        let asks = matches!(
            next,
            RetryDecision::RelocateThenRetry | RetryDecision::RelocateThenRetryOnce
        );
        asks && mem::take(&mut self.may_ask)
    }

    /// The wait before the next try after `err`; `None` if there is to be none.
    pub(super) fn wait(&mut self, next: RetryDecision, err: &Error) -> Option<Duration> {
        match next {
            RetryDecision::Retry | RetryDecision::RelocateThenRetry => {
                let wait = self.waits.next()?.min(LONGEST_WAIT);
                Some(wait.max(err.retry_after().unwrap_or_default()))
            }
            RetryDecision::RetrySlowly => Some(self.slow_waits.next()?.min(LONGEST_WAIT)),
            RetryDecision::RelocateThenRetryOnce => {
                (!mem::replace(&mut self.tried_twice, true)).then_some(SECOND_TRY_WAIT)
            }
            RetryDecision::GiveUp => None,
        }
    }
}
