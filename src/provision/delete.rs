//! Deleting a tenant, and taking that back.
//!
//! The tombstone comes first: from then on nobody is given a connection, here or in another process. The database goes
//! after it, and only by the holder of the lease.

use std::time::Duration;

use tokio::time::sleep;

use super::{LeaseError, ProvisionEngine, failpoint::Failpoint, job::ProvisionJob};
use crate::{
    catalog::{Record, State},
    model::{
        endpoint::Endpoint,
        error::{Error, ErrorKind},
        tenant::TenantId,
    },
    sync::progress::Progress,
    telemetry::stats::Stats,
};

impl ProvisionEngine {
    /// Deletes `tenant`: tombstone, `buried` is told, `drain` passes, database, proof that it is gone. May be repeated.
    pub(crate) async fn delete(
        &self,
        tenant: &TenantId,
        drain: Duration,
        buried: impl Fn() + Send + Sync,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<(), Error> {
        loop {
            let (claim, record) = self.take(tenant, progress).await?;
            let work = self.work(&claim, tenant, progress, stats);
            let deletion = claim.run(work.delete(record, drain, &buried)).await;
            if let Some(()) = LeaseError::unless_lost(deletion)? {
                return Ok(());
            }
        }
    }

    /// Takes the deletion of `tenant` back.
    pub(crate) async fn undelete(
        &self,
        tenant: &TenantId,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<(), Error> {
        loop {
            let (claim, record) = self.take(tenant, progress).await?;
            let work = self.work(&claim, tenant, progress, stats);
            let recovery = claim.run(work.undelete(record)).await;
            if let Some(()) = LeaseError::unless_lost(recovery)? {
                return Ok(());
            }
        }
    }

    /// Deletes a database of `tenant` that `is_surplus` by its record. `false` if it may be wanted after all.
    pub(crate) async fn remove(
        &self,
        tenant: &TenantId,
        project: &str,
        is_surplus: impl Fn(&Record) -> bool + Send + Sync,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<bool, Error> {
        loop {
            let (claim, record) = self.take(tenant, progress).await?;
            if !is_surplus(&record) {
                return Ok(false);
            }
            let work = self.work(&claim, tenant, progress, stats);
            let removal = claim.run(work.remove(record, project)).await;
            if let Some(()) = LeaseError::unless_lost(removal)? {
                return Ok(true);
            }
        }
    }
}

impl ProvisionJob<'_> {
    async fn delete(
        &self,
        mut record: Record,
        drain: Duration,
        buried: &(impl Fn() + Send + Sync),
    ) -> Result<(), LeaseError> {
        match record.state {
            State::Deleted => return Ok(()),
            State::Deleting => buried(),
            State::Claimed | State::Creating | State::Preparing | State::Ready | State::Held => {
                if record.state == State::Preparing {
                    record.endpoint = None; // so that it is prepared if this is taken back
                }
                record.state = State::Deleting;
                self.write(&record).await?;
                self.reach(Failpoint::Buried).await;
                buried();
                sleep(drain).await;
            }
        }
        self.destroy(&mut record).await?;
        record.state = State::Deleted;
        record.last_error = None;
        self.write_last(&record).await
    }

    /// Deletes the database of a record with a tombstone: also one whose creation got no answer, once it must have
    /// turned up.
    async fn destroy(&self, record: &mut Record) -> Result<(), LeaseError> {
        if record.placement.is_none() {
            let found = self.search(record).await?;
            record.placement = found.map(|database| database.placement);
            record.attempt = None;
            self.write(record).await?;
        }
        if let Some(project) = record.project() {
            self.claim.ensure_fresh().await?;
            // Nothing is sent once the lease may be somebody else's: the deletion may be taken back by then.
            let in_time = self.progress.by(self.claim.valid_until());
            self.on.control_plane.delete(project, &in_time).await?;
        }
        self.reach(Failpoint::Destroyed).await;
        Ok(())
    }

    async fn undelete(&self, mut record: Record) -> Result<(), LeaseError> {
        let Self { on, progress, .. } = self;
        match record.state {
            State::Ready => return Ok(()),
            State::Deleted => {}
            state @ (State::Claimed
            | State::Creating
            | State::Preparing
            | State::Held
            | State::Deleting) => {
                let message = format!(
                    "the tenant's record is {}: there is no deletion to take back",
                    state.as_str()
                );
                return Err(Error::new(ErrorKind::Conflict, message).into());
            }
        }
        let project = record.project().ok_or_else(nothing_to_recover)?.to_owned();
        let in_time = progress.by(self.claim.valid_until());
        let recovered = on.control_plane.recover(&project, &in_time).await;
        recovered.map_err(|err| match err.kind() {
            ErrorKind::NotFound => nothing_to_recover().with_source(err),
            _ => err,
        })?;
        self.reach(Failpoint::Recovered).await;
        on.control_plane.ready(&project, progress).await?;
        let login = record.endpoint.as_ref().map(Endpoint::login);
        let found = on
            .control_plane
            .database(&project, login.as_ref(), progress)
            .await?;
        let database = found.ok_or_else(nothing_to_recover)?;
        if login.is_none() {
            // It was deleted before it was fit for use.
            self.place(&mut record, database).await?;
            self.prepare(&mut record).await?;
            return self.publish_found(&mut record).await;
        }
        record.state = State::Ready;
        record.endpoint = Some(database.endpoint);
        record.placement = Some(database.placement);
        self.write_last(&record).await
    }

    async fn remove(&self, mut record: Record, project: &str) -> Result<(), LeaseError> {
        // First that nobody may take it for the tenant's any more, then the deletion.
        if !record.condemned.iter().any(|it| it == project) {
            record.condemned.push(project.to_owned());
            self.write(&record).await?;
        }
        self.reach(Failpoint::Condemned).await;
        let in_time = self.progress.by(self.claim.valid_until());
        Ok(self.on.control_plane.delete(project, &in_time).await?)
    }
}

fn nothing_to_recover() -> Error {
    let message =
        "the tenant's database cannot be recovered; Neon keeps a deleted project for 7 days";
    Error::new(ErrorKind::NotFound, message)
}
