//! The work on one tenant's database under its lease: from a record in any state to a published one.
//!
//! Each step can be repeated. A creation or deletion is in the catalog before it is sent, so that the process that
//! continues after a crash knows what may have happened.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    LeaseError, LeaseGuard, ProvisionEngine, Provisioned,
    failpoint::Failpoint,
    ownership,
    prepare::{Connections, Preparation},
};
use crate::{
    catalog::{Attempt, Record, SchemaState, State, cached},
    control_plane::{Database, Order},
    model::{
        endpoint::Endpoint,
        error::{Error, ErrorKind},
        plan::Plan,
        tenant::TenantId,
    },
    schema::RunError,
    sync::progress::Progress,
    telemetry::stats::{Stats, count},
};

/// First wait before the next search for a database whose creation got no answer.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest such wait.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Most attempts that a record keeps. If there are more, the oldest ones are taken to have created nothing.
const MOST_ATTEMPTS: usize = 100;

/// The work on one tenant's database.
pub(super) struct ProvisionJob<'a> {
    pub(super) engine: &'a ProvisionEngine,
    pub(super) lease: Arc<LeaseGuard>,
    pub(super) tenant: &'a TenantId,
    pub(super) progress: &'a Progress,
    pub(super) stats: &'a Stats,
}

/// The origin of a database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Origin {
    Created,
    Found,
}

impl Origin {
    fn outcome(self, record: &Record) -> Provisioned {
        match self {
            Self::Created => Provisioned::Created,
            Self::Found => Provisioned::Existing {
                plan: record.plan.clone(),
            },
        }
    }
}

