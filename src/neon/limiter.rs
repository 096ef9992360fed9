//! Staying below Neon's rate limit.
//!
//! Neon takes 700 requests a minute and 40 a second on one route from an account, and answers 429 beyond that. One
//! limiter serves all clones of a client: requests pass in the order in which they come, a few at once, then evenly.

use std::{sync::Mutex, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::{
    error::{Error, ErrorKind},
    retry::{Progress, lock},
};

/// Neon's limit for an account, by the minute.
pub(super) const PER_MINUTE: u32 = 700;
/// The share of a minute's requests that may pass at once. With 700 it is 28: with the 11 that follow in the same
/// second it stays below Neon's 40.
const AT_ONCE: u32 = 25;

/// A bucket that leaks evenly.
#[derive(Debug)]
pub(super) struct Limiter {
    interval: Duration,
    /// How far ahead of the even pace a request may be.
    lead: Duration,
    // When the next request is due at the even pace. Held for a few instructions.
    due: Mutex<Option<Instant>>,
}

impl Limiter {
    /// At most `per_minute` requests in any minute.
    pub(super) fn new(per_minute: u32) -> Self {
        let at_once = (per_minute / AT_ONCE).max(1);
        let evenly = per_minute.saturating_sub(at_once).max(1);
        let interval = Duration::from_secs(60) / evenly;
        let due = Mutex::new(None);
        Self {
            interval,
            lead: interval * (at_once - 1),
            due,
        }
    }

    /// Waits for the turn of one more request.
    ///
    /// # Errors
    /// [`ErrorKind::RateLimited`] at once, with the time to wait, if the turn would come after the deadline.
    ///
    /// # Cancel safety
    /// Dropping it gives up the turn, which nobody else gets.
    pub(super) async fn pass(&self, progress: &Progress) -> Result<(), Error> {
        let now = Instant::now();
        let turn = {
            let mut due = lock(&self.due);
            let next = due.map_or(now, |due| due.max(now));
            let turn = next
                .checked_sub(self.lead)
                .map_or(now, |turn| turn.max(now));
            if turn >= progress.deadline() {
                let message = "too many calls of neon's api wait for their turn; it has a limit by the minute";
                let wait = turn.saturating_duration_since(now);
                return Err(Error::new(ErrorKind::RateLimited, message).with_retry_after(wait));
            }
            *due = Some(next + self.interval);
            turn
        };
        if turn > now {
            sleep_until(turn).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Stage;

    async fn passed_within(limiter: &Limiter, time: Duration) -> u32 {
        let (progress, end) = (
            Progress::new(Stage::Provision, 10 * time),
            Instant::now() + time,
        );
        let mut passed = 0;
        while limiter.pass(&progress).await.is_ok() && Instant::now() < end {
            passed += 1;
        }
        passed
    }

    #[tokio::test(start_paused = true)]
    async fn no_minute_and_no_second_has_more_than_neon_takes_and_little_less() {
        let minute = passed_within(&Limiter::new(PER_MINUTE), Duration::from_secs(60)).await;
        assert!((665..=700).contains(&minute), "{minute}");
        let second = passed_within(&Limiter::new(PER_MINUTE), Duration::from_secs(1)).await;
        assert!((28..=40).contains(&second), "{second}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_after_the_deadline_is_refused_at_once_and_says_when() {
        let limiter = Limiter::new(60);
        let patient = Progress::new(Stage::Provision, Duration::from_secs(600));
        for _ in 0..30 {
            limiter.pass(&patient).await.unwrap();
        }
        let hurried = Progress::new(Stage::Provision, Duration::from_millis(100));
        let start = Instant::now();
        let err = limiter.pass(&hurried).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::RateLimited);
        assert!(err.retry_after().unwrap() > Duration::from_millis(500));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
