//! The connection that a caller holds.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use crate::{lease::Lease, tenant::TenantId};

/// A live connection to one tenant's database. Dropping it gives it back.
///
/// It derefs to deadpool-postgres's client, so `query_typed`, `prepare_cached`, `transaction` and everything that takes
/// its `GenericClient` work as they do there.
///
/// What it cannot promise: the server may close the socket at any moment, and a query that meets this fails with
/// tokio-postgres's own error. A query waits as long as you let it, so put a timeout around those that matter. It is
/// safe to drop a query half-way: the connection is then cancelled and closed instead of given to the next caller.
///
/// At Neon it goes through a pooler in transaction mode, where `SET`, `LISTEN`, session advisory locks and SQL-level
/// `PREPARE` do not hold. Prefer `query_typed`: one round trip, and no named statement.
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
