//! Where a tenant lives that is not where the catalog has it.

use std::{borrow::Cow, sync::Arc};

use super::{LeaseError, ProvisionEngine};
use crate::{
    catalog::{Record, State, cached::Stamp},
    control_plane::Database,
    model::{endpoint::Endpoint, error::Error, secret::Secret, tenant::TenantId},
    sync::progress::{Class, Progress},
};

/// What a comparison of a record with the control plane came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Compared {
    Same,
    Different,
    /// It was different, and is the same now.
    Mended,
}

impl ProvisionEngine {
    /// Where the published database of `tenant` lives by what the control plane says now, which is written down; `None`
    /// if it is gone. It is asked for by its id, so no other one is ever taken for it.
    pub(crate) async fn refresh(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Option<Arc<Endpoint>>, Error> {
        let mut known_at = self.catalog.entries.stamp();
        let known = self.catalog.find(tenant).await?;
        let Some(record) = known.filter(|record| record.state == State::Ready) else {
            return Ok(None);
        };
        let (Some(project), Some(endpoint)) = (record.project(), &record.endpoint) else {
            return Ok(None);
        };
        let login = endpoint.login();
        let recovery = progress.of(Class::Recovery);
        let asked = self
            .control_plane
            .database(project, Some(&login), &recovery);
        let Some(now) = asked.await? else {
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
        entries.insert_known(tenant, known_at, generation, &endpoint);
        Ok(Some(endpoint))
    }

    /// Whether the record of `tenant` has the endpoint that the control plane has; otherwise it is mended, if `mend`.
    pub(crate) async fn compare(
        &self,
        tenant: &TenantId,
        mend: bool,
        progress: &Progress,
    ) -> Result<Compared, Error> {
        let Some(record) = self.catalog.find(tenant).await? else {
            return Ok(Compared::Same);
        };
        let (State::Ready, Some(project), Some(endpoint)) =
            (record.state, record.project(), &record.endpoint)
        else {
            return Ok(Compared::Same);
        };
        let login = endpoint.login();
        let asked = self.control_plane.database(project, Some(&login), progress);
        let Some(now) = asked.await? else {
            return Ok(Compared::Same); // gone, which is another trouble
        };
        if self.is_same(&record, &now.endpoint) {
            return Ok(Compared::Same);
        }
        if mend
            && self
                .write_down(tenant, project, now, progress)
                .await?
                .is_some()
        {
            return Ok(Compared::Mended);
        }
        Ok(Compared::Different)
    }

    /// Whether the record says what the control plane says.
    pub(crate) fn is_same(&self, record: &Record, now: &Endpoint) -> bool {
        let endpoint = Some(now.clone());
        let written = Record {
            endpoint,
            ..record.clone()
        };
        self.kept(&written).endpoint == record.endpoint
    }

    /// Writes down where the database in `project` lives now, unless another process is at the record, which then sees it
    /// too. Returns the stamp of what was written.
    async fn write_down(
        &self,
        tenant: &TenantId,
        project: &str,
        now: Database,
        progress: &Progress,
    ) -> Result<Option<Stamp>, Error> {
        let Ok((claim, mut record)) = self.claim(tenant, progress).await? else {
            return Ok(None);
        };
        if record.state != State::Ready || record.project() != Some(project) {
            return Ok(None);
        }
        record.endpoint = Some(now.endpoint);
        record.placement = Some(now.placement);
        match claim.write_last(&self.kept(&record), progress).await {
            Ok(()) => Ok(Some(claim.known_at())),
            Err(LeaseError::Lost) => Ok(None),
            Err(LeaseError::Failed(err)) => Err(err),
        }
    }

    /// A record as the catalog keeps it.
    pub(crate) fn kept<'a>(&self, record: &'a Record) -> Cow<'a, Record> {
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
