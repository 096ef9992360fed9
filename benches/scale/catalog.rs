//! A catalog that knows all tenants already, and a control plane that is never asked.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tenantry::{
    BoxError, Catalog, ControlPlane, Endpoint, Error, ErrorKind, Login, Lookup, Namespace,
    TenantId,
    catalog::{AfterWrite, Changes, Lease, Leased, Memory, Placement, Record, State},
    control_plane::{Database, Found, Order, Progress},
};

/// The embedded catalog, but that ids are not shared with it: each answer has its own, as from a catalog that is
/// reached through a socket. Clones are the same catalog.
#[derive(Clone, Default)]
pub(crate) struct UnsharedCatalog(Arc<Memory>);

impl UnsharedCatalog {
    /// One that has published each of `tenants`.
    pub(crate) async fn of(tenants: &[String]) -> Result<Self, BoxError> {
        let catalog = Self::default();
        for tenant in tenants {
            catalog.publish(&TenantId::parse(tenant)?).await?;
        }
        Ok(catalog)
    }

    async fn publish(&self, tenant: &TenantId) -> Result<(), BoxError> {
        let leased = self.0.lease(tenant, "bench", Duration::from_secs(60));
        let Leased::Granted(lease, mut record) = leased.await? else {
            return Err("another owner has the lease".into());
        };
        record.placement = Some(Placement::new(tenant.as_str()));
        record.endpoint = Some(endpoint(tenant.as_str()));
        record.state = State::Ready;
        let written = self.0.write(&lease, &record, AfterWrite::Release).await?;
        written
            .then_some(())
            .ok_or_else(|| "the lease was lost".into())
    }
}

/// The endpoint of `tenant`: names as long as Neon's.
pub(crate) fn endpoint(tenant: &str) -> Endpoint {
    let (word, place) = (&tenant[..8], "us-east-2.aws.neon.tech");
    Endpoint::neon(
        format!("ep-cool-dew-{word}.{place}"),
        format!("ep-cool-dew-{word}-pooler.{place}"),
        "neondb",
        "neondb_owner",
        format!("npg_{}", &tenant[24..]),
    )
    .without_tls()
}

/// `record`, sharing nothing with the catalog.
fn unshared(mut record: Record) -> Result<Record, BoxError> {
    record.tenant = TenantId::parse(record.tenant.as_str())?;
    Ok(record)
}

impl Lookup for UnsharedCatalog {
    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, BoxError> {
        self.0.lookup(tenant).await
    }
}

impl Catalog for UnsharedCatalog {
    fn bind(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError> {
        self.0.bind(namespace, with_passwords)
    }

    async fn find(&self, tenant: &TenantId) -> Result<Option<Record>, BoxError> {
        self.0.find(tenant).await?.map(unshared).transpose()
    }

    async fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Leased, BoxError> {
        self.0.lease(tenant, owner, time).await
    }

    async fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: AfterWrite,
    ) -> Result<bool, BoxError> {
        self.0.write(lease, record, then).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), BoxError> {
        self.0.release(lease).await
    }

    async fn list(&self, after: Option<&TenantId>, limit: usize) -> Result<Vec<Record>, BoxError> {
        let listed = self.0.list(after, limit).await?;
        listed.into_iter().map(unshared).collect()
    }

    async fn changes(&self, since: Option<u64>, limit: usize) -> Result<Changes, BoxError> {
        self.0.changes(since, limit).await
    }
}

/// A control plane without databases. All tenants have theirs, so any call of it fails the run.
pub(crate) struct UnusedControlPlane;

impl ControlPlane for UnusedControlPlane {
    async fn find(&self, _: &str, _: &Progress) -> Result<Vec<Found>, Error> {
        Err(unexpected_call())
    }

    async fn list(&self, _: &str, _: &Progress) -> Result<Vec<Found>, Error> {
        Err(unexpected_call())
    }

    async fn tags(&self, _: &str, _: &Progress) -> Result<Option<BTreeMap<String, String>>, Error> {
        Err(unexpected_call())
    }

    async fn create(&self, _: &Order, _: &Progress) -> Result<Database, Error> {
        Err(unexpected_call())
    }

    async fn ready(&self, _: &str, _: &Progress) -> Result<(), Error> {
        Err(unexpected_call())
    }

    async fn database(
        &self,
        _: &str,
        _: Option<&Login>,
        _: &Progress,
    ) -> Result<Option<Database>, Error> {
        Err(unexpected_call())
    }

    async fn delete(&self, _: &str, _: &Progress) -> Result<(), Error> {
        Err(unexpected_call())
    }

    async fn recover(&self, _: &str, _: &Progress) -> Result<(), Error> {
        Err(unexpected_call())
    }
}

fn unexpected_call() -> Error {
    Error::new(ErrorKind::Refused, "the control plane was asked")
}
