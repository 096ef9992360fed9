//! An operator's calls: create, import, list, delete and undelete tenants, and compare the catalog with the databases
//! that exist.
//!
//! Only a prepare hook and the steps of a schema wake a database, when it is created. (Neon itself starts the compute
//! of a new project.)

mod campaign;
mod compare;
mod for_each;
mod reconcile;
mod rehearse;
mod report;
mod schema;

use std::{fmt, future::Future, sync::Arc, time::Duration};

use tokio::time::timeout_at;

use crate::{
    catalog::{Record, SchemaState, cached},
    model::{
        endpoint::Login,
        error::{Error, Stage},
        plan::Plan,
        tenant::TenantId,
    },
    provision::{CreateReason, ProvisionEngine, source::Source},
    router::{Inner, TenantRouter},
    sync::progress::Progress,
    telemetry::stats::Stats,
};

pub use for_each::{ForEach, Listing, Visit, Visits};
pub use reconcile::Reconcile;
pub use rehearse::Rehearsed;
pub use report::{Finding, Outcome, Report, Trouble};
pub use schema::{PendingStep, TenantSchema};

pub use crate::{
    provision::Provisioned,
    router::campaign::{Campaign, CampaignState, CampaignStatus, Estimate, FailedTenant},
};

/// Time between a tombstone and the deletion of the database, in which other processes close their connections to it.
const DRAIN: Duration = Duration::from_secs(5);

/// The tenants of a router that provisions, as a whole. Returned by [`TenantRouter::fleet`].
///
/// Cheap to clone. A call that changes a tenant holds that tenant's lease, so calls for different tenants may run side
/// by side, in any number of processes. Each call can be repeated, and continues where an earlier one stopped.
///
/// # Cancel safety
/// Dropping a call that changes a tenant does not stop its work, which runs to its end or to its deadline
/// ([`provision_timeout`](crate::RouterBuilder::provision_timeout)).
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

impl TenantRouter {
    /// Returns the tenants as a whole; `None` if this router only looks tenants up.
    pub fn fleet(&self) -> Option<Fleet> {
        let inner = Arc::clone(&self.inner);
        match &inner.shared.source {
            Source::Provisioning(_) => Some(Fleet { inner }),
            Source::Lookup(_) => None,
        }
    }
}

impl Fleet {
    /// Creates the database of `tenant` by the provisioner's [plan](crate::Provisioner::plan), unless it has one.
    ///
    /// Neither the [policy](crate::Provisioner::decide) nor
    /// [`creations_per_minute`](crate::Provisioner::creations_per_minute) applies. May be called for any number of
    /// tenants, and again for the same ones.
    ///
    /// # Errors
    /// `ErrorKind::Deleted` and `ErrorKind::Held`, errors of the catalog and of the control plane, and
    /// `ErrorKind::Timeout`. The call may be repeated.
    pub async fn provision<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<(), Error> {
        let plan = self.provisioning().settings.plan.clone();
        let (Provisioned::Created | Provisioned::Existing { .. }) =
            self.provision_with(tenant, &plan).await?;
        Ok(())
    }

