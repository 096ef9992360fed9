//! Brings a tenant's record to `Ready`: reads it, waits for another process that holds the lease, or does the work.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    LeaseError, LeaseGuard, Policy, ProvisionEngine, Provisioned, Taken, job::ProvisionJob,
    ownership,
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
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Longest such wait.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(1);

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
    pub(super) endpoint: Endpoint,
    /// Stamp up to which this process knows all changes of the record.
    pub(super) known_at: Stamp,
    /// The database's origin, as the caller is told: created by this call or there before.
    pub(crate) outcome: Provisioned,
}

/// The outcome of one try to bring a record to `Ready`.
enum TryOutcome {
    Done(Published),
    /// Another process holds the lease, for this much longer unless it renews the lease.
    Busy(Duration),
    /// The lease was lost during the work. Read the record again.
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
        reason: &CreateReason,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<Published, Error> {
        progress.enter(Stage::Provision);
        let mut waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        let mut plan = None;
        loop {
            let busy_for = match self
                .try_once(tenant, reason, &mut plan, progress, stats)
                .await?
            {
                TryOutcome::Done(published) => return Ok(published),
                TryOutcome::Busy(left) => left,
                TryOutcome::Again => Duration::ZERO,
            };
            progress.note(&busy(busy_for));
            pause(&mut waits, progress).await?;
        }
    }

    /// Reads the record, and does the work if no other process does. `plan` is the tenant's plan, once it is decided.
    async fn try_once(
        &self,
        tenant: &TenantId,
        reason: &CreateReason,
        plan: &mut Option<Plan>,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<TryOutcome, Error> {
        let known_at = self.catalog.entries.stamp();
        let known = self.record(tenant, progress).await?;
        if let Some(record) = &known {
            if record.state == State::Ready {
                let endpoint = self.endpoint_of(tenant, record, progress).await?;
                let plan = record.plan.clone();
                return Ok(TryOutcome::Done(Published {
                    endpoint,
                    known_at,
                    outcome: Provisioned::Existing { plan },
                }));
            }
            refuse_if_withdrawn(record, reason)?;
            if let Some(left) = record.leased_for {
                return Ok(TryOutcome::Busy(left));
            }
        }
        let plan = match plan {
            Some(plan) => plan,
            None => plan.insert(self.admit(tenant, known.as_ref(), reason, progress).await?),
        };
        let (lease, record) = match self.try_take_lease(tenant, progress).await? {
            Taken::Lease(lease, record) => (lease, *record),
            Taken::HeldFor(left) => return Ok(TryOutcome::Busy(left)),
        };
        refuse_if_withdrawn(&record, reason)?;
        let job = self.job(&lease, tenant, progress, stats);
        match lease.run(job.run(record, plan)).await {
            Ok((endpoint, outcome)) => Ok(TryOutcome::Done(Published {
                endpoint,
                known_at: lease.known_at(),
                outcome,
            })),
            Err(LeaseError::Failed(err)) => Err(err),
            Err(LeaseError::Lost) => Ok(TryOutcome::Again),
        }
    }

    /// Returns the tenant's record, and repeats the read while the catalog is down.
    pub(super) async fn record(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Option<Record>, Error> {
        let waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        retry(progress, waits, || self.catalog.read_record(tenant)).await
    }

    /// Takes the lease on `tenant` unless another owner holds it. Repeats the call while the catalog is down.
    pub(super) async fn try_take_lease(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Taken, Error> {
        let waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        let time = self.settings.lease_time;
        // All tries use the same owner: a try whose answer got lost may have granted the lease.
        let owner = uuid::Uuid::new_v4().to_string();
        let take = || LeaseGuard::take(&self.catalog, tenant, &owner, time);
        retry(progress, waits, take).await
    }

    /// Takes the lease on a tenant that has a record, and waits while another owner holds it.
    async fn take_lease(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<(Arc<LeaseGuard>, Record), Error> {
        progress.enter(Stage::Provision);
        let mut waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        loop {
            if self.record(tenant, progress).await?.is_none() {
                let message = "no such tenant; the catalog has no record of it";
                return Err(Error::new(ErrorKind::UnknownTenant, message));
            }
            match self.try_take_lease(tenant, progress).await? {
                Taken::Lease(lease, record) => return Ok((lease, *record)),
                Taken::HeldFor(left) => progress.note(&busy(left)),
            }
            pause(&mut waits, progress).await?;
        }
    }

    /// Runs `work` on the tenant's record under its lease. Runs it again, on the record as it is then, if the lease is
    /// lost.
    pub(super) async fn with_lease<'a, T, Fut>(
        &'a self,
        tenant: &'a TenantId,
        progress: &'a Progress,
        stats: &'a Stats,
        work: impl Fn(ProvisionJob<'a>, Record) -> Fut,
    ) -> Result<T, Error>
    where
        Fut: Future<Output = Result<T, LeaseError>>,
    {
        loop {
            let (lease, record) = self.take_lease(tenant, progress).await?;
            let job = self.job(&lease, tenant, progress, stats);
            if let Some(done) = LeaseError::unless_lost(lease.run(work(job, record)).await)? {
                return Ok(done);
            }
        }
    }

    pub(super) fn job<'a>(
        &'a self,
        lease: &Arc<LeaseGuard>,
        tenant: &'a TenantId,
        progress: &'a Progress,
        stats: &'a Stats,
    ) -> ProvisionJob<'a> {
        ProvisionJob {
            engine: self,
            lease: Arc::clone(lease),
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
            let request = self
                .control_plane
                .database(&placement.project, Some(&login), progress);
            let now = request.await?.ok_or_else(gone)?.endpoint;
            return Ok(Endpoint {
                max_connections: record.max_connections,
                ..now
            });
        }
        let request = self.control_plane.password(placement, &login, progress);
        Ok(Endpoint {
            password: request.await?.ok_or_else(gone)?,
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
                    "the catalog's record names project {}, which belongs to another tenant; repair the record",
                    placement.project
                );
                Err(Error::new(ErrorKind::BadRecord, message))
            }
            _ => Ok(()),
        }
    }

    /// Returns the plan for a new database, if one may be created. Asks the policy, waits for a place within
    /// `creations_per_minute`, and lets the control plane check the plan. A creation that was begun takes no place.
    async fn admit(
        &self,
        tenant: &TenantId,
        known: Option<&Record>,
        reason: &CreateReason,
        progress: &Progress,
    ) -> Result<Plan, Error> {
        let plan = match reason {
            CreateReason::Order(plan) | CreateReason::Recreate(plan) => plan.clone(),
            CreateReason::Access | CreateReason::Finish => {
                // An earlier call was allowed to create the database.
                let begun =
                    known.is_some_and(|it| it.state == State::Preparing || !it.attempts.is_empty());
                if !begun && matches!(reason, CreateReason::Finish) {
                    let message = "no such tenant, and no creation of its database was started";
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
        // A database that is being prepared needs a plan only if it vanishes.
        let is_preparing = known.is_some_and(|record| record.state == State::Preparing);
        if !is_preparing {
            let checked = plan.check();
            checked.map_err(|err| Error::new(ErrorKind::Refused, err.to_string()))?;
            self.control_plane.check(&plan, progress).await?;
        }
        Ok(plan)
    }
}

/// Waits before the next try. Returns an error if that would come after the deadline.
pub(super) async fn pause(
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
fn refuse_if_withdrawn(record: &Record, reason: &CreateReason) -> Result<(), Error> {
    match (record.state, reason) {
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
