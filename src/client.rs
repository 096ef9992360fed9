//! The connection that a caller holds.

pub(crate) mod cancel;
pub(crate) mod direct;
pub(crate) mod transaction;

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use self::cancel::CancelToken;
use crate::{
    connection::ConnectionInner,
    model::{endpoint::Route, tenant::TenantId},
    pool::lease::Lease,
};

/// A live connection to one tenant's database. Dropping it gives it back.
///
/// It derefs to deadpool-postgres's client, so `query_typed`, `prepare_cached`, `transaction` and everything that takes
/// its `GenericClient` work as they do there.
///
/// What it cannot promise: the server may close the socket at any moment, and a query that meets this fails with
/// tokio-postgres's own error. A query waits as long as you let it, so put a timeout around those that matter.
/// [`read`](crate::TenantRouter::read) and [`transaction`](crate::TenantRouter::transaction) have neither weakness. It
/// is safe to drop a query half-way: the connection is then cancelled and closed instead of given to the next caller.
///
/// Prefer `query_typed`: one round trip, and no named statement that the connection has to remember.
///
/// Do not swap the driver's client inside it with another's: a connection carries its tenant, and code that reaches
/// through two `DerefMut`s can take it away.
///
/// At Neon it goes through a pooler in transaction mode: two statements outside a transaction may run in two sessions.
/// So `SET`, `LISTEN`, session advisory locks, temporary tables and SQL-level `PREPARE` do not hold, and a `SET` may
/// reach somebody else. What needs a session of its own gets one from [`direct`](crate::TenantRouter::direct). On a server
/// without a pooler they hold until the connection is dropped, which resets its session
/// ([`SessionReset`](crate::SessionReset)).
#[must_use = "it goes back unused if it is dropped at once; to wake a database, `warm` it"]
pub struct TenantClient {
    lease: Lease,
}

impl TenantClient {
    pub(crate) fn new(lease: Lease) -> Self {
        Self { lease }
    }

    /// Whose database this is.
    pub fn tenant(&self) -> &TenantId {
        self.lease.tenant()
    }

    /// A token that stops what runs on the connection, from another task.
    pub fn cancel_token(&self) -> CancelToken {
        token_of(&self.lease)
    }
}

/// A token that stops what runs on a pooled connection.
pub(crate) fn token_of(lease: &Lease) -> CancelToken {
    let ConnectionInner {
        client,
        status: watch,
        endpoint,
        ..
    } = &**lease.connection();
    CancelToken::new(client, endpoint, Route::Pooled, watch, &lease.pool().shared)
}

impl Deref for TenantClient {
    type Target = deadpool_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.lease.connection().client
    }
}

impl DerefMut for TenantClient {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.lease.connection_mut().client
    }
}

impl fmt::Debug for TenantClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantClient")
            .field("tenant", self.tenant())
            .finish_non_exhaustive()
    }
}
