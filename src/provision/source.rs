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
    schema::{CheckedSchema, Standing},
    sync::progress::Progress,
    telemetry::stats::{Stats, count},
};

/// The source of tenants' endpoints.
pub(crate) enum Source {
    /// The application's own table.
    Lookup(AppLookup),
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
pub(crate) struct AppLookup {
    lookup: Box<dyn AnyLookup>,
    limit: LookupLimit,
    /// The standing of a tenant that was looked up: the application's own table does not say more.
    standing: Standing,
}

/// A tenant's endpoint, and how reliable it is.
#[derive(Debug)]
pub(crate) struct FoundEndpoint {
    pub(crate) endpoint: Arc<Endpoint>,
    /// `true` if the answer comes from the authority (the application's own table, or Neon), so that another lookup now
    /// would return the same.
    pub(crate) is_authoritative: bool,
    /// `true` if this call created or adopted the database.
    pub(crate) created: bool,
    /// The schema of the tenant, compared with this program's.
    pub(crate) standing: Standing,
}

impl AppLookup {
    pub(crate) fn new(
        lookup: Box<dyn AnyLookup>,
        config: &Config,
        schema: Option<&CheckedSchema>,
    ) -> Self {
        Self {
            lookup,
            limit: LookupLimit::new(config),
            standing: schema.map_or(Standing::Current, CheckedSchema::unknown_standing),
        }
    }

    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Arc<Endpoint>>, Error> {
        let _permit = self.limit.try_enter()?;
        let found = self.lookup.lookup(tenant).await.map_err(lookup_failed)?;
        Ok(found.map(Arc::new))
    }
}

impl Source {
    /// Returns the endpoint of `tenant`, if it is known. Creates nothing.
    pub(super) async fn lookup(
        &self,
        tenant: &TenantId,
        stats: &Stats,
    ) -> Result<Option<FoundEndpoint>, Error> {
        count(&stats.lookups);
        let began = Instant::now();
        let (found, is_authoritative) = match self {
            Self::Lookup(app) => (app.lookup(tenant).await, true),
            // Reads the catalog if no entry is cached. Even so a record only holds an earlier answer of Neon.
            Self::Provisioning(engine) => (engine.lookup_cached(tenant).await, false),
        };
        let found = found.map_err(|err| err.with_stage(Stage::Lookup));
        let (id, elapsed) = (tenant, began.elapsed());
        let tenant = id.as_str();
        let code = found.as_ref().err().map(|err| err.kind().code());
        let is_known = found.as_ref().ok().map(Option::is_some);
        tracing::debug!(tenant, ?elapsed, known = is_known, code, "lookup");
        let endpoint = found?;
        endpoint
            .as_ref()
            .map_or(Ok(()), |endpoint| endpoint.check())?;
        Ok(endpoint.map(|endpoint| FoundEndpoint {
            endpoint,
            is_authoritative,
            created: false,
            standing: self.standing(id),
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
    ) -> Result<Option<FoundEndpoint>, Error> {
        let known = self.lookup(tenant, stats).await?;
        if known.is_some() {
            return Ok(known);
        }
        match (self, on_missing) {
            (_, OnMissing::Ignore) => Ok(None),
            (Self::Lookup(_), _) => Err(unknown_tenant()),
            (Self::Provisioning(engine), OnMissing::Finish) => {
                if !engine.is_unfinished(tenant) {
                    return Ok(None);
                }
                match create(engine, tenant, &CreateReason::Finish, progress, stats).await {
                    // No error: a caller in this flight with `AskPolicy` starts another flight.
                    Err(err) if err.kind() == ErrorKind::UnknownTenant => Ok(None),
                    finished => finished.map(Some),
                }
            }
            (Self::Provisioning(engine), OnMissing::AskPolicy) => {
                let asked_at = engine.catalog.entries.stamp();
                let created = create(engine, tenant, &CreateReason::Access, progress, stats).await;
                let created =
                    created.inspect_err(|err| engine.remember_refusal(tenant, asked_at, err));
                created.map(Some)
            }
        }
    }

    /// Looks up the present endpoint of a tenant that cannot be reached at `known`. Returns `None` if the tenant has no
    /// database, or an unfinished one, as far as the catalog and Neon know. Creates nothing.
    pub(crate) async fn relocate(
        &self,
        tenant: &TenantId,
        known: &Endpoint,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<Option<Arc<Endpoint>>, Error> {
        let Self::Provisioning(engine) = self else {
            let now = self.lookup(tenant, stats).await?;
            return now.map(|it| Some(it.endpoint)).ok_or_else(unknown_tenant);
        };
        count(&stats.lookups);
        match engine.lookup_uncached(tenant).await? {
            // Neon may know another endpoint than the catalog. If so, this also repairs the record.
            LookupOutcome::At(same) if same.is_same_place(known) => {
                engine.reread_from_control_plane(tenant, progress).await
            }
            LookupOutcome::At(now) => Ok(Some(now)),
            LookupOutcome::Unfinished | LookupOutcome::Unknown => Ok(None),
        }
    }

    /// Returns the standing of the schema of `tenant`, as far as it is known without its database.
    fn standing(&self, tenant: &TenantId) -> Standing {
        match self {
            Self::Lookup(app) => app.standing,
            Self::Provisioning(engine) => engine.standing(tenant),
        }
    }

    /// Returns the cached catalog; `None` if the application has its own table.
    pub(crate) fn catalog(&self) -> Option<&CachedCatalog> {
        match self {
            Self::Lookup(_) => None,
            Self::Provisioning(engine) => Some(&engine.catalog),
        }
    }

    /// Returns the stamp of this moment in the order of all changes of cached entries; `None` if the application has
    /// its own table.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        self.catalog().map(|catalog| catalog.entries.stamp())
    }

    /// Returns whether `endpoint`, which was looked up after `asked_at`, agrees with what the router knows of `tenant`
    /// now. If it does not, the endpoint changed during the lookup.
    pub(crate) fn agrees(
        &self,
        tenant: &TenantId,
        endpoint: &Endpoint,
        asked_at: Option<Stamp>,
    ) -> bool {
        match (self, asked_at) {
            (Self::Provisioning(it), Some(asked_at)) => it.agrees(tenant, endpoint, asked_at),
            _ => true,
        }
    }
}

/// Creates the database of `tenant`, or finds it again, and caches its endpoint.
async fn create(
    engine: &ProvisionEngine,
    tenant: &TenantId,
    reason: &CreateReason,
    progress: &Progress,
    stats: &Stats,
) -> Result<FoundEndpoint, Error> {
    let created = engine.provision(tenant, reason, progress, stats);
    let published = created.await.inspect_err(|err| {
        let (id, elapsed) = (tenant.as_str(), progress.elapsed());
        tracing::debug!(tenant = id, ?elapsed, code = err.kind().code(), %err, "provision");
    })?;
    let endpoint = engine.remember_new(tenant, published);
    Ok(FoundEndpoint {
        endpoint,
        is_authoritative: true,
        created: true,
        standing: engine.standing(tenant),
    })
}

/// Returns the error for a call that may not create a missing database.
pub(crate) fn not_created() -> Error {
    let message = "no such tenant, and requests do not create tenants; create it with `Fleet::provision`, or let \
                   requests create it: set `Tenants::on_first_access`, and a policy of the provisioner";
    Error::new(ErrorKind::UnknownTenant, message).with_stage(Stage::Lookup)
}

/// Returns the error for a tenant that the application's own table does not have.
fn unknown_tenant() -> Error {
    let message = "no such tenant; its entry is missing in the catalog";
    Error::new(ErrorKind::UnknownTenant, message).with_stage(Stage::Lookup)
}

fn lookup_failed(err: BoxError) -> Error {
    Error::new(ErrorKind::Catalog, "looking the tenant up failed")
        .with_stage(Stage::Lookup)
        .with_source(err)
}
