//! A catalog of which some operations fail.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tenantry::{
    BoxError, Catalog, Endpoint, Lookup, Namespace, TenantId,
    catalog::{AfterWrite, CallError, Changes, FoundRecord, Lease, Leased, Record},
};

use super::fake_catalog::FakeCatalog;

/// The way in which an operation fails.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum CatalogFault {
    /// The catalog is up and says no.
    Rejected,
    /// With an error that says nothing more.
    Fails,
    /// It never answers of this tenant, or, without one, of any.
    Silent(Option<&'static str>),
}

/// A way to a [`FakeCatalog`] on which some operations fail. They are counted, whether they do or not.
#[derive(Clone)]
pub(crate) struct FaultyCatalog {
    catalog: FakeCatalog,
    faults: Arc<Mutex<HashMap<&'static str, CatalogFault>>>,
    calls: Arc<Mutex<HashMap<&'static str, u64>>>,
}

impl FaultyCatalog {
    pub(crate) fn new(catalog: &FakeCatalog) -> Self {
        Self {
            catalog: catalog.clone(),
            faults: Arc::default(),
            calls: Arc::default(),
        }
    }

    /// Has an operation fail from now on, or no more.
    pub(crate) fn set(&self, operation: &'static str, fault: impl Into<Option<CatalogFault>>) {
        let mut faults = self.faults.lock().unwrap();
        match fault.into() {
            Some(fault) => faults.insert(operation, fault),
            None => faults.remove(operation),
        };
    }

    /// Returns how often `operation` was called.
    pub(crate) fn calls(&self, operation: &str) -> u64 {
        let calls = self.calls.lock().unwrap();
        calls.get(operation).copied().unwrap_or_default()
    }

    async fn enter(&self, operation: &'static str, tenant: &str) -> Result<(), BoxError> {
        *self.calls.lock().unwrap().entry(operation).or_default() += 1;
        let fault = self.faults.lock().unwrap().get(operation).cloned();
        match fault {
            Some(CatalogFault::Rejected) => Err(CallError::rejected("no privilege").into()),
            Some(CatalogFault::Fails) => Err("it failed".into()),
            Some(CatalogFault::Silent(only)) if only.is_none_or(|only| only == tenant) => {
                std::future::pending().await
            }
            Some(CatalogFault::Silent(_)) | None => Ok(()),
        }
    }
}

impl Lookup for FaultyCatalog {
    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, BoxError> {
        self.catalog.lookup(tenant).await
    }
}

impl Catalog for FaultyCatalog {
    fn bind(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError> {
        self.catalog.bind(namespace, with_passwords)
    }

    async fn find(&self, tenant: &TenantId) -> Result<Option<Record>, BoxError> {
        self.enter("find", tenant.as_str()).await?;
        self.catalog.find(tenant).await
    }

    async fn find_many(&self, tenants: &[TenantId]) -> Result<Vec<FoundRecord>, BoxError> {
        self.enter("find_many", "").await?;
        self.catalog.find_many(tenants).await
    }

    async fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Leased, BoxError> {
        self.enter("lease", tenant.as_str()).await?;
        self.catalog.lease(tenant, owner, time).await
    }

    async fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: AfterWrite,
    ) -> Result<bool, BoxError> {
        self.enter("write", lease.tenant.as_str()).await?;
        self.catalog.write(lease, record, then).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), BoxError> {
        self.enter("release", lease.tenant.as_str()).await?;
        self.catalog.release(lease).await
    }

    async fn list(&self, after: Option<&TenantId>, limit: usize) -> Result<Vec<Record>, BoxError> {
        self.enter("list", "").await?;
        self.catalog.list(after, limit).await
    }

    async fn changes(&self, since: Option<u64>, limit: usize) -> Result<Changes, BoxError> {
        self.enter("changes", "").await?;
        self.catalog.changes(since, limit).await
    }

    async fn changed(&self) {
        self.catalog.changed().await;
    }
}
