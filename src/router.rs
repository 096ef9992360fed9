//! The router: from a tenant id to a connection.

pub(crate) mod builder;
mod cached_statements;
pub(crate) mod campaign;
mod checkout;
mod close;
mod direct;
pub(crate) mod explain;
mod follow;
pub(crate) mod handle;
mod locate;
mod migrate;
mod preload;
pub(crate) mod settings;
pub(crate) mod status;
mod transactions;
pub(crate) mod warm;

use std::{fmt, sync::Arc};

use self::{builder::RouterBuilder, campaign::Campaigns, locate::FlightOutcome, migrate::Migrator};
use crate::{
    catalog::lookup::Lookup,
    client::TenantClient,
    model::{error::Error, tenant::TenantId},
    pool::{cache::PoolCache, reaper, shared::Shared},
    provision::{Provisioner, source::OnMissing},
    schema::CheckedSchema,
    sync::single_flight::SingleFlight,
};

/// Turns a tenant's id into a live connection to that tenant's own database.
///
/// Cheap to clone; all clones share the same pools. Its tasks run on the runtime on which `build` was called, whatever
/// runtime the callers use. After that runtime has ended, every call returns `ErrorKind::Closed`.
#[derive(Clone)]
pub struct TenantRouter {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) pools: Arc<PoolCache>,
    flights: SingleFlight<TenantId, FlightOutcome>,
    /// `None` if the router has no schema.
    migrator: Option<Migrator>,
    pub(crate) campaigns: Arc<Campaigns>,
    pub(crate) shared: Arc<Shared>,
}

impl TenantRouter {
    /// Returns the builder of a router that asks `lookup` where a tenant lives. A tenant that `lookup` does not know is
    /// an error.
    pub fn builder(lookup: impl Lookup) -> RouterBuilder {
        RouterBuilder::with_lookup(lookup)
    }

    /// Returns the builder of a router that keeps its own catalog of tenants and creates their databases.
    /// [`Fleet::provision`](crate::Fleet::provision) creates a database, and so does an access, if a policy of the
    /// provisioner says so ([`Provisioner::decide`], [`Provisioner::on_first_access`]). By default an access to an
    /// unknown tenant is an error.
    pub fn provisioning(provisioner: Provisioner) -> RouterBuilder {
        RouterBuilder::with_provisioner(provisioner)
    }

    fn new(shared: Arc<Shared>, schema: Option<Arc<CheckedSchema>>) -> Self {
        let pools = Arc::new(PoolCache::new(Arc::clone(&shared)));
        shared.runtime.spawn(reaper::start(Arc::downgrade(&pools)));
        follow::start(&pools);
        let flights = SingleFlight::new(shared.runtime.clone());
        let migrator = schema.map(|schema| Migrator::new(schema, &shared));
        let inner = Arc::new(Inner {
            pools,
            flights,
            migrator,
            campaigns: Arc::new(Campaigns::new()),
            shared,
        });
        campaign::start(&inner);
        #[cfg(feature = "metrics")]
        crate::router::status::start(&inner);
        Self { inner }
    }

    /// Returns a connection to the database of `tenant`.
    ///
    /// If a connection is idle, this does no I/O. Otherwise it looks the tenant up, creates its database if the
    /// provisioner's policy says so, wakes it if it sleeps, and opens a connection, all within `get_timeout`. Work that
    /// it started goes on after a timeout, so a later call can succeed at once.
    ///
    /// # Errors
    /// The [kind](Error::kind) says what happened. `ErrorKind::Timeout` names the stage and has the last failure as its
    /// source; its [`retry_after`](Error::retry_after) says when to try again.
    ///
    /// # Cancel safety
    /// Dropping the future gives up this caller's place and nothing else: a look-up, a creation or a wake under way
    /// goes on for the next caller.
    pub async fn get<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<TenantClient, Error> {
        let (inner, tenant) = (&*self.inner, tenant.as_ref());
        let loan = match inner.get_idle(tenant) {
            Ok(loan) => loan,
            Err(known) => {
                Box::pin(inner.get_later(tenant, known, OnMissing::AskPolicy, None)).await?
            }
        };
        Ok(TenantClient::new(loan))
    }

    /// Forgets where `tenant` lives and its refusals, and closes its idle connections. Returns whether its pool was
    /// cached. Connections in use are closed when they come back. The next `get` looks the tenant up again.
    ///
    /// Call this after the cause of a refusal was fixed: a plan, a password, a disabled endpoint. Neon's proxy itself
    /// repeats a refusal for 30 seconds (observed), so until then the next `get` may get it once more.
    pub fn evict<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> bool {
        TenantId::parse(tenant.as_ref()).is_ok_and(|tenant| self.inner.evict(&tenant))
    }
}

impl Inner {
    /// Forgets what is known of `tenant`. Returns whether its pool was cached.
    pub(crate) fn evict(&self, tenant: &TenantId) -> bool {
        // In this order: a flight that ends in between has put its pool into the cache when it finds the mark.
        if let Some(catalog) = self.shared.source.catalog() {
            catalog.entries.mark_untrusted(tenant);
        }
        self.flights.mark_stale(tenant);
        if let Some(migrator) = &self.migrator {
            migrator.forget_failure(tenant);
        }
        self.pools.evict(tenant.as_str())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.life.terminate();
        self.pools.evict_all();
    }
}

impl fmt::Debug for TenantRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantRouter").finish_non_exhaustive()
    }
}