    /// Creates the database of `tenant` by `plan`, unless it has one. A tenant that has a database keeps its plan, and
    /// the returned [`Provisioned`] says so. [`Neon`](crate::Neon) has calls that change a project's limits and
    /// computes.
    ///
    /// # Errors
    /// Those of [`provision`](Self::provision), and `ErrorKind::Refused` if no tenant could be served by `plan`.
    pub async fn provision_with<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
        plan: &Plan,
    ) -> Result<Provisioned, Error> {
        self.order(tenant.as_ref(), CreateReason::Order(plan.clone()))
            .await
    }

    /// Creates the database of `tenant` by `plan`, also if the tenant is deleted. A deleted tenant gets a new and empty
    /// database, and [`undelete`](Self::undelete) can no longer recover the old one.
    ///
    /// # Errors
    /// Those of [`provision_with`](Self::provision_with). `ErrorKind::Deleted` only while the deletion is in progress.
    pub async fn reprovision<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
        plan: &Plan,
    ) -> Result<Provisioned, Error> {
        self.order(tenant.as_ref(), CreateReason::Recreate(plan.clone()))
            .await
    }

    async fn order(&self, tenant: &str, reason: CreateReason) -> Result<Provisioned, Error> {
        let job = self.job(tenant, Duration::ZERO)?;
        job.run(|job| async move {
            let on = job.fleet.provisioning();
            let work = on.provision(&job.tenant, &reason, &job.progress, job.stats());
            let published = work.await?;
            job.fleet.inner.shared.refusals.clear(job.tenant.as_str());
            Ok(published.outcome)
        })
        .await
    }

    /// Makes an existing project the database of `tenant`, which must have none. `login` names the role and the
    /// database in the project. Without it they are those that tenantry creates (`neondb_owner`, `neondb`). Neither the
    /// prepare hook nor a step of the schema runs ([`import_at`](Self::import_at) says which steps the database has).
    /// Of the provisioner's [plan](crate::Provisioner::plan) only `max_connections` applies.
    ///
    /// [`Memory`](crate::catalog::Memory) forgets the import when the process ends, so import again at each start. If a
    /// policy lets an access create databases, an access before the import creates an empty one.
    ///
    /// # Errors
    /// `ErrorKind::Conflict` if the tenant has a record already, or the project is annotated as another tenant's;
    /// `ErrorKind::BadRecord` if another tenant has the project; `ErrorKind::NotFound` if there is no such project.
    pub async fn import<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
        project: &str,
        login: Option<Login>,
    ) -> Result<(), Error> {
        let unknown = SchemaState::default();
        self.import_with(tenant.as_ref(), project, login, unknown)
            .await
    }

    async fn import_with(
        &self,
        tenant: &str,
        project: &str,
        login: Option<Login>,
        schema: SchemaState,
    ) -> Result<(), Error> {
        let project = project.to_owned();
        let job = self.job(tenant, Duration::ZERO)?;
        job.run(|job| async move {
            let on = job.fleet.provisioning();
            let (tenant, progress, stats) = (&job.tenant, &job.progress, job.stats());
            on.import(tenant, &project, login.as_ref(), &schema, progress, stats)
                .await?;
            job.forget();
            Ok(())
        })
        .await
    }

    /// Deletes `tenant`. From now on the tenant is refused to every caller, and its connections are closed as soon as
    /// they are idle: here at once, in other processes as soon as they learn of it. After 5 seconds its database is
    /// deleted, and the deletion is verified. The record stays as a tombstone, so that no access creates the tenant
    /// again. [`undelete`](Self::undelete) reverses the deletion, at Neon for 7 days.
    ///
    /// # Errors
    /// `ErrorKind::UnknownTenant` if the catalog has no record of the tenant; errors of the catalog and of the control
    /// plane, and `ErrorKind::Timeout`. The call may be repeated, and continues where it stopped.
    pub async fn delete<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<(), Error> {
        self.delete_after(tenant, DRAIN).await
    }

    /// Deletes `tenant` like [`delete`](Self::delete), but waits for `drain` instead of 5 seconds between the tombstone
    /// and the deletion of the database. Running queries may end in that time. It is added to the time limit of the
    /// call, which is a day at most.
    ///
    /// # Errors
    /// Those of [`delete`](Self::delete).
    pub async fn delete_after<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
        drain: Duration,
    ) -> Result<(), Error> {
        let job = self.job(tenant.as_ref(), drain)?;
        job.run(|job| async move {
            let on = job.fleet.provisioning();
            let buried = || {
                let pools = &job.fleet.inner.pools;
                pools.forbid(&job.tenant, &cached::deleted().into());
            };
            on.delete(&job.tenant, drain, buried, &job.progress, job.stats())
                .await
        })
        .await
    }

    /// Reverses the deletion of `tenant`, with all its data as it was.
    ///
    /// # Errors
    /// `ErrorKind::NotFound` if the database cannot be recovered any more; `ErrorKind::Conflict` if the tenant is
    /// neither deleted nor ready, also while its deletion is in progress.
    pub async fn undelete<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<(), Error> {
        let job = self.job(tenant.as_ref(), Duration::ZERO)?;
        job.run(|job| async move {
            let on = job.fleet.provisioning();
            on.undelete(&job.tenant, &job.progress, job.stats()).await?;
            job.forget();
            Ok(())
        })
        .await
    }

    /// Reads the present record of `tenant` from the catalog. Returns `None` if it has none.
    ///
    /// # Errors
    /// Those of the catalog, and `ErrorKind::Closed`.
    ///
    /// # Cancel safety
    /// The call only reads.
    pub async fn record<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
    ) -> Result<Option<Record>, Error> {
        if self.inner.shared.life.is_stopping() {
            return Err(Error::closed());
        }
        let tenant = TenantId::parse(tenant.as_ref())?;
        let found = self.provisioning().catalog.read_record(&tenant).await;
        found.map_err(|err| err.with_tenant(&tenant))
    }

    fn provisioning(&self) -> &ProvisionEngine {
        match &self.inner.shared.source {
            Source::Provisioning(provisioning) => provisioning,
            Source::Lookup(_) => unreachable!("there is no fleet without a provisioner"),
        }
    }

    fn job(&self, tenant: &str, drain: Duration) -> Result<Job, Error> {
        let limit = self.inner.shared.config.provision_timeout;
        let limit = limit.saturating_add(drain);
        Ok(Job {
            fleet: self.clone(),
            tenant: TenantId::parse(tenant)?,
            progress: Progress::new(Stage::Provision, limit),
        })
    }
}

/// Work on one tenant, in a task of its own.
#[derive(Clone)]
struct Job {
    fleet: Fleet,
    tenant: TenantId,
    progress: Progress,
}

impl Job {
    fn stats(&self) -> &Stats {
        &self.fleet.inner.shared.stats
    }

    /// Removes the tenant from this router's caches.
    fn forget(&self) {
        self.fleet.inner.evict(&self.tenant);
    }

    /// Runs `work` in a task, so that it continues if the caller drops the future.
    async fn run<T, Fut>(self, work: impl FnOnce(Self) -> Fut) -> Result<T, Error>
    where
        T: Send + 'static,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let (inner, tenant) = (Arc::clone(&self.fleet.inner), self.tenant.clone());
        let progress = self.progress.clone();
        let work = work(self);
        if inner.shared.life.is_stopping() {
            return Err(Error::closed());
        }
        let (jobs, runtime) = (inner.shared.jobs.clone(), inner.shared.runtime.clone());
        let task = async move {
            let done = tokio::select! {
                biased;
                () = inner.shared.life.terminated() => Err(Error::closed()),
                done = timeout_at(progress.deadline(), work) => {
                    done.unwrap_or_else(|_| Err(progress.timed_out()))
                }
            };
            done.map_err(|err| err.with_tenant(&tenant))
        };
        let task = jobs.spawn_on(task, &runtime);
        task.await.unwrap_or_else(|err| {
            Err(if err.is_panic() {
                Error::panicked()
            } else {
                Error::closed()
            })
        })
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").finish_non_exhaustive()
    }
}
