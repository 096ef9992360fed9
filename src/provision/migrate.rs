//! The migration of one tenant under its lease. The catalog keeps its outcome.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{
    LeaseError, LeaseGuard, ProvisionEngine, Taken,
    ensure::{FIRST_WAIT, LONGEST_WAIT, busy, pause},
    failpoint::Failpoint,
};
use crate::{
    catalog::{
        Record, SchemaState, State,
        cached::{Entry, deleted, held},
    },
    model::{
        error::{Error, ErrorKind},
        tenant::TenantId,
    },
    schema::{self, CheckedSchema, Journal, Migrated, OpenSession, Ran, RunError, Standing, Terms},
    sync::{lock, progress::Progress, retry::backoff},
    telemetry::stats::Stats,
};

/// Suggested wait for a tenant whose database is still being created.
const UNFINISHED_FOR: Duration = Duration::from_secs(1);

/// The outcome of a migration.
#[derive(Clone, Debug)]
pub(crate) enum MigrationOutcome {
    /// The tenant's schema is in this standing. An error is the failure of a step, now or before.
    Ended {
        result: Result<Migrated, Error>,
        standing: Standing,
        /// `true` if nothing was tried, because the failure is not due again.
        held_back: bool,
    },
    /// The tenant's database is elsewhere now: look it up again.
    Moved,
}

impl MigrationOutcome {
    fn done(migrated: Migrated) -> Self {
        Self::Ended {
            result: Ok(migrated),
            standing: Standing::Current,
            held_back: false,
        }
    }

    fn failed(err: Error, standing: Standing, held_back: bool) -> Self {
        Self::Ended {
            result: Err(err),
            standing,
            held_back,
        }
    }
}

/// The work that is left for a tenant.
enum Due {
    Migration,
    Nothing(Migrated),
    /// A step has failed, and is not tried again yet.
    HeldBack(Error, Standing),
}

/// The outcome of one try.
enum TryOutcome {
    Ended(MigrationOutcome),
    /// Another process holds the lease, for this much longer unless it renews the lease.
    Busy(Duration),
    /// The lease was lost during the work. Read the record again.
    Again,
}

impl ProvisionEngine {
    /// Brings the database of `tenant` to `schema`, unless the catalog says that it is there already. `open` opens
    /// sessions on the tenant's database.
    ///
    /// # Cancel safety
    /// Dropping the future closes the session and gives the lease back. The next call continues from there.
    pub(crate) async fn migrate(
        &self,
        tenant: &TenantId,
        schema: &CheckedSchema,
        open: &dyn OpenSession,
        progress: &Progress,
    ) -> Result<MigrationOutcome, Error> {
        let mut waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let busy_for = match self.try_migrate(tenant, schema, open, progress).await? {
                TryOutcome::Ended(outcome) => return Ok(outcome),
                TryOutcome::Busy(left) => left,
                TryOutcome::Again => Duration::ZERO,
            };
            progress.note(&busy(busy_for));
            pause(&mut waits, progress).await?;
        }
    }

    /// Changes the state of the schema in the record of `tenant`.
    pub(crate) async fn change_schema(
        &self,
        tenant: &TenantId,
        change: impl FnOnce(&mut SchemaState) + Clone + Send + Sync,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<(), Error> {
        let change = &change;
        self.with_lease(tenant, progress, stats, |job, mut record| async move {
            let before = record.schema.clone();
            change.clone()(&mut record.schema);
            if record.schema != before {
                job.write_last(&record).await?;
            }
            Ok(())
        })
        .await
    }

    async fn try_migrate(
        &self,
        tenant: &TenantId,
        schema: &CheckedSchema,
        open: &dyn OpenSession,
        progress: &Progress,
    ) -> Result<TryOutcome, Error> {
        let known = self.record(tenant, progress).await?;
        let known = known.ok_or_else(lost_record)?;
        if let Some(outcome) = due(&known, schema, progress)?.outcome() {
            return Ok(TryOutcome::Ended(outcome));
        }
        if let Some(left) = known.leased_for {
            return Ok(TryOutcome::Busy(left));
        }
        let (lease, record) = match self.try_take_lease(tenant, progress).await? {
            Taken::Lease(lease, record) => (lease, *record),
            Taken::HeldFor(left) => return Ok(TryOutcome::Busy(left)),
        };
        if let Some(outcome) = due(&record, schema, progress)?.outcome() {
            return Ok(TryOutcome::Ended(outcome));
        }
        if self.is_outdated(tenant, &record) {
            return Ok(TryOutcome::Ended(MigrationOutcome::Moved));
        }
        let migration = Migration {
            engine: self,
            lease,
            tenant,
            progress,
            record: Mutex::new(record),
        };
        migration.run(schema, open).await
    }

    /// Returns whether the entry of `tenant`, and with it the tenant's pool, is of another generation than `record`, or
    /// is not cached any more. The sessions of such a pool may lead to an earlier database.
    fn is_outdated(&self, tenant: &TenantId, record: &Record) -> bool {
        let Some(Entry::Known(known)) = self.catalog.entries.get(tenant) else {
            return true;
        };
        let generation = known.freshness.generation;
        generation.is_some_and(|generation| generation != record.generation)
    }
}

