//! Tenants with an idle connection: the cost of `get`, and that tenants in use stay in the cache.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tenantry::{TenantHandle, TenantRouter};
use tokio::time::advance;

use crate::support::Backend;

/// Too many for the cache to record each use.
const POOLS: u64 = 256;
const SECOND: Duration = Duration::from_secs(1);

/// A way to use one tenant, which must not wait.
type Use = Box<dyn Fn()>;

/// Both ways to use the tenant `hot`: by its id, and by a handle.
async fn ways_to_get(router: &TenantRouter) -> [(&'static str, Use); 2] {
    drop(router.get("hot").await.unwrap());
    let hot: Arc<TenantHandle> = Arc::new(router.handle("hot").unwrap());
    drop(hot.get().await.unwrap());
    let router = router.clone();
    let by_id = move || drop(router.get("hot").now_or_never().expect("at hand").unwrap());
    let by_handle = move || drop(hot.get().now_or_never().expect("at hand").unwrap());
    [("id", Box::new(by_id)), ("handle", Box::new(by_handle))]
}

#[tokio::test(start_paused = true)]
async fn a_get_with_a_connection_at_hand_allocates_nothing() {
    let router = Backend::default().router().build().unwrap();
    for (name, get_once) in ways_to_get(&router).await {
        let counted = allocation_counter::measure(|| (0..1000).for_each(|_| get_once()));
        assert_eq!(counted.count_total, 0, "by {name}");
    }
    assert_eq!(router.status().gets_warm, 2001);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_used_all_the_time_outlives_a_flood_of_new_ones() {
    for way in [0, 1] {
        let backend = Backend::default();
        let router = backend.router().max_pools(POOLS).build().unwrap();
        let ways = ways_to_get(&router).await;
        let (name, get_once) = &ways[way];
        for tenant in 0..8 * POOLS {
            drop(router.get(&format!("new-{tenant}")).await.unwrap());
            get_once();
        }
        assert_eq!(backend.counts().opened["hot"], 1, "by {name}");
        assert!(router.status().evicted > 6 * POOLS, "by {name}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_oldest_tenant_is_not_evicted_first_if_it_is_used_most() {
    for way in [0, 1] {
        let backend = Backend::default();
        let router = backend.router().max_pools(POOLS).build().unwrap();
        let ways = ways_to_get(&router).await;
        let (name, get_once) = &ways[way];
        let others: Vec<_> = (1..POOLS).map(|tenant| format!("old-{tenant}")).collect();
        for round in 0..2 {
            // While nothing changes, each is used; the one that matters before the others.
            for tenant in &others {
                get_once();
                drop(router.get(tenant).await.unwrap());
            }
            advance(2 * SECOND).await;
            assert_eq!(router.status().pools, POOLS, "{round}");
        }
        get_once();
        for tenant in 0..POOLS - 1 {
            drop(router.get(&format!("new-{tenant}")).await.unwrap());
        }
        get_once();
        assert_eq!(backend.counts().opened["hot"], 1, "by {name}");
        assert_eq!(router.status().pools, POOLS);
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_cache_evicts_the_least_recently_used_tenant() {
    let backend = Backend::default();
    let router = backend.router().max_pools(3).build().unwrap();
    for tenant in ["a", "b", "c", "a", "b", "c", "b", "a"] {
        drop(router.get(tenant).await.unwrap());
    }
    drop(router.get("d").await.unwrap());
    for tenant in ["a", "b", "d"] {
        drop(router.get(tenant).now_or_never().expect(tenant).unwrap());
    }
    assert!(router.get("c").now_or_never().is_none(), "it has left");
}
