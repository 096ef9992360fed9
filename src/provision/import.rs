//! Import of an existing database as a tenant's.

use super::{LeaseError, ProvisionEngine, failpoint::Failpoint, job::ProvisionJob, ownership};
use crate::{
    catalog::{Record, SchemaState, State},
    control_plane::Database,
    model::{
        endpoint::Login,
        error::{Error, ErrorKind},
        tenant::TenantId,
    },
    sync::progress::Progress,
    telemetry::stats::Stats,
};

impl ProvisionEngine {
    /// Makes `project` the database of `tenant`, which must have none. Its schema is in the state `schema`.
    pub(crate) async fn import(
        &self,
        tenant: &TenantId,
        project: &str,
        login: Option<&Login>,
        schema: &SchemaState,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<(), Error> {
        let tags = self.control_plane.tags(project, progress).await?;
        let gone = || {
            let message =
                format!("there is no project {project:?}, or this api key may not see it");
            Error::new(ErrorKind::NotFound, message)
        };
        match ownership::owner(&tags.ok_or_else(gone)?) {
            None => {}
            Some(owner) if owner == (self.namespace.as_str(), tenant.as_str()) => {}
            Some((namespace, other)) => {
                let message = format!(
                    "project {project:?} was created for tenant {other:?} of namespace {namespace:?}; delete that \
                     tenant there, or remove the annotations of the project's branches"
                );
                return Err(Error::new(ErrorKind::Conflict, message));
            }
        }
        let database = self
            .control_plane
            .database(project, login, progress)
            .await?;
        let database = database.ok_or_else(gone)?;
        self.make_record(tenant, progress).await?;
        let database = &database;
        self.with_lease(tenant, progress, stats, |job, record| async move {
            job.import(record, database.clone(), schema.clone()).await
        })
        .await
    }

    /// Creates a record for the tenant if it has none.
    pub(crate) async fn make_record(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<(), Error> {
        if self.record(tenant, progress).await?.is_none() {
            drop(self.try_take_lease(tenant, progress).await?);
        }
        Ok(())
    }
}

impl ProvisionJob<'_> {
    async fn import(
        &self,
        mut record: Record,
        database: Database,
        schema: SchemaState,
    ) -> Result<(), LeaseError> {
        let same = record.project() == Some(database.placement.project.as_str());
        match record.state {
            State::Ready if same => return Ok(()),
            State::Claimed | State::Creating if record.attempts.is_empty() => {}
            state => {
                let message = format!(
                    "the tenant already has a record, in the state {}",
                    state.as_str()
                );
                return Err(Error::new(ErrorKind::Conflict, message).into());
            }
        }
        let project = &database.placement.project;
        self.engine
            .control_plane
            .ready(project, self.progress)
            .await?;
        record.state = State::Ready;
        record.placement = Some(database.placement);
        record.endpoint = Some(database.endpoint);
        record.max_connections = self.engine.settings.plan.max_connections;
        record.schema = schema;
        record.attempt = None;
        self.write_last(&record).await?;
        self.reach(Failpoint::Published).await;
        Ok(())
    }
}
