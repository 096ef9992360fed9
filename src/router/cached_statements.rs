//! Clearing prepared statements after a schema change.

use std::sync::Arc;

use super::{Inner, TenantRouter, handle::TenantHandle};
use crate::{model::error::Error, provision::source::OnMissing};

impl TenantRouter {
    /// Clears the statements that were prepared on the database of `tenant`: by this router's connections, and by the
    /// pooler for all its clients. Call it after a change of types, or of tables that `SELECT *` reads.
    ///
    /// PgBouncer keeps a prepared statement by its text. After a schema change Postgres may refuse to run it
    /// (`cached plan must not change result type`); the router detects that and clears the statements by itself. Or the
    /// driver may refuse the new type of a parameter; the router cannot detect that. The manual has [the
    /// details](crate::manual::faq#what-happens-to-prepared-statements-after-a-schema-change).
    ///
    /// This opens two connections or more, so it wakes a sleeping database. It closes this router's idle connections to
    /// the tenant, and those in use when they come back. Server connections of the pooler that are within a transaction
    /// keep their statements; [`read`](Self::read) and [`transaction`](Self::transaction) run again if they get one.
    ///
    /// ```no_run
    /// # async fn f(router: &tenantry::TenantRouter) -> Result<(), tenantry::BoxError> {
    /// let direct = router.direct("acme").await?;
    /// direct.batch_execute("ALTER TABLE notes ALTER COLUMN id TYPE bigint").await?;
    /// router.clear_cached_statements("acme").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`get`](Self::get).
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to the next `get` of the tenant.
    pub async fn clear_cached_statements<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
    ) -> Result<(), Error> {
        let inner = &self.inner;
        inner
            .clear_cached_statements(tenant.as_ref(), OnMissing::AskPolicy)
            .await
    }
}

impl TenantHandle {
    /// Clears the statements that were prepared on the tenant's database, as
    /// [`TenantRouter::clear_cached_statements`] does.
    ///
    /// # Errors
    /// Returns the errors of [`TenantRouter::get`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest to the next `get` of the tenant.
    pub async fn clear_cached_statements(&self) -> Result<(), Error> {
        let inner = &self.router().inner;
        inner
            .clear_cached_statements(self.tenant().as_str(), self.on_missing())
            .await
    }
}

impl Inner {
    async fn clear_cached_statements(
        &self,
        tenant: &str,
        on_missing: OnMissing,
    ) -> Result<(), Error> {
        let loan = self.get(tenant, on_missing, None).await?;
        Arc::clone(loan.pool()).clear_statements();
        drop(loan);
        self.get(tenant, on_missing, None).await.map(drop)
    }
}
