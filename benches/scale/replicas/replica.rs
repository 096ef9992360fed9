//! One process of the app, as far as its catalog sees it.

use std::{sync::Arc, time::Duration};

use tenantry::{
    BoxError, Catalog, Endpoint, Lookup, Namespace, Provisioner, TenantId, TenantRouter,
    catalog::{AfterWrite, Changes, FoundRecord, Lease, Leased, Postgres, Record},
    tokio_postgres::{Config, config::Host},
};
use tokio::time::interval;

use super::place::{NAMESPACE, catalog};
use crate::{
    backend::Backend,
    catalog::UnusedControlPlane,
    rng::{Rng, Zipf},
    support::relay::{Relay, Server},
};

/// Calls of `get` a second.
const GETS: u32 = 200;
/// Pools of each replica.
const POOLS: u64 = 500;
/// Above the pools, because those of an evicted one take a moment to close.
const CONNECTIONS: usize = 600;

pub(super) struct Replica {
    pub(super) router: TenantRouter,
    relay: Relay,
}

impl Replica {
    /// Starts one on the catalog at `config`. It knows all tenants then.
    pub(super) async fn start(
        config: Config,
        tenants: usize,
        ttl: Option<Duration>,
    ) -> Result<Self, BoxError> {
        let [Host::Unix(folder)] = config.get_hosts() else {
            return Err("the server has no socket".into());
        };
        let socket = Server::Unix(folder.join(".s.PGSQL.5432"));
        let relay = Relay::to(socket, Duration::ZERO)?;
        let url = format!("postgres://neondb_owner@{}/neondb", relay.address());
        let catalog = WithPasswords(catalog(&url)?);
        let provisioner = Provisioner::new(catalog, UnusedControlPlane, NAMESPACE);
        let builder = Backend::default().configure(TenantRouter::provisioning(provisioner));
        let builder = builder.known_tenants(tenants as u64).max_pools(POOLS);
        let mut builder = builder.max_connections(CONNECTIONS);
        if let Some(ttl) = ttl {
            builder = builder.catalog_ttl(ttl);
        }
        let router = builder.build()?;
        let remembered = router.preload().await?;
        if remembered != tenants as u64 {
            return Err(format!("{remembered} tenants are remembered").into());
        }
        Ok(Self { router, relay })
    }

    /// Asks for tenants until it is dropped. One that is held is refused.
    pub(super) async fn use_tenants(&self, seed: u64, places: &Zipf) {
        let mut rng = Rng(seed);
        let mut ticks = interval(Duration::from_secs(1) / GETS);
        loop {
            ticks.tick().await;
            if let Ok(tenant) = tenant(places.draw(&mut rng)) {
                drop(self.router.get(&tenant).await);
            }
        }
    }
}

/// Calls of the catalog, and bytes, of all replicas so far.
#[allow(clippy::cast_precision_loss, reason = "small counts")]
pub(super) fn totals(replicas: &[Arc<Replica>]) -> (f64, f64) {
    let calls = replicas.iter().map(|it| it.router.status().catalog_calls);
    let bytes = replicas.iter().map(|it| it.relay.bytes());
    (calls.sum::<u64>() as f64, bytes.sum::<u64>() as f64)
}

/// The id of the tenant with this number.
pub(super) fn tenant(number: usize) -> Result<TenantId, BoxError> {
    Ok(TenantId::parse(&format!("tenant-{number:029}"))?)
}

/// The catalog, with a password for each tenant.
struct WithPasswords(Postgres);

/// `record` with a password.
fn with_password(mut record: Record) -> Record {
    if let Some(endpoint) = &mut record.endpoint {
        endpoint.password = "npg_secret".into();
    }
    record
}

impl Lookup for WithPasswords {
    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, BoxError> {
        Ok(self.find(tenant).await?.and_then(Record::into_served))
    }
}

impl Catalog for WithPasswords {
    fn bind(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError> {
        self.0.bind(namespace, with_passwords)
    }

    async fn find(&self, tenant: &TenantId) -> Result<Option<Record>, BoxError> {
        Ok(self.0.find(tenant).await?.map(with_password))
    }

    async fn find_many(&self, tenants: &[TenantId]) -> Result<Vec<FoundRecord>, BoxError> {
        let found = self.0.find_many(tenants).await?.into_iter();
        let answer = |it: FoundRecord| it.map(|record| record.map(with_password));
        Ok(found.map(answer).collect())
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
        Ok(listed.into_iter().map(with_password).collect())
    }

    async fn changes(&self, since: Option<u64>, limit: usize) -> Result<Changes, BoxError> {
        self.0.changes(since, limit).await
    }

    async fn changed(&self) {
        self.0.changed().await;
    }
}
