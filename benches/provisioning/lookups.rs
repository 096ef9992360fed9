//! Look-ups in a catalog in Postgres, and their times.

use std::{num::Wrapping, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use tenantry::{BoxError, Lookup, TenantId};
use tokio::time::Instant;

use crate::{
    counting_catalog::CountingCatalog,
    support::{self, Samples},
};

/// Lookups that are measured, alone and side by side.
const LOOKUPS: usize = 20_000;
/// Callers side by side. The catalog's own pool has 4 connections.
const CALLERS: usize = 16;

pub(crate) struct Lookups {
    /// One after another.
    pub(crate) alone: Samples,
    /// As long as all took side by side.
    pub(crate) side_by_side: Duration,
}

impl Lookups {
    #[allow(clippy::cast_precision_loss, reason = "a small count")]
    pub(crate) fn per_second(&self) -> f64 {
        LOOKUPS as f64 / self.side_by_side.as_secs_f64()
    }
}

/// Looks `tenants` up in an order that no cache of the catalog's likes.
pub(crate) async fn run(
    counting_catalog: &CountingCatalog,
    tenants: usize,
) -> Result<Lookups, BoxError> {
    let order = (0..LOOKUPS).map(|n| (Wrapping(n) * Wrapping(7919)).0 % tenants);
    let bar = support::progress(2 * LOOKUPS);
    let mut took = Vec::new();
    for n in order.clone() {
        let start = Instant::now();
        look_up(counting_catalog, n).await?;
        took.push(start.elapsed());
        bar.inc(1);
    }
    let start = Instant::now();
    stream::iter(order)
        .map(|n| look_up(counting_catalog, n))
        .buffer_unordered(CALLERS)
        .try_for_each(|()| async {
            bar.inc(1);
            Ok(())
        })
        .await?;
    let side_by_side = start.elapsed();
    bar.finish_and_clear();
    let mut alone = Samples::default();
    alone.extend(took);
    Ok(Lookups {
        alone,
        side_by_side,
    })
}

async fn look_up(counting_catalog: &CountingCatalog, n: usize) -> Result<(), BoxError> {
    let tenant = TenantId::parse(&format!("tenant-{n}"))?;
    let found = counting_catalog.lookup(&tenant).await?;
    found
        .map(drop)
        .ok_or_else(|| "a tenant is not found".into())
}
