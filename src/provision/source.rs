//! The source of tenants' endpoints: the application's own table, or records that the router keeps itself.

use std::sync::Arc;

use tokio::time::Instant;

use super::{CreateReason, LookupOutcome, ProvisionEngine};
use crate::{
    catalog::{
        cached::{CachedCatalog, LookupLimit, Stamp},
        lookup::AnyLookup,
    },
    model::{
        config::Config,
        endpoint::Endpoint,
        error::{BoxError, Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    sync::progress::Progress,
    telemetry::stats::{Stats, count},
};

/// The source of tenants' endpoints.
pub(crate) enum Source {
    /// The application's own table.
    Lookup(OwnLookup),
    /// Records that the router keeps itself. Missing databases can be created.
    Provisioning(Box<ProvisionEngine>),
}

/// The actions allowed to a call for a tenant that has no database, from the least to the most.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum OnMissing {
    /// Nothing: the call is a hint.
    Ignore,
    /// Finish a creation that was begun: the id comes from a request.
    #[cfg_attr(not(feature = "axum"), allow(dead_code, reason = "for the extractor"))]
    Finish,
    /// Create a database, if the policy allows it.
    AskPolicy,
}

/// The application's own table, and the limit on simultaneous lookups.
pub(crate) struct OwnLookup {
    lookup: Box<dyn AnyLookup>,
    limit: LookupLimit,
}

/// A tenant's endpoint, and how reliable it is.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) endpoint: Arc<Endpoint>,
    /// `true` if the answer comes from the authority, so that asking again would give the same one.
    pub(crate) fresh: bool,
    /// `true` if this call created or adopted the database.
    pub(crate) created: bool,
}

impl OwnLookup {
    pub(crate) fn new(lookup: Box<dyn AnyLookup>, config: &Config) -> Self {
        let limit = LookupLimit::new(config);
        Self { lookup, limit }
    }

    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Arc<Endpoint>>, Error> {
        let _under_way = self.limit.try_enter()?;
        let known = self.lookup.lookup(tenant).await.map_err(lookup_failed)?;
        Ok(known.map(Arc::new))
    }
}

impl Source {
    /// Returns the endpoint of `tenant`, if it is known. Creates nothing.
    pub(super) async fn lookup(
        &self,
        tenant: &TenantId,
        stats: &Stats,
    ) -> Result<Option<Located>, Error> {
        count(&stats.lookups);
        let began = Instant::now();
        let (known, fresh) = match self {
            Self::Lookup(own) => (own.lookup(tenant).await, true),
            // Records hold an earlier answer of Neon, which is the authority.
            Self::Provisioning(provisioning) => (provisioning.lookup_cached(tenant).await, false),
        };
        let known = known.map_err(|err| err.with_stage(Stage::Lookup));
        let (tenant, elapsed) = (tenant.as_str(), began.elapsed());
        let code = known.as_ref().err().map(|err| err.kind().code());
        let is_known = known.as_ref().ok().map(Option::is_some);
        tracing::debug!(tenant, ?elapsed, known = is_known, code, "lookup");
        let known = known?;
        known.as_ref().map_or(Ok(()), |endpoint| endpoint.check())?;
        Ok(known.map(|endpoint| Located {
            endpoint,
            fresh,
            created: false,
        }))
    }

    /// Returns the endpoint of `tenant`. If it has no database, creates or finishes one, if `on_missing` and the policy
    /// allow that. Returns `None` if `on_missing` does not.
    pub(crate) async fn lookup_or_create(
        &self,
        tenant: &TenantId,
        on_missing: OnMissing,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<Option<Located>, Error> {
        let known = self.lookup(tenant, stats).await?;
        if known.is_some() {
            return Ok(known);
        }
        match (self, on_missing) {
            (_, OnMissing::Ignore) => Ok(None),
            (Self::Lookup(_), _) => Err(missing()),
            (Self::Provisioning(on), OnMissing::Finish) => {
                if !on.is_unfinished(tenant) {
                    return Ok(None);
                }
                match create(on, tenant, &CreateReason::Finish, progress, stats).await {
                    Err(err) if err.kind() == ErrorKind::UnknownTenant => Ok(None),
                    finished => finished.map(Some),
                }
            }
            (Self::Provisioning(on), OnMissing::AskPolicy) => {
                let asked = on.catalog.entries.stamp();
                let created = create(on, tenant, &CreateReason::Access, progress, stats).await;
                let created = created.inspect_err(|err| on.remember_refusal(tenant, asked, err));
                created.map(Some)
            }
        }
    }

    /// Looks up the present endpoint of a tenant that cannot be reached at `known`. Creates nothing.
    pub(crate) async fn relocate(
        &self,
        tenant: &TenantId,
        known: &Endpoint,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<Option<Arc<Endpoint>>, Error> {
        let Self::Provisioning(provisioning) = self else {
            let now = self.lookup(tenant, stats).await?;
            return now.map(|it| Some(it.endpoint)).ok_or_else(missing);
        };
        count(&stats.lookups);
        match provisioning.lookup_uncached(tenant).await? {
            LookupOutcome::At(same) if same.is_same_place(known) => {
                provisioning.refresh(tenant, progress).await
            }
            LookupOutcome::At(now) => Ok(Some(now)),
            LookupOutcome::Unfinished | LookupOutcome::Unknown => Ok(None),
        }
    }

    /// Returns the cached catalog; `None` if the application has its own table.
    pub(crate) fn catalog(&self) -> Option<&CachedCatalog> {
        match self {
            Self::Lookup(_) => None,
            Self::Provisioning(provisioning) => Some(&provisioning.catalog),
        }
    }

    /// Returns the present stamp, if the router keeps its own catalog.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        self.catalog().map(|catalog| catalog.entries.stamp())
    }

    /// Returns whether a pool at `endpoint`, which was looked up after `asked`, agrees with what the router knows of
    /// `tenant` now.
    pub(crate) fn agrees(
        &self,
        tenant: &TenantId,
        endpoint: &Endpoint,
        asked: Option<Stamp>,
    ) -> bool {
        match (self, asked) {
            (Self::Provisioning(it), Some(asked)) => it.agrees(tenant, endpoint, asked),
            _ => true,
        }
    }
}

async fn create(
    on: &ProvisionEngine,
    tenant: &TenantId,
    demand: &CreateReason,
    progress: &Progress,
    stats: &Stats,
) -> Result<Located, Error> {
    let created = on.provision(tenant, demand, progress, stats);
    let published = created.await.inspect_err(|err| {
        let (id, elapsed) = (tenant.as_str(), progress.elapsed());
        tracing::debug!(tenant = id, ?elapsed, code = err.kind().code(), %err, "provision");
    })?;
    let endpoint = on.remember_new(tenant, published);
    Ok(Located {
        endpoint,
        fresh: true,
        created: true,
    })
}

/// Returns the error for a call that may not create a missing database.
pub(crate) fn not_created() -> Error {
    let message = "no such tenant, and a request creates none; create it with `Fleet::provision`, or let requests do \
                   it: `Tenants::on_first_access`, and a policy of the provisioner";
    Error::new(ErrorKind::UnknownTenant, message).with_stage(Stage::Lookup)
}

fn missing() -> Error {
    let message = "no such tenant; its entry is missing in the catalog";
    Error::new(ErrorKind::UnknownTenant, message).with_stage(Stage::Lookup)
}

fn lookup_failed(err: BoxError) -> Error {
    Error::new(ErrorKind::Catalog, "looking the tenant up failed")
        .with_stage(Stage::Lookup)
        .with_source(err)
}
