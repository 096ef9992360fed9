//! Deletion of a tenant, and its reversal.
//!
//! The tombstone is written first. From then on the tenant is refused: here at once, in other processes as soon as they
//! learn of it. The holder of the lease then deletes the database.

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
    /// Deletes `tenant`: writes the tombstone, calls `buried`, waits for `drain`, deletes the database and verifies
    /// that it is gone. May be repeated.
    pub(crate) async fn delete(
        &self,
        tenant: &TenantId,
        drain: Duration,
        buried: impl Fn() + Send + Sync,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<(), Error> {
        loop {
            let (lease, record) = self.take_lease(tenant, progress).await?;
            let work = self.job(&lease, tenant, progress, stats);
            let deletion = lease.run(work.delete(record, drain, &buried)).await;
            if let Some(()) = LeaseError::unless_lost(deletion)? {
                return Ok(());
            }
        }
    }

    /// Reverses the deletion of `tenant`.
    pub(crate) async fn undelete(
        &self,
        tenant: &TenantId,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<(), Error> {
        loop {
            let (lease, record) = self.take_lease(tenant, progress).await?;
            let work = self.job(&lease, tenant, progress, stats);
            let recovery = lease.run(work.undelete(record)).await;
            if let Some(()) = LeaseError::unless_lost(recovery)? {
                return Ok(());
            }
        }
    }

    /// Deletes `project`, a database of `tenant`, if `is_surplus` holds for the tenant's record. Otherwise returns
    /// `false`.
    pub(crate) async fn remove(
        &self,
        tenant: &TenantId,
        project: &str,
        is_surplus: impl Fn(&Record) -> bool + Send + Sync,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<bool, Error> {
        loop {
            let (lease, record) = self.take_lease(tenant, progress).await?;
            if !is_surplus(&record) {
                return Ok(false);
            }
            let work = self.job(&lease, tenant, progress, stats);
            let removal = lease.run(work.remove(record, project)).await;
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
                    record.endpoint = None; // so that `undelete` prepares the database
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

    /// Deletes the database of a record that has a tombstone. If a creation got no answer, first searches for its
    /// database until it cannot turn up any more.
    async fn destroy(&self, record: &mut Record) -> Result<(), LeaseError> {
        if record.placement.is_none() {
            let found = self.search(record).await?;
            record.placement = found.map(|database| database.placement);
            record.attempt = None;
            self.write(record).await?;
        }
        if let Some(project) = record.project() {
            self.lease.ensure_fresh().await?;
            // The deletion must not be sent after the lease has ended: another process may have reversed it by then.
            let in_time = self.progress.by(self.lease.valid_until());
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
        let in_time = progress.by(self.lease.valid_until());
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
            // The database was deleted before it was prepared.
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
        // The project is condemned before it is deleted, so that no process adopts it in between.
        if !record.condemned.iter().any(|it| it == project) {
            record.condemned.push(project.to_owned());
            self.write(&record).await?;
        }
        self.reach(Failpoint::Condemned).await;
        let in_time = self.progress.by(self.lease.valid_until());
        Ok(self.on.control_plane.delete(project, &in_time).await?)
    }
}

fn nothing_to_recover() -> Error {
    let message =
        "the tenant's database cannot be recovered; Neon keeps a deleted project for 7 days";
    Error::new(ErrorKind::NotFound, message)
}
