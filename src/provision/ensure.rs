//! The way to a published record: look, wait for whoever is at it, or do the work.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    LeaseError, LeaseGuard, Policy, ProvisionEngine, Provisioned, job::ProvisionJob, ownership,
};
use crate::{
    catalog::{
        Placement, Record, State,
        cached::{Stamp, deleted, held},
    },
    model::{
        endpoint::Endpoint,
        error::{Error, ErrorKind, Stage},
        plan::Plan,
        tenant::TenantId,
    },
    sync::{
        progress::Progress,
        retry::{backoff, retry},
    },
    telemetry::stats::Stats,
};

/// First wait for somebody else who works on the same tenant, or for a catalog that has failed.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Longest wait before another look.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// On whose account a database is created.
#[derive(Clone, Debug)]
pub(crate) enum CreateReason {
    /// A call wants a connection. The policy decides.
    Access,
    /// A call wants a connection, and may only finish what was begun.
    Finish,
    /// The application says so.
    Order(Plan),
    /// The application says so, also in place of a deleted one.
    Recreate(Plan),
}

/// A database that may be used.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) endpoint: Endpoint,
    /// The stamp of the record that says so.
    pub(crate) known_at: Stamp,
    /// Whether it was created for this.
    pub(crate) outcome: Provisioned,
}

/// What one look at a tenant has led to.
enum Turn {
    Done(Published),
    /// Somebody else works on it, for this much longer unless they go on.
    Busy(Duration),
    /// The lease was lost over the work: look again.
    Again,
}

impl ProvisionEngine {
    /// Whether an access may create a database.
    pub(crate) fn creates_on_access(&self) -> bool {
        !matches!(self.settings.policy, Policy::Explicit)
    }

