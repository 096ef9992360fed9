//! Creation of the database that a tenant lacks, once for each tenant, and the settings for it.
//!
//! Neon has neither unique project names nor an idempotency key, so a name alone proves nothing: the project must also
//! carry the tenant's namespace and raw id in its own annotations. The catalog's lease lets one process at a time work
//! on a tenant. If the answer to a creation got lost, the project is looked for, and the creation is repeated only
//! after the time in which the project may still turn up.

mod delete;
mod ensure;
mod failpoint;
mod import;
mod job;
mod lease_guard;
mod lookup;
pub(crate) mod migrate;
pub(crate) mod ownership;
mod policy;
mod prepare;
mod provisioned;
mod refresh;
mod rehearse;
mod resume;
mod search;
pub(crate) mod source;

use std::{fmt, future::Future, sync::Arc, time::Duration};

pub use failpoint::Failpoint;
pub use policy::Decision;
pub use prepare::PrepareClient;
pub use provisioned::Provisioned;

pub(crate) use ensure::{CreateReason, Published};
use lease_guard::{LeaseError, LeaseGuard, Taken};
pub(crate) use lookup::LookupOutcome;
pub(crate) use refresh::Compared;
pub(crate) use resume::Resumed;

use crate::{
    catalog::{AnyCatalog, Catalog, cached::CachedCatalog},
    connection::dial::Dialer,
    control_plane::{AnyControlPlane, ControlPlane},
    limits::rate::RateLimiter,
    model::{
        config::{Config, InvalidConfig, check_limit},
        error::BoxError,
        plan::Plan,
        tenant::{Namespace, TenantId},
    },
    schema::CheckedSchema,
};

use failpoint::Steps;
use policy::Policy;
use prepare::Hook;

/// Creates the databases of tenants.
///
/// [`Fleet::provision`](crate::Fleet::provision) creates one on request. An access creates one only if a policy allows
/// it ([`decide`](Self::decide), [`on_first_access`](Self::on_first_access)).
///
/// The [manual](crate::manual::provisioning) lists each step, and the state that an interruption leaves after it.
///
/// ```no_run
/// use tenantry::{Neon, Plan, Provisioner, TenantRouter, catalog::Memory};
///
/// # #[tokio::main] async fn main() -> Result<(), tenantry::BoxError> {
/// let neon = Neon::from_env()?.build()?;
/// let provisioner = Provisioner::new(Memory::new(), neon, "production")
///     .plan(Plan::new().region("aws-us-east-2"))
///     .prepare(|database| async move {
///         database.batch_execute("CREATE TABLE IF NOT EXISTS notes (text text)").await?;
///         Ok(())
///     });
/// let router = TenantRouter::provisioning(provisioner).build()?;
/// if let Some(fleet) = router.fleet() {
///     fleet.provision("acme").await?; // at sign-up
/// }
/// let client = router.get("acme").await?;
/// # let _ = client; Ok(()) }
/// ```
#[must_use = "a provisioner does nothing until it is passed to a router"]
pub struct Provisioner {
    records: Arc<dyn AnyCatalog>,
    control_plane: Arc<dyn AnyControlPlane>,
    namespace: String,
    settings: Settings,
}

/// The settings of a [`Provisioner`].
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) plan: Plan,
    policy: Policy,
    hook: Option<Hook>,
    steps: Steps,
    lease_time: Duration,
    lost_answer_window: Duration,
    search_first: bool,
    with_passwords: bool,
    creations_per_minute: u32,
    waiting_creations: u32,
}

impl Settings {
    pub(crate) fn lease_time(&self) -> Duration {
        self.lease_time
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            plan: Plan::default(),
            policy: Policy::Explicit,
            hook: None,
            steps: Steps::default(),
            lease_time: Duration::from_secs(30),
            lost_answer_window: Duration::from_secs(60),
            search_first: false,
            with_passwords: true,
            creations_per_minute: 300,
            waiting_creations: 300,
        }
    }
}

