//! The path of a call to a connection: an idle one at once, or a wait in the tenant's pool.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::Instrument;

use super::{Inner, locate::lookup_stage};
use crate::{
    limits::callers::{CallerSlot, QueueFull},
    model::{
        error::{Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    pool::{CheckedOut, Pool, Unserved, cache::Visited, loan::Loan, shared::Shared},
    provision::source::OnMissing,
    telemetry::{
        labels::{Path, Reason},
        spans::{self, StageTimer},
        stats::count,
    },
};

/// Waits in `pool` for a connection. `created`: the call has just created or adopted the database.
async fn wait_for_loan(
    pool: &Arc<Pool>,
    created: bool,
    until: Instant,
    timer: &mut StageTimer<'_>,
) -> Result<(Loan, Path), Unserved> {
    let served = pool.get(until, timer.last).await;
    let at = served
        .as_ref()
        .map_or_else(|_| pool.shared.clock.now(), |it| it.at);
    timer.record_at(at, served.as_ref().map_err(Unserved::error), checkout_stage);
    let CheckedOut {
        loan, was_asleep, ..
    } = served?;
    Ok((loan, path_of(created, was_asleep)))
}

/// Waits until the database of `pool` is awake. `created`: the call has just created or adopted it.
async fn wait_until_awake(
    pool: &Arc<Pool>,
    created: bool,
    until: Instant,
    timer: &mut StageTimer<'_>,
) -> Result<((), Path), Unserved> {
    let awake = pool.wake(until, Reason::Warm, None).await;
    if !created && matches!(awake, Ok(false)) {
        return Ok(((), Path::Warm)); // it was awake: nothing was waited for
    }
    timer.record(awake.as_ref().map_err(Unserved::error), wake_stage);
    Ok(((), path_of(created, awake?)))
}

/// Returns the path of a call that has waited in a pool.
fn path_of(created: bool, was_asleep: bool) -> Path {
    match (created, was_asleep) {
        (true, _) => Path::Provisioned,
        (false, true) => Path::Cold,
        (false, false) => Path::Reopened,
    }
}

/// Returns the stage for which a caller has waited in a pool's queue.
fn checkout_stage(result: Result<&CheckedOut, Option<Stage>>) -> Stage {
    match result {
        Ok(it) if it.was_asleep => Stage::Wake,
        Ok(_) => Stage::Checkout,
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
    /// Returns a connection, within `time`, or within `get_timeout` if that is `None`.
    pub(crate) async fn get(
        &self,
        tenant: &str,
        on_missing: OnMissing,
        time: Option<Duration>,
    ) -> Result<Loan, Error> {
        match self.get_idle(tenant) {
            Ok(loan) => Ok(loan),
            // Boxed, so that the future of a call that need not wait stays small.
            Err(known) => Box::pin(self.get_later(tenant, known, on_missing, time)).await,
        }
    }

    /// Returns an idle connection, or what [`get_later`](Self::get_later) needs to know. No `async` function, because
    /// the future would cost a tenth of all the rest.
    pub(super) fn get_idle(&self, tenant: &str) -> Result<Loan, Option<Visited>> {
        if self.shared.life.is_stopping() {
            return Err(None);
        }
        let loan = self.pools.try_get_idle(tenant)?;
        spans::record_idle_hit(tenant);
        Ok(loan)
    }

    /// Returns a connection, as [`get`](Self::get) does, to a call that found no idle one.
    pub(super) async fn get_later(
        &self,
        tenant: &str,
        known: Option<Visited>,
        on_missing: OnMissing,
        time: Option<Duration>,
    ) -> Result<Loan, Error> {
        if self.shared.life.is_stopping() {
            return Err(self.reject_closed(tenant, Reason::Request));
        }
        let (reason, serve) = (Reason::Request, wait_for_loan);
        self.slow_path(tenant, known, on_missing, reason, time, serve)
            .await
    }

    /// Waits until the database of `tenant` is awake.
    pub(super) async fn wake(&self, tenant: &str, on_missing: OnMissing) -> Result<(), Error> {
        if self.shared.life.is_stopping() {
            return Err(self.reject_closed(tenant, Reason::Warm));
        }
        let known = self.pools.visit(tenant);
        let (reason, serve) = (Reason::Warm, wait_until_awake);
        self.slow_path(tenant, known, on_missing, reason, None, serve)
            .await
    }

    /// Returns the error for a call after the router has begun to end.
    fn reject_closed(&self, tenant: &str, reason: Reason) -> Error {
        let err = Error::closed();
        spans::end(&spans::span(tenant, reason), Err(&err));
        self.shared.stats.failed(&err);
        err
    }

    /// Serves a call that found no idle connection: waits with `serve` in the `known` pool, or in the pool of a new
    /// lookup if that is `None`. Records the call's span and statistics.
    async fn slow_path<T, S>(
        &self,
        tenant: &str,
        known: Option<Visited>,
        on_missing: OnMissing,
        reason: Reason,
        time: Option<Duration>,
        serve: S,
    ) -> Result<T, Error>
    where
        S: AsyncFn(&Arc<Pool>, bool, Instant, &mut StageTimer<'_>) -> Result<(T, Path), Unserved>,
    {
        let Shared { stats, clock, .. } = &*self.shared;
        let began = known.as_ref().map_or_else(|| clock.now(), |it| it.at);
        let (span, mut timer) = (
            spans::span(tenant, reason),
            StageTimer::new(stats, *clock, began),
        );
        let known = known.map(|it| it.pool);
        let work = self.locate_and_serve(tenant, known, on_missing, time, &mut timer, serve);
        let result = if span.is_none() {
            work.await
        } else {
            // Boxed, so that a call that nothing looks at does not move and keep room for both forms of its future.
            Box::pin(work.instrument(span.clone())).await
        };
        spans::end(&span, result.as_ref().map(|(_, path)| *path));
        match result {
            Ok((served, path)) => {
                stats.got(path, timer.waited());
                Ok(served)
            }
            Err(err) => {
                stats.failed(&err);
                self.note_failing(&err);
                Err(err)
            }
        }
    }

    /// Looks up the tenant with the id `id`, unless its pool is `known`, and waits with `serve` in the pool. Repeats
    /// both if the pool answers that the tenant must be looked up again.
    async fn locate_and_serve<T, S>(
        &self,
        id: &str,
        known: Option<Arc<Pool>>,
        on_missing: OnMissing,
        time: Option<Duration>,
        timer: &mut StageTimer<'_>,
        serve: S,
    ) -> Result<(T, Path), Error>
    where
        S: AsyncFn(&Arc<Pool>, bool, Instant, &mut StageTimer<'_>) -> Result<(T, Path), Unserved>,
    {
        let parsed;
        let tenant = if let Some(pool) = &known {
            &pool.tenant
        } else {
            parsed = TenantId::parse(id)?;
            &parsed
        };
        let slot = self.take_caller_slot(tenant, known.as_deref(), timer.began.nanos)?;
        let time = time.unwrap_or(self.shared.config.get_timeout);
        let until = timer.began.instant + time;
        let work = async {
            let (mut known, mut found) = (known.as_ref(), None);
            loop {
                let (pool, created) = if let Some(pool) = known.take() {
                    (pool, false)
                } else {
                    // Boxed, so that the future of a call that waits for a connection stays small.
                    let left = until.saturating_duration_since(Instant::now());
                    let located = Box::pin(self.locate(tenant, on_missing, left)).await;
                    timer.record(located.as_ref(), lookup_stage);
                    let found = found.insert(located?);
                    (&found.pool, found.created)
                };
                let served = match self.bring_up_to_date(pool, until, timer).await {
                    Ok(has_woken) => {
                        let served = serve(pool, created, until, timer).await;
                        served.map(|(it, path)| (it, path.after_migration(has_woken)))
                    }
                    Err(err) => Err(err),
                };
                match served {
                    // The tenant has moved, or its database is being made anew: look it up again.
                    Err(Unserved::Relocate(_)) if Instant::now() < until => {}
                    Err(err) => return Err(err.into_error()),
                    Ok(served) => {
                        self.migrate_beside(pool);
                        return Ok(served);
                    }
                }
            }
        };
        let served = work.await;
        if served.is_ok() {
            slot.served(timer.last.nanos); // its wait counts in the estimate for callers that are refused
        }
        served.map_err(|err: Error| match err.kind() {
            ErrorKind::Closed => err, // says nothing about the tenant
            _ => err.with_tenant(tenant),
        })
    }

    /// Counts a failed call for a tenant that has a database. Other ids come from outside, and made-up ids must not
    /// fill the list of failing tenants.
    pub(super) fn note_failing(&self, err: &Error) {
        let Some(tenant) = err.tenant() else {
            return;
        };
        let entries = self.shared.source.catalog().map(|it| &it.entries);
        let is_known = entries.is_some_and(|it| it.is_known(tenant));
        if is_known || self.pools.live(tenant.as_str()).is_some() {
            self.shared.stats.failing.add(tenant, 1.0);
        }
    }

    /// Returns a slot among the waiting callers, or an error if too many wait. `known`: the tenant's pool, if the call
    /// found it in the cache. `now`: nanoseconds by the router's clock.
    pub(super) fn take_caller_slot<'a>(
        &'a self,
        tenant: &'a TenantId,
        known: Option<&'a Pool>,
        now: u64,
    ) -> Result<CallerSlot<'a, TenantId>, Error> {
        let waiting = &self.shared.waiting;
        let slot = if let Some(pool) = known {
            waiting.try_enter_line(&pool.callers, tenant, now)
        } else {
            let in_line = || self.pools.live(tenant.as_str());
            waiting.try_enter(tenant, now, || in_line().map_or(0, |it| it.callers.len()))
        };
        slot.map_err(|full| self.overloaded(tenant, full))
    }

    /// Counts a caller that was refused because too many wait, and returns its error.
    fn overloaded(&self, tenant: &TenantId, full: QueueFull) -> Error {
        count(&self.shared.stats.overloaded);
        let most = full.most;
        let message = if full.of_one {
            format!(
                "{most} callers wait for this tenant already; raise waiting_per_tenant, or raise pool_size so that \
                 more are served at the same time"
            )
        } else {
            format!(
                "{most} callers wait already; raise waiting_callers, or raise max_connections so that more are served \
                 at the same time"
            )
        };
        Error::new(ErrorKind::Overloaded, message)
            .with_tenant(tenant)
            .with_retry_after(full.wait)
    }
}
