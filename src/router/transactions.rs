//! The calls that survive the loss of their connection: `read` and `transaction`.

use std::future::Future;

use super::{Inner, TenantRouter, handle::TenantHandle};
use crate::{
    client::transaction::{Access, Transaction, TransactionOptions, Tx},
    model::error::Error,
    provision::source::OnMissing,
};

impl TenantRouter {
    /// Runs `work` in a read-only transaction on the database of `tenant`, and runs it again if the connection is lost.
    ///
    /// The [defaults](TransactionOptions) allow three runs at most, within 30 seconds in total. `work` gets the
    /// connection by value and must drop it before it returns. It must not make the transaction READ WRITE: a read is
    /// run again even if the connection is lost at its very end. It is also run again if a statement was prepared
    /// before a [schema change](crate::manual::faq#what-happens-to-prepared-statements-after-a-schema-change).
    ///
    /// ```no_run
    /// # async fn f(router: &tenantry::TenantRouter, note: &str) -> Result<(), tenantry::Error> {
    /// let found = router
    ///     .read("acme", |tx| async move {
    ///         let rows = tx.query("SELECT id FROM notes WHERE text = $1", &[&note]).await?;
    ///         Ok::<_, tenantry::Error>(rows.len())
    ///     })
    ///     .await?;
    /// # let _ = found; Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`get`](Self::get), and the closure's own; `ErrorKind::Connect` if the connection was lost
    /// too often; `ErrorKind::Timeout`; `ErrorKind::RolledBack` and `ErrorKind::Misused` as for
    /// [`transaction`](Self::transaction).
    ///
    /// # Cancel safety
    /// Dropping the future rolls back and closes the connection.
    pub async fn read<T, E, Fut>(
        &self,
        tenant: &(impl AsRef<str> + ?Sized),
        work: impl FnMut(Tx) -> Fut,
    ) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        self.read_with(tenant, &TransactionOptions::new(), work)
            .await
    }

    /// Does the same as [`read`](Self::read), with options.
    ///
    /// # Errors
    /// Returns the errors of [`read`](Self::read).
    ///
    /// # Cancel safety
    /// Dropping the future rolls back and closes the connection.
    pub async fn read_with<T, E, Fut>(
        &self,
        tenant: &(impl AsRef<str> + ?Sized),
        options: &TransactionOptions,
        work: impl FnMut(Tx) -> Fut,
    ) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        let target = Target::Id(tenant.as_ref());
        self.inner
            .run(target, options, Access::ReadOnly, work)
            .await
    }

    /// Runs `work` in a transaction on the database of `tenant` and commits it if `work` returns `Ok`.
    ///
    /// It is run again only if nothing can have been committed: the connection was lost before COMMIT was written to
    /// it; or Postgres rolled the transaction back because a statement was prepared before a [schema
    /// change](crate::manual::faq#what-happens-to-prepared-statements-after-a-schema-change); or, [if asked
    /// for](TransactionOptions::retry_conflicts), it met a conflict. So `work` may be called several times, and its
    /// effects outside the database must allow that.
    ///
    /// It uses the database's default access mode. If the operator has set `default_transaction_read_only`, a write
    /// fails with SQLSTATE 25006; a closure that must write there sends `SET TRANSACTION READ WRITE` as its first
    /// statement.
    ///
    /// The [defaults](TransactionOptions) allow three runs at most, within 30 seconds in total. `work` gets the
    /// connection by value and must drop it before it returns.
    ///
    /// ```no_run
    /// # async fn f(router: &tenantry::TenantRouter, note: &str) -> Result<(), tenantry::Error> {
    /// router
    ///     .transaction("acme", |tx| async move {
    ///         tx.execute("INSERT INTO notes (text) VALUES ($1)", &[&note]).await?;
    ///         Ok::<_, tenantry::Error>(())
    ///     })
    ///     .await
    /// # }
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`get`](Self::get), and the closure's own, after a rollback. Other errors:
    /// - `ErrorKind::CommitUnknown`: the connection was lost, or the time was over, between COMMIT and its answer.
    /// - `ErrorKind::RolledBack`: a statement had failed, but the closure returned `Ok`; Postgres answers such a COMMIT
    ///   with a rollback.
    /// - `ErrorKind::Connect`: the connection was lost too often, or the server ended it because of what `work` did
    ///   (idle for too long, over a limit of the server's); nothing was committed.
    /// - `ErrorKind::Misused`: the closure kept its [`Tx`], or ended the transaction itself.
    /// - tokio-postgres's own error: Postgres answered COMMIT with it (a deferred constraint, a conflict).
    ///
    /// # Cancel safety
    /// Dropping the future rolls back and closes the connection. If COMMIT was already sent, the transaction may be
    /// committed.
    pub async fn transaction<T, E, Fut>(
        &self,
        tenant: &(impl AsRef<str> + ?Sized),
        work: impl FnMut(Tx) -> Fut,
    ) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        self.transaction_with(tenant, &TransactionOptions::new(), work)
            .await
    }

    /// Does the same as [`transaction`](Self::transaction), with options.
    ///
    /// # Errors
    /// Returns the errors of [`transaction`](Self::transaction).
    ///
    /// # Cancel safety
    /// The same as for [`transaction`](Self::transaction).
    pub async fn transaction_with<T, E, Fut>(
        &self,
        tenant: &(impl AsRef<str> + ?Sized),
        options: &TransactionOptions,
        work: impl FnMut(Tx) -> Fut,
    ) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        let target = Target::Id(tenant.as_ref());
        self.inner.run(target, options, Access::Default, work).await
    }
}

/// The tenant of a transaction, by its id or by a handle.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    Id(&'a str),
    Handle(&'a TenantHandle),
}

impl Inner {
    /// Runs `work` until it succeeds, fails, or may not be run again. Each run gets a connection of its own.
    pub(super) async fn run<T, E, Fut>(
        &self,
        target: Target<'_>,
        options: &TransactionOptions,
        access: Access,
        mut work: impl FnMut(Tx) -> Fut,
    ) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        let mut transaction = Transaction::new(options, access);
        loop {
            let time = Some(transaction.remaining());
            let loan = match target {
                Target::Id(tenant) => self.get(tenant, OnMissing::AskPolicy, time).await,
                Target::Handle(handle) => handle.loan(time).await,
            };
            let loan = loan.map_err(|err| transaction.explain(err))?;
            if let Some(result) = transaction.run(loan, &mut work).await {
                return result;
            }
        }
    }
}
