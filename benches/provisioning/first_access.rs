//! The first access to a tenant that has no database.

use std::time::Duration;

use tenantry::BoxError;
use tokio::time::Instant;

use crate::{
    bare::Bare,
    records::Calls,
    scene::Scene,
    support::{self, QUERY, Samples},
};

/// Rounds in one emulator. It keeps the files of all its computes until it ends.
const IN_ONE_SCENE: usize = 25;

#[derive(Default)]
pub(crate) struct FirstAccess {
    pub(crate) floor: Took,
    pub(crate) ours: Took,
    /// The part of it that was spent on the catalog.
    pub(crate) catalog: Samples,
    /// How often the catalog was asked in all.
    pub(crate) catalog_calls: usize,
}

/// How long it took somebody.
#[derive(Default)]
pub(crate) struct Took {
    pub(crate) all: Samples,
    /// Without the start of the compute, which is over by then at Neon.
    pub(crate) without_start: Samples,
}

impl Took {
    /// Takes note of a turn that has just ended, and lets its compute sleep.
    async fn add(&mut self, took: Duration, scene: &Scene) -> Result<(), BoxError> {
        let witnesses = scene.emulator.witnesses();
        let wakes = witnesses.last().map(|newest| &newest.wakes[..]);
        let Some([start]) = wakes else {
            return Err("the newest compute was not started once".into());
        };
        self.all.add(took);
        self.without_start.add(took.saturating_sub(start.took));
        scene.emulator.suspend_all().await;
        Ok(())
    }
}

pub(crate) async fn run(rounds: usize) -> Result<FirstAccess, BoxError> {
    let mut results = FirstAccess::default();
    let bar = support::progress(rounds);
    for first in (0..rounds).step_by(IN_ONE_SCENE) {
        let scene = Scene::new().await?;
        let bare = Bare::new(&scene.emulator)?;
        // Connections to the API and to the catalog are opened, and its tables made.
        bare.first_access("warm up").await?;
        ours(&scene, "warm up").await?;
        for round in first..rounds.min(first + IN_ONE_SCENE) {
            results.round(&scene, &bare, round).await?;
            bar.inc(1);
        }
        scene.router.close().await;
    }
    bar.finish_and_clear();
    Ok(results)
}

impl FirstAccess {
    async fn round(
        &mut self,
        scene: &Scene,
        bare: &Bare<'_>,
        round: usize,
    ) -> Result<(), BoxError> {
        if round.is_multiple_of(2) {
            self.floor(scene, bare, round).await?;
            self.ours(scene, round).await
        } else {
            self.ours(scene, round).await?;
            self.floor(scene, bare, round).await
        }
    }

    async fn floor(
        &mut self,
        scene: &Scene,
        bare: &Bare<'_>,
        round: usize,
    ) -> Result<(), BoxError> {
        let took = bare.first_access(&format!("bare-{round}")).await?;
        self.floor.add(took, scene).await
    }

    async fn ours(&mut self, scene: &Scene, round: usize) -> Result<(), BoxError> {
        scene.records.take();
        let took = ours(scene, &format!("tenant-{round}")).await?;
        self.count(&scene.records.take());
        self.ours.add(took, scene).await
    }

    fn count(&mut self, calls: &Calls) {
        let all = calls.values().flatten();
        self.catalog.add(all.clone().sum());
        self.catalog_calls += all.count();
    }
}

/// `get` and a query.
async fn ours(scene: &Scene, tenant: &str) -> Result<Duration, BoxError> {
    let start = Instant::now();
    let client = scene.router.get(tenant).await?;
    client.query_typed(QUERY, &[]).await?;
    let took = start.elapsed();
    drop(client);
    scene.router.evict(tenant);
    Ok(took)
}
