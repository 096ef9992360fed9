//! Flights: one shared in-progress operation for a key.
//!
//! Slow work belongs to the key, not to the caller that asked first. It runs in its own task, and goes on for the other
//! callers if one gives up.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch, time::timeout};

use super::{
    lock,
    progress::{Progress, Stale},
};
use crate::model::error::{Error, Stage};

/// The flights in progress, by key.
pub(crate) struct SingleFlight<K, V> {
    // Locked for a lookup or a removal, never across an await.
    table: Arc<Table<K, V>>,
    runtime: Handle,
}

type Table<K, V> = Mutex<HashMap<K, Flight<V>>>;

#[derive(Clone)]
struct Flight<V> {
    outcome: watch::Receiver<Outcome<V>>,
    progress: Progress,
    /// Number of rounds that have begun.
    rounds: u64,
}

/// The outcome of the last round that has ended.
struct Outcome<V> {
    /// Number of the round, from one on.
    round: u64,
    /// `true` if the outcome is out of date, so that another round has begun.
    is_stale: bool,
    result: Option<Result<V, Error>>,
}

impl<V> Outcome<V> {
    /// Returns whether the outcome answers a caller that joined when `rounds` had begun. A stale outcome does not. But
    /// so that no caller waits forever, a stale one does if its round was the second to begin after the caller joined.
    fn answers(&self, rounds: u64) -> bool {
        self.result.is_some() && (!self.is_stale || self.round >= rounds + 2)
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Creates an empty table, whose flights will run on `runtime`.
    pub(crate) fn new(runtime: Handle) -> Self {
        Self {
            table: Arc::default(),
            runtime,
        }
    }

    /// Joins the flight for `key`, or starts one with `build`, and waits for `limit` at most.
    ///
    /// # Cancel safety
    /// Dropping this future leaves the flight running for the other callers.
    pub(crate) async fn get_or_start<W, Fut>(
        &self,
        key: &K,
        limit: Duration,
        build: impl FnOnce() -> (Progress, W),
    ) -> Result<V, Error>
    where
        W: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, Error>> + Send + 'static,
    {
        let mut flight = self.in_progress_or_new(key, build);
        let rounds = flight.rounds;
        let answered = flight.outcome.wait_for(|outcome| outcome.answers(rounds));
        match timeout(limit, answered).await {
            Ok(Ok(outcome)) => (outcome.result)
                .clone()
                .unwrap_or_else(|| Err(Error::closed())),
            Ok(Err(_)) => Err(Error::closed()),
            Err(_) => Err(flight.progress.caller_timed_out()),
        }
    }

    /// Starts a flight for `key` with `build`, unless there is one. Nothing waits for it.
    pub(crate) fn start<W, Fut>(&self, key: &K, build: impl FnOnce() -> (Progress, W))
    where
        W: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, Error>> + Send + 'static,
    {
        drop(self.in_progress_or_new(key, build));
    }

    /// Returns the flight in progress for `key`, or a new one in its own task.
    fn in_progress_or_new<W, Fut>(
        &self,
        key: &K,
        build: impl FnOnce() -> (Progress, W),
    ) -> Flight<V>
    where
        W: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Result<V, Error>> + Send + 'static,
    {
        let mut table = lock(&self.table);
        if let Some(flight) = table.get(key) {
            return flight.clone();
        }
        let (progress, mut work) = build();
        let (sender, outcome) = watch::channel(Outcome {
            round: 0,
            is_stale: false,
            result: None,
        });
        let flight = Flight {
            outcome,
            progress: progress.clone(),
            rounds: 0,
        };
        // This caller joins before round 1 begins, so the stale outcome of round 2 answers it. A later caller joins
        // during round 1, and only that of round 3 answers it.
        let joinable = Flight {
            rounds: 1,
            ..flight.clone()
        };
        table.insert(key.clone(), joinable);
        drop(table); // a runtime that has ended drops the task at once, and its guard takes the lock
        let guard = FlightGuard {
            table: Arc::clone(&self.table),
            key: key.clone(),
            sender,
        };
        self.runtime.spawn(async move {
            for round in 1.. {
                let result = work().await;
                let stale = guard.try_finish(&progress);
                // A wrong result answers no caller, however long it has waited.
                if stale != Some(Stale::Wrong) {
                    guard.announce(round, stale.is_some(), result);
                }
                if stale.is_none() {
                    return;
                }
            }
        });
        flight
    }

    /// Returns the stage of the flight for `key`, if there is one.
    pub(crate) fn stage(&self, key: &K) -> Option<Stage> {
        lock(&self.table).get(key).map(|it| it.progress.stage())
    }

    /// Returns the progress of the flight for `key`, if there is one.
    pub(crate) fn progress(&self, key: &K) -> Option<Progress> {
        lock(&self.table).get(key).map(|it| it.progress.clone())
    }

    /// Marks the result of the flight for `key` as possibly out of date: the flight does its work again.
    pub(crate) fn mark_stale(&self, key: &K) {
        if let Some(flight) = lock(&self.table).get(key) {
            flight.progress.mark_stale(Stale::Old);
        }
    }

    /// Returns the number of flights in progress.
    pub(crate) fn len(&self) -> usize {
        lock(&self.table).len()
    }
}

/// Guard that frees the key when a flight ends, also after a panic or the end of its runtime.
struct FlightGuard<K: Eq + Hash, V> {
    table: Arc<Table<K, V>>,
    key: K,
    sender: watch::Sender<Outcome<V>>,
}

impl<K: Eq + Hash, V> FlightGuard<K, V> {
    /// Frees the key, or begins another round if the result is marked as stale. Returns the mark.
    fn try_finish(&self, progress: &Progress) -> Option<Stale> {
        let mut table = lock(&self.table);
        let stale = progress.take_stale();
        match (stale, table.get_mut(&self.key)) {
            (Some(_), Some(flight)) => flight.rounds += 1,
            _ => drop(table.remove(&self.key)),
        }
        stale
    }

