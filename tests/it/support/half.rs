//! A catalog of which some operations fail.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tenantry::{
    BoxError, Catalog, Endpoint, Lookup, Namespace, TenantId,
    catalog::{AfterWrite, CallError, Changes, Lease, Leased, Record},
};

use super::ledger::Ledger;

/// How an operation fails.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Trouble {
    /// The catalog is up and says no.
    Rejected,
    /// With an error that says nothing more.
    Fails,
    /// It never answers of this tenant, or, without one, of any.
    Silent(Option<&'static str>),
}

/// A way to a [`Ledger`] on which some operations fail. They are counted, whether they do or not.
#[derive(Clone)]
pub(crate) struct Half {
    ledger: Ledger,
    troubles: Arc<Mutex<HashMap<&'static str, Trouble>>>,
    calls: Arc<Mutex<HashMap<&'static str, u64>>>,
}

impl Half {
    pub(crate) fn of(ledger: &Ledger) -> Self {
        Self {
            ledger: ledger.clone(),
            troubles: Arc::default(),
            calls: Arc::default(),
        }
    }

    /// Has an operation fail from now on, or no more.
    pub(crate) fn set(&self, operation: &'static str, trouble: impl Into<Option<Trouble>>) {
        let mut troubles = self.troubles.lock().unwrap();
        match trouble.into() {
            Some(trouble) => troubles.insert(operation, trouble),
            None => troubles.remove(operation),
        };
    }

    /// How often it was called.
    pub(crate) fn calls(&self, operation: &str) -> u64 {
        let calls = self.calls.lock().unwrap();
        calls.get(operation).copied().unwrap_or_default()
    }

    async fn come_to(&self, operation: &'static str, tenant: &str) -> Result<(), BoxError> {
        *self.calls.lock().unwrap().entry(operation).or_default() += 1;
        let trouble = self.troubles.lock().unwrap().get(operation).cloned();
        match trouble {
            Some(Trouble::Rejected) => Err(CallError::rejected("no privilege").into()),
            Some(Trouble::Fails) => Err("it failed".into()),
            Some(Trouble::Silent(of)) if of.is_none_or(|of| of == tenant) => {
                std::future::pending().await
            }
            Some(Trouble::Silent(_)) | None => Ok(()),
        }
    }
}

impl Lookup for Half {
    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, BoxError> {
        self.ledger.lookup(tenant).await
    }
}

impl Catalog for Half {
    fn bind(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError> {
        self.ledger.bind(namespace, with_passwords)
    }

    async fn find(&self, tenant: &TenantId) -> Result<Option<Record>, BoxError> {
        self.come_to("find", tenant.as_str()).await?;
        self.ledger.find(tenant).await
    }

    async fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Leased, BoxError> {
        self.come_to("lease", tenant.as_str()).await?;
        self.ledger.lease(tenant, owner, time).await
    }

    async fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: AfterWrite,
    ) -> Result<bool, BoxError> {
        self.come_to("write", lease.tenant.as_str()).await?;
        self.ledger.write(lease, record, then).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), BoxError> {
        self.come_to("release", lease.tenant.as_str()).await?;
        self.ledger.release(lease).await
    }

    async fn list(&self, after: Option<&TenantId>, limit: usize) -> Result<Vec<Record>, BoxError> {
        self.come_to("list", "").await?;
        self.ledger.list(after, limit).await
    }

    async fn changes(&self, since: Option<u64>, limit: usize) -> Result<Changes, BoxError> {
        self.come_to("changes", "").await?;
        self.ledger.changes(since, limit).await
    }

    async fn changed(&self) {
        self.ledger.changed().await;
    }
}
