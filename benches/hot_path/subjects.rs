//! Who is measured: each takes a connection out and puts it back.

use std::{future::Future, hint::black_box, sync::Arc, time::Duration};

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use moka::{policy::EvictionPolicy, sync::Cache};
use tenantry::{
    BoxError, TenantHandle, TenantRouter, deadpool_postgres,
    tokio_postgres::{Client, Config, Error},
};
use tokio::{task::JoinHandle, time::timeout};

use crate::{backend::Backend, ids::id};

/// Connections of a tenant, at most.
pub(crate) const POOL_SIZE: usize = 4;

/// Longer than a run takes. Nothing is sent on these connections, so that they would be taken for asleep.
const LONG: Duration = Duration::from_secs(6 * 3600);

/// Longest wait for a connection, as an app server has it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Something that lends connections.
pub(crate) trait Subject: Send + Sync + 'static {
    /// What is held while a connection is out.
    type Held: Send;

    /// Takes a connection of a tenant, whose number and id are given.
    fn get(&self, tenant: usize, id: &str) -> impl Future<Output = Self::Held> + Send;
}

/// What app servers put together today: a cache of pools, and one limit in time over the pool's own `get`.
pub(crate) struct Plain(Cache<String, Pool>);

impl Plain {
    pub(crate) fn new(pools: &[Pool]) -> Self {
        let cache = Cache::builder()
            .max_capacity(2 * pools.len() as u64)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(LONG)
            .eviction_listener(|_, pool: Pool, _| pool.close())
            .build();
        for (tenant, pool) in pools.iter().enumerate() {
            cache.insert(id(tenant), pool.clone());
        }
        cache.run_pending_tasks();
        Self(cache)
    }
}

impl Subject for Plain {
    type Held = deadpool_postgres::Object;

    async fn get(&self, _: usize, id: &str) -> Self::Held {
        let pool = self.0.get(id).expect("nothing is evicted");
        let got = timeout(PATIENCE, pool.get()).await;
        got.expect("at hand").expect("open")
    }
}

/// deadpool's pools by themselves.
pub(crate) struct Deadpool(pub(crate) Vec<Pool>);

impl Subject for Deadpool {
    type Held = deadpool_postgres::Object;

    async fn get(&self, tenant: usize, _: &str) -> Self::Held {
        self.0[tenant].get().await.expect("open")
    }
}

/// The router.
pub(crate) struct Ours(pub(crate) TenantRouter);

impl Subject for Ours {
    type Held = tenantry::TenantClient;

    async fn get(&self, _: usize, id: &str) -> Self::Held {
        self.0.get(id).await.expect("open")
    }
}

/// Handles of a router's tenants.
pub(crate) struct Handles(Vec<TenantHandle>);

impl Handles {
    pub(crate) fn new(router: &TenantRouter, tenants: usize) -> Result<Self, BoxError> {
        let handles = (0..tenants).map(|tenant| router.handle(&id(tenant)));
        Ok(Self(handles.collect::<Result<_, _>>()?))
    }
}

impl Subject for Handles {
    type Held = tenantry::TenantClient;

    async fn get(&self, tenant: usize, _: &str) -> Self::Held {
        self.0[tenant].get().await.expect("open")
    }
}

/// A plain pool for each of so many tenants, with one connection in it.
pub(crate) async fn pools(backend: &Backend, tenants: usize) -> Result<Vec<Pool>, BoxError> {
    let mut pools = Vec::new();
    for _ in 0..tenants {
        let config = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let pipes = Pipes(backend.clone());
        let manager = Manager::from_connect(Config::new(), pipes, config);
        let pool = Pool::builder(manager).max_size(POOL_SIZE).build()?;
        drop(pool.get().await?);
        pools.push(pool);
    }
    Ok(pools)
}

/// A router with a pool for each of `tenants`, with one connection in it; it knows `known`.
pub(crate) async fn router(
    backend: &Backend,
    tenants: usize,
    known: usize,
) -> Result<TenantRouter, BoxError> {
    let known: Arc<std::collections::HashSet<_>> = Arc::new((0..known).map(id).collect());
    let builder = TenantRouter::builder(move |tenant: tenantry::TenantId| {
        let known = known.contains(tenant.as_str());
        std::future::ready(Ok(known.then(|| Backend::endpoint(tenant.as_str()))))
    });
    let router = backend
        .at(builder)
        .max_pools(2 * tenants as u64)
        .max_connections(2 * tenants * POOL_SIZE)
        .pool_size(POOL_SIZE)
        .verify_after(LONG)
        .idle_after(LONG)
        .max_lifetime(LONG)
        .build()?;
    for tenant in 0..tenants {
        drop(router.get(&id(tenant)).await?);
    }
    Ok(router)
}

/// Has as many connections opened as a pool may have.
pub(crate) async fn fill(subject: &impl Subject) {
    let id = id(0);
    let mut held = Vec::new();
    for _ in 0..POOL_SIZE {
        held.push(subject.get(0, &id).await);
    }
    black_box(&held);
}

/// Opens pipes for deadpool.
struct Pipes(Backend);

type Connected<'a> =
    std::pin::Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), Error>> + Send + 'a>>;

impl deadpool_postgres::Connect for Pipes {
    fn connect(&self, _: &Config) -> Connected<'_> {
        Box::pin(self.0.connect())
    }
}