    fn announce(&self, round: u64, is_stale: bool, result: Result<V, Error>) {
        let result = Some(result);
        self.sender.send_replace(Outcome {
            round,
            is_stale,
            result,
        });
    }
}

impl<K: Eq + Hash, V> Drop for FlightGuard<K, V> {
    fn drop(&mut self) {
        let is_over = |outcome: &Outcome<V>| outcome.result.is_some() && !outcome.is_stale;
        if is_over(&self.sender.borrow()) {
            return;
        }
        lock(&self.table).remove(&self.key);
        let err = if std::thread::panicking() {
            Error::panicked()
        } else {
            Error::closed()
        };
        self.announce(0, false, Err(err));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error::ErrorKind;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use tokio::time::sleep;

    const SECOND: Duration = Duration::from_secs(1);

    /// Flights whose builds take three seconds and are counted.
    struct Airport {
        flights: SingleFlight<&'static str, u32>,
        departures: Arc<AtomicU32>,
    }

    impl Airport {
        fn new() -> Self {
            Self {
                flights: SingleFlight::new(Handle::current()),
                departures: Arc::default(),
            }
        }

        async fn join(&self, limit: Duration) -> Result<u32, Error> {
            let departures = Arc::clone(&self.departures);
            let build = || {
                let work = move || {
                    let number = departures.fetch_add(1, Relaxed) + 1;
                    async move {
                        sleep(3 * SECOND).await;
                        Ok(number)
                    }
                };
                (Progress::new(Stage::Lookup, 60 * SECOND), work)
            };
            self.flights.get_or_start(&"acme", limit, build).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_gives_up_does_not_stop_the_flight() {
        let airport = Airport::new();
        let err = airport.join(SECOND).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Lookup));
        assert!(err.retry_after().is_some());

        assert_eq!(airport.join(10 * SECOND).await.unwrap(), 1);
        assert_eq!(airport.departures.load(Relaxed), 1);
        assert_eq!(airport.flights.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_became_stale_meanwhile_is_done_again_before_anybody_hears_of_it() {
        let airport = Airport::new();
        let (outcome, ()) = tokio::join!(airport.join(10 * SECOND), async {
            sleep(SECOND).await;
            airport.flights.mark_stale(&"acme");
        });
        assert_eq!(outcome.unwrap(), 2);
        assert_eq!(airport.flights.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_hears_of_the_second_round_though_that_is_out_of_date_too() {
        let airport = Airport::new();
        let stale = async {
            for _ in 0..10 {
                sleep(2 * SECOND).await;
                airport.flights.mark_stale(&"acme");
            }
        };
        let late = async {
            sleep(SECOND).await;
            airport.join(60 * SECOND).await
        };
        let (first, late, ()) = tokio::join!(airport.join(60 * SECOND), late, stale);
        assert_eq!((first.unwrap(), late.unwrap()), (2, 3));
        sleep(10 * SECOND).await;
        assert_eq!(airport.flights.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_frees_the_key_and_is_an_error_for_everyone() {
        let flights: SingleFlight<&str, ()> = SingleFlight::new(Handle::current());
        let crash = || {
            let work = || async { panic!("oh") };
            (Progress::new(Stage::Lookup, SECOND), work)
        };
        let err = flights
            .get_or_start(&"acme", SECOND, crash)
            .await
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Internal);
        assert_eq!(flights.len(), 0);
    }
}
