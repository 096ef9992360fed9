//! The rate limiter for new work, with a bound on how much may wait.

use std::{sync::Mutex, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::{
    model::error::{Error, ErrorKind},
    sync::lock,
};

/// A limit on the work that begins per minute, with a small burst. Work that would wait for too long is refused.
///
/// Each piece of work gets the next free instant, which then moves on by a fixed step, so there is no queue to keep.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    step: Duration,
    burst: Duration,
    longest_wait: Duration,
    // The instant at which the next piece of work is due at the average rate. Locked for a few instructions.
    next: Mutex<Option<Instant>>,
}

impl RateLimiter {
    /// Creates a limiter for `per_minute` pieces of work on average, a tenth of that at once, and at most `waiting`
    /// pieces that wait.
    pub(crate) fn new(per_minute: u32, waiting: u32) -> Self {
        let step = Duration::from_secs(60) / per_minute.max(1);
        Self {
            step,
            burst: step * (per_minute / 10).max(1),
            longest_wait: step * waiting,
            next: Mutex::default(),
        }
    }

    /// Waits for its turn, or returns an error at once if the turn would come too late.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the turn.
    pub(crate) async fn acquire(&self, deadline: Instant) -> Result<(), Error> {
        let turn = self.turn(deadline)?;
        sleep_until(turn).await;
        Ok(())
    }

    fn turn(&self, deadline: Instant) -> Result<Instant, Error> {
        let now = Instant::now();
        let mut next = lock(&self.next);
        let due = next.map_or(now, |next| next.max(now));
        let turn = due
            .checked_sub(self.burst.saturating_sub(self.step))
            .unwrap_or(now)
            .max(now);
        let wait = turn - now;
        if wait > self.longest_wait || turn >= deadline {
            let too_late = wait.saturating_sub(self.longest_wait);
            let after = too_late.max(turn.saturating_duration_since(deadline));
            let message = "the limit of new databases per minute is reached, so none was created for this tenant; \
                           raise creations_per_minute if so many new tenants are expected";
            let err = Error::new(ErrorKind::Overloaded, message);
            return Err(err.with_retry_after(after.max(self.step)));
        }
        *next = Some(due + self.step);
        Ok(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Returns how many of `count` simultaneous pieces of work are let in within a minute, and how many are refused.
    fn flood(admission: &RateLimiter, count: u32) -> (usize, usize) {
        let deadline = Instant::now() + MINUTE;
        let turns: Vec<_> = (0..count).map(|_| admission.turn(deadline)).collect();
        let refused = turns.iter().filter(|turn| turn.is_err()).count();
        (turns.len() - refused, refused)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_let_in_at_its_rate_and_the_rest_is_told_when_to_come_back() {
        let admission = RateLimiter::new(60, 20);
        assert_eq!(flood(&admission, 1000), (6 + 20, 974));
        let err = admission
            .acquire(Instant::now() + MINUTE)
            .await
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Overloaded);
        tokio::time::advance(err.retry_after().unwrap()).await;
        let start = Instant::now();
        admission.acquire(start + MINUTE).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(20));
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_wait_for_its_turn_is_told_at_once() {
        let admission = RateLimiter::new(60, 1000);
        let (soon, _) = flood(&admission, 26);
        assert_eq!(soon, 26);
        let start = Instant::now();
        let err = admission
            .acquire(start + Duration::from_secs(5))
            .await
            .unwrap_err();
        assert!(start.elapsed().is_zero());
        assert!(
            err.retry_after() >= Some(Duration::from_secs(15)),
            "{err:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_little_at_once_does_not_wait() {
        let admission = RateLimiter::new(60, 0);
        assert_eq!(flood(&admission, 7), (6, 1));
        tokio::time::advance(MINUTE).await;
        assert_eq!(flood(&admission, 7), (6, 1));
    }
}
