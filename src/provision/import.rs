//! Import of an existing database as a tenant's.

use super::{LeaseError, ProvisionEngine, failpoint::Failpoint, job::ProvisionJob, ownership};
use crate::{
    catalog::{Record, State},
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
    /// Makes `project` the database of `tenant`, which must have none.
    pub(crate) async fn import(
        &self,
        tenant: &TenantId,
        project: &str,
        login: Option<&Login>,
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
                    "project {project:?} was created for tenant {other:?} of namespace {namespace:?}; \
                     delete it there, or remove the annotations of its branches"
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
        loop {
            let (lease, record) = self.take_lease(tenant, progress).await?;
            let work = self.job(&lease, tenant, progress, stats);
            let import = lease.run(work.import(record, database.clone())).await;
            if let Some(()) = LeaseError::unless_lost(import)? {
                return Ok(());
            }
        }
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
    async fn import(&self, mut record: Record, database: Database) -> Result<(), LeaseError> {
        let same = record.project() == Some(database.placement.project.as_str());
        match record.state {
            State::Ready if same => return Ok(()),
            State::Claimed | State::Creating if record.attempts.is_empty() => {}
            state => {
                let message = format!(
                    "the tenant has a record already, which is {}",
                    state.as_str()
                );
                return Err(Error::new(ErrorKind::Conflict, message).into());
            }
        }
        let project = &database.placement.project;
        self.on.control_plane.ready(project, self.progress).await?;
        record.state = State::Ready;
        record.placement = Some(database.placement);
        record.endpoint = Some(database.endpoint);
        record.max_connections = self.on.settings.plan.max_connections;
        record.attempt = None;
        self.write_last(&record).await?;
        self.reach(Failpoint::Published).await;
        Ok(())
    }
}
