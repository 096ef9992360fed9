//! The flight that finds a tenant's endpoint and creates its pool.

use std::{future::Future, mem, pin::Pin, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::Inner;
use crate::{
    model::{
        error::{Error, Stage},
        tenant::TenantId,
    },
    pool::{Pool, Unserved, shared::Shared},
    provision::source::{self, OnMissing},
    sync::progress::{Progress, Stale},
    telemetry::spans,
};

/// The result of a flight.
#[derive(Clone)]
pub(crate) enum Location {
    Located(LocatedPool),
    /// The tenant has no database, and this is all that the flight was allowed to do about it.
    Missing(OnMissing),
}

/// The pool that a flight has led to.
#[derive(Clone)]
pub(crate) struct LocatedPool {
    pub(crate) pool: Arc<Pool>,
    /// `true` if the flight created or adopted the tenant's database.
    pub(super) created: bool,
}

/// Returns the stage for which a caller of a flight has waited.
pub(super) fn lookup_stage(result: Result<&LocatedPool, Option<Stage>>) -> Stage {
    match result {
        Ok(LocatedPool { created: true, .. }) => Stage::Provision,
        Ok(_) => Stage::Lookup,
        Err(stage) => stage.unwrap_or(Stage::Lookup),
    }
}

pub(super) type FlightFuture = Pin<Box<dyn Future<Output = Result<Location, Error>> + Send>>;

impl Inner {
    /// Returns the pool of a tenant that is not in the cache.
    pub(super) async fn locate(
        &self,
        tenant: &TenantId,
        on_missing: OnMissing,
        patience: Duration,
    ) -> Result<LocatedPool, Error> {
        let until = Instant::now() + patience;
        loop {
            let patience = until.saturating_duration_since(Instant::now());
            let find = || self.flight_for(tenant, on_missing);
            match self.flights.get_or_start(tenant, patience, find).await? {
                Location::Located(arrived) => return Ok(arrived),
                Location::Missing(by) if by >= on_missing => return Err(source::not_created()),
                Location::Missing(_) => {} // another call's flight, which was allowed less
            }
        }
    }

    /// Returns a flight that finds a tenant's endpoint, creates its database if that is allowed, and creates its pool.
    pub(crate) fn flight_for(
        &self,
        tenant: &TenantId,
        on_missing: OnMissing,
    ) -> (Progress, impl FnMut() -> FlightFuture + Send + 'static) {
        let progress = Progress::new(Stage::Lookup, self.shared.config.provision_timeout);
        let (pools, shared) = (Arc::clone(&self.pools), Arc::clone(&self.shared));
        let (tenant, seen) = (tenant.clone(), progress.clone());
        let mut first = true;
        let name = tenant.as_str();
        let span = spans::detached(tracing::debug_span!(parent: None, "flight", tenant = name));
        let flight = move || -> FlightFuture {
            let again = !mem::replace(&mut first, false);
            let (tenant, seen) = (tenant.clone(), seen.clone());
            let (pools, shared) = (Arc::clone(&pools), Arc::clone(&shared));
            let work = async move {
                if again {
                    pools.evict(tenant.as_str()); // the result of an earlier round may be stale
                } else if let Some(pool) = pools.find(tenant.as_str()) {
                    // Another flight ended between the caller's look and this one.
                    return Ok(Location::Located(LocatedPool {
                        pool,
                        created: false,
                    }));
                }
                let Shared { source, stats, .. } = &*shared;
                let asked = source.stamp();
                let locate = source.lookup_or_create(&tenant, on_missing, &seen, stats);
                let located = timeout_at(seen.deadline(), locate).await;
                let Some(located) = located.map_err(|_| seen.timed_out())?? else {
                    return Ok(Location::Missing(on_missing));
                };
                let endpoint = Arc::clone(&located.endpoint);
                let created = located.created;
                let pool = pools.insert(&tenant, located);
                // In this order: the follower marks a change before it looks for the pool.
                if !source.agrees(&tenant, &endpoint, asked) {
                    pools.forbid(&tenant, &Unserved::relocate());
                    seen.mark_stale(Stale::Wrong);
                }
                Ok(Location::Located(LocatedPool { pool, created }))
            };
            Box::pin(work.instrument(span.clone()))
        };
        (progress, flight)
    }
}
