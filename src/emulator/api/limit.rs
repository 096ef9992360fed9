//! The API's rate limits, which are off by default.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// A limit on the requests in any minute, and on those in any second on one route.
#[derive(Debug)]
pub(in crate::emulator) struct ApiLimit {
    per_minute: usize,
    per_second: usize,
    // Guards the counts. Held only for short reads and writes.
    passed: Mutex<Passed>,
}

#[derive(Debug, Default)]
struct Passed {
    refused: u64,
    all: VecDeque<Instant>,
    by_route: HashMap<String, VecDeque<Instant>>,
}

impl ApiLimit {
    pub(in crate::emulator) fn new(per_minute: u32, per_second: u32) -> Self {
        Self {
            per_minute: per_minute as usize,
            per_second: per_second as usize,
            passed: Mutex::default(),
        }
    }

    /// Returns whether one more request on `route` may pass, and counts it.
    pub(in crate::emulator) fn passes(&self, route: String) -> bool {
        let now = Instant::now();
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let Passed {
            refused,
            all,
            by_route,
        } = &mut *passed;
        let route = by_route.entry(route).or_default();
        forget(all, now, MINUTE);
        forget(route, now, SECOND);
        let fits = all.len() < self.per_minute && route.len() < self.per_second;
        if fits {
            all.push_back(now);
            route.push_back(now);
        } else {
            *refused += 1;
        }
        fits
    }

    /// Returns the number of requests that did not pass.
    pub(in crate::emulator) fn refused(&self) -> u64 {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.refused
    }
}

fn forget(times: &mut VecDeque<Instant>, now: Instant, window: Duration) {
    while times
        .front()
        .is_some_and(|time| now.duration_since(*time) >= window)
    {
        times.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_route_has_its_second_and_all_have_their_minute() {
        let limit = ApiLimit::new(5, 2);
        let pass = |route: &str| limit.passes(route.to_owned());
        assert_eq!(
            [pass("a"), pass("a"), pass("a"), pass("b")],
            [true, true, false, true]
        );
        tokio::time::advance(SECOND).await;
        assert_eq!([pass("a"), pass("a"), pass("b")], [true, true, false]);
        tokio::time::advance(MINUTE).await;
        assert!(pass("b"));
    }
}
