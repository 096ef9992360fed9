//! The ways to a tenant's database.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};
use tenantry::{
    BoxError, Endpoint, Resolve, TenantId, TenantRouter, deadpool_postgres,
    tokio_postgres::{Config, NoTls},
};
use tokio::net::UnixStream;

use crate::traffic::Task;

/// All ways, by the names of their figures. PgBouncer is the last, as it keeps its connections.
pub(crate) const WAYS: [&str; 4] = ["sqlx", "deadpool", "tenantry", "pgbouncer"];

const QUERY: &str = "SELECT 1";
const DATABASE: &str = "neondb";
/// Connections of one tenant.
const POOL_SIZE: u32 = 4;
/// Longest wait for a connection.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// Time after which an idle connection is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(240);

/// One of them, with what it keeps.
pub(crate) enum Way {
    Sqlx(PoolMap<PgPool>, SocketAddr),
    Deadpool(PoolMap<Pool>, SocketAddr),
    Tenantry(TenantRouter),
    /// With the socket of PgBouncer.
    PgBouncer(PathBuf),
}

impl Way {
    pub(crate) fn new(task: &Task) -> Result<Self, BoxError> {
        Ok(match task.way.as_str() {
            "sqlx" => Self::Sqlx(PoolMap::new(task.pools), task.front),
            "deadpool" => Self::Deadpool(PoolMap::new(task.pools), task.front),
            "tenantry" => Self::Tenantry(router(task)?),
            "pgbouncer" => Self::PgBouncer(task.folder.join(".s.PGSQL.6432")),
            other => return Err(format!("no way is called {other}").into()),
        })
    }

    /// One query of a tenant.
    pub(crate) async fn query(&self, tenant: usize) -> Result<(), BoxError> {
        match self {
            Self::Sqlx(pools, at) => {
                let pool = pools.get(tenant, || Ok(sqlx_pool(*at, tenant)))?;
                sqlx::query(QUERY).fetch_one(&pool).await?;
            }
            Self::Deadpool(pools, at) => {
                let pool = pools.get(tenant, || deadpool(*at, tenant))?;
                pool.get().await?.query_typed(QUERY, &[]).await?;
            }
            Self::Tenantry(router) => {
                let client = router.get(&role(tenant)).await?;
                client.query_typed(QUERY, &[]).await?;
            }
            Self::PgBouncer(socket) => {
                let stream = UnixStream::connect(socket).await?;
                let mut config = Config::new();
                config.user(role(tenant)).dbname(DATABASE);
                let (client, connection) = config.connect_raw(stream, NoTls).await?;
                tokio::spawn(connection);
                client.query_typed(QUERY, &[]).await?;
            }
        }
        Ok(())
    }

    /// Ends it. The pools in a map end with the process.
    pub(crate) async fn close(&self) {
        if let Self::Tenantry(router) = self {
            router.close().await;
        }
    }
}

/// Pools by tenant, as many as may be; the one that was not used for longest is dropped.
pub(crate) struct PoolMap<P> {
    most: usize,
    kept: Mutex<Kept<P>>,
}

struct Kept<P> {
    /// With the number of the last use.
    pools: HashMap<usize, (P, u64)>,
    uses: u64,
}

impl<P: Clone> PoolMap<P> {
    fn new(most: usize) -> Self {
        let kept = Kept {
            pools: HashMap::new(),
            uses: 0,
        };
        Self {
            most,
            kept: Mutex::new(kept),
        }
    }

    /// The tenant's pool. One that was dropped for it ends with its last caller.
    fn get(
        &self,
        tenant: usize,
        make: impl FnOnce() -> Result<P, BoxError>,
    ) -> Result<P, BoxError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.uses += 1;
        let now = kept.uses;
        if let Some((pool, used)) = kept.pools.get_mut(&tenant) {
            *used = now;
            return Ok(pool.clone());
        }
        if kept.pools.len() >= self.most {
            let oldest = kept.pools.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(tenant, _)| *tenant) {
                kept.pools.remove(&oldest);
            }
        }
        let pool = make()?;
        kept.pools.insert(tenant, (pool.clone(), now));
        Ok(pool)
    }
}

/// The role and the id of the tenant with this number.
pub(crate) fn role(tenant: usize) -> String {
    format!("tenant_{tenant}")
}

fn sqlx_pool(at: SocketAddr, tenant: usize) -> PgPool {
    let options = PgConnectOptions::new_without_pgpass()
        .host(&at.ip().to_string())
        .port(at.port())
        .username(&role(tenant))
        .database(DATABASE)
        .ssl_mode(PgSslMode::Disable);
    let pool = PgPoolOptions::new()
        .max_connections(POOL_SIZE)
        .min_connections(0)
        .acquire_timeout(WAIT_TIMEOUT)
        .idle_timeout(IDLE_TIMEOUT);
    pool.connect_lazy_with(options)
}

fn deadpool(at: SocketAddr, tenant: usize) -> Result<Pool, BoxError> {
    let mut config = Config::new();
    config.host(at.ip().to_string()).port(at.port());
    config.user(role(tenant)).dbname(DATABASE);
    let recycling = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let manager = Manager::from_config(config, NoTls, recycling);
    let pool = Pool::builder(manager)
        .max_size(POOL_SIZE as usize)
        .wait_timeout(Some(WAIT_TIMEOUT))
        .create_timeout(Some(WAIT_TIMEOUT))
        .runtime(Runtime::Tokio1);
    Ok(pool.build()?)
}

fn router(task: &Task) -> Result<TenantRouter, BoxError> {
    let builder = TenantRouter::builder(|tenant: TenantId| {
        let (direct, pooled) = (
            format!("ep-{tenant}.test"),
            format!("ep-{tenant}-pooler.test"),
        );
        let endpoint = Endpoint::neon(direct, pooled, DATABASE, tenant.as_str(), "secret");
        std::future::ready(Ok(Some(endpoint.without_tls())))
    });
    let builder = builder.resolve(FixedResolver(task.front));
    let builder = builder
        .max_pools(task.pools as u64)
        .max_connections(task.connections);
    let builder = builder.pool_size(POOL_SIZE as usize);
    Ok(builder.get_timeout(WAIT_TIMEOUT).build()?)
}

/// All hosts at one address.
struct FixedResolver(SocketAddr);

impl Resolve for FixedResolver {
    async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![self.0])
    }
}
