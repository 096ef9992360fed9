//! The time for which a caller has held a connection.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use super::ConnectionStatus;

/// The beginning of a loan whose caller has not noted it yet.
pub(super) const UNKNOWN: u64 = u64::MAX;

impl ConnectionStatus {
    /// Notes that its loan began at `now`, in milliseconds by the clock of its router.
    pub(crate) fn note_loan_began(&self, now: u64) {
        self.lent_at.store(now, Relaxed);
    }

    /// Returns the time for which it has been on loan. Zero if it is in the pool.
    pub(crate) fn held_for(&self) -> Duration {
        if self.is_parked() || self.loan_number() == 0 {
            return Duration::ZERO;
        }
        let now = self.clock.now().millis();
        // A caller that was handed the connection and is never polled notes nothing: its loan counts from here.
        let began = self
            .lent_at
            .compare_exchange(UNKNOWN, now, Relaxed, Relaxed)
            .map_or_else(|began| began, |_| now);
        Duration::from_millis(now.saturating_sub(began))
    }

    /// Returns the time for which it has been on loan, and whether a transaction is open, if that time reaches `limit`
    /// and was not reported before.
    pub(crate) fn held_beyond(&self, limit: Duration) -> Option<(Duration, bool)> {
        let (held, loan) = (self.held_for(), self.loan_number());
        if self.is_parked() || held < limit || self.reported_loan.swap(loan, Relaxed) == loan {
            return None;
        }
        Some((held, self.in_transaction()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_loan_counts_from_its_beginning_and_is_reported_once() {
        let status = ConnectionStatus::new();
        tokio::time::advance(SECOND).await;
        assert_eq!(status.held_for(), Duration::ZERO, "it was never lent");
        for _ in 0..2 {
            status.lend(None);
            status.note_loan_began(status.clock.now().millis());
            tokio::time::advance(3 * SECOND).await;
            assert_eq!(status.held_for(), 3 * SECOND);
            assert_eq!(status.held_beyond(4 * SECOND), None);
            tokio::time::advance(SECOND).await;
            assert_eq!(status.held_beyond(4 * SECOND), Some((4 * SECOND, false)));
            assert_eq!(status.held_beyond(4 * SECOND), None, "a second time");
        }
        status.note_status(b'I');
        assert!(status.park());
        assert_eq!(status.held_for(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_loan_whose_caller_notes_nothing_counts_from_the_first_look() {
        let status = ConnectionStatus::new();
        status.lend(None);
        status.note_loan_began(status.clock.now().millis());
        tokio::time::advance(9 * SECOND).await;
        status.lend(None);
        assert_eq!(
            status.held_for(),
            Duration::ZERO,
            "not since the loan before"
        );
        tokio::time::advance(2 * SECOND).await;
        assert_eq!(status.held_for(), 2 * SECOND);
    }
}
