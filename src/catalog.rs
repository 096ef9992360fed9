//! The catalog as the router uses it: the application's [`Records`], whose failures are errors of ours.

use std::{sync::Arc, time::Duration};

use crate::{
    error::{BoxError, Error, ErrorKind},
    record::{Lease, Leased, Record, Then},
    records::{AnyRecords, Defect, Records},
    tenant::TenantId,
};

/// The catalog.
pub(crate) struct Catalog {
    records: Arc<dyn AnyRecords>,
}

impl Catalog {
    pub(crate) fn new(records: impl Records) -> Self {
        Self {
            records: Arc::new(records),
        }
    }

    pub(crate) fn records(&self) -> &dyn AnyRecords {
        &*self.records
    }

    /// What is known of `tenant`, as it is now.
    pub(crate) async fn find(&self, tenant: &TenantId) -> Result<Option<Record>, Error> {
        self.records.find(tenant).await.map_err(failed)
    }

    pub(crate) async fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Leased, Error> {
        let leased = self.records.lease(tenant, owner, time).await;
        leased.map_err(failed)
    }

    pub(crate) async fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: Then,
    ) -> Result<bool, Error> {
        let written = self.records.write(lease, record, then).await;
        written.map_err(failed)
    }

    /// At most `limit` records of tenants after `after`.
    pub(crate) async fn list(
        &self,
        after: Option<&TenantId>,
        limit: usize,
    ) -> Result<Vec<Record>, Error> {
        self.records.list(after, limit).await.map_err(failed)
    }

    pub(crate) async fn release(&self, lease: &Lease) -> Result<(), Error> {
        self.records.release(lease).await.map_err(failed)
    }
}

fn failed(err: BoxError) -> Error {
    if err.downcast_ref::<Defect>().is_some() {
        let message = "the catalog's record of the tenant cannot be used as it is";
        return Error::new(ErrorKind::BadRecord, message).with_source(err);
    }
    Error::new(ErrorKind::Catalog, "the catalog failed").with_source(err)
}