impl Provisioner {
    /// Creates a provisioner that orders databases from `control_plane` and keeps their records in `records`.
    ///
    /// `namespace` keeps environments apart: the same tenant id in `staging` and in `production` has two databases. It
    /// has 1 to 32 bytes of `a-z`, `0-9` and `-`, which `build` checks. It must never change.
    pub fn new(
        records: impl Catalog,
        control_plane: impl ControlPlane,
        namespace: impl Into<String>,
    ) -> Self {
        Self {
            records: Arc::new(records),
            control_plane: Arc::new(control_plane),
            namespace: namespace.into(),
            settings: Settings::default(),
        }
    }

    /// Sets the plan for new databases. Defaults to the account's own settings. Set at least a region near the app
    /// server.
    pub fn plan(mut self, plan: Plan) -> Self {
        self.settings.plan = plan;
        self
    }

    /// Creates a database only by [`Fleet::provision`](crate::Fleet::provision), and never on access. This is the
    /// default, and replaces a policy that was set before. An access still finishes a creation that was begun. With a
    /// catalog in [`Memory`](crate::catalog::Memory), no access finds a project again after a restart; `provision`
    /// does.
    pub fn explicit(mut self) -> Self {
        self.settings.policy = Policy::Explicit;
        self
    }

    /// Creates a database by [`plan`](Self::plan) for each accessed id that has none. By default no access creates one.
    /// Set this only if the ids are checked before they reach the router, as in a job or a test. Otherwise clients can
    /// make up ids, and you pay for a project for each.
    ///
    /// A request that axum's extractor `Tenant` identifies still creates nothing unless `Tenants::on_first_access` is
    /// set as well.
    pub fn on_first_access(mut self) -> Self {
        self.settings.policy = Policy::OnFirstAccess;
        self
    }

