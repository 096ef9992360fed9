//! The migration of one tenant: a flight of its own, which callers wait for.

mod on_access;

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::Client;
use tracing::{Instrument, Span, field::Empty};

use self::on_access::Failures;
use super::{Inner, TenantRouter, explain::SchemaPosition};
use crate::{
    client::direct::DirectClient,
    model::{
        error::{Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    pool::{Pool, Unserved, shared::Shared},
    provision::{
        migrate::MigrationOutcome,
        source::{OnMissing, Source},
    },
    schema::{
        self, CheckedSchema, Migrated, OpenSession, Opened, Ran, RunError, SchemaState, Standing,
        Terms,
    },
    sync::{progress::Progress, retry::backoff, single_flight::SingleFlight},
    telemetry::{
        spans,
        stats::{Stats, count},
    },
};

/// Migrates tenants by the router's schema.
pub(super) struct Migrator {
    schema: Arc<CheckedSchema>,
    /// The migrations in progress: one a tenant in this process. Over processes, the tenant's lease holds, or a lock in
    /// the tenant's database where there is no catalog.
    running: SingleFlight<(TenantId, Purpose), MigrationOutcome>,
    failures: Failures,
}

/// The purpose of a session on a tenant's database.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Purpose {
    Migrate,
    /// To apply also the steps up to this version, which a campaign has named.
    Contract(i64),
    /// To find the standing of the schema in the history.
    Read,
}

type Round = BoxFuture<'static, Result<MigrationOutcome, Error>>;

impl TenantRouter {
    /// Brings the schema of `tenant` up to date, and returns what was done. It wakes the tenant, unless the
    /// provisioner's catalog says that it is current, and creates its database first if the policy says so. Call it at
    /// a deploy for each tenant, a few at a time.
    ///
    /// The history in the tenant's database says which steps it has. Any number of processes may call this at once:
    /// each step runs once. If a process is killed, the next call goes on. With a provisioner, a step that has failed
    /// is tried again only after a while ([`Fleet::retry_schema`](crate::Fleet::retry_schema)).
    ///
    /// The call waits for [`Schema::timeout`](crate::Schema::timeout) at most. The migration is none of the
    /// [`direct_connections`](crate::RouterBuilder::direct_connections), but it counts in
    /// [`max_connections`](crate::RouterBuilder::max_connections).
    ///
    /// ```no_run
    /// use tenantry::{Schema, TenantRouter};
    ///
    /// # async fn f(lookup: impl tenantry::Lookup) -> Result<(), tenantry::BoxError> {
    /// let schema = Schema::new().step(1, "notes", "CREATE TABLE notes (text text)");
    /// let router = TenantRouter::builder(lookup).schema(schema).build()?;
    /// let migrated = router.migrate("acme").await?;
    /// println!("from version {} to {} in {:?}", migrated.from, migrated.to, migrated.took);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// - `ErrorKind::Schema`: a step failed, or the database has other steps than this program.
    ///   [The manual](crate::manual::schema) says what to do. Other tenants are not concerned.
    /// - `ErrorKind::Timeout` at [`Stage::Migrate`](crate::Stage::Migrate): the time is over. The step in progress was
    ///   cancelled; steps before it stay applied.
    /// - `ErrorKind::Misused` if the router was built without a [`schema`](crate::RouterBuilder::schema).
    /// - The errors of [`direct`](Self::direct).
    ///
    /// # Cancel safety
    /// Dropping the future only ends the waiting: the migration goes on. The end of the router stops it.
    pub async fn migrate<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<Migrated, Error> {
        let Inner {
            shared, migrator, ..
        } = &*self.inner;
        let Some(migrator) = migrator else {
            return Err(no_schema());
        };
        let tenant = TenantId::parse(tenant.as_ref()).map_err(Error::from);
        let tenant = tenant.inspect_err(|err| shared.stats.broke(err))?;
        let migrated = tokio::select! {
            biased;
            () = shared.life.terminated() => Err(Error::closed()),
            migrated = self.inner.migrate(&tenant, migrator, Purpose::Migrate) => migrated,
        };
        let migrated = migrated.map_err(|err| err.with_tenant(&tenant));
        if let Err(err) = &migrated {
            shared.stats.broke(err);
            self.inner.note_failing(err);
        }
        migrated
    }
}

impl Inner {
    async fn migrate(
        &self,
        tenant: &TenantId,
        migrator: &Migrator,
        purpose: Purpose,
    ) -> Result<Migrated, Error> {
        if self.shared.life.is_stopping() {
            return Err(Error::closed());
        }
        let until = Instant::now() + migrator.schema.timeout();
        let mut known = self.pools.find(tenant.as_str());
        let mut pauses = backoff(Duration::from_millis(10), Duration::from_secs(1));
        loop {
            let pool = if let Some(pool) = known.take() {
                pool
            } else {
                // For the look-up only: a migration may take long.
                let now = self.shared.clock.now().nanos;
                let _slot = self.take_caller_slot(tenant, None, now)?;
                let limit = self.shared.config.provision_timeout;
                self.locate(tenant, OnMissing::AskPolicy, limit).await?.pool
            };
            match migrator.join(&pool, purpose, until).await? {
                MigrationOutcome::Ended { result, .. } => return result,
                MigrationOutcome::Moved if Instant::now() < until => {
                    self.evict(tenant); // so that the next look-up asks the catalog, whatever the caches have
                    sleep(pauses.next().unwrap_or_default()).await;
                }
                MigrationOutcome::Moved => return Err(Unserved::relocate().into_error()),
            }
        }
    }
}

impl Inner {
    /// Migrates `tenant` for a campaign, which may name the last step.
    pub(super) async fn migrate_for_campaign(
        &self,
        tenant: &TenantId,
        contract: Option<i64>,
    ) -> Result<Migrated, Error> {
        let Some(migrator) = &self.migrator else {
            return Err(no_schema());
        };
        let purpose = contract.map_or(Purpose::Migrate, Purpose::Contract);
        tokio::select! {
            biased;
            () = self.shared.life.terminated() => Err(Error::closed()),
            migrated = self.migrate(tenant, migrator, purpose) => migrated,
        }
    }
}

/// Returns the error for a router without a schema.
pub(super) fn no_schema() -> Error {
    let message = "the router has no schema; set one with `RouterBuilder::schema`";
    Error::new(ErrorKind::Misused, message)
}

impl Migrator {
    pub(super) fn schema(&self) -> &Arc<CheckedSchema> {
        &self.schema
    }

    /// Returns the position of the schema of `tenant`, whose pool has it in `standing`.
    pub(super) fn position(&self, tenant: &TenantId, standing: Standing) -> SchemaPosition {
        let flight = self.running.progress(&(tenant.clone(), Purpose::Migrate));
        let failure = self.failures.of(tenant);
        SchemaPosition {
            requires: self.schema.required(),
            latest: self.schema.latest(),
            standing: standing.name(),
            step: flight.map(|it| it.schema_step().unwrap_or(0)),
            failure: failure.map(|err| err.to_string()),
        }
    }

    pub(super) fn new(schema: Arc<CheckedSchema>, shared: &Shared) -> Self {
        Self {
            schema,
            running: SingleFlight::new(shared.runtime.clone()),
            failures: Failures::default(),
        }
    }

    /// Joins the migration of the tenant of `pool`, or starts it.
    async fn join(
        &self,
        pool: &Arc<Pool>,
        purpose: Purpose,
        until: Instant,
    ) -> Result<MigrationOutcome, Error> {
        let left = until.saturating_duration_since(Instant::now());
        let (key, start) = ((pool.tenant.clone(), purpose), || {
            self.flight_for(pool, purpose)
        });
        self.running.get_or_start(&key, left, start).await
    }

    /// Returns the progress and the work of a migration.
    fn flight_for(
        &self,
        pool: &Arc<Pool>,
        purpose: Purpose,
    ) -> (Progress, impl FnMut() -> Round + Send + 'static) {
        let progress = Progress::new(Stage::Migrate, self.schema.timeout());
        let name = pool.tenant.as_str();
        let span = spans::detached(tracing::debug_span!(
            parent: None, "migrate", tenant = name, from = Empty, to = Empty, woke = Empty, outcome = Empty
        ));
        let schema = match purpose {
            Purpose::Contract(version) => self.schema.up_to_contract(version),
            Purpose::Migrate | Purpose::Read => None,
        };
        let schema = schema.unwrap_or_else(|| Arc::clone(&self.schema));
        let pool = Arc::clone(pool);
        let (work_progress, job) = (progress.clone(), pool.shared.jobs.token());
        let failures = self.failures.clone();
        let next_round = move || -> Round {
            let (schema, pool, job) = (Arc::clone(&schema), Arc::clone(&pool), job.clone());
            let (progress, recorded) = (work_progress.clone(), span.clone());
            let failures = failures.clone();
            let work = async move {
                let _job = job; // `close_within` waits for it
                let result = migrate(&schema, &pool, purpose, &progress).await;
                record(&recorded, &result);
                count_end(&pool.shared.stats, &result);
                failures.note(&pool, &result);
                result
            };
            Box::pin(work.instrument(span.clone()))
        };
        (progress, next_round)
    }
}

async fn migrate(
    schema: &CheckedSchema,
    pool: &Arc<Pool>,
    purpose: Purpose,
    progress: &Progress,
) -> Result<MigrationOutcome, Error> {
    let opener = PoolOpener {
        pool: Arc::clone(pool),
        deadline: progress.deadline(),
    };
    let work = async {
        match &pool.shared.source {
            Source::Provisioning(engine) => {
                let migrating = engine.migrate(&pool.tenant, schema, &opener, progress);
                migrating.await
            }
            Source::Lookup(_) => {
                migrate_unleased(schema, &pool.tenant, &opener, purpose, progress).await
            }
        }
    };
    let ended = tokio::select! {
        biased;
        () = pool.shared.life.terminated() => return Err(Error::closed()),
        ended = timeout_at(progress.deadline(), Box::pin(work)) => ended,
    };
    match ended {
        Ok(ended) => ended,
        Err(_) => Err(progress.timed_out()),
    }
}

/// Migrates a tenant of which no catalog of the router's keeps a record. Over processes, only the lock in the database
/// holds.
async fn migrate_unleased(
    schema: &CheckedSchema,
    tenant: &TenantId,
    open: &dyn OpenSession,
    purpose: Purpose,
    progress: &Progress,
) -> Result<MigrationOutcome, Error> {
    let known = SchemaState::default();
    let terms = Terms {
        open,
        known: &known,
        journal: None,
        only_reads: purpose == Purpose::Read,
    };
    let (result, standing) = match schema::run(schema, tenant, terms, progress).await {
        Ok(Ran { migrated, state }) => match schema.standing(&state) {
            Standing::TooOld => (Err(schema.too_old()), Standing::TooOld),
            standing => (Ok(migrated), standing),
        },
        Err(RunError::Moved) => return Ok(MigrationOutcome::Moved),
        Err(RunError::Later(err)) => return Err(err),
        Err(RunError::Failed(failed)) => {
            let state = failed.state().cloned().unwrap_or_default();
            (Err(failed.into_error()), schema.standing(&state))
        }
    };
    Ok(MigrationOutcome::Ended {
        result,
        standing,
        held_back: false,
    })
}

fn count_end(stats: &Stats, result: &Result<MigrationOutcome, Error>) {
    match result {
        Ok(MigrationOutcome::Ended { result: Ok(it), .. }) if !it.steps.is_empty() => {
            count(&stats.schema_migrated);
        }
        Ok(MigrationOutcome::Ended {
            result: Err(_),
            held_back: false,
            ..
        }) => count(&stats.schema_failed),
        _ => {}
    }
}

fn record(span: &Span, result: &Result<MigrationOutcome, Error>) {
    match result {
        Ok(MigrationOutcome::Ended {
            result: Ok(migrated),
            ..
        }) => {
            span.record("from", migrated.from);
            span.record("to", migrated.to);
            span.record("woke", migrated.woke);
            let is_current = migrated.steps.is_empty();
            span.record("outcome", if is_current { "current" } else { "migrated" });
        }
        Ok(MigrationOutcome::Moved) => {
            span.record("outcome", "moved");
        }
        Ok(MigrationOutcome::Ended {
            result: Err(err), ..
        })
        | Err(err) => {
            span.record("outcome", err.kind().code());
        }
    }
}

/// Opens direct connections of a pool as sessions of a migration.
struct PoolOpener {
    pool: Arc<Pool>,
    deadline: Instant,
}

impl OpenSession for PoolOpener {
    fn open(&self) -> BoxFuture<'_, Result<Opened, RunError>> {
        Box::pin(async move {
            let until = Instant::now() + self.pool.shared.config.wake_timeout;
            let until = until.min(self.deadline);
            match DirectClient::open_for_migration(Arc::clone(&self.pool), until).await {
                Ok((client, woke)) => Ok(Opened {
                    session: Box::new(DirectSession(client)),
                    woke,
                }),
                Err(Unserved::Relocate(_)) => Err(RunError::Moved),
                Err(err) => Err(RunError::Later(err.into_error())),
            }
        })
    }
}

/// A direct connection as a session of a migration.
struct DirectSession(DirectClient);

impl Deref for DirectSession {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl DerefMut for DirectSession {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.0
    }
}
