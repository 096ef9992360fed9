//! The embedded catalog: no set-up, one process.

use std::{collections::HashMap, sync::Mutex};

use super::{Claim, Records};
use crate::{
    endpoint::Endpoint,
    error::BoxError,
    lookup::Lookup,
    retry::lock,
    tenant::{Namespace, TenantId},
};

/// A catalog in memory, for one process. After a restart it is empty, and the router finds each tenant's project again
/// by its name instead of creating another.
#[derive(Debug, Default)]
pub struct Memory {
    // Guards all of it; held for a few instructions.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    namespace: Option<Namespace>,
    tenants: HashMap<TenantId, Record>,
}

#[derive(Debug, Default)]
struct Record {
    token: u64,
    endpoint: Option<Endpoint>,
}

impl Memory {
    /// An empty catalog.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Lookup for Memory {
    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, BoxError> {
        Ok(lock(&self.known)
            .tenants
            .get(tenant)
            .and_then(|record| record.endpoint.clone()))
    }
}

impl Records for Memory {
    async fn claim(&self, namespace: &Namespace, tenant: &TenantId) -> Result<Claim, BoxError> {
        let mut known = lock(&self.known);
        if *known.namespace.get_or_insert_with(|| namespace.clone()) != *namespace {
            return Err("one Memory serves one namespace; give each router its own".into());
        }
        let record = known.tenants.entry(tenant.clone()).or_default();
        record.token += 1;
        // Never fresh: an earlier run of the process may have created the project.
        Ok(Claim::new(record.token, false))
    }

    async fn publish(
        &self,
        tenant: &TenantId,
        claim: Claim,
        endpoint: Endpoint,
    ) -> Result<(), BoxError> {
        match lock(&self.known).tenants.get_mut(tenant) {
            Some(record) if record.token == claim.token => {
                record.endpoint = Some(endpoint);
                Ok(())
            }
            _ => Err("another claim on the tenant came after this one".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_late_writer_is_told_from_the_present_one() {
        let (records, tenant) = (Memory::new(), TenantId::parse("acme").unwrap());
        let namespace = Namespace::parse("test").unwrap();
        let late = records.claim(&namespace, &tenant).await.unwrap();
        let present = records.claim(&namespace, &tenant).await.unwrap();
        let endpoint = |host: &str| Endpoint::postgres(host, "d", "r", "p");

        records
            .publish(&tenant, present, endpoint("present"))
            .await
            .unwrap();
        assert!(
            records
                .publish(&tenant, late, endpoint("late"))
                .await
                .is_err()
        );
        assert_eq!(
            records.lookup(&tenant).await.unwrap().unwrap().direct_host,
            "present"
        );
    }

    #[tokio::test]
    async fn one_memory_serves_one_namespace() {
        let (records, tenant) = (Memory::new(), TenantId::parse("acme").unwrap());
        let namespaces = ["staging", "production"].map(|name| Namespace::parse(name).unwrap());
        assert!(records.claim(&namespaces[0], &tenant).await.is_ok());
        assert!(records.claim(&namespaces[1], &tenant).await.is_err());
    }
}
