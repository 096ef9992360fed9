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
    schema::{self, CheckedSchema, Journal, Migrated, OpenSession, Ran, RunError, Terms},
    sync::{lock, progress::Progress, retry::backoff},
    telemetry::stats::Stats,
};

/// Suggested wait for a tenant whose database is still being created.
const UNFINISHED_FOR: Duration = Duration::from_secs(1);

/// The work that is left for a tenant.
enum Due {
    Migration,
    Nothing(Migrated),
}

/// The outcome of one try.
enum TryOutcome {
    Done(Migrated),
    /// The tenant's database is elsewhere now.
    Moved,
    /// Another process holds the lease, for this much longer unless it renews the lease.
    Busy(Duration),
    /// The lease was lost during the work. Read the record again.
    Again,
}

impl ProvisionEngine {
    /// Brings the database of `tenant` to `schema`, unless the catalog says that it is there already. `open` opens
    /// sessions on the tenant's database. Returns `None` if that is elsewhere now.
    ///
    /// # Cancel safety
    /// Dropping the future closes the session and gives the lease back. The next call continues from there.
    pub(crate) async fn migrate(
        &self,
        tenant: &TenantId,
        schema: &CheckedSchema,
        open: &dyn OpenSession,
        progress: &Progress,
    ) -> Result<Option<Migrated>, Error> {
        let mut waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let busy_for = match self.try_migrate(tenant, schema, open, progress).await? {
                TryOutcome::Done(migrated) => return Ok(Some(migrated)),
                TryOutcome::Moved => return Ok(None),
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
        if let Due::Nothing(migrated) = due(&known, schema, progress)? {
            return Ok(TryOutcome::Done(migrated));
        }
        if let Some(left) = known.leased_for {
            return Ok(TryOutcome::Busy(left));
        }
        let (lease, record) = match self.try_take_lease(tenant, progress).await? {
            Taken::Lease(lease, record) => (lease, *record),
            Taken::HeldFor(left) => return Ok(TryOutcome::Busy(left)),
        };
        if let Due::Nothing(migrated) = due(&record, schema, progress)? {
            return Ok(TryOutcome::Done(migrated));
        }
        if self.is_outdated(tenant, &record) {
            return Ok(TryOutcome::Moved);
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

/// Returns the work that is left for the tenant of `record`. A migration that is held back is an error.
fn due(record: &Record, schema: &CheckedSchema, progress: &Progress) -> Result<Due, Error> {
    let refusal = match record.state {
        State::Ready if schema.is_current(&record.schema) => {
            let (version, took) = (record.schema.version, progress.elapsed());
            return Ok(Due::Nothing(Migrated::nothing(version, took)));
        }
        State::Ready => schema.held_back(&record.schema),
        State::Claimed | State::Creating | State::Preparing => Some(unfinished()),
        State::Held => Some(held()),
        State::Deleting | State::Deleted => Some(deleted()),
    };
    refusal.map_or(Ok(Due::Migration), Err)
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
            };
            Ok(schema::run(schema, self.tenant, terms, self.progress).await)
        };
        let outcome = match self.lease.run(work).await {
            Ok(Ok(Ran { migrated, state })) => {
                lock(&self.record).schema = state;
                Ok(TryOutcome::Done(migrated))
            }
            Ok(Err(RunError::Failed(failed))) => Err(failed.record(&mut lock(&self.record).schema)),
            Ok(Err(RunError::Moved)) => return Ok(TryOutcome::Moved),
            Ok(Err(RunError::Later(err))) | Err(LeaseError::Failed(err)) => return Err(err),
            Err(LeaseError::Lost) => return Ok(TryOutcome::Again),
        };
        self.write_outcome().await;
        outcome
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
