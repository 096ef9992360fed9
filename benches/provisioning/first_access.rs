//! The first access to a tenant that has no database.

use std::time::Duration;

use tenantry::BoxError;
use tokio::time::Instant;

use crate::{
    baseline::Baseline,
    counting_catalog::Calls,
    setup::Setup,
    support::{self, QUERY, Samples},
};

/// Rounds in one emulator. It keeps the files of all its computes until it ends.
const ROUNDS_PER_SETUP: usize = 25;

#[derive(Default)]
pub(crate) struct FirstAccess {
    pub(crate) floor: Durations,
    pub(crate) ours: Durations,
    /// The part of it that was spent on the catalog.
    pub(crate) catalog: Samples,
    /// Calls of the catalog in all.
    pub(crate) catalog_calls: usize,
}

/// The times of first accesses.
#[derive(Default)]
pub(crate) struct Durations {
    pub(crate) all: Samples,
    /// Without the start of the compute, which is over by then at Neon.
    pub(crate) without_start: Samples,
}

impl Durations {
    /// Takes note of a turn that has just ended, and lets its compute sleep.
    async fn add(&mut self, took: Duration, setup: &Setup) -> Result<(), BoxError> {
        let witnesses = setup.emulator.witnesses();
        let wakes = witnesses.last().map(|newest| &newest.wakes[..]);
        let Some([start]) = wakes else {
            return Err("the newest compute was not started once".into());
        };
        self.all.add(took);
        self.without_start.add(took.saturating_sub(start.took));
        setup.emulator.suspend_all().await;
        Ok(())
    }
}

pub(crate) async fn run(rounds: usize) -> Result<FirstAccess, BoxError> {
    let mut results = FirstAccess::default();
    let bar = support::progress(rounds);
    for first in (0..rounds).step_by(ROUNDS_PER_SETUP) {
        let setup = Setup::new().await?;
        let baseline = Baseline::new(&setup.emulator)?;
        // Connections to the API and to the catalog are opened, and its tables made.
        baseline.first_access("warm up").await?;
        ours(&setup, "warm up").await?;
        for round in first..rounds.min(first + ROUNDS_PER_SETUP) {
            results.round(&setup, &baseline, round).await?;
            bar.inc(1);
        }
        setup.router.close().await;
    }
    bar.finish_and_clear();
    Ok(results)
}

impl FirstAccess {
    async fn round(
        &mut self,
        setup: &Setup,
        baseline: &Baseline<'_>,
        round: usize,
    ) -> Result<(), BoxError> {
        if round.is_multiple_of(2) {
            self.floor(setup, baseline, round).await?;
            self.ours(setup, round).await
        } else {
            self.ours(setup, round).await?;
            self.floor(setup, baseline, round).await
        }
    }

    async fn floor(
        &mut self,
        setup: &Setup,
        baseline: &Baseline<'_>,
        round: usize,
    ) -> Result<(), BoxError> {
        let took = baseline.first_access(&format!("bare-{round}")).await?;
        self.floor.add(took, setup).await
    }

    async fn ours(&mut self, setup: &Setup, round: usize) -> Result<(), BoxError> {
        setup.counting_catalog.take();
        let took = ours(setup, &format!("tenant-{round}")).await?;
        self.count(&setup.counting_catalog.take());
        self.ours.add(took, setup).await
    }

    fn count(&mut self, calls: &Calls) {
        let all = calls.values().flatten();
        self.catalog.add(all.clone().sum());
        self.catalog_calls += all.count();
    }
}

/// `get` and a query.
async fn ours(setup: &Setup, tenant: &str) -> Result<Duration, BoxError> {
    let start = Instant::now();
    let client = setup.router.get(tenant).await?;
    client.query_typed(QUERY, &[]).await?;
    let took = start.elapsed();
    drop(client);
    setup.router.evict(tenant);
    Ok(took)
}
