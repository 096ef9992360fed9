//! A tenant at hand, for those who ask for it again and again.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use super::{TenantRouter, transactions::Target, warm::Warm};
use crate::{
    client::{
        TenantClient,
        direct::DirectClient,
        transaction::{Access, Transaction, TransactionOptions, Tx},
    },
    model::{error::Error, tenant::TenantId},
    pool::{Pool, lease::Lease},
    provision::source::OnMissing,
    sync::lock,
    telemetry::spans,
};

/// One tenant of a router, to be kept by whoever asks for the same tenant again and again: a session, a worker.
///
/// It does what the router's methods of the same names do, and with an idle connection at hand it does not even look
/// for the tenant's pool. It holds no connection and keeps no pool: after an eviction, a move or a deletion the next
/// call finds out what is true now, as the router's own would. Like a clone of the router it keeps that going.
///
/// Clones are cheap, but to be shared between threads one handle does as well.
///
/// ```no_run
/// # async fn f(router: &tenantry::TenantRouter) -> Result<(), tenantry::Error> {
/// let acme = router.handle("acme")?;
/// for note in ["one", "two"] {
///     let client = acme.get().await?;
///     client.execute("INSERT INTO notes (text) VALUES ($1)", &[&note]).await?;
/// }
/// # Ok(()) }
/// ```
#[must_use = "a handle does nothing until it is used"]
pub struct TenantHandle {
    router: TenantRouter,
    tenant: TenantId,
    on_missing: OnMissing,
    // Where a connection was found last. Weak, so that a pool that leaves the cache can end. Held to read or replace it.
    pool: Mutex<Weak<Pool>>,
}

impl TenantRouter {
    /// A handle to `tenant`. Asks nobody: whether there is such a tenant turns out when the handle is used.
    ///
    /// # Errors
    /// `ErrorKind::InvalidTenant` if this is no tenant's id.
    pub fn handle<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<TenantHandle, Error> {
        Ok(TenantHandle {
            router: self.clone(),
            tenant: TenantId::parse(tenant.as_ref())?,
            on_missing: OnMissing::Create,
            pool: Mutex::default(),
        })
    }
}

impl TenantHandle {
    /// Forgets what is known of the tenant, as [`TenantRouter::evict`] does.
    pub fn evict(&self) -> bool {
        self.router.inner.evict(&self.tenant)
    }

    pub(crate) fn router(&self) -> &TenantRouter {
        &self.router
    }

    pub(crate) fn on_missing(&self) -> OnMissing {
        self.on_missing
    }

    /// Creates nothing by any call from now on, and only finishes what was begun.
    #[cfg(feature = "axum")]
    pub(crate) fn creating_nothing(self) -> Self {
        let on_missing = OnMissing::Finish;
        Self { on_missing, ..self }
    }

    /// Whose database this is.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// A connection to the tenant's database, as by [`TenantRouter::get`].
    ///
    /// # Errors
    /// Those of [`TenantRouter::get`].
    ///
    /// # Cancel safety
    /// Dropping the future gives up this caller's place and nothing else.
    pub async fn get(&self) -> Result<TenantClient, Error> {
        self.lease(None).await.map(TenantClient::new)
    }

    /// Runs `work` in a read-only transaction, as [`TenantRouter::read`] does.
    ///
    /// # Errors
    /// Those of [`TenantRouter::read`].
    ///
    /// # Cancel safety
    /// Dropping the future rolls back and closes the connection.
    pub async fn read<T, E, Fut>(&self, work: impl FnMut(Tx) -> Fut) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        self.read_with(&TransactionOptions::new(), work).await
    }

    /// [`read`](Self::read) with options.
    ///
    /// # Errors
    /// Those of [`TenantRouter::read`].
    ///
    /// # Cancel safety
    /// Dropping the future rolls back and closes the connection.
    pub async fn read_with<T, E, Fut>(
        &self,
        options: &TransactionOptions,
        work: impl FnMut(Tx) -> Fut,
    ) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        let transaction = Transaction::new(options, Access::ReadOnly);
        let whom = Target::Handle(self);
        self.router.inner.run(whom, transaction, work).await
    }

    /// Runs `work` in a transaction and commits it, as [`TenantRouter::transaction`] does.
    ///
    /// # Errors
    /// Those of [`TenantRouter::transaction`].
    ///
    /// # Cancel safety
    /// Dropping the future rolls back and closes the connection; if COMMIT was sent already, it may be committed.
    pub async fn transaction<T, E, Fut>(&self, work: impl FnMut(Tx) -> Fut) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        self.transaction_with(&TransactionOptions::new(), work)
            .await
    }

    /// [`transaction`](Self::transaction) with options.
    ///
    /// # Errors
    /// Those of [`TenantRouter::transaction`].
    ///
    /// # Cancel safety
    /// As for [`transaction`](Self::transaction).
    pub async fn transaction_with<T, E, Fut>(
        &self,
        options: &TransactionOptions,
        work: impl FnMut(Tx) -> Fut,
    ) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        let transaction = Transaction::new(options, Access::Default);
        let whom = Target::Handle(self);
        self.router.inner.run(whom, transaction, work).await
    }

    /// A connection past the pooler, as by [`TenantRouter::direct`].
    ///
    /// # Errors
    /// Those of [`TenantRouter::direct`].
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened; a look-up, a creation or a wake under way goes on.
    pub async fn direct(&self) -> Result<DirectClient, Error> {
        let inner = &self.router.inner;
        inner.direct(self.tenant.as_str(), self.on_missing).await
    }

    /// Starts waking the tenant's database, as [`TenantRouter::warm`] does.
    pub fn warm(&self) -> Warm {
        self.router.warm_by(self.tenant.as_str(), self.on_missing)
    }

    /// Says that the tenant may be wanted soon, as [`TenantRouter::hint`] does.
    pub fn hint(&self) -> bool {
        self.router.hint(&self.tenant)
    }

    /// A connection, within `patience`, or `get_timeout` if there is none.
    pub(crate) async fn lease(&self, patience: Option<Duration>) -> Result<Lease, Error> {
        let inner = &*self.router.inner;
        let pool = lock(&self.pool).upgrade();
        let pool = pool.filter(|_| !inner.shared.life.is_stopping());
        // A pool that has left the cache, or whose tenant has moved, has nothing idle.
        match pool.map(|pool| inner.pools.get_now_from(pool)) {
            Some(Ok(lease)) => {
                spans::warm(self.tenant.as_str());
                Ok(lease)
            }
            _ => Box::pin(self.lease_by_id(patience)).await,
        }
    }

    /// The same by way of the id. What it finds is remembered.
    async fn lease_by_id(&self, patience: Option<Duration>) -> Result<Lease, Error> {
        let id = self.tenant.as_str();
        let lease = self.router.inner.get(id, self.on_missing, patience).await?;
        *lock(&self.pool) = Arc::downgrade(lease.pool());
        Ok(lease)
    }
}

impl Clone for TenantHandle {
    fn clone(&self) -> Self {
        Self {
            router: self.router.clone(),
            tenant: self.tenant.clone(),
            on_missing: self.on_missing,
            pool: Mutex::new(Weak::clone(&lock(&self.pool))),
        }
    }
}

impl fmt::Debug for TenantHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantHandle")
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}
