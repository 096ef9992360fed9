//! The points between two steps, for tests that stop a process there.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use crate::model::tenant::TenantId;

/// A point between two steps of the work on a tenant's database.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Failpoint {
    /// The lease is held; nothing is written.
    Claimed,
    /// The catalog says that a creation may be sent, and it is about to be.
    Ordering,
    /// A creation was answered; the catalog does not know.
    Created,
    /// A database was found by its name; the catalog does not know.
    Found,
    /// The catalog knows the database.
    Placed,
    /// The database takes connections.
    Operational,
    /// The prepare hook has run; the catalog does not know.
    Prepared,
    /// The record is published.
    Published,
    /// The tombstone is written; the database is there.
    Buried,
    /// The database is deleted; the catalog does not know.
    Destroyed,
    /// A duplicate is about to be deleted, as the catalog says.
    Condemned,
    /// The deletion of a database was taken back; the catalog does not know.
    Recovered,
}

impl Failpoint {
    /// All of them.
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
}

/// What is done at each step: nothing, unless a test wants to.
#[derive(Clone, Default)]
pub(crate) struct Steps(Option<Arc<Reach>>);

type Reach = dyn Fn(Failpoint, TenantId) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

impl Steps {
    pub(crate) fn new<Fut>(
        reach: impl Fn(Failpoint, TenantId) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self(Some(Arc::new(move |step, tenant| {
            Box::pin(reach(step, tenant))
        })))
    }

    pub(crate) async fn hit(&self, step: Failpoint, tenant: &TenantId) {
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
