//! The calls that survive the loss of their connection: `read` and `transaction`.

use std::future::Future;

use super::{Inner, TenantRouter, handle::TenantHandle};
use crate::{
    client::transaction::{Access, Transaction, TransactionOptions, Tx},
    model::error::Error,
    provision::source::OnMissing,
};

impl TenantRouter {
    /// Runs `work` in a read-only transaction on the database of `tenant`, and again if the connection dies under it.
    ///
    /// With the [defaults](TransactionOptions): three runs at most, 30 seconds for everything. `work` gets the
    /// connection by value and must let go of it before it returns. It must not make the transaction READ WRITE: a
    /// read is run again even if it dies at its very end. It is run again as well if a
    /// [statement was prepared before a schema change](crate::manual::faq#what-happens-to-prepared-statements-after-a-schema-change).
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
    /// Those of [`get`](Self::get); the closure's own; `ErrorKind::Connect` if the connection was lost too often;
    /// `ErrorKind::Timeout`; `ErrorKind::RolledBack` and `ErrorKind::Misused` as for
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

    /// [`read`](Self::read) with options.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
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
        let transaction = Transaction::new(options, Access::ReadOnly);
        let whom = Target::Id(tenant.as_ref());
        self.inner.run(whom, transaction, work).await
    }

    /// Runs `work` in a transaction on the database of `tenant` and commits it if `work` returns `Ok`.
    ///
    /// It is run again only where nothing can have been committed: the connection died before COMMIT was written to it,
    /// Postgres rolled it back because a
    /// [statement was prepared before a schema change](crate::manual::faq#what-happens-to-prepared-statements-after-a-schema-change),
    /// or, [if asked for](TransactionOptions::retry_conflicts), for a conflict. `work` may thus
    /// be called several times, so what it does outside the database must bear that.
    ///
    /// It may do what the database lets it do. Where the operator has set `default_transaction_read_only`, a write fails
    /// with SQLSTATE 25006; a closure that must write there sends `SET TRANSACTION READ WRITE` as its first statement.
    ///
    /// With the [defaults](TransactionOptions): three runs at most, 30 seconds for everything. `work` gets the
    /// connection by value and must let go of it before it returns.
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
    /// Those of [`get`](Self::get), and the closure's own, after a rollback.
    /// `ErrorKind::CommitUnknown`: the connection was lost, or the time was over, between COMMIT and its answer.
    /// `ErrorKind::RolledBack`: a statement had failed and the closure returned `Ok` all the same; Postgres answers
    /// such a COMMIT with a rollback. `ErrorKind::Connect`: the connection was lost too often, or the server ended it for
    /// what `work` did (idle for too long, over a limit of the server's); nothing was committed.
    /// `ErrorKind::Misused`: the closure kept its [`Tx`], or ended the transaction itself.
    /// An error with which Postgres answers COMMIT (a deferred constraint, a conflict) comes as tokio-postgres's own.
    ///
    /// # Cancel safety
    /// Dropping the future rolls back and closes the connection; if COMMIT was sent already, it may be committed.
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

    /// [`transaction`](Self::transaction) with options.
    ///
    /// # Errors
    /// Those of [`transaction`](Self::transaction).
    ///
    /// # Cancel safety
    /// As for [`transaction`](Self::transaction).
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
        let transaction = Transaction::new(options, Access::Default);
        let whom = Target::Id(tenant.as_ref());
        self.inner.run(whom, transaction, work).await
    }
}

/// Whose database it is about, and by what it is reached.
#[derive(Clone, Copy)]
pub(crate) enum Target<'a> {
    Id(&'a str),
    Handle(&'a TenantHandle),
}

impl Inner {
    pub(crate) async fn run<T, E, Fut>(
        &self,
        whom: Target<'_>,
        mut transaction: Transaction<'_>,
        mut work: impl FnMut(Tx) -> Fut,
    ) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        loop {
            let patience = Some(transaction.remaining());
            let lease = match whom {
                Target::Id(tenant) => self.get(tenant, OnMissing::Create, patience).await,
                Target::Handle(handle) => handle.lease(patience).await,
            };
            let lease = lease.map_err(|err| transaction.explain(err))?;
            if let Some(result) = transaction.run(lease, &mut work).await {
                return result;
            }
        }
    }
}
