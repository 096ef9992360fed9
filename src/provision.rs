//! Creating the database that a tenant lacks, once.
//!
//! Neon has neither unique project names nor an idempotency key, so a name alone proves nothing: the project must also
//! carry, in its own annotations, the namespace and the raw id of the tenant. A creation whose answer got lost is
//! looked up, never repeated.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::{
    config::InvalidConfig,
    control_plane::{AnyControlPlane, ControlPlane, Found, Order},
    endpoint::Endpoint,
    error::{BoxError, Error, ErrorKind, Stage},
    plan::Plan,
    records::{AnyRecords, Records},
    retry::{Progress, backoff, lock, retry},
    stats::{Stats, count},
    tenant::{Namespace, TenantId},
};

/// How long after it was sent a creation that got no answer may still turn up. A creation takes a second or two at Neon,
/// and its search may miss the newest projects for some more; until then nothing is created for the tenant again.
const DOUBT: Duration = Duration::from_secs(60);
/// Tag that holds the namespace.
const NAMESPACE_TAG: &str = "tenantry-namespace";
/// Tag that holds the tenant's id, byte for byte.
const TENANT_TAG: &str = "tenantry-tenant";

/// Creates the database of a tenant on its first access.
///
/// ```no_run
/// use tenantry::{Neon, Plan, Provisioner, TenantRouter, records::Memory};
///
/// # #[tokio::main] async fn main() -> Result<(), tenantry::BoxError> {
/// let neon = Neon::builder(std::env::var("NEON_API_KEY")?).build()?;
/// let provisioner = Provisioner::new(Memory::new(), neon, "production").plan(Plan::new().region("aws-us-east-2"));
/// let router = TenantRouter::provisioning(provisioner).build()?;
/// # let _ = router; Ok(()) }
/// ```
pub struct Provisioner {
    records: Arc<dyn AnyRecords>,
    control_plane: Arc<dyn AnyControlPlane>,
    namespace: String,
    plan: Plan,
}

impl Provisioner {
    /// A provisioner that records in `records` what it creates through `control_plane`.
    ///
    /// `namespace` keeps environments apart: the same tenant id in `staging` and in `production` is two databases. It
    /// has 1 to 32 bytes of `a-z`, `0-9` and `-`, and must stay the same for ever; `build` checks it.
    pub fn new(
        records: impl Records,
        control_plane: impl ControlPlane,
        namespace: impl Into<String>,
    ) -> Self {
        Self {
            records: Arc::new(records),
            control_plane: Arc::new(control_plane),
            namespace: namespace.into(),
            plan: Plan::default(),
        }
    }

    /// Sets what a new tenant's database gets. Defaults to the account's own settings; set at least a region near the
    /// app server.
    #[must_use]
    pub fn plan(mut self, plan: Plan) -> Self {
        self.plan = plan;
        self
    }

    /// Checks the settings, once, when the router is built.
    pub(crate) fn check(self) -> Result<Provisioning, InvalidConfig> {
        let namespace = Namespace::parse(&self.namespace)
            .map_err(|err| InvalidConfig::new(format!("namespace {:?}: {err}", self.namespace)))?;
        Ok(Provisioning {
            records: self.records,
            control_plane: self.control_plane,
            namespace,
            plan: self.plan,
            in_doubt: Mutex::default(),
        })
    }
}

impl fmt::Debug for Provisioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provisioner")
            .field("namespace", &self.namespace)
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

/// A [`Provisioner`] whose settings have been checked.
pub(crate) struct Provisioning {
    records: Arc<dyn AnyRecords>,
    control_plane: Arc<dyn AnyControlPlane>,
    namespace: Namespace,
    plan: Plan,
    // Tenants for which a creation was sent and not answered, and until when it may turn up. Held for a look, never
    // across an await.
    in_doubt: Mutex<HashMap<TenantId, Instant>>,
}

impl Provisioning {
    pub(crate) async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, BoxError> {
        self.records.lookup(tenant).await
    }