    /// Creates, or finds again, the database of `tenant`, and publishes it.
    ///
    /// # Cancel safety
    /// Dropping it gives the lease back; what was sent is in the catalog, and whoever comes next goes on from there.
    pub(crate) async fn provision(
        &self,
        tenant: &TenantId,
        demand: &CreateReason,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<Published, Error> {
        progress.enter(Stage::Provision);
        let mut waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        let mut plan = None;
        loop {
            let busy_for = match self
                .look(tenant, demand, &mut plan, progress, stats)
                .await?
            {
                Turn::Done(published) => return Ok(published),
                Turn::Busy(left) => left,
                Turn::Again => Duration::ZERO,
            };
            progress.note(&busy(busy_for));
            rest(&mut waits, progress).await?;
        }
    }

    /// Looks at what is known, and does what is to be done if nobody else is at it. `plan` is what the tenant gets, once
    /// that is decided.
    async fn look(
        &self,
        tenant: &TenantId,
        demand: &CreateReason,
        plan: &mut Option<Plan>,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<Turn, Error> {
        let known_at = self.catalog.entries.stamp();
        let known = self.record(tenant, progress).await?;
        if let Some(record) = &known {
            if record.state == State::Ready {
                let endpoint = self.endpoint_of(tenant, record, progress).await?;
                let plan = record.plan.clone();
                return Ok(Turn::Done(Published {
                    endpoint,
                    known_at,
                    outcome: Provisioned::Existing { plan },
                }));
            }
            check(record, demand)?;
            if let Some(left) = record.leased_for {
                return Ok(Turn::Busy(left));
            }
        }
        let plan = match plan {
            Some(plan) => plan,
            None => plan.insert(self.admit(tenant, known.as_ref(), demand, progress).await?),
        };
        let (claim, record) = match self.claim(tenant, progress).await? {
            Ok(claimed) => claimed,
            Err(left) => return Ok(Turn::Busy(left)),
        };
        check(&record, demand)?;
        let work = self.work(&claim, tenant, progress, stats);
        match claim.run(work.finish(record, plan)).await {
            Ok((endpoint, outcome)) => Ok(Turn::Done(Published {
                endpoint,
                known_at: claim.known_at(),
                outcome,
            })),
            Err(LeaseError::Failed(err)) => Err(err),
            Err(LeaseError::Lost) => Ok(Turn::Again),
        }
    }

    /// What the catalog knows, asked again while it is down.
    pub(crate) async fn record(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Option<Record>, Error> {
        let waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        retry(progress, waits, || self.catalog.find(tenant)).await
    }

    /// The lease on `tenant`, asked for again while the catalog is down; or for how long somebody else has it.
    pub(crate) async fn claim(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Result<(LeaseGuard, Record), Duration>, Error> {
        let waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        let time = self.settings.lease_time;
        // The same owner every time: an answer that got lost may have granted it.
        let owner = uuid::Uuid::new_v4().to_string();
        let take = || LeaseGuard::take(&self.catalog, tenant, &owner, time);
        retry(progress, waits, take).await
    }

    /// The lease on a tenant who has a record, waited for if somebody else has it.
    pub(crate) async fn take(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<(LeaseGuard, Record), Error> {
        progress.enter(Stage::Provision);
        let mut waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        loop {
            if self.record(tenant, progress).await?.is_none() {
                let message = "no such tenant; the catalog has no record of it";
                return Err(Error::new(ErrorKind::UnknownTenant, message));
            }
            match self.claim(tenant, progress).await? {
                Ok(claimed) => return Ok(claimed),
                Err(left) => progress.note(&busy(left)),
            }
            rest(&mut waits, progress).await?;
        }
    }

    pub(crate) fn work<'a>(
        &'a self,
        claim: &'a LeaseGuard,
        tenant: &'a TenantId,
        progress: &'a Progress,
        stats: &'a Stats,
    ) -> ProvisionJob<'a> {
        ProvisionJob {
            on: self,
            claim,
            tenant,
            progress,
            stats,
        }
    }

    /// Where the database of a record is reached, password included.
    pub(crate) async fn endpoint_of(
        &self,
        tenant: &TenantId,
        record: &Record,
        progress: &Progress,
    ) -> Result<Endpoint, Error> {
        let (Some(endpoint), Some(placement)) = (&record.endpoint, &record.placement) else {
            return Err(super::lookup::no_endpoint());
        };
        let endpoint = Endpoint {
            max_connections: record.max_connections,
            ..endpoint.clone()
        };
        endpoint.check()?;
        if !endpoint.password.expose().is_empty() {
            return Ok(endpoint);
        }
        let gone = || {
            let message = format!("project {} of the tenant is gone", placement.project);
            Error::new(ErrorKind::EndpointNotFound, message)
        };
        let login = endpoint.login();
        if self.settings.with_passwords {
            // It was there once. Whoever took it out may have changed the rest, and is not to get what comes now.
            self.check_owner(tenant, placement, progress).await?;
            let asked = self
                .control_plane
                .database(&placement.project, Some(&login), progress);
            let now = asked.await?.ok_or_else(gone)?.endpoint;
            return Ok(Endpoint {
                max_connections: record.max_connections,
                ..now
            });
        }
        let asked = self.control_plane.password(placement, &login, progress);
        Ok(Endpoint {
            password: asked.await?.ok_or_else(gone)?,
            ..endpoint
        })
    }

    /// Refuses a database that is somebody else's by what is written on it.
    async fn check_owner(
        &self,
        tenant: &TenantId,
        placement: &Placement,
        progress: &Progress,
    ) -> Result<(), Error> {
        let tags = self
            .control_plane
            .tags(&placement.project, progress)
            .await?;
        let ours = (self.namespace.as_str(), tenant.as_str());
        match tags.as_ref().and_then(ownership::owner) {
            Some(owner) if owner != ours => {
                let message = format!(
                    "the catalog's record names project {}, which is another tenant's; mend the record",
                    placement.project
                );
                Err(Error::new(ErrorKind::BadRecord, message))
            }
            _ => Ok(()),
        }
    }

    /// The plan by which a database is created, if it may be.
    async fn admit(
        &self,
        tenant: &TenantId,
        known: Option<&Record>,
        demand: &CreateReason,
        progress: &Progress,
    ) -> Result<Plan, Error> {
        let plan = match demand {
            CreateReason::Order(plan) | CreateReason::Recreate(plan) => plan.clone(),
            CreateReason::Access | CreateReason::Finish => {
                // It was allowed before.
                let begun =
                    known.is_some_and(|it| it.state == State::Preparing || !it.attempts.is_empty());
                if !begun && matches!(demand, CreateReason::Finish) {
                    let message = "no such tenant, and nothing of its database was begun";
                    return Err(Error::new(ErrorKind::UnknownTenant, message));
                }
                let usual = &self.settings.plan;
                let policy = &self.settings.policy;
                let plan = policy.plan(tenant, usual, begun).await?;
                if !begun {
                    self.admission.acquire(progress.deadline()).await?;
                }
                plan
            }
        };
        let settled = known.is_some_and(|record| record.state == State::Preparing);
        if !settled {
            let checked = plan.check();
            checked.map_err(|err| Error::new(ErrorKind::Refused, err.to_string()))?;
            self.control_plane.check(&plan, progress).await?;
        }
        Ok(plan)
    }
}

/// Waits before another look. An error if that would come too late.
async fn rest(
    waits: &mut (impl Iterator<Item = Duration> + Send),
    progress: &Progress,
) -> Result<(), Error> {
    let wait = waits.next().unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
    if Instant::now() + wait >= progress.deadline() {
        return Err(progress.timed_out());
    }
    sleep(wait).await;
    Ok(())
}

/// Whether a record without a database may get one.
fn check(record: &Record, demand: &CreateReason) -> Result<(), Error> {
    match (record.state, demand) {
        (State::Claimed | State::Creating | State::Preparing | State::Ready, _)
        | (State::Deleted, CreateReason::Recreate(_)) => Ok(()),
        (State::Held, _) => Err(held()),
        (State::Deleting | State::Deleted, _) => Err(deleted()),
    }
}

/// Somebody else has the lease, for so much longer.
pub(crate) fn busy(left: Duration) -> Error {
    let message = "another process works on the tenant's database";
    Error::new(ErrorKind::Locked, message).with_retry_after(left.min(LONGEST_WAIT))
}
