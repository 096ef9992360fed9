//! The catalog, with a count of what it is asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tenantry::{
    BoxError, Catalog, Endpoint, Lookup, Namespace, TenantId,
    catalog::{AfterWrite, Changes, FoundRecord, Lease, Leased, Postgres, Record},
};
use tokio::time::Instant;

/// The times of each kind of call.
pub(crate) type Calls = BTreeMap<&'static str, Vec<Duration>>;

/// A catalog whose calls are counted. Clones share the count.
#[derive(Clone)]
pub(crate) struct CountingCatalog {
    postgres: Postgres,
    calls: Arc<Mutex<Calls>>,
}

impl CountingCatalog {
    pub(crate) fn new(postgres: Postgres) -> Self {
        Self {
            postgres,
            calls: Arc::default(),
        }
    }

    /// The calls since this was asked last.
    pub(crate) fn take(&self) -> Calls {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn count<T>(&self, what: &'static str, call: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let answer = call.await;
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.entry(what).or_default().push(start.elapsed());
        answer
    }
}

impl Lookup for CountingCatalog {
    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, BoxError> {
        self.count("lookup", self.postgres.lookup(tenant)).await
    }
}

impl Catalog for CountingCatalog {
    fn bind(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError> {
        self.postgres.bind(namespace, with_passwords)
    }

    async fn find(&self, tenant: &TenantId) -> Result<Option<Record>, BoxError> {
        self.count("find", self.postgres.find(tenant)).await
    }

    async fn find_many(&self, tenants: &[TenantId]) -> Result<Vec<FoundRecord>, BoxError> {
        self.count("find_many", self.postgres.find_many(tenants))
            .await
    }

    async fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Leased, BoxError> {
        self.count("lease", self.postgres.lease(tenant, owner, time))
            .await
    }

    async fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: AfterWrite,
    ) -> Result<bool, BoxError> {
        self.count("write", self.postgres.write(lease, record, then))
            .await
    }

    async fn release(&self, lease: &Lease) -> Result<(), BoxError> {
        self.count("release", self.postgres.release(lease)).await
    }

    async fn list(&self, after: Option<&TenantId>, limit: usize) -> Result<Vec<Record>, BoxError> {
        self.count("list", self.postgres.list(after, limit)).await
    }

    async fn changes(&self, since: Option<u64>, limit: usize) -> Result<Changes, BoxError> {
        // Asked whenever the router likes, and for no tenant in particular: not counted.
        self.postgres.changes(since, limit).await
    }

    async fn changed(&self) {
        self.postgres.changed().await;
    }
}
