//! From a tenant to a connection.

pub(crate) mod builder;
mod cached_statements;
pub(crate) mod checkout;
pub(crate) mod close;
mod direct;
pub(crate) mod explain;
pub(crate) mod follow;
pub(crate) mod handle;
pub(crate) mod locate;
pub(crate) mod preload;
pub(crate) mod settings;
pub(crate) mod status;
pub(crate) mod transactions;
pub(crate) mod warm;

use std::{fmt, sync::Arc};

use self::{builder::RouterBuilder, locate::Location};
use crate::{
    catalog::lookup::Lookup,
    client::TenantClient,
    model::{error::Error, tenant::TenantId},
    pool::{cache::PoolCache, reaper, shared::Shared},
    provision::{Provisioner, source::OnMissing},
    sync::single_flight::SingleFlight,
};

/// Turns a tenant's id into a live connection to that tenant's own database.
///
/// Cheap to clone; all clones share the same pools. Its tasks run on the runtime that `build` was called on, and no
/// matter on which runtime callers are; when that runtime ends, every call answers `ErrorKind::Closed`.
#[derive(Clone)]
pub struct TenantRouter {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) pools: Arc<PoolCache>,
    pub(crate) flights: SingleFlight<TenantId, Location>,
    pub(crate) shared: Arc<Shared>,
}

impl TenantRouter {
    /// A router that asks `lookup` where a tenant lives. A tenant it does not know is an error.
    pub fn builder(lookup: impl Lookup) -> RouterBuilder {
        RouterBuilder::with_lookup(lookup)
    }

    /// A router that keeps its own catalog of tenants, and creates their databases: by
    /// [`Fleet::provision`](crate::Fleet::provision), and on access by a policy that the provisioner names
    /// ([`Provisioner::decide`], [`Provisioner::on_first_access`]). By default an access to an unknown tenant is an error.
    pub fn provisioning(provisioner: Provisioner) -> RouterBuilder {
        RouterBuilder::with_provisioner(provisioner)
    }

    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let pools = Arc::new(PoolCache::new(Arc::clone(&shared)));
        shared.runtime.spawn(reaper::start(Arc::downgrade(&pools)));
        follow::start(&pools);
        let flights = SingleFlight::new(shared.runtime.clone());
        let inner = Arc::new(Inner {
            pools,
            flights,
            shared,
        });
        #[cfg(feature = "metrics")]
        crate::router::status::start(&inner);
        Self { inner }
    }

    /// A connection to the database of `tenant`.
    ///
    /// With an idle connection at hand this does no I/O. Otherwise it looks the tenant up, creates its database if the
    /// provisioner's policy says so, wakes it if it sleeps, and opens a connection, all within `get_timeout`. What it started
    /// goes on when the time is over, so calling again later can succeed at once.
    ///
    /// # Errors
    /// The [kind](Error::kind) says what happened. `ErrorKind::Timeout` names the stage, has the last failure as its
    /// source, and says by [`retry_after`](Error::retry_after) when to come back.
    ///
    /// # Cancel safety
    /// Dropping the future gives up this caller's place and nothing else: a look-up, a creation or a wake under way
    /// goes on for whoever comes next.
    pub async fn get<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<TenantClient, Error> {
        self.inner
            .get(tenant.as_ref(), OnMissing::Create, None)
            .await
            .map(TenantClient::new)
    }

    /// Forgets where `tenant` lives and what was refused of it, and closes its idle connections; says whether anything
    /// was known. Connections in use go on, and are closed when they come back. The next `get` looks the tenant up
    /// again. To be called when something was mended that a refusal is about: a plan, a password, a disabled endpoint. Neon's
    /// proxy itself repeats a refusal for 30 seconds (observed), so that the next `get` may meet it once more until then.
    pub fn evict<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> bool {
        TenantId::parse(tenant.as_ref()).is_ok_and(|tenant| self.inner.evict(&tenant))
    }
}

impl Inner {
    /// Forgets what is known of `tenant`; says whether anything was.
    pub(crate) fn evict(&self, tenant: &TenantId) -> bool {
        // In this order: a flight that lands in between finds the mark after it has put its pool into the cache.
        if let Some(catalog) = self.shared.source.catalog() {
            catalog.entries.mark_untrusted(tenant);
        }
        self.flights.mark_stale(tenant);
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
