//! Pools that leave the cache.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tenantry::TenantRouter;
use tokio::sync::Notify;

use crate::support::{TestEnv, eventually, query_text};

#[tokio::test]
async fn a_full_cache_keeps_a_new_tenant() {
    let env = TestEnv::new().await;
    let router = env.builder("test").max_pools(2).build().unwrap();
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
        env.witness("acme").open_sessions == 0
    })
    .await;
}

#[tokio::test]
async fn eviction_never_closes_a_connection_under_its_user() {
    let env = TestEnv::new().await;
    let router = env.router();
    let (client, other) = (
        router.get("acme").await.unwrap(),
        router.get("acme").await.unwrap(),
    );
    assert!(router.evict("acme"));
    assert!(!router.evict("acme"));
    assert_eq!(query_text(&client, "SELECT 1").await, "1");
    drop(client);
    eventually("it is closed when it comes back", || {
        env.witness("acme").open_sessions == 1
    })
    .await;
    assert_eq!(query_text(&other, "SELECT 1").await, "1");
    drop(other);
    eventually("so is the other", || router.status().connections == 0).await;
}

#[tokio::test]
async fn a_tenant_that_comes_back_during_its_wake_joins_it() {
    let env = TestEnv::with(|emulator| emulator.wake_delay(Duration::from_millis(300))).await;
    let router = env.router();
    env.create_suspended(&router, "acme").await;
    let before = env.witness("acme").auth_attempts.len();
    let warm = router.warm("acme");
    eventually("the wake is under way", || {
        env.witness("acme").auth_attempts.len() > before
    })
    .await;
    router.evict("acme");
    drop(router.get("acme").await.unwrap());
    warm.wait().await.unwrap();
    assert_eq!(env.witness("acme").wakes.len(), 2);
    assert_eq!(env.witness("acme").auth_attempts.len(), before + 1);
}

#[tokio::test]
async fn after_eviction_a_moved_tenant_is_found_at_its_new_place() {
    let env = TestEnv::new().await;
    let (old, new) = (env.router(), env.builder("elsewhere").build().unwrap());
    for (router, place) in [(&old, "old"), (&new, "new")] {
        query_text(
            &router.get("acme").await.unwrap(),
            &format!("CREATE TABLE t AS SELECT '{place}' AS place"),
        )
        .await;
    }
    let mut endpoints = Vec::new();
    for it in env.emulator.witnesses() {
        endpoints.push(env.endpoint(&it).await);
    }
    let moved = Arc::new(AtomicUsize::new(0));
    let place = Arc::clone(&moved);
    let router = env.configure(TenantRouter::builder(move |_| {
        let endpoint = endpoints[place.load(SeqCst)].clone();
        async move { Ok(Some(endpoint)) }
    }));
    let router = router.build().unwrap();
    assert_eq!(
        query_text(&router.get("acme").await.unwrap(), "SELECT place FROM t").await,
        "old"
    );
    moved.store(1, SeqCst);
    assert_eq!(
        query_text(&router.get("acme").await.unwrap(), "SELECT place FROM t").await,
        "old"
    );
    router.evict("acme");
    assert_eq!(
        query_text(&router.get("acme").await.unwrap(), "SELECT place FROM t").await,
        "new"
    );
}

#[tokio::test]
async fn an_eviction_during_a_look_up_makes_it_look_again() {
    let env = TestEnv::new().await;
    drop(env.router().get("acme").await.unwrap());
    let right = env.endpoint(&env.witness("acme")).await;
    let mut rotated = right.clone();
    rotated.password = "the old one".into();

    // The first look-up reads the old password and takes its time.
    let (begun, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (entered, wait) = (Arc::clone(&begun), Arc::clone(&release));
    let asked = Arc::new(AtomicUsize::new(0));
    let router = env.configure(TenantRouter::builder(move |_| {
        let first = asked.fetch_add(1, SeqCst) == 0;
        let endpoint = if first {
            rotated.clone()
        } else {
            right.clone()
        };
        let (entered, wait) = (Arc::clone(&entered), Arc::clone(&wait));
        async move {
            if first {
                entered.notify_one();
                wait.notified().await;
            }
            Ok(Some(endpoint))
        }
    }));
    let router = router.build().unwrap();
    let call = tokio::spawn({
        let router = router.clone();
        async move { router.get("acme").await.map(drop) }
    });
    begun.notified().await;
    router.evict("acme"); // the application has stored the new password
    release.notify_one();
    call.await.unwrap().unwrap();
    assert_eq!(router.status().lookups, 2);
}
