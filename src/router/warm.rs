//! Wakes a tenant's database before a caller waits for it.

use std::sync::Arc;

use tokio::{task::JoinHandle, time::Instant};

use super::{Inner, TenantRouter, locate::FlightOutcome};
use crate::{
    model::{endpoint::Route, error::Error, tenant::TenantId},
    pool::{Pool, Unserved, shared::Shared},
    provision::source::OnMissing,
    telemetry::{labels::Reason, stats::count},
};

impl TenantRouter {
    /// Starts waking the database of `tenant`, so that a later `get` need not wait for it.
    ///
    /// If the database sleeps and no call follows, this costs a needless wake, which at Neon is at least one suspend
    /// window of compute time.
    pub fn warm<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Warm {
        self.warm_by(tenant.as_ref(), OnMissing::AskPolicy)
    }

    pub(super) fn warm_by(&self, tenant: &str, on_missing: OnMissing) -> Warm {
        let (inner, tenant) = (Arc::clone(&self.inner), tenant.to_owned());
        let runtime = self.inner.shared.runtime.clone();
        Warm {
            task: runtime.spawn(async move { inner.wake(&tenant, on_missing).await }),
        }
    }

    /// Tells the router that `tenant` may be needed soon. If its database is believed asleep, it is woken, within the
    /// budget for needless wakes ([`hints_per_minute`](crate::RouterBuilder::hints_per_minute)). Creates nothing, and
    /// returns at once. Returns whether it has started anything.
    pub fn hint<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> bool {
        let Ok(tenant) = TenantId::parse(tenant.as_ref()) else {
            return false;
        };
        let Shared {
            life,
            dialer,
            hints,
            refusals,
            stats,
            runtime,
            ..
        } = &*self.inner.shared;
        let known = self.inner.pools.find(tenant.as_str());
        let needless = known.as_ref().is_some_and(|pool| pool.is_up_or_waking())
            || refusals.get(&tenant, Route::Pooled).is_some();
        if life.is_stopping() || needless {
            return false;
        }
        // A guess must not take a connection from a tenant that needs it.
        let affordable = !dialer.budget.only_reserve_left();
        let Some(taken) = affordable.then(|| hints.take()).flatten() else {
            count(&stats.hints_ignored);
            return false;
        };
        let (inner, hints) = (Arc::clone(&self.inner), Arc::clone(hints));
        runtime.spawn(async move {
            match inner.follow_hint(&tenant, known, taken).await {
                Ok(true) => {}
                Ok(false) => hints.give_back(taken), // nothing was woken
                Err(err) => tracing::debug!(tenant = tenant.as_str(), %err, "hint"),
            }
        });
        true
    }
}

impl Inner {
    /// Wakes the database of `tenant`. Returns `false` if nothing had to be woken.
    async fn follow_hint(
        &self,
        tenant: &TenantId,
        known: Option<Arc<Pool>>,
        at: Instant,
    ) -> Result<bool, Error> {
        let Shared { config, life, .. } = &*self.shared;
        let work = async {
            let pool = if known.is_some() {
                known
            } else {
                let find = || self.flight_for(tenant, OnMissing::Ignore);
                match self
                    .flights
                    .get_or_start(tenant, config.get_timeout, find)
                    .await?
                {
                    FlightOutcome::Found(found) => Some(found.pool),
                    FlightOutcome::Missing(_) => None,
                }
            };
            let Some(pool) = pool.filter(|pool| !pool.is_up_or_waking()) else {
                return Ok(false);
            };
            let until = at + config.get_timeout;
            let woken = pool.wake(until, Reason::Hint, Some(at)).await;
            woken.map_err(Unserved::into_error)
        };
        tokio::select! {
            biased;
            () = life.terminated() => Err(Error::closed()),
            done = work => done,
        }
    }
}

/// A wake under way. It goes on if this is dropped.
#[derive(Debug)]
pub struct Warm {
    task: JoinHandle<Result<(), Error>>,
}

impl Warm {
    /// Waits until the database is awake, or the wake has failed.
    ///
    /// # Errors
    /// Returns the errors of [`TenantRouter::get`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the wake goes on.
    pub async fn wait(self) -> Result<(), Error> {
        self.task.await.unwrap_or_else(|_| Err(Error::closed()))
    }
}
