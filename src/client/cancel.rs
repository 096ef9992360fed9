//! Cancelling a query from another task.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use crate::{
    connection::status::ConnectionStatus,
    model::{
        endpoint::{Endpoint, Route},
        error::{Error, ErrorKind, Stage},
    },
    pool::{Pool, loan::Loan, shared::Shared},
};

/// Cancels the query that runs on a connection, from another task. Returned by
/// [`TenantClient::cancel_token`](crate::TenantClient::cancel_token) and the methods of the same name of
/// [`Tx`](crate::Tx) and [`DirectClient`](crate::DirectClient).
///
/// tokio-postgres's own `cancel_query` cannot work here. It reads the server's address from the driver's settings,
/// which have none, because the router opens the sockets itself.
#[derive(Clone)]
#[must_use = "a cancel token does nothing until `cancel` is called"]
pub struct CancelToken {
    token: tokio_postgres::CancelToken,
    endpoint: Arc<Endpoint>,
    route: Route,
    status: Arc<ConnectionStatus>,
    /// The loan that it was made for; `None` for a direct connection, which has one user.
    loan: Option<LoanKey>,
    shared: Arc<Shared>,
}

/// One loan of one connection.
#[derive(Clone)]
struct LoanKey {
    /// The pool of the connection, which keeps the pool alive as long as it exists.
    pool: Weak<Pool>,
    number: u64,
}

impl CancelToken {
    /// Returns the token of a direct connection.
    pub(super) fn of_direct(
        client: &tokio_postgres::Client,
        endpoint: &Arc<Endpoint>,
        status: &Arc<ConnectionStatus>,
        shared: &Arc<Shared>,
    ) -> Self {
        Self {
            token: client.cancel_token(),
            endpoint: Arc::clone(endpoint),
            route: Route::Direct,
            status: Arc::clone(status),
            loan: None,
            shared: Arc::clone(shared),
        }
    }

    /// Returns the token of a pooled connection, for this loan.
    pub(super) fn of_loan(loan: &Loan) -> Self {
        let (connection, pool) = (loan.connection(), loan.pool());
        Self {
            token: connection.client.cancel_token(),
            endpoint: Arc::clone(&connection.endpoint),
            route: Route::Pooled,
            status: Arc::clone(&connection.status),
            loan: Some(LoanKey {
                pool: Arc::downgrade(pool),
                number: connection.status.loan_number(),
            }),
            shared: Arc::clone(&pool.shared),
        }
    }

    /// Asks the server to cancel the running query, at the address where the connection was opened. The query then
    /// fails with SQLSTATE 57014 unless it had already finished; the server does not say which. Does nothing once the
    /// connection was returned to the pool.
    ///
    /// # Errors
    /// [`ErrorKind::Connect`] if the request did not reach the server within 2 seconds.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the request unsent.
    pub async fn cancel(&self) -> Result<(), Error> {
        // A connection that comes back after this is closed and not reused: the request may still be under way.
        if self.status.is_closing() || !self.mark() {
            return Ok(());
        }
        self.cancel_now().await
    }

    /// Marks the connection to be closed when it comes back. Returns `false` if it has come back.
    fn mark(&self) -> bool {
        let Some(LoanKey { pool, number }) = &self.loan else {
            return true;
        };
        let pool = pool.upgrade();
        pool.is_some_and(|pool| pool.mark_cancelled(&self.status, *number))
    }

    /// Sends the request without checking that the connection is still on the same loan.
    pub(super) async fn cancel_now(&self) -> Result<(), Error> {
        let Self {
            token,
            endpoint,
            route,
            status,
            shared,
            ..
        } = self;
        let sent = shared
            .dialer
            .cancel(token.clone(), endpoint, *route, status.peer.get());
        sent.await.map_err(|err| {
            Error::new(
                ErrorKind::Connect,
                "the cancel request did not reach the server",
            )
            .with_stage(Stage::Query)
            .with_source(err)
        })
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").finish_non_exhaustive()
    }
}
