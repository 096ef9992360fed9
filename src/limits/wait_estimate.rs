//! How fast a line moves, and so when to come back to it.

use std::time::Duration;

use tokio::time::Instant;

/// Nobody is told to come back sooner, or later, than this.
const SOONEST: Duration = Duration::from_millis(10);
const LATEST: Duration = Duration::from_secs(300);
/// When to come back to a line that has not moved yet.
const UNKNOWN: Duration = Duration::from_millis(100);
/// How much of the measured interval each departure renews: an eighth.
const RENEWED: u32 = 8;

/// How fast a line moves. Kept while somebody stands in it.
#[derive(Debug)]
pub(crate) struct WaitEstimate {
    /// From one departure to the next; none before the first.
    interval: Option<Duration>,
    /// The last departure, or the line's beginning.
    moved: Instant,
    /// Whoever is turned away is sent behind those who were turned away before: until then.
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

    /// Takes note that somebody has left the line, served or not.
    pub(crate) fn record(&mut self) {
        let now = Instant::now();
        let measured = now - self.moved;
        self.interval = Some(match self.interval {
            Some(interval) => interval / RENEWED * (RENEWED - 1) + measured / RENEWED,
            None => measured,
        });
        self.moved = now;
    }

    /// How long those take who stand in the line now.
    pub(crate) fn estimate(&self, ahead: usize) -> Duration {
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let interval = self.interval.unwrap_or_default();
        let wait = interval.saturating_mul(ahead).max(self.stalled_for());
        wait.clamp(SOONEST, LATEST)
    }

    /// When to come back to the line for whom there is no place behind the `ahead` who stand in it: when all of them
    /// have gone, and those who were sent away before. If it stands still, as long again as it has done so already.
    pub(crate) fn retry_after(&mut self, ahead: usize) -> Duration {
        let now = Instant::now();
        let interval = self.interval.unwrap_or_default();
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let gone = now + interval.saturating_mul(ahead).min(LATEST);
        // A little later than it is measured: those who come unasked want a place too.
        let at = gone.max(self.booked.min(now + LATEST)) + interval + interval / 4;
        self.booked = at;
        let wait = (at - now).max(self.stalled_for());
        wait.clamp(SOONEST, LATEST)
    }

    /// For how long the line has stood still, if it has.
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