    /// Sets a function that decides whether an accessed tenant without a database gets one, and by which plan. By
    /// default no such tenant does. Axum's extractor `Tenant` needs the same additional setting as for
    /// [`on_first_access`](Self::on_first_access).
    ///
    /// A refusal is remembered for a few seconds. The function may run again for the same tenant, also in another
    /// process, until the database is ready.
    ///
    /// ```no_run
    /// # use tenantry::{Decision, Plan, Provisioner};
    /// # fn f(provisioner: Provisioner) -> Provisioner {
    /// provisioner.decide(|tenant| async move {
    ///     Ok(match tenant.as_str().split_once('-') {
    ///         Some(("eu", _)) => Decision::Create(Plan::new().named("eu").region("aws-eu-central-1")),
    ///         Some(("us", _)) => Decision::Create(Plan::new().named("us").region("aws-us-east-2")),
    ///         _ => Decision::Refuse,
    ///     })
    /// })
    /// # }
    /// ```
    pub fn decide<Fut>(mut self, decide: impl Fn(TenantId) -> Fut + Send + Sync + 'static) -> Self
    where
        Fut: Future<Output = Result<Decision, BoxError>> + Send + 'static,
    {
        self.settings.policy = Policy::ask(decide);
        self
    }

    /// Runs `prepare` on each new database before a pool hands out a connection to it, for extensions, roles and seed
    /// rows. By default nothing runs. The steps of the router's [schema](crate::RouterBuilder::schema) follow on the
    /// same connection. Without either, the router starts no compute.
    ///
    /// The hook gets a connection straight to Postgres, past the pooler. It may run again on the same database if it
    /// failed or the process died while it ran, so write it to be repeated (`IF NOT EXISTS`, `ON CONFLICT DO NOTHING`).
    /// It never runs twice on one database at the same time. It must finish within
    /// [`provision_timeout`](crate::RouterBuilder::provision_timeout).
    pub fn prepare<Fut>(
        mut self,
        prepare: impl Fn(PrepareClient) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.settings.hook = Some(Hook::new(prepare));
        self
    }

    /// Keeps no password in the catalog. The router reads passwords from the control plane instead, with one call of
    /// Neon's API for each tenant that this process does not know yet. By default passwords are in the catalog, sealed
    /// if it is [`Postgres`](crate::catalog::Postgres).
    pub fn passwords_from_control_plane(mut self) -> Self {
        self.settings.with_passwords = false;
        self
    }

    /// Sets whether a tenant's database is looked for by its name before one is created, even if the catalog knows of
    /// no earlier attempt. Defaults to `false`, which saves a call. Turn it on after the catalog was restored from a
    /// backup, which may lack attempts that were made since.
    pub fn search_first(mut self, search: bool) -> Self {
        self.settings.search_first = search;
        self
    }

    /// Sets how many creations may begin on access per minute. Defaults to 300 in each process, with a tenth of that at
    /// once. Beyond it, a caller waits for a minute at most. A caller that would have to wait longer gets
    /// `ErrorKind::Overloaded` with a `retry_after`, and nothing is created for it. A creation takes two requests, and
    /// Neon takes 700 a minute (its API reference, 2026) from all replicas together, so lower the number if you run
    /// several.
    pub fn creations_per_minute(mut self, count: u32) -> Self {
        self.settings.creations_per_minute = count;
        self.settings.waiting_creations = count;
        self
    }

    /// Sets the lifetime of a lease, after which another process may continue for a tenant whose process has died.
    /// Defaults to 30 seconds. A call that creates or deletes must end within the lease, and has at least two thirds of
    /// it. If that is less than a call takes, the process gives up creations that still arrive, and these leave
    /// duplicates for [`reconcile`](crate::Fleet::reconcile).
    pub fn lease_time(mut self, time: Duration) -> Self {
        self.settings.lease_time = time;
        self
    }

    /// Sets the time in which the database may still turn up after a creation that got no answer. Until then no other
    /// one is created for the tenant. Defaults to 60 seconds. Neon's description of its API says neither how long a
    /// creation may take nor how soon the search finds it. A time that is too short costs a second project.
    pub fn lost_answer_window(mut self, time: Duration) -> Self {
        self.settings.lost_answer_window = time;
        self
    }

    /// Calls `reach` at each step and waits for it, for tests that stop a process there.
    #[doc(hidden)]
    pub fn at_each_step<Fut>(
        mut self,
        reach: impl Fn(Failpoint, TenantId) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.settings.steps = Steps::new(reach);
        self
    }

    /// Checks the settings when the router is built.
    pub(crate) fn check(
        self,
        dialer: Arc<Dialer>,
        config: &Config,
        schema: Option<Arc<CheckedSchema>>,
    ) -> Result<ProvisionEngine, InvalidConfig> {
        let Self {
            records,
            control_plane,
            namespace,
            settings,
        } = self;
        let namespace = Namespace::parse(&namespace)
            .map_err(|err| InvalidConfig::new(format!("namespace {namespace:?}: {err}")))?;
        check_limit("lease_time", settings.lease_time)?;
        check_limit("lost_answer_window", settings.lost_answer_window)?;
        settings.plan.check()?;
        if settings.creations_per_minute == 0 {
            let message = "creations_per_minute must be more than zero; to create no database on access, set no policy";
            return Err(InvalidConfig::new(message));
        }
        let served = records.bind(&namespace, settings.with_passwords);
        served.map_err(|err| InvalidConfig::new(err.to_string()))?;
        let admission = RateLimiter::new(settings.creations_per_minute, settings.waiting_creations);
        Ok(ProvisionEngine {
            catalog: Arc::new(CachedCatalog::new(records, config)),
            control_plane,
            namespace,
            settings,
            schema,
            admission,
            dialer,
        })
    }
}

impl fmt::Debug for Provisioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provisioner")
            .field("namespace", &self.namespace)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// A [`Provisioner`] with checked settings.
pub(crate) struct ProvisionEngine {
    pub(crate) catalog: Arc<CachedCatalog>,
    pub(crate) control_plane: Arc<dyn AnyControlPlane>,
    pub(crate) namespace: Namespace,
    pub(crate) settings: Settings,
    /// The schema of the tenants' databases, if the router has one.
    pub(crate) schema: Option<Arc<CheckedSchema>>,
    admission: RateLimiter,
    dialer: Arc<Dialer>,
}
