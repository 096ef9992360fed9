//! Bringing to an end what somebody began on a tenant's database and did not finish.

use std::time::Duration;

use super::{Halt, Provisioning, job::Work};
use crate::{
    catalog::{Record, State},
    model::{error::Error, tenant::TenantId},
    sync::progress::Progress,
    telemetry::stats::Stats,
};

/// What became of a record that was left unfinished.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Settled {
    /// Its database was found, and is published.
    Published,
    /// Its deletion is finished.
    Deleted,
    /// No database was created, and that is written down.
    Cleared,
    /// A database may still turn up.
    InDoubt,
    /// Somebody else is at it, or has finished it.
    LeftAlone,
}

impl Provisioning {
    /// Finishes what was begun on `tenant`, and creates nothing.
    pub(crate) async fn settle(
        &self,
        tenant: &TenantId,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<Settled, Error> {
        let known = self.record(tenant, progress).await?;
        match known.filter(|record| record.leased_for.is_none()) {
            Some(record) if record.state == State::Deleting => {
                let none = Duration::ZERO;
                self.delete(tenant, none, || {}, progress, stats).await?;
                return Ok(Settled::Deleted);
            }
            Some(record) if record.is_unfinished() => {}
            Some(_) | None => return Ok(Settled::LeftAlone),
        }
        let Ok((claim, record)) = self.claim(tenant, progress).await? else {
            return Ok(Settled::LeftAlone);
        };
        let work = self.work(&claim, tenant, progress, stats);
        let settled = claim.hold(work.settle(record)).await;
        Ok(Halt::unless_lost(settled)?.unwrap_or(Settled::LeftAlone))
    }
}

impl Work<'_> {
    async fn settle(&self, mut record: Record) -> Result<Settled, Halt> {
        if matches!(record.state, State::Claimed | State::Creating) {
            match self.find(&record).await? {
                Some(database) => {
                    let plan = &self.on.settings.plan;
                    self.adopt(&mut record, database, plan).await?;
                }
                None if record.is_in_doubt() => return Ok(Settled::InDoubt),
                None => {
                    (record.state, record.attempt) = (State::Claimed, None);
                    self.write_last(&record).await?;
                    return Ok(Settled::Cleared);
                }
            }
        }
        if record.state == State::Preparing && self.prepare(&mut record).await? {
            self.publish_found(&mut record).await?;
            return Ok(Settled::Published);
        }
        Ok(Settled::LeftAlone)
    }
}
