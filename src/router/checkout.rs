//! The path of a call to a connection: an idle one at once, or a wait in the tenant's pool.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::Instrument;

use super::{Inner, locate::lookup_stage};
use crate::{
    catalog::cached::{Entry, EntryCache},
    limits::callers::CallerSlot,
    model::{
        error::{Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    pool::{Pool, Unserved, loan::Loan, shared::Shared},
    provision::source::OnMissing,
    telemetry::{
        labels::{Path, Reason},
        spans::{self, StageTimer},
        stats::count,
    },
};

/// Waits in `pool` for a connection if `reason` is a request, otherwise until the database is awake.
async fn serve(
    pool: &Arc<Pool>,
    created: bool,
    until: Instant,
    reason: Reason,
    laps: &mut StageTimer<'_>,
) -> Result<(Option<Loan>, Path), Unserved> {
    let (lease, slept) = if reason == Reason::Request {
        let served = pool.get(until).await;
        laps.record(served.as_ref().map_err(Unserved::error), checkout_stage);
        served.map(|(lease, slept)| (Some(lease), slept))?
    } else {
        let awake = Box::pin(pool.wake(until, reason, None)).await;
        if !created && matches!(awake, Ok(false)) {
            return Ok((None, Path::Warm)); // it was awake: nothing was waited for
        }
        laps.record(awake.as_ref().map_err(Unserved::error), wake_stage);
        (None, awake?)
    };
    let path = match (created, slept) {
        (true, _) => Path::Provisioned,
        (false, true) => Path::Cold,
        (false, false) => Path::Reopened,
    };
    Ok((lease, path))
}

/// Returns the stage for which a caller has waited in a pool's queue.
fn checkout_stage(result: Result<&(Loan, bool), Option<Stage>>) -> Stage {
    match result {
        Ok((_, true)) => Stage::Wake,
        Ok((_, false)) => Stage::Checkout,
        Err(stage) => stage.unwrap_or(Stage::Checkout),
    }
}

/// Returns the stage for which a caller has waited until the database was awake.
fn wake_stage(result: Result<&bool, Option<Stage>>) -> Stage {
    match result {
        Ok(true) => Stage::Wake,
        Ok(false) => Stage::Checkout,
        Err(stage) => stage.unwrap_or(Stage::Wake),
    }
}

impl Inner {
    /// Returns a connection, within `patience`, or within `get_timeout` if that is `None`.
    pub(crate) async fn get(
        &self,
        tenant: &str,
        on_missing: OnMissing,
        patience: Option<Duration>,
    ) -> Result<Loan, Error> {
        if self.shared.life.is_stopping() {
            return Err(self.reject_closed(tenant, Reason::Request));
        }
        match self.pools.get_now(tenant) {
            Ok(lease) => {
                spans::record_idle_hit(tenant);
                Ok(lease)
            }
            // Boxed, so that the future of a call that need not wait stays small.
            Err(pool) => {
                let wait = self.wait(tenant, pool, on_missing, Reason::Request, patience);
                let lease = Box::pin(wait).await?;
                Ok(lease.expect("a request is served with a connection"))
            }
        }
    }

    /// Waits until the database of `tenant` is awake.
    pub(crate) async fn wake(&self, tenant: &str, on_missing: OnMissing) -> Result<(), Error> {
        if self.shared.life.is_stopping() {
            return Err(self.reject_closed(tenant, Reason::Warm));
        }
        let pool = self.pools.find(tenant);
        let wait = self.wait(tenant, pool, on_missing, Reason::Warm, None);
        wait.await.map(drop)
    }

    /// Returns the error for a call after the router has begun to end.
    fn reject_closed(&self, tenant: &str, reason: Reason) -> Error {
        let err = Error::closed();
        spans::end(&spans::span(tenant, reason), Err(&err));
        self.shared.stats.failed(&err);
        err
    }

    /// Waits for a connection if `reason` is a request, otherwise until the database is awake. Uses `pool`, if the
    /// tenant has one.
    async fn wait(
        &self,
        tenant: &str,
        pool: Option<Arc<Pool>>,
        on_missing: OnMissing,
        reason: Reason,
        patience: Option<Duration>,
    ) -> Result<Option<Loan>, Error> {
        let Shared { life, stats, .. } = &*self.shared;
        let (span, mut laps) = (spans::span(tenant, reason), StageTimer::new(stats));
        let work = async {
            tokio::select! {
                biased;
                () = life.terminated() => Err(Error::closed()),
                result = self.locate_and_serve(tenant, pool, on_missing, reason, patience, &mut laps) => result,
            }
        };
        let result = work.instrument(span.clone()).await;
        spans::end(&span, result.as_ref().map(|(_, path)| *path));
        match result {
            Ok((lease, path)) => {
                stats.got(path, laps.waited());
                Ok(lease)
            }
            Err(err) => {
                stats.failed(&err);
                self.note_failing(&err);
                Err(err)
            }
        }
    }

    async fn locate_and_serve(
        &self,
        raw: &str,
        pool: Option<Arc<Pool>>,
        on_missing: OnMissing,
        reason: Reason,
        patience: Option<Duration>,
        laps: &mut StageTimer<'_>,
    ) -> Result<(Option<Loan>, Path), Error> {
        let tenant = TenantId::parse(raw)?;
        let place = self.enter(&tenant)?;
        let patience = patience.unwrap_or(self.shared.config.get_timeout);
        let until = laps.began + patience;
        let mut pool = pool;
        let work = async {
            loop {
                let (pool, created) = if let Some(pool) = pool.take() {
                    (pool, false)
                } else {
                    // Boxed, like the wake in `serve`, so that the future of a call that waits for a connection stays
                    // small.
                    let patience = until.saturating_duration_since(Instant::now());
                    let flight = Box::pin(self.locate(&tenant, on_missing, patience)).await;
                    laps.record(flight.as_ref(), lookup_stage);
                    flight.map(|it| (it.pool, it.created))?
                };
                match serve(&pool, created, until, reason, laps).await {
                    Err(Unserved::Relocate(_)) if Instant::now() < until => {}
                    served => return served.map_err(Unserved::into_error),
                }
            }
        };
        let served = work.await;
        if served.is_ok() {
            place.served();
        }
        served.map_err(|err: Error| err.with_tenant(&tenant))
    }

    /// Counts a failed call for a tenant that has a database. Other ids come from outside, and made-up ids must not
    /// fill the list of failing tenants.
    pub(super) fn note_failing(&self, err: &Error) {
        let Some(tenant) = err.tenant() else {
            return;
        };
        let entries = self.shared.source.catalog().map(|it| &it.entries);
        let is_known = |it: &EntryCache| matches!(it.get(tenant), Some(Entry::Known(_)));
        if entries.is_some_and(is_known) || self.pools.live(tenant.as_str()).is_some() {
            self.shared.stats.failing.add(tenant, 1.0);
        }
    }

    /// Returns a place among the waiting callers, or an error if too many wait.
    pub(super) fn enter(&self, tenant: &TenantId) -> Result<CallerSlot<TenantId>, Error> {
        let Shared { waiting, stats, .. } = &*self.shared;
        waiting.try_enter(tenant).map_err(|full| {
            count(&stats.overloaded);
            let most = full.most;
            let message = if full.of_one {
                format!(
                    "{most} callers wait for this tenant already; raise waiting_per_tenant, or pool_size so that more \
                     are served side by side"
                )
            } else {
                format!("{most} callers wait already; raise waiting_callers, or max_connections so that more are \
                         served")
            };
            Error::new(ErrorKind::Overloaded, message)
                .with_tenant(tenant)
                .with_retry_after(full.wait)
        })
    }
}
