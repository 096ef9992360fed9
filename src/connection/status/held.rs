//! For how long somebody has held a connection.

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

    /// For how long `loan` was seen to last; nothing if it was not seen before. It is from now on.
    pub(super) fn seen(&mut self, loan: u64) -> Duration {
        if self.loan != loan {
            (self.loan, self.since, self.told) = (loan, Instant::now(), false);
        }
        self.since.elapsed()
    }

    /// For how long `loan`, the present one, was seen to last, if that is longer than `limit` and was not told before.
    pub(super) fn beyond(&mut self, limit: Duration, loan: u64) -> Option<Duration> {
        let held = self.seen(loan);
        let tells = held >= limit && !mem::replace(&mut self.told, held >= limit);
        tells.then_some(held)
    }
}
