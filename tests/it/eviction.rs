//! Pools that leave the cache.

use std::time::Duration;

use tenantry::{Endpoint, TenantRouter};

use crate::support::{Stage, eventually, run_on};

#[tokio::test]
async fn a_full_cache_keeps_a_new_tenant() {
    let stage = Stage::new().await;
    let router = stage.builder("test").max_pools(2).build().unwrap();
    for tenant in ["acme", "globex"] {
        for _ in 0..10 {
            drop(router.get(tenant).await.unwrap()); // popular, so that a frequency policy would keep them
        }
    }
    drop(router.get("initech").await.unwrap());
    let lookups = router.status().lookups;
    for _ in 0..5 {
        drop(router.get("initech").await.unwrap());
    }
    let status = router.status();
    assert_eq!((status.lookups, status.pools), (lookups, 2));
    eventually("the idle connection of the evicted tenant closes", || {
        stage.witness("acme").open_sessions == 0
    })
    .await;
}

#[tokio::test]
async fn eviction_never_closes_a_connection_under_its_user() {
    let stage = Stage::new().await;
    let router = stage.router();
    let client = router.get("acme").await.unwrap();
    assert!(router.evict("acme"));
    assert!(!router.evict("acme"));
    assert_eq!(run_on(&client, "SELECT 1").await, "1");
    drop(client);
    eventually("it is closed when it comes back", || {
        stage.witness("acme").open_sessions == 0
    })
    .await;
    assert_eq!(router.status().connections, 0);
}

#[tokio::test]
async fn a_tenant_that_comes_back_during_its_wake_joins_it() {
    let stage = Stage::with(|emulator| emulator.wake_delay(Duration::from_millis(300))).await;
    let router = stage.router();
    stage.asleep(&router, "acme").await;
    let before = stage.witness("acme").auth_attempts.len();
    let warm = router.warm("acme");
    eventually("the wake is under way", || {
        stage.witness("acme").auth_attempts.len() > before
    })
    .await;
    router.evict("acme");
    drop(router.get("acme").await.unwrap());
    warm.done().await.unwrap();
    assert_eq!(stage.witness("acme").wakes.len(), 2);
    assert_eq!(stage.witness("acme").auth_attempts.len(), before + 1);
}

#[tokio::test]
async fn after_eviction_a_moved_tenant_is_found_at_its_new_place() {
    let stage = Stage::new().await;
    let (old, new) = (stage.router(), stage.builder("elsewhere").build().unwrap());
    for (router, place) in [(&old, "old"), (&new, "new")] {
        run_on(
            &router.get("acme").await.unwrap(),
            &format!("CREATE TABLE t AS SELECT '{place}' AS place"),
        )
        .await;
    }
    let mut endpoints = Vec::new();
    for it in stage.emulator.witnesses() {
        let uri = stage
            .neon()
            .connection_uri(
                &it.project_id,
                &it.endpoint_id,
                "neondb",
                "neondb_owner",
                true,
            )
            .await;
        let config: tenantry::tokio_postgres::Config = uri.unwrap().expose().parse().unwrap();
        let password = String::from_utf8(config.get_password().unwrap().to_vec()).unwrap();
        let pooled = it.host.replacen('.', "-pooler.", 1);
        endpoints.push(Endpoint::neon(
            it.host,
            pooled,
            "neondb",
            "neondb_owner",
            password,
        ));
    }
    let moved = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let place = std::sync::Arc::clone(&moved);
    let router = stage.at(TenantRouter::builder(move |_| {
        let endpoint = endpoints[place.load(std::sync::atomic::Ordering::SeqCst)].clone();
        async move { Ok(Some(endpoint)) }
    }));
    let router = router.build().unwrap();
    assert_eq!(
        run_on(&router.get("acme").await.unwrap(), "SELECT place FROM t").await,
        "old"
    );
    moved.store(1, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(
        run_on(&router.get("acme").await.unwrap(), "SELECT place FROM t").await,
        "old"
    );
    router.evict("acme");
    assert_eq!(
        run_on(&router.get("acme").await.unwrap(), "SELECT place FROM t").await,
        "new"
    );
}
