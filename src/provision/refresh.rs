//! Repair of a record whose tenant no longer lives at the endpoint in the catalog.

use std::{borrow::Cow, sync::Arc};

use super::{LeaseError, ProvisionEngine, Taken};
use crate::{
    catalog::{Record, State, cached::Stamp},
    control_plane::Database,
    model::{endpoint::Endpoint, error::Error, secret::Secret, tenant::TenantId},
    sync::progress::{Class, Progress},
};

/// The outcome of comparing a record with the control plane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Compared {
    Same,
    Different,
    /// The endpoints differed, and the record is repaired.
    Repaired,
}

impl ProvisionEngine {
    /// Reads the endpoint of the published database of `tenant` from the control plane, and writes it to the record.
    /// Returns `None` if the database is gone. The request names the project's id, so no other database can be taken
    /// for it.
    pub(super) async fn reread_from_control_plane(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Option<Arc<Endpoint>>, Error> {
        let mut known_at = self.catalog.entries.stamp();
        let known = self.catalog.read_record(tenant).await?;
        let Some(record) = known.filter(|record| record.state == State::Ready) else {
            return Ok(None);
        };
        let (Some(project), Some(endpoint)) = (record.project(), &record.endpoint) else {
            return Ok(None);
        };
        let login = endpoint.login();
        let recovery = progress.of(Class::Recovery);
        let request = self
            .control_plane
            .database(project, Some(&login), &recovery);
        let Some(now) = request.await? else {
            return Ok(None);
        };
        let endpoint = Arc::new(Endpoint {
            max_connections: record.max_connections,
            ..now.endpoint.clone()
        });
        let mut generation = Some(record.generation);
        if !self.is_same(&record, &now.endpoint) {
            let written = self.write_down(tenant, project, now, progress).await?;
            known_at = written.unwrap_or(known_at);
            generation = None;
        }
        let entries = &self.catalog.entries;
        let standing = self.standing_of(&record);
        entries.insert_known(tenant, known_at, generation, &endpoint, standing);
        Ok(Some(endpoint))
    }

    /// Compares the endpoint in the record of `tenant` with the control plane's. If they differ and `repair` is set,
    /// repairs the record.
    pub(crate) async fn compare(
        &self,
        tenant: &TenantId,
        repair: bool,
        progress: &Progress,
    ) -> Result<Compared, Error> {
        let Some(record) = self.catalog.read_record(tenant).await? else {
            return Ok(Compared::Same);
        };
        let (State::Ready, Some(project), Some(endpoint)) =
            (record.state, record.project(), &record.endpoint)
        else {
            return Ok(Compared::Same);
        };
        let login = endpoint.login();
        let request = self.control_plane.database(project, Some(&login), progress);
        let Some(now) = request.await? else {
            return Ok(Compared::Same); // gone, which `Fleet::reconcile` reports as `Missing`
        };
        if self.is_same(&record, &now.endpoint) {
            return Ok(Compared::Same);
        }
        if repair
            && self
                .write_down(tenant, project, now, progress)
                .await?
                .is_some()
        {
            return Ok(Compared::Repaired);
        }
        Ok(Compared::Different)
    }

    /// Returns whether the record has the control plane's endpoint.
    pub(super) fn is_same(&self, record: &Record, now: &Endpoint) -> bool {
        let endpoint = Some(now.clone());
        let written = Record {
            endpoint,
            ..record.clone()
        };
        self.kept(&written).endpoint == record.endpoint
    }

    /// Writes the control plane's endpoint of `project` to the record, unless another process holds the lease: that
    /// process reads the endpoint itself. Returns the stamp of the write.
    async fn write_down(
        &self,
        tenant: &TenantId,
        project: &str,
        now: Database,
        progress: &Progress,
    ) -> Result<Option<Stamp>, Error> {
        let Taken::Lease(lease, mut record) = self.try_take_lease(tenant, progress).await? else {
            return Ok(None);
        };
        if record.state != State::Ready || record.project() != Some(project) {
            return Ok(None);
        }
        record.set_database(now.placement, now.endpoint);
        match lease.write_last(&self.kept(&record), progress).await {
            Ok(()) => Ok(Some(lease.known_at())),
            Err(LeaseError::Lost) => Ok(None),
            Err(LeaseError::Failed(err)) => Err(err),
        }
    }

    /// Returns the record as the catalog keeps it.
    pub(super) fn kept<'a>(&self, record: &'a Record) -> Cow<'a, Record> {
        let mut record = Cow::Borrowed(record);
        if let Some(endpoint) = &record.endpoint {
            let mut kept = endpoint.clone();
            kept.max_connections = None; // the record has its own
            if !self.settings.with_passwords {
                kept.password = Secret::new("");
            }
            if kept != *endpoint {
                record.to_mut().endpoint = Some(kept);
            }
        }
        record
    }
}
