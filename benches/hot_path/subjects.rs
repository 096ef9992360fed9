//! The subjects that are measured: each takes a connection out and puts it back.

use std::{
    collections::hash_map::RandomState,
    future::Future,
    hint::black_box,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dashmap::DashMap;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use moka::{policy::EvictionPolicy, sync::Cache};
use tenantry::{
    BoxError, TenantHandle, TenantRouter, deadpool_postgres,
    tokio_postgres::{Client, Config, Error},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{backend::Backend, ids::id};

/// Connections of a tenant, at most.
pub(crate) const POOL_SIZE: usize = 4;

/// Longer than a run takes. Nothing is sent on these connections, so that they would be taken for asleep.
const LONG: Duration = Duration::from_secs(6 * 3600);

/// Longest wait for a connection, as an app server has it.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Something that lends connections.
pub(crate) trait ConnectionSource: Send + Sync + 'static {
    /// The guard that is held while a connection is out.
    type Guard: Send;

    /// Takes a connection of a tenant, whose number and id are given.
    fn get(&self, tenant: usize, id: &str) -> impl Future<Output = Self::Guard> + Send;
}

/// The composition of today's app servers: a cache of pools, and one limit in time over the pool's own `get`.
pub(crate) struct PoolCache(Cache<String, Pool>);

impl PoolCache {
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

impl ConnectionSource for PoolCache {
    type Guard = deadpool_postgres::Object;

    async fn get(&self, _: usize, id: &str) -> Self::Guard {
        let pool = self.0.get(id).expect("nothing is evicted");
        let got = timeout(WAIT_TIMEOUT, pool.get()).await;
        got.expect("at hand").expect("open")
    }
}

/// The least that finds a connection by an id and lends it: a concurrent map, one lock each way, one `Arc`, one clock.
pub(crate) struct Floor(DashMap<String, Arc<Idle>>);

/// The idle connections of one tenant; a number stands for a connection.
type Idle = Mutex<Vec<Box<u64>>>;

/// As many as the router's own index has.
const SHARDS: usize = 64;

impl Floor {
    /// Each of so many tenants with one connection.
    pub(crate) fn new(tenants: usize) -> Self {
        let map = DashMap::with_hasher_and_shard_amount(RandomState::new(), SHARDS);
        for tenant in 0..tenants {
            map.insert(id(tenant), Arc::default());
        }
        let floor = Self(map);
        floor
            .0
            .iter()
            .for_each(|idle| give_back(&idle, Box::new(0)));
        floor
    }

    /// One tenant with as many connections as a pool may have.
    pub(crate) fn of_one() -> Self {
        let floor = Self::new(1);
        for idle in &floor.0 {
            (1..POOL_SIZE as u64).for_each(|number| give_back(&idle, Box::new(number)));
        }
        floor
    }
}

fn give_back(idle: &Idle, connection: Box<u64>) {
    let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
    idle.push(connection);
}

/// A connection of the floor that is out.
pub(crate) struct Lent {
    idle: Arc<Idle>,
    connection: Option<Box<u64>>,
    _since: Instant,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            give_back(&self.idle, connection);
        }
    }
}

impl ConnectionSource for Floor {
    type Guard = Lent;

    async fn get(&self, _: usize, id: &str) -> Self::Guard {
        let idle = Arc::clone(&*self.0.get(id).expect("nothing is evicted"));
        let since = Instant::now();
        let connection = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Lent {
            idle,
            connection,
            _since: since,
        }
    }
}

/// deadpool's pools by themselves.
pub(crate) struct Deadpool(pub(crate) Vec<Pool>);

impl ConnectionSource for Deadpool {
    type Guard = deadpool_postgres::Object;

    async fn get(&self, tenant: usize, _: &str) -> Self::Guard {
        self.0[tenant].get().await.expect("open")
    }
}

/// The router.
pub(crate) struct TenantryRouter(pub(crate) TenantRouter);

impl ConnectionSource for TenantryRouter {
    type Guard = tenantry::TenantClient;

    async fn get(&self, _: usize, id: &str) -> Self::Guard {
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

impl ConnectionSource for Handles {
    type Guard = tenantry::TenantClient;

    async fn get(&self, tenant: usize, _: &str) -> Self::Guard {
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
        let pipes = PipeConnector(backend.clone());
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
        .configure(builder)
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
pub(crate) async fn fill(subject: &impl ConnectionSource) {
    let id = id(0);
    let mut held = Vec::new();
    for _ in 0..POOL_SIZE {
        held.push(subject.get(0, &id).await);
    }
    black_box(&held);
}

/// Opens pipes for deadpool.
struct PipeConnector(Backend);

type Connected<'a> =
    std::pin::Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), Error>> + Send + 'a>>;

impl deadpool_postgres::Connect for PipeConnector {
    fn connect(&self, _: &Config) -> Connected<'_> {
        Box::pin(self.0.connect())
    }
}
