//! Many tenants provisioned as fast as Neon's limit allows.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tenantry::BoxError;
use tokio::time::Instant;

use crate::{
    counting_catalog::Calls,
    lookups::{self, Lookups},
    setup::Setup,
    support,
};

/// Tenants that are provisioned side by side.
const SIDE_BY_SIDE: usize = 32;

pub(crate) struct Provisioned {
    pub(crate) tenants: usize,
    pub(crate) took: Duration,
    /// Calls of the API as they arrived, and how many of them were refused for being too many.
    pub(crate) creations: u64,
    pub(crate) questions: u64,
    pub(crate) calls: u64,
    pub(crate) refused: u64,
    pub(crate) catalog: Calls,
}

/// Provisions `tenants`, then looks them up.
pub(crate) async fn run(tenants: usize) -> Result<(Provisioned, Lookups), BoxError> {
    let setup = Setup::new().await?;
    let fleet = setup.router.fleet().ok_or("no fleet")?;
    // Opens the connections to the catalog, and makes its tables.
    fleet.record("tenant-0").await?;
    setup.counting_catalog.take();
    let bar = support::progress(tenants);
    let start = Instant::now();
    stream::iter(0..tenants)
        .map(async |n| fleet.provision(&format!("tenant-{n}")).await)
        .buffer_unordered(SIDE_BY_SIDE)
        .try_for_each(|()| async {
            bar.inc(1);
            Ok(())
        })
        .await?;
    let took = start.elapsed();
    bar.finish_and_clear();
    let provisioned = Provisioned {
        tenants,
        took,
        creations: setup.emulator.requests("POST /projects"),
        questions: setup.emulator.requests("GET /projects/{id}/operations"),
        calls: setup.emulator.requests(""),
        refused: setup.emulator.refused_requests(),
        catalog: setup.counting_catalog.take(),
    };
    provisioned.check(&setup)?;
    let lookups = lookups::run(&setup.counting_catalog, tenants).await?;
    setup.router.close().await;
    Ok((provisioned, lookups))
}

impl Provisioned {
    /// Checks what the figure stands on: two calls for each tenant, none refused, nothing woken.
    fn check(&self, setup: &Setup) -> Result<(), BoxError> {
        let tenants = self.tenants as u64;
        let calls = [self.creations, self.questions, self.calls, self.refused];
        if calls != [tenants, tenants, 2 * tenants, 0] {
            return Err(format!("creations, questions, calls, refused: {calls:?}").into());
        }
        let wakes: usize = setup
            .emulator
            .witnesses()
            .iter()
            .map(|it| it.wakes.len())
            .sum();
        if wakes > 0 {
            return Err(format!("{wakes} computes were started").into());
        }
        Ok(())
    }
}
