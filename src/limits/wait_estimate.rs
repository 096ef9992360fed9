//! Estimates of the wait in a queue, from the speed at which the queue moves.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest wait that is estimated; `LATEST` is the longest.
const SOONEST: Duration = Duration::from_millis(10);
const LATEST: Duration = Duration::from_secs(300);
/// Estimate for a queue that has not moved yet.
const UNKNOWN: Duration = Duration::from_millis(100);
/// Weight of the last departure in the measured interval: an eighth.
const RENEWED: u32 = 8;

/// The speed of a queue. Kept while a caller waits in it.
#[derive(Debug)]
pub(super) struct WaitEstimate {
    /// Time from one departure to the next; `None` before the first.
    interval: Option<Duration>,
    /// Time of the last departure, or of the queue's beginning.
    moved: Instant,
    /// Time at which the last refused caller should come back. The next refused caller gets a later one.
    booked: Instant,
}

impl WaitEstimate {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            interval: None,
            moved: now,
            booked: now,
        }
    }

    /// Notes that a request was served and has left the queue.
    pub(crate) fn record(&mut self) {
        let now = Instant::now();
        let measured = now - self.moved;
        self.interval = Some(match self.interval {
            Some(interval) => interval / RENEWED * (RENEWED - 1) + measured / RENEWED,
            None => measured,
        });
        self.moved = now;
    }

    /// Returns the estimated time until the `ahead` requests in the queue are served.
    pub(super) fn estimate(&self, ahead: usize) -> Duration {
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let interval = self.interval.unwrap_or_default();
        let wait = interval.saturating_mul(ahead).max(self.stalled_for());
        wait.clamp(SOONEST, LATEST)
    }

    /// Returns the time after which a refused caller should try again: when the `ahead` callers in the queue and those
    /// refused before have been served. If the queue is stalled, it is at least as long as the stall so far.
    pub(super) fn retry_after(&mut self, ahead: usize) -> Duration {
        let now = Instant::now();
        let interval = self.interval.unwrap_or_default();
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let gone = now + interval.saturating_mul(ahead).min(LATEST);
        // A little later than measured, because new callers take places too.
        let at = gone.max(self.booked.min(now + LATEST)) + interval + interval / 4;
        self.booked = at;
        let wait = (at - now).max(self.stalled_for());
        wait.clamp(SOONEST, LATEST)
    }

    /// Returns for how long the queue has been stalled, or zero if it moves.
    fn stalled_for(&self) -> Duration {
        let stalled = self.moved.elapsed();
        match self.interval {
            Some(interval) if stalled <= 2 * interval => Duration::ZERO,
            Some(_) => stalled,
            None => stalled.max(UNKNOWN),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn whoever_is_turned_away_comes_after_those_who_stand_and_those_who_were_sent_before() {
        let mut flow = WaitEstimate::new();
        for _ in 0..100 {
            advance(20 * MS).await;
            flow.record();
        }
        assert_eq!(flow.retry_after(10), 225 * MS);
        assert_eq!(flow.retry_after(10), 250 * MS);
        advance(300 * MS).await;
        flow.record();
        assert!(flow.retry_after(0) < 100 * MS, "what was booked is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_stands_still_says_as_long_again() {
        let mut flow = WaitEstimate::new();
        assert_eq!(flow.retry_after(1000), UNKNOWN);
        advance(3000 * MS).await;
        assert_eq!(flow.retry_after(1000), 3000 * MS);
        flow.record();
        for _ in 0..50 {
            advance(MS).await;
            flow.record();
        }
        advance(5000 * MS).await;
        assert!(flow.retry_after(1) >= 5000 * MS);
        advance(Duration::from_secs(3600)).await;
        assert_eq!(flow.retry_after(1), LATEST);
    }
}
