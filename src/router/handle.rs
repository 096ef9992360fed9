//! A handle to one tenant, for repeated use.

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
        transaction::{Access, TransactionOptions, Tx},
    },
    model::{error::Error, tenant::TenantId},
    pool::{Pool, loan::Loan},
    provision::source::OnMissing,
    sync::lock,
    telemetry::spans,
};

/// A handle to one tenant of a router, for code that uses the same tenant again and again: a session, a worker.
///
/// Its methods do the same as the router's methods of the same names. If a connection is idle, they do not even look
/// for the tenant's pool. A handle holds no connection and keeps no pool: after an eviction, a move or a deletion, the
/// next call finds the present state, as a call of the router would. Like a clone of the router, it keeps the router
/// running.
///
/// Clones are cheap, but threads can also share one handle.
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
    // The pool of the last connection. Weak, so that a pool that leaves the cache can end. Held to read or replace it.
    pool: Mutex<Weak<Pool>>,
}

impl TenantRouter {
    /// Returns a handle to `tenant`. It looks nothing up; the first use finds out whether the tenant exists.
    ///
    /// # Errors
    /// `ErrorKind::InvalidTenant` if this is not a tenant's id.
    pub fn handle<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<TenantHandle, Error> {
        Ok(TenantHandle {
            router: self.clone(),
            tenant: TenantId::parse(tenant.as_ref())?,
            on_missing: OnMissing::AskPolicy,
            pool: Mutex::default(),
        })
    }
}

impl TenantHandle {
    /// Forgets what is known of the tenant, as [`TenantRouter::evict`] does.
    pub fn evict(&self) -> bool {
        self.router.inner.evict(&self.tenant)
    }

    pub(super) fn router(&self) -> &TenantRouter {
        &self.router
    }

    pub(super) fn on_missing(&self) -> OnMissing {
        self.on_missing
    }

    /// Returns a handle whose calls create nothing, and only finish a creation that was begun.
    #[cfg(feature = "axum")]
    pub(crate) fn creating_nothing(self) -> Self {
        let on_missing = OnMissing::Finish;
        Self { on_missing, ..self }
    }

    /// Returns the tenant of this handle.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Returns a connection to the tenant's database, as [`TenantRouter::get`] does.
    ///
    /// # Errors
    /// Returns the errors of [`TenantRouter::get`].
    ///
    /// # Cancel safety
    /// Dropping the future gives up this caller's place and nothing else.
    pub async fn get(&self) -> Result<TenantClient, Error> {
        let loan = match self.idle_loan() {
            Some(loan) => loan,
            None => Box::pin(self.loan_by_id(None)).await?,
        };
        Ok(TenantClient::new(loan))
    }

    /// Runs `work` in a read-only transaction, as [`TenantRouter::read`] does.
    ///
    /// # Errors
    /// Returns the errors of [`TenantRouter::read`].
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

    /// Does the same as [`read`](Self::read), with options.
    ///
    /// # Errors
    /// Returns the errors of [`TenantRouter::read`].
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
        let (inner, target) = (&self.router.inner, Target::Handle(self));
        inner.run(target, options, Access::ReadOnly, work).await
    }

    /// Runs `work` in a transaction and commits it, as [`TenantRouter::transaction`] does.
    ///
    /// # Errors
    /// Returns the errors of [`TenantRouter::transaction`].
    ///
    /// # Cancel safety
    /// Dropping the future rolls back and closes the connection. If COMMIT was already sent, the transaction may be
    /// committed.
    pub async fn transaction<T, E, Fut>(&self, work: impl FnMut(Tx) -> Fut) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        self.transaction_with(&TransactionOptions::new(), work)
            .await
    }

    /// Does the same as [`transaction`](Self::transaction), with options.
    ///
    /// # Errors
    /// Returns the errors of [`TenantRouter::transaction`].
    ///
    /// # Cancel safety
    /// The same as for [`transaction`](Self::transaction).
    pub async fn transaction_with<T, E, Fut>(
        &self,
        options: &TransactionOptions,
        work: impl FnMut(Tx) -> Fut,
    ) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        let (inner, target) = (&self.router.inner, Target::Handle(self));
        inner.run(target, options, Access::Default, work).await
    }

    /// Opens a direct connection, as [`TenantRouter::direct`] does.
    ///
    /// # Errors
    /// Returns the errors of [`TenantRouter::direct`].
    ///
    /// # Cancel safety
    /// Dropping the future closes a connection that was opened; a look-up, a creation or a wake under way goes on.
    pub async fn direct(&self) -> Result<DirectClient, Error> {
        let inner = &self.router.inner;
        inner.direct(self.tenant.as_str(), self.on_missing).await
    }

    /// Starts waking the tenant's database, as [`TenantRouter::warm`] does.
    pub fn warm(&self) -> Warm {
        self.router.warm_by(self.tenant.as_str(), self.on_missing)
    }

    /// Tells the router that the tenant may be needed soon, as [`TenantRouter::hint`] does.
    pub fn hint(&self) -> bool {
        self.router.hint(&self.tenant)
    }

    /// Returns a connection, within `time`, or within `get_timeout` if that is `None`.
    pub(crate) async fn loan(&self, time: Option<Duration>) -> Result<Loan, Error> {
        match self.idle_loan() {
            Some(loan) => Ok(loan),
            None => Box::pin(self.loan_by_id(time)).await,
        }
    }

    /// Returns an idle connection of the pool that the last one came from.
    fn idle_loan(&self) -> Option<Loan> {
        let inner = &*self.router.inner;
        let pool = lock(&self.pool).upgrade()?;
        if inner.shared.life.is_stopping() {
            return None;
        }
        // A pool that has left the cache, or whose tenant has moved, has no idle connection.
        let loan = inner.pools.try_get_idle_from(pool).ok()?;
        spans::record_idle_hit(self.tenant.as_str());
        Some(loan)
    }

    /// Returns a connection by the tenant's id, and remembers the pool that it came from.
    async fn loan_by_id(&self, time: Option<Duration>) -> Result<Loan, Error> {
        let id = self.tenant.as_str();
        let loan = self.router.inner.get(id, self.on_missing, time).await?;
        *lock(&self.pool) = Arc::downgrade(loan.pool());
        Ok(loan)
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
