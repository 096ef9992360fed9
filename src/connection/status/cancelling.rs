//! Requests to cancel a query, and the loan that they are meant for.
//!
//! A pooled connection is lent, parked and marked as cancelled under the lock of its pool. So a request to cancel comes
//! either while its loan lasts, and then the pool closes the connection when it comes back, or it comes too late and is
//! not sent. A direct connection has one user and is never marked.

use std::sync::atomic::Ordering::Relaxed;

use super::{ConnectionStatus, loan_age::UNKNOWN, marks::Mark};

impl ConnectionStatus {
    /// Notes that it is lent, at `now` by the clock of its router. `None` if its caller will note the time. The caller
    /// holds the lock of its pool.
    #[inline]
    pub(crate) fn lend(&self, now: Option<u64>) {
        self.lent_at.store(now.unwrap_or(UNKNOWN), Relaxed);
        // Not an addition in one step: the lock keeps all others from writing it.
        self.loans.store(self.loans.load(Relaxed) + 1, Relaxed);
    }

    /// Returns the number of the last loan.
    pub(crate) fn loan_number(&self) -> u64 {
        self.loans.load(Relaxed)
    }

    /// Notes that the query on `loan` is about to be cancelled, and returns whether that loan still lasts. The caller
    /// holds the lock of its pool.
    pub(crate) fn mark_cancelled(&self, loan: u64) -> bool {
        let is_on_loan = self.loan_number() == loan && !self.is_parked();
        if is_on_loan {
            self.marks.set(Mark::CANCELLED);
        }
        is_on_loan // otherwise the next user must not lose the connection
    }

    /// Returns whether a caller asked to cancel a query on it, so that no other caller may get it.
    pub(crate) fn was_cancelled(&self) -> bool {
        self.marks.has(Mark::CANCELLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loan_that_lasts_is_marked() {
        let status = ConnectionStatus::new();
        status.note_status(b'I');
        status.lend(None);
        let loan = status.loan_number();
        assert!(status.park());
        assert!(!status.mark_cancelled(loan), "it is back");
        status.unpark();
        status.lend(None);
        assert!(!status.mark_cancelled(loan), "it is lent to another caller");
        assert!(!status.was_cancelled());
        assert!(status.mark_cancelled(status.loan_number()));
        assert!(status.was_cancelled());
    }
}