impl ProvisionJob<'_> {
    /// Does the steps that are left, publishes the record, and gives the lease back. An error is also written to the
    /// record.
    pub(super) async fn run(
        &self,
        mut record: Record,
        plan: &Plan,
    ) -> Result<(Endpoint, Provisioned), LeaseError> {
        self.reach(Failpoint::Claimed).await;
        let done = self.advance(&mut record, plan).await;
        if let Err(LeaseError::Failed(err)) = &done
            && err.kind() != ErrorKind::Catalog
        {
            record.last_error = Some(err.to_string());
            // If this write fails, the dropped guard gives the lease back, or the lease runs out.
            let _ = self.write_last(&record).await;
        }
        done
    }

    async fn advance(
        &self,
        record: &mut Record,
        plan: &Plan,
    ) -> Result<(Endpoint, Provisioned), LeaseError> {
        let mut origin = Origin::Found;
        loop {
            match record.state {
                State::Ready => {
                    let endpoint = self
                        .engine
                        .endpoint_of(self.tenant, record, self.progress)
                        .await?;
                    return Ok((endpoint, origin.outcome(record)));
                }
                State::Held => return Err(cached::held().into()),
                State::Deleting => return Err(cached::deleted().into()),
                State::Deleted => {
                    give_up_old(record);
                    self.write(record).await?;
                }
                State::Claimed if !self.engine.settings.search_first => {
                    origin = self.create(record, plan).await?;
                }
                State::Claimed | State::Creating => match self.search(record).await? {
                    Some(found) => self.adopt(record, found, plan).await?,
                    None => origin = self.create(record, plan).await?,
                },
                State::Preparing => {
                    if self.prepare(record).await? {
                        let endpoint = self.publish(record, origin).await?;
                        return Ok((endpoint, origin.outcome(record)));
                    }
                }
            }
        }
    }

    /// Sends one creation. The attempt is in the catalog before that.
    async fn create(&self, record: &mut Record, plan: &Plan) -> Result<Origin, LeaseError> {
        let window = self.engine.settings.lost_answer_window;
        let id = uuid::Uuid::new_v4().to_string();
        let tags = ownership::tags(&self.engine.namespace, self.tenant, &id);
        let name = ownership::name(&self.engine.namespace, self.tenant);
        let order = Order::new(name, tags, plan.clone());
        self.lease.ensure_fresh().await?;
        let earlier = record.clone();
        record.state = State::Creating;
        record.plan.clone_from(&plan.name);
        record.max_connections = plan.max_connections;
        record.attempts.push(id.clone());
        let superfluous = record.attempts.len().saturating_sub(MOST_ATTEMPTS);
        record.attempts.drain(..superfluous);
        let lasts = self.engine.settings.lease_time + window;
        record.attempt = Some(Attempt::new(&id, lasts));
        if let Err(halt) = self.write(record).await {
            *record = earlier; // nothing was sent
            return Err(halt);
        }
        self.reach(Failpoint::Ordering).await;
        // The creation must not be sent after the lease has ended: the next holder of the lease searches for its
        // database only for a limited time.
        let in_time = self.progress.by(self.lease.valid_until());
        match self.engine.control_plane.create(&order, &in_time).await {
            Ok(database) => {
                self.reach(Failpoint::Created).await;
                self.place(record, database).await?;
                Ok(Origin::Created)
            }
            Err(err) if err.kind().is_transient() => {
                self.progress.note(&err);
                record.attempt = Some(Attempt::new(id, window));
                self.write(record).await?;
                Ok(Origin::Created)
            }
            Err(err) => {
                record.state = earlier.state;
                record.attempt = None;
                record.attempts.retain(|attempt| *attempt != id);
                let again = matches!(err.kind(), ErrorKind::Timeout(_));
                if again && !self.progress.remaining().is_zero() {
                    self.progress.note(&err);
                    self.write(record).await?;
                    let wait = err.retry_after().unwrap_or(FIRST_WAIT);
                    sleep(wait.clamp(FIRST_WAIT, LONGEST_WAIT)).await;
                    return Ok(Origin::Created);
                }
                Err(err.into())
            }
        }
    }

    /// Records a database that was found as the tenant's. If the record has no attempt, the plan of the order is
    /// unknown, and the limit of `plan` applies.
    pub(super) async fn adopt(
        &self,
        record: &mut Record,
        found: Database,
        plan: &Plan,
    ) -> Result<(), LeaseError> {
        if record.attempts.is_empty() {
            record.max_connections = plan.max_connections;
        }
        self.place(record, found).await
    }

    /// Records which database is the tenant's. It is not served yet.
    pub(super) async fn place(
        &self,
        record: &mut Record,
        database: Database,
    ) -> Result<(), LeaseError> {
        record.state = State::Preparing;
        record.placement = Some(database.placement);
        record.endpoint = Some(database.endpoint);
        record.schema = SchemaState::default(); // read when the database is prepared
        record.attempt = None;
        self.write(record).await?;
        self.reach(Failpoint::Placed).await;
        Ok(())
    }

    /// Makes the database fit for use. Returns `false` if it has vanished.
    pub(super) async fn prepare(&self, record: &mut Record) -> Result<bool, LeaseError> {
        let Self {
            engine, progress, ..
        } = self;
        let ready = match record.project() {
            Some(project) => engine.control_plane.ready(project, progress).await,
            None => Err(Error::new(ErrorKind::NotFound, "no project is known")),
        };
        match ready {
            Ok(()) => {}
            Err(err) if err.kind() == ErrorKind::NotFound => {
                // The control plane may not show the new database everywhere yet.
                let window = engine.settings.lost_answer_window;
                let last = record.attempts.last();
                record.attempt = last.map(|id| Attempt::new(id, window));
                record.state = State::Creating;
                (record.placement, record.endpoint) = (None, None);
                self.write(record).await?;
                sleep(FIRST_WAIT).await;
                return Ok(false);
            }
            Err(err) => return Err(err.into()),
        }
        self.reach(Failpoint::Operational).await;
        if engine.settings.hook.is_some() || engine.schema.is_some() {
            self.run_preparation(record).await?;
        }
        self.reach(Failpoint::Prepared).await;
        Ok(true)
    }

    /// Runs the prepare hook and the schema's steps, and once more if the endpoint in the record was out of date.
    async fn run_preparation(&self, record: &mut Record) -> Result<(), LeaseError> {
        let schema = self.engine.schema.as_deref();
        if let Some(err) = schema.and_then(|schema| schema.held_back(&record.schema)) {
            return Err(err.into());
        }
        let Err(err) = self.run_preparation_once(record).await? else {
            return Ok(());
        };
        let may_be_old = matches!(
            err.kind(),
            ErrorKind::BadCredential | ErrorKind::EndpointNotFound
        );
        if !may_be_old || !self.place_again(record).await? {
            return Err(err.into());
        }
        Ok(self.run_preparation_once(record).await??)
    }

    /// Writes the state of the schema, or its failure, to `record`.
    async fn run_preparation_once(
        &self,
        record: &mut Record,
    ) -> Result<Result<(), Error>, LeaseError> {
        let endpoint = Arc::new(self.endpoint(record).await?);
        let preparation = Preparation {
            dialer: &self.engine.dialer,
            tenant: self.tenant,
            endpoint: &endpoint,
            progress: self.progress,
            stats: self.stats,
            connections: Connections::default(),
        };
        let (hook, schema) = (&self.engine.settings.hook, &self.engine.schema);
        let work = preparation.run(hook.as_ref(), schema.as_deref(), &record.schema);
        let done = Box::pin(work).await;
        Ok(match done {
            Ok(None) => Ok(()),
            Ok(Some(ran)) => {
                record.schema = ran.state;
                Ok(())
            }
            Err(RunError::Failed(failed)) => {
                let err = failed.record(&mut record.schema);
                self.write(record).await?;
                Err(err)
            }
            Err(RunError::Later(err)) => Err(err),
            Err(RunError::Moved) => Err(Error::new(ErrorKind::Connect, "the database has moved")),
        })
    }

    /// Updates the record with the control plane's endpoint. Returns whether it had changed.
    async fn place_again(&self, record: &mut Record) -> Result<bool, LeaseError> {
        let (Some(project), Some(endpoint)) = (record.project(), &record.endpoint) else {
            return Ok(false);
        };
        let login = endpoint.login();
        let request = self
            .engine
            .control_plane
            .database(project, Some(&login), self.progress);
        let Some(now) = request
            .await?
            .filter(|now| !self.engine.is_same(record, &now.endpoint))
        else {
            return Ok(false);
        };
        record.set_database(now.placement, now.endpoint);
        self.write(record).await?;
        Ok(true)
    }

    /// Publishes a database that was found.
    pub(super) async fn publish_found(&self, record: &mut Record) -> Result<(), LeaseError> {
        self.publish(record, Origin::Found).await.map(drop)
    }

    /// Publishes the database: writes the record as `Ready`, and gives the lease back.
    async fn publish(&self, record: &mut Record, origin: Origin) -> Result<Endpoint, LeaseError> {
        let endpoint = self.endpoint(record).await?;
        record.state = State::Ready;
        record.last_error = None;
        self.write_last(record).await?;
        self.reach(Failpoint::Published).await;
        let (outcome, counter) = match origin {
            Origin::Created => ("created", &self.stats.provisioned),
            Origin::Found => ("adopted", &self.stats.adopted),
        };
        count(counter);
        let (tenant, project) = (self.tenant.as_str(), record.project());
        let elapsed = self.progress.elapsed();
        tracing::info!(tenant, project, outcome, ?elapsed, "provisioned");
        Ok(endpoint)
    }

    /// Returns the endpoint, password included, and keeps it in `record`, so that the password is read once.
    async fn endpoint(&self, record: &mut Record) -> Result<Endpoint, LeaseError> {
        let endpoint = self
            .engine
            .endpoint_of(self.tenant, record, self.progress)
            .await?;
        record.endpoint = Some(endpoint.clone());
        Ok(endpoint)
    }

    /// Writes `record`, without the password if the catalog keeps none.
    pub(super) async fn write(&self, record: &Record) -> Result<(), LeaseError> {
        let written = self.engine.kept(record);
        self.lease.write(&written, self.progress).await
    }

    /// Writes `record`, and gives the lease back with the same write.
    pub(super) async fn write_last(&self, record: &Record) -> Result<(), LeaseError> {
        let written = self.engine.kept(record);
        self.lease.write_last(&written, self.progress).await
    }

    pub(super) async fn reach(&self, step: Failpoint) {
        self.engine.settings.steps.hit(step, self.tenant).await;
    }
}

/// Resets a deleted tenant's record for a new database. The old project is condemned, so it is never adopted again.
fn give_up_old(record: &mut Record) {
    record.state = State::Claimed;
    record
        .condemned
        .extend(record.placement.take().map(|it| it.project));
    record.endpoint = None;
    record.schema = SchemaState::default();
}
