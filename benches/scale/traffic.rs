//! Tenants asked for at random, the popular ones more often.

use std::{hint::black_box, time::Duration};

use tenantry::BoxError;
use tokio::time::Instant;

use crate::{setup::Setup, spread::Spread, support};

/// Calls of `get` in one round of one router.
const CALLS: usize = 30_000;
/// Rounds that are measured. One more comes first, which fills the caches.
const ROUNDS: usize = 21;

/// The calls of one router in one round.
pub(crate) struct Round {
    pub(crate) hits: Spread,
    pub(crate) misses: Spread,
    /// The look-ups in the map.
    pub(crate) map: Spread,
    pub(crate) hit_rate: f64,
    pub(crate) evictions_per_1000: f64,
}

/// All rounds of each of `setups`, which take turns.
pub(crate) async fn run(setups: &[Setup]) -> Result<Vec<Vec<Round>>, BoxError> {
    let mut rounds: Vec<Vec<Round>> = setups.iter().map(|_| Vec::new()).collect();
    let bar = support::progress((ROUNDS + 1) * setups.len());
    for number in 0..=ROUNDS {
        for (setup, rounds) in setups.iter().zip(&mut rounds) {
            let round = Round::of(setup, number as u64).await?;
            if number > 0 {
                rounds.push(round);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(rounds)
}

/// The time that reading the clock adds to each time that is measured here: the median.
pub(crate) fn clock_overhead() -> f64 {
    let took = (0..CALLS).map(|_| Instant::now().elapsed());
    Spread::of(took.collect()).p50
}

impl Round {
    async fn of(setup: &Setup, number: u64) -> Result<Self, BoxError> {
        let draws = setup.tenants.draws(number, CALLS);
        let mut times = Times::default();
        let before = setup.router.status();
        for (at, &ours) in draws.iter().enumerate() {
            // The map gets the same tenants half a round later, and both take turns in going first: neither finds what
            // the other has just brought into the processor's cache.
            let others = draws[(at + CALLS / 2) % CALLS];
            if at % 2 == 0 {
                times.look_up(setup, others);
                times.get(setup, ours).await?;
            } else {
                times.get(setup, ours).await?;
                times.look_up(setup, others);
            }
        }
        let after = setup.router.status();
        let (reused, hits) = (after.gets_warm - before.gets_warm, times.hits.len());
        if reused != hits as u64 {
            let message = format!("{hits} opened nothing, but {reused} were reused");
            return Err(message.into());
        }
        Ok(Self {
            hit_rate: of_calls(reused),
            evictions_per_1000: 1000.0 * of_calls(after.evicted - before.evicted),
            hits: Spread::of(times.hits),
            misses: Spread::of(times.misses),
            map: Spread::of(times.map),
        })
    }
}

/// The times of each call.
#[derive(Default)]
struct Times {
    id: String,
    hits: Vec<Duration>,
    misses: Vec<Duration>,
    map: Vec<Duration>,
}

impl Times {
    /// Gets a connection and gives it back. It is a hit if the backend has seen no new stream.
    async fn get(&mut self, setup: &Setup, tenant: usize) -> Result<(), BoxError> {
        self.copy_id(setup, tenant);
        let opened = setup.backend.opened();
        let start = Instant::now();
        drop(setup.router.get(&self.id).await?);
        let took = start.elapsed();
        if setup.backend.opened() == opened {
            self.hits.push(took);
        } else {
            self.misses.push(took);
        }
        Ok(())
    }

    fn look_up(&mut self, setup: &Setup, tenant: usize) {
        self.copy_id(setup, tenant);
        let start = Instant::now();
        drop(black_box(setup.map.get(&self.id).cloned()));
        self.map.push(start.elapsed());
    }

    /// Copies the id, as if it had just been read from a request.
    fn copy_id(&mut self, setup: &Setup, tenant: usize) {
        self.id.clear();
        self.id.push_str(&setup.tenants.ids[tenant]);
    }
}

#[allow(clippy::cast_precision_loss, reason = "small counts")]
fn of_calls(count: u64) -> f64 {
    count as f64 / CALLS as f64
}
