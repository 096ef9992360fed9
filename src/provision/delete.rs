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
        let buried = &buried;
        self.with_lease(tenant, progress, stats, |job, record| async move {
            job.delete(record, drain, buried).await
        })
        .await
    }

    /// Reverses the deletion of `tenant`.
    pub(crate) async fn undelete(
        &self,
        tenant: &TenantId,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<(), Error> {
        self.with_lease(tenant, progress, stats, |job, record| async move {
            job.undelete(record).await
        })
        .await
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
        let is_surplus = &is_surplus;
        self.with_lease(tenant, progress, stats, |job, record| async move {
            if !is_surplus(&record) {
                return Ok(false);
            }
            job.remove(record, project).await?;
            Ok(true)
        })
        .await
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
            self.engine.control_plane.delete(project, &in_time).await?;
        }
        self.reach(Failpoint::Destroyed).await;
        Ok(())
    }

    async fn undelete(&self, mut record: Record) -> Result<(), LeaseError> {
        let Self {
            engine, progress, ..
        } = self;
        match record.state {
            State::Ready => return Ok(()),
            State::Deleted => {}
            state @ (State::Claimed
            | State::Creating
            | State::Preparing
            | State::Held
            | State::Deleting) => {
                let message = format!(
                    "the tenant's record is {}: there is no deletion to undo",
                    state.as_str()
                );
                return Err(Error::new(ErrorKind::Conflict, message).into());
            }
        }
        let project = record.project().ok_or_else(nothing_to_recover)?.to_owned();
        let in_time = progress.by(self.lease.valid_until());
        let recovered = engine.control_plane.recover(&project, &in_time).await;
        recovered.map_err(|err| match err.kind() {
            ErrorKind::NotFound => nothing_to_recover().with_source(err),
            _ => err,
        })?;
        self.reach(Failpoint::Recovered).await;
        engine.control_plane.ready(&project, progress).await?;
        let login = record.endpoint.as_ref().map(Endpoint::login);
        let found = engine
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
        record.set_database(database.placement, database.endpoint);
        record.schema.forget(); // of the time to which the database went back
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
        Ok(self.engine.control_plane.delete(project, &in_time).await?)
    }
}

fn nothing_to_recover() -> Error {
    let message =
        "the tenant's database cannot be recovered; Neon keeps a deleted project for 7 days";
    Error::new(ErrorKind::NotFound, message)
}
