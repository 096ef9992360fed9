//! Tenants asked for at random, the popular ones more often.

use std::{hint::black_box, time::Duration};

use tenantry::BoxError;
use tokio::time::Instant;

use crate::{scene::Scene, spread::Spread, support};

/// Calls of `get` in one round of one router.
const CALLS: usize = 30_000;
/// Rounds that are measured. One more comes first, which fills the caches.
const ROUNDS: usize = 21;

/// What one router's calls of one round came to.
pub(crate) struct Round {
    pub(crate) hits: Spread,
    pub(crate) misses: Spread,
    /// The look-ups in the map.
    pub(crate) map: Spread,
    pub(crate) hit_rate: f64,
    pub(crate) evictions_per_1000: f64,
}

/// All rounds of each of `scenes`, which take turns.
pub(crate) async fn run(scenes: &[Scene]) -> Result<Vec<Vec<Round>>, BoxError> {
    let mut rounds: Vec<Vec<Round>> = scenes.iter().map(|_| Vec::new()).collect();
    let bar = support::progress((ROUNDS + 1) * scenes.len());
    for number in 0..=ROUNDS {
        for (scene, rounds) in scenes.iter().zip(&mut rounds) {
            let round = Round::of(scene, number as u64).await?;
            if number > 0 {
                rounds.push(round);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(rounds)
}

/// What reading the clock adds to each time that is measured here: the median.
pub(crate) fn clock() -> f64 {
    let took = (0..CALLS).map(|_| Instant::now().elapsed());
    Spread::of(took.collect()).p50
}

impl Round {
    async fn of(scene: &Scene, number: u64) -> Result<Self, BoxError> {
        let draws = scene.tenants.draws(number, CALLS);
        let mut times = Times::default();
        let before = scene.router.status();
        for (at, &ours) in draws.iter().enumerate() {
            // The map gets the same tenants half a round later, and both take turns in going first: neither finds what
            // the other has just brought into the processor's cache.
            let others = draws[(at + CALLS / 2) % CALLS];
            if at % 2 == 0 {
                times.look_up(scene, others);
                times.get(scene, ours).await?;
            } else {
                times.get(scene, ours).await?;
                times.look_up(scene, others);
            }
        }
        let after = scene.router.status();
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

/// How long each call took.
#[derive(Default)]
struct Times {
    id: String,
    hits: Vec<Duration>,
    misses: Vec<Duration>,
    map: Vec<Duration>,
}

impl Times {
    /// Gets a connection and gives it back. It is a hit if the backend has seen no new stream.
    async fn get(&mut self, scene: &Scene, tenant: usize) -> Result<(), BoxError> {
        self.hear_of(scene, tenant);
        let opened = scene.backend.opened();
        let start = Instant::now();
        drop(scene.router.get(&self.id).await?);
        let took = start.elapsed();
        if scene.backend.opened() == opened {
            self.hits.push(took);
        } else {
            self.misses.push(took);
        }
        Ok(())
    }

    fn look_up(&mut self, scene: &Scene, tenant: usize) {
        self.hear_of(scene, tenant);
        let start = Instant::now();
        drop(black_box(scene.map.get(&self.id).cloned()));
        self.map.push(start.elapsed());
    }

    /// Copies the id, as if it had just been read from a request.
    fn hear_of(&mut self, scene: &Scene, tenant: usize) {
        self.id.clear();
        self.id.push_str(&scene.tenants.ids[tenant]);
    }
}

#[allow(clippy::cast_precision_loss, reason = "small counts")]
fn of_calls(count: u64) -> f64 {
    count as f64 / CALLS as f64
}
