//! The clients that are compared, by which a server reaches its database.

use std::collections::HashMap;

use deadpool_postgres::Pool;
use futures_util::future::try_join_all;
use sqlx::PgPool;
use tenantry::{BoxError, Endpoint, TenantId, TenantRouter, deadpool_postgres};

use super::{
    neon_service::NeonService,
    setup::{Compute, until},
    support::{QUERY, Target},
};

/// A router and one of its tenants, or a pool. Clones share their connections.
#[derive(Clone)]
pub(crate) enum Client {
    Tenantry(TenantRouter, TenantId),
    Deadpool(Pool),
    Sqlx(PgPool),
}

impl Client {
    /// All that are compared, for one endpoint behind `service`. The first is ours.
    pub(crate) fn all(
        service: &NeonService,
        compute: &Compute,
        target: &Target,
        pool_size: u16,
    ) -> Result<[Self; 3], BoxError> {
        let tenant = TenantId::parse(&compute.endpoint_id)?;
        let tenants = HashMap::from([(tenant.clone(), target.endpoint())]);
        Ok([
            Self::Tenantry(router(service, tenants, pool_size)?, tenant),
            Self::Deadpool(target.deadpool(pool_size)?),
            Self::Sqlx(target.sqlx(service.roots(), pool_size)?),
        ])
    }

    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Tenantry(..) => "tenantry",
            Self::Deadpool(_) => "deadpool-postgres",
            Self::Sqlx(_) => "sqlx",
        }
    }

    /// Takes a connection, asks for one row, gives it back.
    pub(crate) async fn query_one(&self) -> Result<(), BoxError> {
        match self {
            Self::Tenantry(router, tenant) => {
                let client = router.get(tenant).await?;
                client.query_typed(QUERY, &[]).await?;
            }
            Self::Deadpool(pool) => {
                let client = pool.get().await?;
                client.query_typed(QUERY, &[]).await?;
            }
            Self::Sqlx(pool) => {
                sqlx::query(QUERY).fetch_one(pool).await?;
            }
        }
        Ok(())
    }

    /// Has at least `count` connections open and idle.
    pub(crate) async fn open(&self, count: u16) -> Result<(), BoxError> {
        let each = 0..count;
        match self {
            Self::Tenantry(router, tenant) => {
                drop(try_join_all(each.map(|_| router.get(tenant))).await?);
            }
            Self::Deadpool(pool) => drop(try_join_all(each.map(|_| pool.get())).await?),
            Self::Sqlx(pool) => {
                drop(try_join_all(each.map(|_| pool.acquire())).await?);
                // It takes them back in tasks.
                until(|| pool.num_idle() >= usize::from(count)).await?;
            }
        }
        Ok(())
    }

    /// Closes the `count` connections that are open and idle.
    pub(crate) async fn close(&self, count: u16) -> Result<(), BoxError> {
        match self {
            Self::Tenantry(router, tenant) => {
                router.evict(tenant);
                until(|| router.status().connections == 0).await?;
            }
            Self::Deadpool(pool) => drop(pool.retain(|_, _| false)),
            Self::Sqlx(pool) => {
                for connection in try_join_all((0..count).map(|_| pool.acquire())).await? {
                    connection.close().await?;
                }
            }
        }
        Ok(())
    }

    /// Waits until it has seen all its connections close: what is compared is the wake. sqlx looks only when it needs
    /// one. A router has to have no other tenants.
    pub(crate) async fn wait_until_closed(&self) -> Result<(), BoxError> {
        match self {
            Self::Tenantry(router, _) => until(|| router.status().connections == 0).await,
            Self::Deadpool(pool) => until(|| all_closed(pool)).await,
            Self::Sqlx(_) => Ok(()),
        }
    }
}

/// Looks at the idle connections of a pool and leaves them there.
fn all_closed(pool: &Pool) -> bool {
    let mut open = 0;
    pool.retain(|client, _| {
        open += usize::from(!client.is_closed());
        true
    });
    open == 0
}

/// A router for tenants that have the ids of their endpoints.
pub(crate) fn router(
    service: &NeonService,
    tenants: HashMap<TenantId, Endpoint>,
    pool_size: u16,
) -> Result<TenantRouter, BoxError> {
    let lookup = move |tenant: TenantId| {
        let endpoint = tenants.get(&tenant).cloned();
        async move { Ok(endpoint) }
    };
    let router = TenantRouter::builder(lookup).pool_size(pool_size.into());
    Ok(service.router(router)?.build()?)
}
