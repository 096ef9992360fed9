//! A tenant with a connection at hand: what `get` costs, and that whoever is used stays.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tenantry::{TenantHandle, TenantRouter};
use tokio::time::advance;

use crate::support::Backend;

/// More than so few that the cache hears of each use.
const POOLS: u64 = 256;
const SECOND: Duration = Duration::from_secs(1);

/// A way to use one tenant, which must not wait.
type Use = Box<dyn Fn()>;

/// Both ways to use the tenant `hot`: by its id, and by a handle.
async fn ways(router: &TenantRouter) -> [(&'static str, Use); 2] {
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
    for (name, once) in ways(&router).await {
        let counted = allocation_counter::measure(|| (0..1000).for_each(|_| once()));
        assert_eq!(counted.count_total, 0, "by {name}");
    }
    assert_eq!(router.status().gets_warm, 2001);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_used_all_the_time_outlives_a_flood_of_new_ones() {
    for way in [0, 1] {
        let backend = Backend::default();
        let router = backend.router().max_pools(POOLS).build().unwrap();
        let ways = ways(&router).await;
        let (name, once) = &ways[way];
        for tenant in 0..8 * POOLS {
            drop(router.get(&format!("new-{tenant}")).await.unwrap());
            once();
        }
        assert_eq!(backend.counts().opened["hot"], 1, "by {name}");
        assert!(router.status().evicted > 6 * POOLS, "by {name}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_was_used_first_of_all_and_then_most_is_not_the_first_to_leave() {
    for way in [0, 1] {
        let backend = Backend::default();
        let router = backend.router().max_pools(POOLS).build().unwrap();
        let ways = ways(&router).await;
        let (name, once) = &ways[way];
        let others: Vec<_> = (1..POOLS).map(|tenant| format!("old-{tenant}")).collect();
        for round in 0..2 {
            // While nothing changes, each is used; the one that matters before the others.
            for tenant in &others {
                once();
                drop(router.get(tenant).await.unwrap());
            }
            advance(2 * SECOND).await;
            assert_eq!(router.status().pools, POOLS, "{round}");
        }
        once();
        for tenant in 0..POOLS - 1 {
            drop(router.get(&format!("new-{tenant}")).await.unwrap());
        }
        once();
        assert_eq!(backend.counts().opened["hot"], 1, "by {name}");
        assert_eq!(router.status().pools, POOLS);
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_few_tenants_the_one_used_least_recently_leaves() {
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
