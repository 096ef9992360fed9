//! The pace of a campaign's wakes: so many an hour, evenly, and so many databases awake at once.

use std::{sync::Mutex, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::plan::Campaign;
use crate::sync::lock;

/// Time for which a woken database counts as awake if its endpoint does not say.
pub(super) const DEFAULT_WINDOW: Duration = Duration::from_secs(300);

/// Longest time for which a database counts as awake.
const LONGEST_WINDOW: Duration = Duration::from_secs(7 * 24 * 3600);

/// The wakes of a campaign so far. One value serves all campaigns of a process, so that a pause frees no budget.
#[derive(Debug, Default)]
pub(super) struct Pace {
    // Locked for a few instructions.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The earliest time of the next wake.
    next: Option<Instant>,
    /// Databases that are being woken and migrated.
    waking: usize,
    /// Times until which databases are awake that were woken.
    awake: Vec<Instant>,
}

/// The place of one database that is being woken. Unless it is freed, the database counts as awake for `window` after
/// the drop: the work may have been given up after the wake.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pace: &'a Pace,
    window: Option<Duration>,
}

impl Pace {
    /// Lets no wake begin before a step of the pace has passed, because another process may have begun one just now.
    pub(super) fn wait_a_step(&self, campaign: &Campaign) {
        let mut state = lock(&self.state);
        let next = Instant::now() + step(campaign);
        state.next = state.next.max(Some(next));
    }

    /// Returns the number of databases that count as awake.
    pub(super) fn awake(&self) -> usize {
        let (now, state) = (Instant::now(), lock(&self.state));
        state.waking + state.awake.iter().filter(|until| **until > now).count()
    }

    /// Counts at least so many databases as awake, because another process has woken them.
    pub(super) fn expect_awake(&self, count: usize) {
        let missing = count.saturating_sub(self.awake());
        let until = Instant::now() + DEFAULT_WINDOW;
        let more = std::iter::repeat_n(until, missing);
        lock(&self.state).awake.extend(more);
    }

    /// Waits until another database may be woken, which stays awake for `window` after its migration.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the turn.
    pub(super) async fn acquire(&self, campaign: &Campaign, window: Duration) -> Place<'_> {
        loop {
            match self.try_acquire(campaign) {
                Ok(()) => {
                    return Place {
                        pace: self,
                        window: Some(window.min(LONGEST_WINDOW)),
                    };
                }
                Err(at) => sleep_until(at).await,
            }
        }
    }

    /// Takes a place, or returns the time at which to try again.
    fn try_acquire(&self, campaign: &Campaign) -> Result<(), Instant> {
        let now = Instant::now();
        let mut state = lock(&self.state);
        state.awake.retain(|until| *until > now);
        if state.waking + state.awake.len() >= campaign.awake_at_once {
            let first_free = state.awake.iter().min().copied();
            // Without any to wait for, all are being migrated, which may end at any time.
            return Err(first_free.unwrap_or(now + Duration::from_millis(100)));
        }
        if let Some(next) = state.next.filter(|next| *next > now) {
            return Err(next);
        }
        state.next = Some(now + step(campaign));
        state.waking += 1;
        Ok(())
    }
}

pub(super) fn step(campaign: &Campaign) -> Duration {
    Duration::from_secs(3600) / campaign.wakes_per_hour.max(1)
}

impl Place<'_> {
    /// Frees the place at once, because the database sleeps.
    pub(super) fn free(mut self) {
        self.window = None;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.pace.state);
        state.waking -= 1;
        let until = self.window.map(|window| Instant::now() + window);
        state.awake.extend(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(300);

    #[tokio::test(start_paused = true)]
    async fn no_hour_has_more_wakes_and_no_moment_more_databases_awake() {
        let campaign = Campaign::new().wakes_per_hour(600).awake_at_once(20);
        let pace = Pace::default();
        let (began, mut at) = (Instant::now(), Vec::new());
        for _ in 0..1000 {
            drop(pace.acquire(&campaign, WINDOW).await);
            at.push(began.elapsed());
        }
        let hour = Duration::from_secs(3600);
        for (n, first) in at.iter().enumerate() {
            let within = |time| at[n..].iter().filter(|it| **it < *first + time).count();
            let (in_hour, awake) = (within(hour), within(WINDOW));
            assert!(in_hour <= 600 && awake <= 20, "{in_hour}, {awake}");
        }
        // 20 in 5 minutes are 240 an hour, which decides here.
        assert!(at[999] > 4 * hour && at[999] < 5 * hour, "{:?}", at[999]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_woke_nothing_is_free_at_once() {
        let campaign = Campaign::new().wakes_per_hour(3600).awake_at_once(1);
        let pace = Pace::default();
        let began = Instant::now();
        for _ in 0..10 {
            pace.acquire(&campaign, WINDOW).await.free();
        }
        assert_eq!(began.elapsed(), Duration::from_secs(9));
        pace.wait_a_step(&campaign);
        drop(pace.acquire(&campaign, WINDOW).await);
        assert_eq!(
            (began.elapsed(), pace.awake()),
            (Duration::from_secs(10), 1)
        );
        pace.expect_awake(1);
        drop(pace.acquire(&campaign, WINDOW).await);
        assert_eq!(
            began.elapsed(),
            Duration::from_secs(310),
            "it was counted once"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_process_has_woken_counts_as_awake() {
        let campaign = Campaign::new().wakes_per_hour(u32::MAX).awake_at_once(3);
        let (pace, began) = (Pace::default(), Instant::now());
        pace.expect_awake(2);
        drop(pace.acquire(&campaign, WINDOW).await);
        assert_eq!((pace.awake(), began.elapsed() < WINDOW), (3, true));
        drop(pace.acquire(&campaign, WINDOW).await);
        assert!(began.elapsed() >= WINDOW);
    }
}