impl Due {
    /// Returns the outcome if there is nothing to be done now.
    fn outcome(self) -> Option<MigrationOutcome> {
        match self {
            Self::Migration => None,
            Self::Nothing(migrated) => Some(MigrationOutcome::done(migrated)),
            Self::HeldBack(err, standing) => Some(MigrationOutcome::failed(err, standing, true)),
        }
    }
}

/// Returns the work that is left for the tenant of `record`, or an error if its state forbids any.
fn due(record: &Record, schema: &CheckedSchema, progress: &Progress) -> Result<Due, Error> {
    let refusal = match record.state {
        State::Ready if schema.is_current(&record.schema) => {
            let (version, took) = (record.schema.version, progress.elapsed());
            return Ok(Due::Nothing(Migrated::nothing(version, took)));
        }
        State::Ready => {
            let held_back = schema.held_back(&record.schema);
            let standing = || schema.standing(&record.schema);
            return Ok(held_back.map_or(Due::Migration, |err| Due::HeldBack(err, standing())));
        }
        State::Claimed | State::Creating | State::Preparing => unfinished(),
        State::Held => held(),
        State::Deleting | State::Deleted => deleted(),
    };
    Err(refusal)
}

/// A migration under the tenant's lease.
struct Migration<'a> {
    engine: &'a ProvisionEngine,
    lease: Arc<LeaseGuard>,
    tenant: &'a TenantId,
    progress: &'a Progress,
    // Locked for one read or write.
    record: Mutex<Record>,
}

impl Migration<'_> {
    async fn run(
        self,
        schema: &CheckedSchema,
        open: &dyn OpenSession,
    ) -> Result<TryOutcome, Error> {
        let known = lock(&self.record).schema.clone();
        let work = async {
            self.reach(Failpoint::SchemaLeased).await;
            let terms = Terms {
                open,
                known: &known,
                journal: Some(&self),
                only_reads: false,
            };
            Ok(schema::run(schema, self.tenant, terms, self.progress).await)
        };
        let outcome = match self.lease.run(work).await {
            Ok(Ok(Ran { migrated, state })) => {
                lock(&self.record).schema = state;
                MigrationOutcome::done(migrated)
            }
            Ok(Err(RunError::Failed(failed))) => {
                let state = &mut lock(&self.record).schema;
                let err = failed.record(state);
                MigrationOutcome::failed(err, schema.standing(state), false)
            }
            Ok(Err(RunError::Moved)) => return Ok(TryOutcome::Ended(MigrationOutcome::Moved)),
            Ok(Err(RunError::Later(err))) | Err(LeaseError::Failed(err)) => return Err(err),
            Err(LeaseError::Lost) => return Ok(TryOutcome::Again),
        };
        self.write_outcome().await;
        Ok(TryOutcome::Ended(outcome))
    }

    /// Writes the record for the last time. The outcome stands without that, as the history has it.
    async fn write_outcome(&self) {
        let record = lock(&self.record).clone();
        let in_time = self.progress.by(self.lease.valid_until());
        let kept = self.engine.kept(&record);
        if let Err(err) = self.lease.write_last(&kept, &in_time).await {
            tracing::debug!(
                tenant = self.tenant.as_str(),
                ?err,
                "the outcome of a migration is not in the catalog; the history has it"
            );
        }
        self.reach(Failpoint::SchemaWritten).await;
    }

    async fn reach(&self, step: Failpoint) {
        self.engine.settings.steps.hit(step, self.tenant).await;
    }
}

impl Journal for Migration<'_> {
    fn note<'a>(&'a self, state: &'a SchemaState) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let record = {
                let mut record = lock(&self.record);
                let failure = record.schema.failure.take();
                record.schema = SchemaState {
                    failure,
                    ..state.clone()
                };
                record.clone()
            };
            self.lease.try_write(&self.engine.kept(&record)).await;
            self.reach(Failpoint::SchemaNoted).await;
        })
    }
}

/// Returns the error for a tenant whose database is not finished.
fn unfinished() -> Error {
    let message = "the tenant's database is still being created; call again later";
    Error::new(ErrorKind::Provisioning, message).with_retry_after(UNFINISHED_FOR)
}

/// Returns the error for a tenant that is served although its record has vanished.
fn lost_record() -> Error {
    let message = "the catalog has lost its record of the tenant, so the tenant is not migrated; check whether the \
                   catalog was restored from a backup, then provision or import the tenant";
    Error::new(ErrorKind::BadRecord, message)
}
