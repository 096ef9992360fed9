//! Completion of work that another process began on a tenant's database and did not finish.

use std::time::Duration;

use super::{LeaseError, ProvisionEngine, Taken, job::ProvisionJob};
use crate::{
    catalog::{Record, State},
    model::{error::Error, tenant::TenantId},
    sync::progress::Progress,
    telemetry::stats::Stats,
};

/// The outcome of resuming an unfinished record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Resumed {
    /// The database was found, and its record is published.
    Published,
    /// The deletion is finished.
    Deleted,
    /// No database was created, and the record says so.
    Cleared,
    /// A database may still turn up.
    InDoubt,
    /// Another process works on the tenant, or has finished the work.
    LeftAlone,
}

impl ProvisionEngine {
    /// Finishes the work that was begun on `tenant`, and creates nothing.
    pub(crate) async fn resume(
        &self,
        tenant: &TenantId,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<Resumed, Error> {
        let known = self.record(tenant, progress).await?;
        match known.filter(|record| record.leased_for.is_none()) {
            Some(record) if record.state == State::Deleting => {
                let none = Duration::ZERO;
                self.delete(tenant, none, || {}, progress, stats).await?;
                return Ok(Resumed::Deleted);
            }
            Some(record) if record.is_unfinished() => {}
            Some(_) | None => return Ok(Resumed::LeftAlone),
        }
        let Taken::Lease(lease, record) = self.try_take_lease(tenant, progress).await? else {
            return Ok(Resumed::LeftAlone);
        };
        let job = self.job(&lease, tenant, progress, stats);
        let resumed = lease.run(job.resume_record(*record)).await;
        Ok(LeaseError::unless_lost(resumed)?.unwrap_or(Resumed::LeftAlone))
    }
}

impl ProvisionJob<'_> {
    async fn resume_record(&self, mut record: Record) -> Result<Resumed, LeaseError> {
        if matches!(record.state, State::Claimed | State::Creating) {
            match self.find(&record).await? {
                Some(database) => {
                    let plan = &self.engine.settings.plan;
                    self.adopt(&mut record, database, plan).await?;
                }
                None if record.is_in_doubt() => return Ok(Resumed::InDoubt),
                None => {
                    (record.state, record.attempt) = (State::Claimed, None);
                    self.write_last(&record).await?;
                    return Ok(Resumed::Cleared);
                }
            }
        }
        if record.state == State::Preparing && self.prepare(&mut record).await? {
            self.publish_found(&mut record).await?;
            return Ok(Resumed::Published);
        }
        Ok(Resumed::LeftAlone)
    }
}
