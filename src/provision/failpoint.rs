//! Points between two steps, for tests that stop a process there.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use crate::model::tenant::TenantId;

/// A point between two steps of the work on a tenant's database.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Failpoint {
    /// The lease is held; nothing is written.
    Claimed,
    /// The attempt is in the catalog; the creation is about to be sent.
    Ordering,
    /// A creation was answered; the catalog does not have the database yet.
    Created,
    /// A database was found by its name; the catalog does not have it yet.
    Found,
    /// The catalog has the database.
    Placed,
    /// The database takes connections.
    Operational,
    /// The prepare hook has run; the catalog does not say so yet.
    Prepared,
    /// The record is published.
    Published,
    /// The tombstone is written; the database still exists.
    Buried,
    /// The database is deleted; the catalog does not say so yet.
    Destroyed,
    /// The catalog condemns a duplicate, which is about to be deleted.
    Condemned,
    /// The deletion of a database was reversed; the catalog does not say so yet.
    Recovered,
    /// The lease for a migration is held; no session is open.
    SchemaLeased,
    /// The catalog has the version after a step that is not the last.
    SchemaNoted,
    /// The catalog has the outcome of a migration.
    SchemaWritten,
}

impl Failpoint {
    /// Every point of the work on a database.
    pub const ALL: [Self; 12] = [
        Self::Claimed,
        Self::Ordering,
        Self::Created,
        Self::Found,
        Self::Placed,
        Self::Operational,
        Self::Prepared,
        Self::Published,
        Self::Buried,
        Self::Destroyed,
        Self::Condemned,
        Self::Recovered,
    ];

    /// Every point of a migration, besides those within it ([`Moment`](crate::Moment)).
    pub const MIGRATION: [Self; 3] = [Self::SchemaLeased, Self::SchemaNoted, Self::SchemaWritten];
}

/// The function that a test runs at each step; by default there is none.
#[derive(Clone, Default)]
pub(super) struct Steps(Option<Arc<Reach>>);

type Reach = dyn Fn(Failpoint, TenantId) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

impl Steps {
    pub(super) fn new<Fut>(
        reach: impl Fn(Failpoint, TenantId) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self(Some(Arc::new(move |step, tenant| {
            Box::pin(reach(step, tenant))
        })))
    }

    pub(super) async fn hit(&self, step: Failpoint, tenant: &TenantId) {
        if let Some(reach) = &self.0 {
            reach(step, tenant.clone()).await;
        }
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Steps")
    }
}
