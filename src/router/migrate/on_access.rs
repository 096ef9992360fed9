//! The effect of an access on a tenant whose schema is not current.

use std::{sync::Arc, time::Duration};

use moka::sync::Cache;
use tokio::time::{Instant, sleep};

use super::{Migrator, Purpose};
use crate::{
    model::{
        error::{Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    pool::{Pool, Unserved},
    provision::{migrate::MigrationOutcome, source::Source},
    router::Inner,
    schema::{OnAccess, Standing},
    sync::{progress::Noted, retry::backoff},
    telemetry::spans::StageTimer,
};

/// Time for which accesses do not ask the catalog again about a tenant that could not be migrated. The catalog says
/// when it is tried again.
const FAILED_FOR: Duration = Duration::from_secs(10);
/// The same without a catalog: then this alone says when it is tried again.
const UNRECORDED_FOR: Duration = Duration::from_secs(60);
/// Most tenants of which a failure is remembered.
const MOST_FAILURES: u64 = 10_000;

impl Inner {
    /// Migrates the tenant of `pool` if its schema is too old for this program. Returns whether that has woken the
    /// database. Returns an error if the tenant cannot be served, because of its schema, by `until`.
    pub(in crate::router) async fn bring_up_to_date(
        &self,
        pool: &Arc<Pool>,
        until: Instant,
        timer: &mut StageTimer<'_>,
    ) -> Result<bool, Unserved> {
        let is_too_old = pool.standing() == Standing::TooOld;
        let Some(migrator) = self.migrator.as_ref().filter(|_| is_too_old) else {
            return Ok(false);
        };
        // Boxed, so that the future of a call to a tenant that is not too old stays small.
        let ended = Box::pin(migrator.migrate_first(pool, until)).await;
        if matches!(ended, Err(Unserved::Relocate(_))) {
            self.evict(&pool.tenant); // so that the next look-up asks the catalog, whatever the caches have
        }
        timer.record(ended.as_ref().map_err(Unserved::error), |_| Stage::Migrate);
        ended
    }

    /// Starts the migration of the tenant of `pool`, which is awake, if its schema lacks steps that this program does
    /// not need.
    pub(in crate::router) fn migrate_beside(&self, pool: &Arc<Pool>) {
        if pool.standing() != Standing::Behind {
            return;
        }
        let Some(migrator) = &self.migrator else {
            return;
        };
        let is_asked_for = migrator.schema.on_access() == OnAccess::Migrate;
        if is_asked_for && migrator.failures.of(&pool.tenant).is_none() {
            let key = (pool.tenant.clone(), Purpose::Migrate);
            let start = || migrator.flight_for(pool, Purpose::Migrate);
            migrator.running.start(&key, start);
        }
    }
}

impl Migrator {
    /// Forgets that the migration of `tenant` has failed, so that the next access tries again.
    pub(in crate::router) fn forget_failure(&self, tenant: &TenantId) {
        self.failures.0.invalidate(tenant);
    }

    /// Migrates the tenant of `pool`, or finds out that it need not be. Returns whether that has woken the database.
    async fn migrate_first(&self, pool: &Arc<Pool>, until: Instant) -> Result<bool, Unserved> {
        let is_recorded = matches!(pool.shared.source, Source::Provisioning(_));
        let purpose = match self.schema.on_access() {
            OnAccess::Refuse if is_recorded => return Err(self.schema.too_old().into()),
            OnAccess::Refuse => Purpose::Read, // only the database knows
            OnAccess::Migrate | OnAccess::Serve => Purpose::Migrate,
        };
        let failed = self.failures.of(&pool.tenant);
        if let Some(err) = failed.filter(|it| matches!(it.kind(), ErrorKind::Schema(_))) {
            return Err(err.into());
        }
        let mut pauses = backoff(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            let err = match self.join(pool, purpose, until).await {
                Ok(MigrationOutcome::Moved) => return Err(Unserved::relocate()),
                Ok(MigrationOutcome::Ended {
                    result, standing, ..
                }) => {
                    return match result {
                        Ok(migrated) => Ok(migrated.woke),
                        Err(_) if standing != Standing::TooOld => Ok(false), // the steps that it needs are there
                        Err(err) => Err(err.into()),
                    };
                }
                Err(err) => err,
            };
            // As for a wake, callers go on waiting when one attempt has run out of time or lost its connection.
            let is_worth_a_try = matches!(err.kind(), ErrorKind::Timeout(_) | ErrorKind::Connect);
            let pause = pauses.next().unwrap_or_default();
            if !is_worth_a_try || Instant::now() + pause >= until {
                return Err(err.into());
            }
            sleep(pause).await;
        }
    }
}

/// The tenants whose migration has failed a short while ago, so that accesses cost the catalog and the database little.
#[derive(Clone)]
pub(super) struct Failures(Cache<TenantId, Failure>);

#[derive(Clone)]
struct Failure {
    noted: Noted,
    until: Instant,
}

impl Default for Failures {
    fn default() -> Self {
        Self(Cache::new(MOST_FAILURES))
    }
}

impl Failures {
    /// Returns the error of the last migration of `tenant`, if that has failed a short while ago.
    pub(super) fn of(&self, tenant: &TenantId) -> Option<Error> {
        let failure = self.0.get(tenant)?;
        (Instant::now() < failure.until).then(|| failure.noted.error())
    }

    /// Notes the end of the migration of the tenant of `pool`.
    pub(super) fn note(&self, pool: &Pool, ended: &Result<MigrationOutcome, Error>) {
        let err = match ended {
            Ok(MigrationOutcome::Moved) => return,
            Ok(MigrationOutcome::Ended {
                result, standing, ..
            }) => {
                pool.set_standing(*standing);
                result.as_ref().err()
            }
            Err(err) => Some(err),
        };
        let Some(err) = err else {
            return self.0.invalidate(&pool.tenant);
        };
        let is_recorded = matches!(pool.shared.source, Source::Provisioning(_));
        let (lasts, err) = match err.kind() {
            ErrorKind::Closed => return,
            ErrorKind::Schema(_) if !is_recorded => {
                (UNRECORDED_FOR, err.clone().with_retry_after(UNRECORDED_FOR))
            }
            _ => (FAILED_FOR, err.clone()),
        };
        let failure = Failure {
            noted: Noted::new(err),
            until: Instant::now() + lasts,
        };
        self.0.insert(pool.tenant.clone(), failure);
    }
}