    /// Creates, or finds again, the database of `tenant`, and records it.
    pub(crate) async fn provision(
        &self,
        tenant: &TenantId,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<Endpoint, Error> {
        progress.enter(Stage::Provision);
        let claim = self
            .records
            .claim(&self.namespace, tenant)
            .await
            .map_err(catalog)?;
        let name = project_name(&self.namespace, tenant);
        let adopted = if claim.fresh {
            None
        } else {
            self.adopt(&name, tenant, progress).await?
        };
        let (endpoint, outcome, counter) = if let Some(endpoint) = adopted {
            (endpoint, "adopted", &stats.adopted)
        } else {
            let endpoint = self.create(name.clone(), tenant, progress).await?;
            (endpoint, "created", &stats.provisioned)
        };
        self.records
            .publish(tenant, claim, endpoint.clone())
            .await
            .map_err(catalog)?;
        count(counter);
        let elapsed = progress.elapsed();
        tracing::debug!(
            tenant = tenant.as_str(),
            name,
            outcome,
            ?elapsed,
            "provision"
        );
        Ok(endpoint)
    }

    /// Where the database of `tenant` lives by what the control plane says now, which is recorded; `None` if it is
    /// gone.
    pub(crate) async fn refresh(
        &self,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Option<Endpoint>, Error> {
        let claim = self.records.claim(&self.namespace, tenant);
        let claim = claim.await.map_err(catalog)?;
        let name = project_name(&self.namespace, tenant);
        let Some(endpoint) = self.adopt(&name, tenant, progress).await? else {
            return Ok(None);
        };
        let publish = self.records.publish(tenant, claim, endpoint.clone());
        publish.await.map_err(catalog)?;
        Ok(Some(endpoint))
    }

    /// The tenant's database, if one of its name exists and is provably the tenant's.
    async fn adopt(
        &self,
        name: &str,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Option<Endpoint>, Error> {
        let mut found = self.control_plane.find(name, progress).await?.into_iter();
        let Some(Found { id, tags, .. }) = found.next() else {
            return Ok(None);
        };
        if self
            .tags(tenant)
            .iter()
            .any(|(key, value)| tags.get(key) != Some(value))
        {
            let message = format!(
                "a project named {name:?} exists ({id}) whose annotations do not name this tenant; \
                 find out whose it is, then rename it or annotate its default branch"
            );
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        for duplicate in found {
            let duplicate = duplicate.id;
            tracing::warn!(
                tenant = tenant.as_str(),
                served = id,
                duplicate,
                "the tenant has two projects; the older one is served"
            );
        }
        self.control_plane.ready(&id, progress).await?;
        self.control_plane.endpoint(&id, progress).await.map(Some)
    }

    /// Creates the tenant's database, unless one that was ordered earlier may still turn up.
    async fn create(
        &self,
        name: String,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Endpoint, Error> {
        let order = Order::new(name, self.tags(tenant), self.plan.clone());
        let doubt = lock(&self.in_doubt).get(tenant).copied();
        if doubt.is_some_and(|until| Instant::now() < until) {
            return self.recover(&order.name, tenant, progress).await;
        }
        // Before it is sent: this work may be dropped before the answer comes. It may be sent late, at the deadline even.
        self.doubt(tenant, progress.deadline() + DOUBT);
        let endpoint = match self.control_plane.create(&order, progress).await {
            Ok(_) if doubt.is_some() => self.recover(&order.name, tenant, progress).await?, // the older one is served
            Ok(created) => {
                self.control_plane.ready(&created.id, progress).await?;
                created.endpoint
            }
            Err(err) if err.kind().is_transient() => {
                progress.note(&err);
                self.doubt(tenant, Instant::now() + DOUBT);
                self.recover(&order.name, tenant, progress).await?
            }
            Err(err) => {
                lock(&self.in_doubt).remove(tenant);
                return Err(err);
            }
        };
        lock(&self.in_doubt).remove(tenant);
        Ok(endpoint)
    }

    fn doubt(&self, tenant: &TenantId, until: Instant) {
        lock(&self.in_doubt).insert(tenant.clone(), until);
    }

    /// Looks for the database whose creation got no answer, until it turns up or the time is over. The search may miss
    /// the newest project for a while, so a miss proves nothing and nothing is created again here.
    async fn recover(
        &self,
        name: &str,
        tenant: &TenantId,
        progress: &Progress,
    ) -> Result<Endpoint, Error> {
        let waits = backoff(Duration::from_millis(250), Duration::from_secs(5));
        let missing = || {
            Error::new(
                ErrorKind::ControlPlane,
                "a creation got no answer, and the project cannot be found yet",
            )
        };
        retry(progress, waits, || async {
            self.adopt(name, tenant, progress)
                .await?
                .ok_or_else(missing)
        })
        .await
    }

    fn tags(&self, tenant: &TenantId) -> BTreeMap<String, String> {
        [
            (NAMESPACE_TAG, self.namespace.as_str()),
            (TENANT_TAG, tenant.as_str()),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }
}

/// The name of a tenant's project: readable first, and unique by a hash of namespace and raw id (128 bits kept).
fn project_name(namespace: &Namespace, tenant: &TenantId) -> String {
    let mut hash = Sha256::new();
    // The length keeps ("a", "bc") and ("ab", "c") apart.
    hash.update((namespace.as_str().len() as u64).to_be_bytes());
    hash.update(namespace.as_str());
    hash.update(tenant.as_str());
    let digest = hash.finalize();
    let kept = u128::from_be_bytes(std::array::from_fn(|place| digest[place]));
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let readable: String = tenant.as_str().chars().take(40).map(plain).collect();
    format!("{namespace}-{readable}-{kept:032x}")
}

fn catalog(err: BoxError) -> Error {
    Error::new(ErrorKind::Catalog, "the catalog failed").with_source(err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        collections::HashSet,
        sync::atomic::{AtomicU32, Ordering::Relaxed},
    };

    use crate::{control_plane::Created, error::ExhaustedQuota, records::Memory};

    /// Answers every creation after a while with an error, and lets nothing turn up.
    struct Losing {
        after: Duration,
        kind: ErrorKind,
        creations: Arc<AtomicU32>,
    }

    impl ControlPlane for Losing {
        async fn find(&self, _: &str, _: &Progress) -> Result<Vec<Found>, Error> {
            Ok(Vec::new())
        }

        async fn create(&self, _: &Order, _: &Progress) -> Result<Created, Error> {
            self.creations.fetch_add(1, Relaxed);
            tokio::time::sleep(self.after).await;
            Err(Error::new(self.kind, "lost"))
        }

        async fn ready(&self, _: &str, _: &Progress) -> Result<(), Error> {
            unreachable!("nothing is found")
        }

        async fn endpoint(&self, _: &str, _: &Progress) -> Result<Endpoint, Error> {
            unreachable!("nothing is found")
        }
    }

    /// How many creations were sent by each of two works, the second of which begins `apart` after the first, which is
    /// dropped after `patience`.
    async fn creations(
        kind: ErrorKind,
        after: Duration,
        patience: Duration,
        apart: Duration,
    ) -> [u32; 2] {
        let creations = Arc::new(AtomicU32::new(0));
        let control_plane = Losing {
            after,
            kind,
            creations: Arc::clone(&creations),
        };
        let provisioner = Provisioner::new(Memory::new(), control_plane, "test");
        let provisioning = provisioner.check().unwrap();
        let (tenant, stats) = (TenantId::parse("acme").unwrap(), Stats::default());
        let work = async |patience| {
            let progress = Progress::new(Stage::Provision, MINUTE);
            let work = provisioning.provision(&tenant, &progress, &stats);
            let _ = tokio::time::timeout(patience, work).await;
            creations.load(Relaxed)
        };
        let start = Instant::now();
        let first = work(patience).await;
        tokio::time::sleep_until(start + apart).await;
        let both = work(MINUTE).await;
        [first, both - first]
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_creation_is_in_doubt_from_when_it_may_have_been_sent_and_not_from_the_start() {
        let (late, lost) = (Duration::from_secs(55), ErrorKind::ControlPlane);
        // Sent after most of the time, and lost.
        assert_eq!(creations(lost, late, 2 * MINUTE, late * 2).await, [1, 0]);
        assert_eq!(creations(lost, late, 2 * MINUTE, MINUTE * 2).await, [1, 1]);
        // Dropped before it is known whether it was sent.
        assert_eq!(creations(lost, MINUTE, late, late * 2).await, [1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn any_transient_error_of_a_creation_leaves_it_in_doubt_and_no_other_does() {
        let second = Duration::from_secs(1);
        for (kind, creations_after) in [
            (ErrorKind::Connect, 0),
            (ErrorKind::Locked, 0),
            (ErrorKind::RateLimited, 0),
            (ErrorKind::QuotaExhausted(ExhaustedQuota::Other), 1),
            (ErrorKind::Timeout(Stage::Provision), 1),
        ] {
            let counted = creations(kind, second, 5 * second, 5 * second).await;
            assert_eq!(counted, [1, creations_after], "{kind:?}");
        }
    }

    fn name(namespace: &str, tenant: &str) -> String {
        project_name(
            &Namespace::parse(namespace).unwrap(),
            &TenantId::parse(tenant).unwrap(),
        )
    }

    #[test]
    fn different_ids_and_namespaces_never_share_a_name() {
        let long = "x".repeat(255);
        let ids = [
            "acme",
            "ACME",
            "Acme",
            "ac me",
            "ac-me",
            "ac_me",
            "ac.me",
            "acme-",
            "-acme",
            "\u{e9}",
            "e\u{301}",
            "..",
            "%",
            "'",
            &format!("{long}1"),
            &format!("{long}2"),
        ];
        let mut names: HashSet<_> = ids.iter().map(|id| name("prod", id)).collect();
        names.extend(ids.iter().map(|id| name("test", id))); // as long as the other
        names.extend([name("a", "bc"), name("ab", "c"), name("prod-a", "cme")]);
        assert_eq!(names.len(), 2 * ids.len() + 3);
        let hashes: HashSet<_> = names.iter().map(|name| &name[name.len() - 32..]).collect();
        assert_eq!(hashes.len(), names.len(), "the hash alone keeps them apart");
    }

    #[test]
    fn a_name_is_stable_and_fits_neon() {
        // Changing this string orphans every project ever created.
        assert_eq!(
            name("prod", "Acme, Inc."),
            "prod-acme--inc--d3eca8fd8dde6511af9e32e779dbf511"
        );
        assert!(name(&"n".repeat(32), &"x".repeat(256)).len() <= 256);
    }
}
