//! What an operator does to tenants: create, import, list, delete, take back, and compare with what is really there.
//!
//! None of it wakes a database but a prepare hook. (Neon itself starts the compute of a new project.)

pub(crate) mod compare;
mod for_each;
mod reconcile;
mod report;

use std::{fmt, future::Future, sync::Arc, time::Duration};

use tokio::time::timeout_at;

use crate::{
    catalog::{Record, cached},
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
pub use report::{Finding, Outcome, Report, Trouble};

pub use crate::provision::Provisioned;

/// Time between a tombstone and the deletion of the database, in which other processes let go of it.
const DRAIN: Duration = Duration::from_secs(5);

/// The tenants of a router that provisions, as a whole. From [`TenantRouter::fleet`].
///
/// Cheap to clone. Every call that changes a tenant works under that tenant's lease, so calls for different tenants may run
/// side by side, in as many processes as there are; and each can be repeated: it goes on where an earlier one has stopped.
///
/// # Cancel safety
/// Dropping a call that changes a tenant lets the work on it run to its end, or to its deadline
/// ([`provision_timeout`](crate::RouterBuilder::provision_timeout)).
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

impl TenantRouter {
    /// What can be done to the tenants as a whole; `None` if this router only looks tenants up.
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
    /// Nobody is asked: neither the [policy](crate::Provisioner::decide) nor
    /// [`creations_per_minute`](crate::Provisioner::creations_per_minute) holds here. May be called for any number of
    /// tenants, and again for the same ones.
    ///
    /// # Errors
    /// `ErrorKind::Deleted` and `ErrorKind::Held`, those of the catalog and of the control plane, and
    /// `ErrorKind::Timeout`: the call may be repeated.
    pub async fn provision<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<(), Error> {
        let plan = self.provisioning().settings.plan.clone();
        let (Provisioned::Created | Provisioned::Existing { .. }) =
            self.provision_with(tenant, &plan).await?;
        Ok(())
    }

    /// [`provision`](Self::provision) by another plan. A tenant that has a database keeps the plan that it has: the answer says
    /// so. [`Neon`](crate::Neon) has calls that change a project's limits and computes.
    ///
    /// # Errors
    /// Those of [`provision`](Self::provision), and `ErrorKind::Refused` if nobody could be served by `plan`.
    pub async fn provision_with<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
        plan: &Plan,
    ) -> Result<Provisioned, Error> {
        self.order(tenant.as_ref(), CreateReason::Order(plan.clone()))
            .await
    }

    /// [`provision`](Self::provision) for a tenant who may be deleted: then it gets a new and empty database, and the old
    /// one cannot be taken back by [`undelete`](Self::undelete) any more.
    ///
    /// # Errors
    /// Those of [`provision_with`](Self::provision_with); `ErrorKind::Deleted` only while the deletion goes on.
    pub async fn reprovision<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
        plan: &Plan,
    ) -> Result<Provisioned, Error> {
        self.order(tenant.as_ref(), CreateReason::Recreate(plan.clone()))
            .await
    }

    async fn order(&self, tenant: &str, demand: CreateReason) -> Result<Provisioned, Error> {
        let job = self.job(tenant, Duration::ZERO)?;
        job.run(|job| async move {
            let on = job.fleet.provisioning();
            let work = on.provision(&job.tenant, &demand, &job.progress, job.stats());
            let published = work.await?;
            job.fleet.inner.shared.refusals.clear(job.tenant.as_str());
            Ok(published.outcome)
        })
        .await
    }

    /// Makes an existing project the database of `tenant`, who must have none. `login` says as whom, and into which
    /// database of it; without it, as tenantry creates them (`neondb_owner`, `neondb`). The prepare hook is not run, and of
    /// the provisioner's [plan](crate::Provisioner::plan) only `max_connections` holds.
    ///
    /// [`Memory`](crate::catalog::Memory) forgets this when the process ends: with it, import again at each start. If a policy
    /// lets accesses create, one that comes before creates an empty database.
    ///
    /// # Errors
    /// `ErrorKind::Conflict` if the tenant has a record already, or the project is annotated as another tenant's;
    /// `ErrorKind::BadRecord` if another tenant has it; `ErrorKind::NotFound` if there is no such project.
    pub async fn import<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
        project: &str,
        login: Option<Login>,
    ) -> Result<(), Error> {
        let project = project.to_owned();
        let job = self.job(tenant.as_ref(), Duration::ZERO)?;
        job.run(|job| async move {
            let on = job.fleet.provisioning();
            let (tenant, progress) = (&job.tenant, &job.progress);
            let import = on.import(tenant, &project, login.as_ref(), progress, job.stats());
            import.await?;
            job.forget();
            Ok(())
        })
        .await
    }

    /// Deletes `tenant`. From now on it is refused to everybody, and its connections are closed as soon as nobody uses
    /// them: here at once, in other processes when they hear of it. After 5 seconds its database is deleted, and that is
    /// verified. The record stays as a tombstone, so that no access creates the tenant again. [`undelete`](Self::undelete)
    /// takes it back, at Neon for 7 days.
    ///
    /// # Errors
    /// `ErrorKind::UnknownTenant` if the catalog has never known it; those of the catalog and of the control plane, and
    /// `ErrorKind::Timeout`: the call may be repeated, and goes on where it stopped.
    pub async fn delete<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<(), Error> {
        self.delete_after(tenant, DRAIN).await
    }

    /// [`delete`](Self::delete) with another time (5 seconds) between the tombstone and the deletion of the database, in
    /// which queries under way may end. It is added to the time that the call has, which is a day at
    /// most.
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

    /// Takes the deletion of `tenant` back, with all its data as it was.
    ///
    /// # Errors
    /// `ErrorKind::NotFound` if the database cannot be recovered any more; `ErrorKind::Conflict` if the tenant is not
    /// deleted, or not yet.
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

    /// What the catalog knows of `tenant`, as it is now; `None` if it has no record.
    ///
    /// # Errors
    /// Those of the catalog; `ErrorKind::Closed`.
    ///
    /// # Cancel safety
    /// It only reads.
    pub async fn record<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
    ) -> Result<Option<Record>, Error> {
        if self.inner.shared.life.is_stopping() {
            return Err(Error::closed());
        }
        let tenant = TenantId::parse(tenant.as_ref())?;
        let found = self.provisioning().catalog.find(&tenant).await;
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

    /// Forgets what this router knew of the tenant.
    fn forget(&self) {
        self.fleet.inner.evict(&self.tenant);
    }

    /// Runs `work`, also if nobody waits for it any more.
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
