//! The time for which a caller has held a connection.

use std::{mem, time::Duration};

use tokio::time::Instant;

/// A loan as the sweep has seen it.
#[derive(Debug)]
pub(super) struct LoanAge {
    loan: u64,
    since: Instant,
    told: bool,
}

impl LoanAge {
    pub(super) fn new() -> Self {
        Self {
            loan: 0,
            since: Instant::now(),
            told: false,
        }
    }

    /// Returns the time since `loan` was first seen, which may be this call.
    pub(super) fn seen(&mut self, loan: u64) -> Duration {
        if self.loan != loan {
            (self.loan, self.since, self.told) = (loan, Instant::now(), false);
        }
        self.since.elapsed()
    }

    /// Returns the time since `loan`, the present one, was first seen, if it reaches `limit` and was not reported
    /// before.
    pub(super) fn beyond(&mut self, limit: Duration, loan: u64) -> Option<Duration> {
        let held = self.seen(loan);
        let tells = held >= limit && !mem::replace(&mut self.told, held >= limit);
        tells.then_some(held)
    }
}
