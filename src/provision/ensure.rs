//! Brings a tenant's record to `Ready`: reads it, waits for another process that holds the lease, or does the work.

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

/// First wait while another process works on the same tenant, or after the catalog has failed.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Longest such wait.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The reason for creating a database.
#[derive(Clone, Debug)]
pub(crate) enum CreateReason {
    /// A caller gets a connection. The policy decides.
    Access,
    /// A caller gets a connection, and may only finish a creation that was begun.
    Finish,
    /// The application orders a database.
    Order(Plan),
    /// The application orders a database, also in place of a deleted one.
    Recreate(Plan),
}

/// A database that may be used.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) endpoint: Endpoint,
    /// Stamp of the record that says so.
    pub(super) known_at: Stamp,
    /// The database's origin, as the caller is told: created by this call or there before.
    pub(crate) outcome: Provisioned,
}

/// The outcome of one look at a tenant.
enum Try {
    Done(Published),
    /// Another process holds the lease, for this much longer unless it renews the lease.
    Busy(Duration),
    /// The lease was lost during the work. Look again.
    Again,
}

impl ProvisionEngine {
    /// Returns whether an access may create a database.
    pub(crate) fn creates_on_access(&self) -> bool {
        !matches!(self.settings.policy, Policy::Explicit)
    }

    /// Creates the database of `tenant`, or finds it again, and publishes its record.
    ///
    /// # Cancel safety
    /// Dropping the future gives the lease back. Each creation that was sent is in the catalog, and the next call
    /// continues from there.
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
                .try_once(tenant, demand, &mut plan, progress, stats)
                .await?
            {
                Try::Done(published) => return Ok(published),
                Try::Busy(left) => left,
                Try::Again => Duration::ZERO,
            };
            progress.note(&busy(busy_for));
            pause(&mut waits, progress).await?;
        }
    }

    /// Reads the record, and does the work if no other process does. `plan` is the tenant's plan, once it is decided.
    async fn try_once(
        &self,
        tenant: &TenantId,
        demand: &CreateReason,
        plan: &mut Option<Plan>,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<Try, Error> {
        let known_at = self.catalog.entries.stamp();
        let known = self.record(tenant, progress).await?;
        if let Some(record) = &known {
            if record.state == State::Ready {
                let endpoint = self.endpoint_of(tenant, record, progress).await?;
                let plan = record.plan.clone();
                return Ok(Try::Done(Published {
                    endpoint,
                    known_at,
                    outcome: Provisioned::Existing { plan },
                }));
            }
            refuse_if_withdrawn(record, demand)?;
            if let Some(left) = record.leased_for {
                return Ok(Try::Busy(left));
            }
        }
        let plan = match plan {
            Some(plan) => plan,
            None => plan.insert(self.admit(tenant, known.as_ref(), demand, progress).await?),
        };
        let (lease, record) = match self.try_take_lease(tenant, progress).await? {
            Ok(claimed) => claimed,
            Err(left) => return Ok(Try::Busy(left)),
        };
        refuse_if_withdrawn(&record, demand)?;
        let work = self.job(&lease, tenant, progress, stats);
        match lease.run(work.run(record, plan)).await {
            Ok((endpoint, outcome)) => Ok(Try::Done(Published {
                endpoint,
                known_at: lease.known_at(),
                outcome,
            })),
            Err(LeaseError::Failed(err)) => Err(err),
            Err(LeaseError::Lost) => Ok(Try::Again),
        }
    }

    /// Returns the tenant's record, and repeats the read while the catalog is down.
    pub(crate) async fn record(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Option<Record>, Error> {
        let waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        retry(progress, waits, || self.catalog.read_record(tenant)).await
    }

    /// Takes the lease on `tenant`, and repeats the call while the catalog is down. Returns the remaining time if
    /// another owner holds the lease.
    pub(super) async fn try_take_lease(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Result<(LeaseGuard, Record), Duration>, Error> {
        let waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        let time = self.settings.lease_time;
        // All tries use the same owner: a try whose answer got lost may have granted the lease.
        let owner = uuid::Uuid::new_v4().to_string();
        let take = || LeaseGuard::take(&self.catalog, tenant, &owner, time);
        retry(progress, waits, take).await
    }

    /// Takes the lease on a tenant that has a record, and waits while another owner holds it.
    pub(super) async fn take_lease(
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
            match self.try_take_lease(tenant, progress).await? {
                Ok(claimed) => return Ok(claimed),
                Err(left) => progress.note(&busy(left)),
            }
            pause(&mut waits, progress).await?;
        }
    }

    pub(super) fn job<'a>(
        &'a self,
        claim: &'a LeaseGuard,
        tenant: &'a TenantId,
        progress: &'a Progress,
        stats: &'a Stats,
    ) -> ProvisionJob<'a> {
        ProvisionJob {
            on: self,
            lease: claim,
            tenant,
            progress,
            stats,
        }
    }

    /// Returns the endpoint of a record's database, password included.
    pub(super) async fn endpoint_of(
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
            // The password was removed from the record. The rest, such as the host, may have been changed too, and a
            // changed host must not get the password. So the whole endpoint is read again.
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

    /// Refuses a database whose tags name another tenant.
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

    /// Returns the plan for a new database, if one may be created.
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
                // An earlier call was allowed to create the database.
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

/// Waits before the next look. Returns an error if that would come after the deadline.
async fn pause(
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

/// Refuses a creation for a tenant that is held, being deleted, or deleted (unless it is to be created again).
fn refuse_if_withdrawn(record: &Record, demand: &CreateReason) -> Result<(), Error> {
    match (record.state, demand) {
        (State::Claimed | State::Creating | State::Preparing | State::Ready, _)
        | (State::Deleted, CreateReason::Recreate(_)) => Ok(()),
        (State::Held, _) => Err(held()),
        (State::Deleting | State::Deleted, _) => Err(deleted()),
    }
}

/// Returns the error for a tenant whose lease another process holds for `left`.
pub(super) fn busy(left: Duration) -> Error {
    let message = "another process works on the tenant's database";
    Error::new(ErrorKind::Locked, message).with_retry_after(left.min(LONGEST_WAIT))
}
