//! Where a tenant lives that is not where the catalog has it.

use super::{Halt, Provisioning, access};
use crate::{
    control_plane::Database,
    endpoint::Endpoint,
    error::{Error, Stage},
    record::State,
    retry::Progress,
    secret::Secret,
    tenant::TenantId,
};

impl Provisioning {
    /// Where the published database of `tenant` lives by what the control plane says now, which is written down; `None`
    /// if it is gone. It is asked for by its id, so no other one is ever taken for it.
    pub(crate) async fn refresh(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Option<Endpoint>, Error> {
        let known = self.catalog.find(tenant).await?;
        let Some(record) = known.filter(|record| record.state == State::Ready) else {
            return Ok(None);
        };
        let (Some(project), Some(endpoint)) = (record.project(), &record.endpoint) else {
            return Ok(None);
        };
        let login = endpoint.login();
        let asked = self.control_plane.database(project, Some(&login), progress);
        let Some(now) = asked.await? else {
            return Ok(None);
        };
        let kept = self.kept(now.endpoint.clone());
        if Some(&kept) != record.endpoint.as_ref() {
            let database = Database::new(now.placement, kept);
            self.write_down(tenant, project, database, progress).await?;
        }
        Ok(Some(now.endpoint))
    }

    /// Whether the record of `tenant` has the endpoint that the control plane has; otherwise it is mended, if `mend`.
    pub(crate) async fn compare(
        &self,
        tenant: &TenantId,
        mend: bool,
        progress: &Progress,
    ) -> Result<bool, Error> {
        let Some(record) = self.catalog.find(tenant).await? else {
            return Ok(true);
        };
        let (State::Ready, Some(project), Some(endpoint)) =
            (record.state, record.project(), &record.endpoint)
        else {
            return Ok(true);
        };
        let login = endpoint.login();
        let asked = self.control_plane.database(project, Some(&login), progress);
        let Some(now) = asked.await? else {
            return Ok(true); // gone, which is another trouble
        };
        let kept = self.kept(now.endpoint);
        let same = kept == *endpoint;
        if !same && mend {
            let database = Database::new(now.placement, kept);
            self.write_down(tenant, project, database, progress).await?;
        }
        Ok(same)
    }

    /// Writes down where the database in `project` lives now, unless somebody else is at the record: they see it too.
    async fn write_down(
        &self,
        tenant: &TenantId,
        project: &str,
        now: Database,
        progress: &Progress,
    ) -> Result<(), Error> {
        let Ok((claim, mut record)) = self.claim(tenant, progress).await? else {
            return Ok(());
        };
        if record.state != State::Ready || record.project() != Some(project) {
            return Ok(());
        }
        record.endpoint = Some(now.endpoint);
        record.placement = Some(now.placement);
        match claim.write_last(&record, progress).await {
            Ok(()) | Err(Halt::Lost) => Ok(()),
            Err(Halt::Failed(err)) => Err(err),
        }
    }

    /// Where `tenant` lives by the catalog; `None` if nobody is known by that id, an error if it must not be used.
    pub(crate) async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, Error> {
        let Some(record) = self.catalog.find(tenant).await? else {
            return Ok(None);
        };
        match record.state {
            State::Ready => {
                let progress = Progress::new(Stage::Lookup, self.settings.lease_time);
                self.reach(&record, &progress).await.map(Some)
            }
            State::Claimed | State::Creating | State::Preparing => Ok(None),
            State::Held => Err(access::held()),
            State::Deleting | State::Deleted => Err(access::deleted()),
        }
    }

    /// An endpoint as the catalog keeps it.
    pub(crate) fn kept(&self, mut endpoint: Endpoint) -> Endpoint {
        if !self.settings.with_passwords {
            endpoint.password = Secret::new("");
        }
        endpoint
    }
}
