//! The connection that a caller holds.

pub(crate) mod cancel;
pub(crate) mod direct;
pub(crate) mod transaction;

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use self::cancel::CancelToken;
use crate::{model::tenant::TenantId, pool::loan::Loan};

/// A live connection to one tenant's database. Dropping it returns it to the pool.
///
/// It derefs to deadpool-postgres's client. So `query_typed`, `prepare_cached`, `transaction` and everything that takes
/// its `GenericClient` work as they do there.
///
/// The server may close the socket at any moment, and a query that meets this fails with tokio-postgres's own error. A
/// query has no time limit, so set a timeout where one matters. [`read`](crate::TenantRouter::read) and
/// [`transaction`](crate::TenantRouter::transaction) have neither weakness. Dropping a query half-way is safe: it is
/// cancelled, and the connection is closed instead of going to the next caller.
///
/// Prefer `query_typed`: it takes one round trip and leaves no named statement on the connection.
///
/// Do not swap the driver's client inside it with that of another tenant. Code that reaches through two `DerefMut`s can
/// do so, and then queries the wrong database.
///
/// At Neon it goes through a pooler in transaction mode: two statements outside a transaction may run in two sessions.
/// So `SET`, `LISTEN`, session advisory locks, temporary tables and SQL-level `PREPARE` do not last, and a `SET` may
/// affect other clients. Use [`direct`](crate::TenantRouter::direct) for work that needs a session of its own. On a
/// server without a pooler they last until the connection is dropped, which resets its session
/// ([`SessionReset`](crate::SessionReset)).
#[must_use = "a dropped client returns its connection to the pool at once; to wake a database, use `warm`"]
pub struct TenantClient {
    loan: Loan,
}

impl TenantClient {
    pub(crate) fn new(loan: Loan) -> Self {
        Self { loan }
    }

    /// Returns the tenant whose database this is.
    pub fn tenant(&self) -> &TenantId {
        self.loan.tenant()
    }

    /// Returns a token that cancels the running query from another task.
    pub fn cancel_token(&self) -> CancelToken {
        CancelToken::of_loan(&self.loan)
    }
}

impl Deref for TenantClient {
    type Target = deadpool_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.loan.connection().client
    }
}

impl DerefMut for TenantClient {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.loan.connection_mut().client
    }
}

impl fmt::Debug for TenantClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantClient")
            .field("tenant", self.tenant())
            .finish_non_exhaustive()
    }
}
