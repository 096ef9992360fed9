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

/// The outcome of a flight.
#[derive(Clone)]
pub(super) enum FlightOutcome {
    Found(FoundPool),
    /// The tenant has no database. The flight was started with this value, which did not let it create one.
    Missing(OnMissing),
}

/// The pool that a flight has led to.
#[derive(Clone)]
pub(super) struct FoundPool {
    pub(super) pool: Arc<Pool>,
    /// `true` if the flight created or adopted the tenant's database.
    pub(super) created: bool,
}

/// Returns the stage for which a caller of a flight has waited.
pub(super) fn lookup_stage(result: Result<&FoundPool, Option<Stage>>) -> Stage {
    match result {
        Ok(FoundPool { created: true, .. }) => Stage::Provision,
        Ok(_) => Stage::Lookup,
        Err(stage) => stage.unwrap_or(Stage::Lookup),
    }
}

/// One round of a flight.
pub(super) type FlightRound = Pin<Box<dyn Future<Output = Result<FlightOutcome, Error>> + Send>>;

impl Inner {
    /// Returns the pool of a tenant that is not in the cache.
    pub(super) async fn locate(
        &self,
        tenant: &TenantId,
        on_missing: OnMissing,
        limit: Duration,
    ) -> Result<FoundPool, Error> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let find = || self.flight_for(tenant, on_missing);
            let outcome = tokio::select! {
                biased;
                () = self.shared.life.terminated() => return Err(Error::closed()),
                outcome = self.flights.get_or_start(tenant, left, find) => outcome?,
            };
            match outcome {
                FlightOutcome::Found(found) => return Ok(found),
                // A flight that this call started could do no more.
                FlightOutcome::Missing(allowed) if allowed >= on_missing => {
                    return Err(source::not_created());
                }
                // Another call started the flight, and may do less about it than this call: start another flight.
                FlightOutcome::Missing(_) => {}
            }
        }
    }

    /// Returns the progress and the work of a flight, which finds a tenant's endpoint, creates its database if that is
    /// allowed, and creates its pool. The work runs once more for each result that has become out of date.
    pub(super) fn flight_for(
        &self,
        tenant: &TenantId,
        on_missing: OnMissing,
    ) -> (Progress, impl FnMut() -> FlightRound + Send + 'static) {
        let progress = Progress::new(Stage::Lookup, self.shared.config.provision_timeout);
        let (pools, shared) = (Arc::clone(&self.pools), Arc::clone(&self.shared));
        let (tenant, work_progress) = (tenant.clone(), progress.clone());
        let mut first = true;
        let name = tenant.as_str();
        let span = spans::detached(tracing::debug_span!(parent: None, "flight", tenant = name));
        let next_round = move || -> FlightRound {
            let is_repeated = !mem::replace(&mut first, false);
            let (tenant, progress) = (tenant.clone(), work_progress.clone());
            let (pools, shared) = (Arc::clone(&pools), Arc::clone(&shared));
            let work = async move {
                if is_repeated {
                    pools.evict(tenant.as_str()); // the result of an earlier round may be stale
                } else if let Some(pool) = pools.find(tenant.as_str()) {
                    // Another flight ended between the caller's look and this one.
                    return Ok(FlightOutcome::Found(FoundPool {
                        pool,
                        created: false,
                    }));
                }
                let Shared { source, stats, .. } = &*shared;
                let asked_at = source.stamp(); // before the lookup, so that `agrees` sees changes during it
                let lookup = source.lookup_or_create(&tenant, on_missing, &progress, stats);
                let found = timeout_at(progress.deadline(), lookup)
                    .await
                    .unwrap_or_else(|_| Err(progress.timed_out()))?;
                let Some(found) = found else {
                    return Ok(FlightOutcome::Missing(on_missing));
                };
                let endpoint = Arc::clone(&found.endpoint);
                let created = found.created;
                let pool = pools.insert(&tenant, found);
                // A change of the catalog may arrive now. The follower (`follow.rs`) first marks the entry, then looks
                // for the pool. The flight first inserts the pool, then checks the entry. So one of them sees the
                // other's first step.
                if !source.agrees(&tenant, &endpoint, asked_at) {
                    pools.forbid(&tenant, &Unserved::relocate());
                    progress.mark_stale(Stale::Wrong); // no caller gets this result; the next round begins
                }
                Ok(FlightOutcome::Found(FoundPool { pool, created }))
            };
            Box::pin(work.instrument(span.clone()))
        };
        (progress, next_round)
    }
}
