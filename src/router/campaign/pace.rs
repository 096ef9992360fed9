//! The pace of a campaign's wakes: so many an hour, evenly, and so many databases awake at once.

use std::{sync::Mutex, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::plan::Campaign;
use crate::sync::lock;

/// Time for which a woken database counts as awake if its endpoint does not say.
pub(super) const DEFAULT_WINDOW: Duration = Duration::from_secs(300);

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

/// The place of one database that is being woken. Dropping it frees the place at once.
#[derive(Debug)]
pub(super) struct Place<'a>(Option<&'a Pace>);

impl Pace {
    /// Lets no wake begin before a step of the pace has passed, because another process may have begun one just now.
    pub(super) fn wait_a_step(&self, campaign: &Campaign) {
        let mut state = lock(&self.state);
        let next = Instant::now() + step(campaign);
        state.next = state.next.max(Some(next));
    }

    /// Waits until another database may be woken.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the turn.
    pub(super) async fn acquire(&self, campaign: &Campaign) -> Place<'_> {
        loop {
            match self.try_acquire(campaign) {
                Ok(()) => return Place(Some(self)),
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
    /// Notes that the database was woken, and stays awake for `window` from now on.
    pub(super) fn stays_awake_for(mut self, window: Duration) {
        if let Some(pace) = self.0.take() {
            let mut state = lock(&pace.state);
            state.waking -= 1;
            state.awake.push(Instant::now() + window);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(pace) = self.0 {
            lock(&pace.state).waking -= 1;
        }
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
            let woken = pace.acquire(&campaign).await;
            at.push(began.elapsed());
            woken.stays_awake_for(WINDOW);
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
            drop(pace.acquire(&campaign).await);
        }
        assert_eq!(began.elapsed(), Duration::from_secs(9));
        pace.wait_a_step(&campaign);
        drop(pace.acquire(&campaign).await);
        assert_eq!(began.elapsed(), Duration::from_secs(10));
    }
}
