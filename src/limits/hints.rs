//! The budget for hints that turn out wrong.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use crate::sync::lock;

/// Period over which needless wakes are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// A budget for wakes that turn out needless. Each hint that is followed takes a unit, which is given back when a
/// caller uses the connection that the hint opened.
#[derive(Debug)]
pub(crate) struct HintBudget {
    per_minute: usize,
    // The times at which hints of the last minute were followed. Locked for a few instructions.
    spent: Mutex<VecDeque<Instant>>,
}

impl HintBudget {
    pub(crate) fn new(per_minute: usize) -> Arc<Self> {
        let spent = Mutex::default();
        Arc::new(Self { per_minute, spent })
    }

    /// Takes a unit and returns the time, or `None` if no unit is left.
    pub(crate) fn take(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut spent = lock(&self.spent);
        while spent.front().is_some_and(|at| *at + WINDOW <= now) {
            spent.pop_front();
        }
        let left = spent.len() < self.per_minute;
        left.then(|| {
            spent.push_back(now);
            now
        })
    }

    /// Gives back the unit that was taken at that time: the wake was needed, or there was none.
    pub(crate) fn give_back(&self, taken: Instant) {
        let mut spent = lock(&self.spent);
        let place = spent.iter().position(|at| *at == taken);
        place.and_then(|place| spent.remove(place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn needless_ones_are_bounded_per_minute_and_needed_ones_are_free() {
        let budget = HintBudget::new(2);
        let taken = budget.take().unwrap();
        assert!(budget.take().is_some());
        assert!(budget.take().is_none());
        budget.give_back(taken);
        assert!(budget.take().is_some());
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(budget.take().is_none());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(budget.take().is_some());
        budget.give_back(taken); // long expired: no other unit is given back in its stead
        assert!(budget.take().is_some() && budget.take().is_none());
    }
}
