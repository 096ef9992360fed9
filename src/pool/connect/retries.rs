//! The waits between two tries of a wake, and the failures that lead to a new lookup.

use std::{iter, mem, time::Duration};

use crate::{connection::verdict::RetryDecision, model::error::Error, sync::retry::backoff};

/// First wait between two tries of a wake. Most faults of a cold start pass within it.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(100);

/// First wait after Neon's control plane has failed.
const FIRST_SLOW_WAIT: Duration = Duration::from_millis(500);

/// Longest wait between two tries, unless the server asks for more.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Wait before the second try with a refused credential: a rotation needs that long to take effect everywhere.
const SECOND_TRY_WAIT: Duration = Duration::from_secs(1);

/// The retry state of one wake.
pub(super) struct Retries {
    waits: Waits,
    slow_waits: Waits,
    /// `true` while the tenant may still be looked up again.
    may_relocate: bool,
    /// `true` once a refused credential has had its second try.
    had_second_try: bool,
    /// `true` once another try was made because something had changed.
    tried_after_change: bool,
}

pub(super) type Waits = Box<dyn Iterator<Item = Duration> + Send>;

impl Retries {
    /// Creates the state of a new wake. `may_relocate`: the endpoint may be out of date, and another lookup can tell.
    pub(super) fn new(may_relocate: bool) -> Self {
        let slow_waits = backoff(FIRST_SLOW_WAIT, LONGEST_WAIT);
        Self {
            waits: Box::new(backoff(FIRST_WAIT, LONGEST_WAIT)),
            slow_waits: Box::new(iter::once(FIRST_SLOW_WAIT).chain(slow_waits)),
            may_relocate,
            had_second_try: false,
            tried_after_change: false,
        }
    }

    /// Returns whether a change justifies another try. Returns `true` only once, or changes in a loop would disable the
    /// waits.
    pub(super) fn try_after_change(&mut self) -> bool {
        !mem::replace(&mut self.tried_after_change, true)
    }

    /// Returns whether to look the tenant up again now. Returns `true` at most once.
    pub(super) fn take_relocation(&mut self, next: RetryDecision) -> bool {
        let relocates = matches!(
            next,
            RetryDecision::RelocateThenRetry | RetryDecision::RelocateThenRetryOnce
        );
        relocates && mem::take(&mut self.may_relocate)
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
                (!mem::replace(&mut self.had_second_try, true)).then_some(SECOND_TRY_WAIT)
            }
            RetryDecision::GiveUp => None,
        }
    }
}
