//! Estimates of the wait in a queue, from the speed at which the queue moves.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// Shortest wait that is estimated; `LATEST` is the longest.
const SOONEST: Duration = Duration::from_millis(10);
const LATEST: Duration = Duration::from_secs(300);
/// Estimate for a queue that has not moved yet.
const UNKNOWN: Duration = Duration::from_millis(100);
/// Weight of the last departure in the measured interval: an eighth.
const RENEWED: u64 = 8;

/// The speed of a queue, on a clock that counts nanoseconds. The clock is the caller's, so that many queues can share
/// it.
///
/// Requests may leave at the same time on several threads. Then one of their intervals may be lost, which changes an
/// estimate little.
#[derive(Debug)]
pub(super) struct QueueSpeed {
    /// Time from one departure to the next; `u64::MAX` before the first.
    interval: AtomicU64,
    /// Time of the last departure, or of the queue's beginning.
    moved: AtomicU64,
    /// Time at which the last refused caller should come back. The next refused caller gets a later one.
    booked: AtomicU64,
}

impl QueueSpeed {
    pub(super) fn new(now: u64) -> Self {
        Self {
            interval: AtomicU64::new(u64::MAX),
            moved: AtomicU64::new(now),
            booked: AtomicU64::new(now),
        }
    }

    /// Forgets all: the queue begins anew.
    pub(super) fn restart(&self, now: u64) {
        self.interval.store(u64::MAX, Relaxed);
        self.moved.store(now, Relaxed);
        self.booked.store(now, Relaxed);
    }

    /// Notes that a request was served and has left the queue.
    pub(super) fn record(&self, now: u64) {
        let measured = now.saturating_sub(self.moved.swap(now, Relaxed));
        let interval = match self.interval.load(Relaxed) {
            u64::MAX => measured,
            interval => interval / RENEWED * (RENEWED - 1) + measured / RENEWED,
        };
        self.interval.store(interval, Relaxed);
    }

    /// Returns the estimated time until the `ahead` requests in the queue are served.
    fn estimate(&self, now: u64, ahead: usize) -> Duration {
        let wait = self.interval().unwrap_or(0).saturating_mul(ahead as u64);
        Duration::from_nanos(wait.max(self.stalled_for(now))).clamp(SOONEST, LATEST)
    }

    /// Returns the time after which a refused caller should try again: when the `ahead` callers in the queue and those
    /// refused before have been served. If the queue is stalled, it is at least as long as the stall so far.
    pub(super) fn retry_after(&self, now: u64, ahead: usize) -> Duration {
        let (interval, latest) = (self.interval().unwrap_or(0), nanos(LATEST));
        let gone = now + interval.saturating_mul(ahead as u64).min(latest);
        // A little later than measured, because new callers take places too.
        let rest = (interval + interval / 4).min(latest);
        let book = |booked: u64| gone.max(booked.min(now + latest)) + rest;
        let booked = self
            .booked
            .fetch_update(Relaxed, Relaxed, |it| Some(book(it)));
        let at = booked.map_or_else(book, book);
        let wait = (at - now).max(self.stalled_for(now));
        Duration::from_nanos(wait).clamp(SOONEST, LATEST)
    }

    fn interval(&self) -> Option<u64> {
        Some(self.interval.load(Relaxed)).filter(|it| *it != u64::MAX)
    }

    /// Returns for how long the queue has been stalled, or zero if it moves.
    fn stalled_for(&self, now: u64) -> u64 {
        let stalled = now.saturating_sub(self.moved.load(Relaxed));
        match self.interval() {
            Some(interval) if stalled <= interval.saturating_mul(2) => 0,
            Some(_) => stalled,
            None => stalled.max(nanos(UNKNOWN)),
        }
    }
}

/// Returns a time in nanoseconds, which are enough for centuries.
fn nanos(time: Duration) -> u64 {
    time.as_secs() * 1_000_000_000 + u64::from(time.subsec_nanos())
}

/// The speed of a queue with a clock of its own. Kept while a request waits in it.
#[derive(Debug)]
pub(super) struct WaitEstimate {
    began: Instant,
    speed: QueueSpeed,
}

impl WaitEstimate {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            speed: QueueSpeed::new(0),
        }
    }

    /// Notes that a request was served and has left the queue.
    pub(super) fn record(&mut self) {
        self.speed.record(nanos(self.began.elapsed()));
    }

    /// Returns the estimated time until the `ahead` requests in the queue are served.
    pub(super) fn estimate(&self, ahead: usize) -> Duration {
        self.speed.estimate(nanos(self.began.elapsed()), ahead)
    }

    #[cfg(test)]
    fn retry_after(&self, ahead: usize) -> Duration {
        self.speed.retry_after(nanos(self.began.elapsed()), ahead)
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
