//! The waits between two tries of a wake, and the failures that lead to a new lookup.

use std::{iter, mem, time::Duration};

use crate::{connection::verdict::RetryDecision, model::error::Error, sync::retry::backoff};

/// First wait between two attempts to wake a compute. Most faults of a cold start pass within it.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(100);

/// First wait after Neon's control plane has failed.
const FIRST_SLOW_WAIT: Duration = Duration::from_millis(500);

/// Longest wait between two attempts, unless the server asks for more.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Wait before the second try with a refused credential: a rotation needs that long to take effect everywhere.
const SECOND_TRY_WAIT: Duration = Duration::from_secs(1);

/// The retry state of one wake.
pub(super) struct Retries {
    waits: Waits,
    slow_waits: Waits,
    /// `true` while the catalog may still be asked.
    may_ask: bool,
    /// `true` once a refused credential has had its second try.
    tried_twice: bool,
    /// `true` once an attempt was repeated because something had changed.
    took_change: bool,
}

pub(super) type Waits = Box<dyn Iterator<Item = Duration> + Send>;

impl Retries {
    /// Creates the state of a new wake. `may_ask`: the endpoint came from a cache, so the catalog may know a newer one.
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

    /// Returns whether a change justifies another try: only once, or changes in a loop would disable the waits.
    pub(super) fn takes_change(&mut self) -> bool {
        !mem::replace(&mut self.took_change, true)
    }

    /// Returns whether to ask the catalog now: at most once.
    pub(super) fn should_relocate(&mut self, next: RetryDecision) -> bool {
        let asks = matches!(
            next,
            RetryDecision::RelocateThenRetry | RetryDecision::RelocateThenRetryOnce
        );
        asks && mem::take(&mut self.may_ask)
    }

    /// Returns the wait before the next try after `err`, or `None` if there must be none.
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
