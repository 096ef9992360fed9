//! Many callers on one sleeping tenant, and callers of other tenants at the same time.

use std::time::Duration;

use futures_util::future::join_all;
use tenantry::TenantRouter;
use tokio::time::timeout;

use crate::support::{LONG, TestEnv, eventually, query_text};

const CALLERS: usize = 1000;
const WAKE_DELAY: Duration = Duration::from_millis(350);

async fn slow_waking_env() -> (TestEnv, TenantRouter) {
    let env = TestEnv::with(|emulator| emulator.wake_delay(WAKE_DELAY)).await;
    let router = env.builder("test").pool_size(16).build().unwrap();
    (env, router)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_callers_are_served_by_one_wake_and_none_meets_an_error() {
    let (env, router) = slow_waking_env().await;
    env.create_suspended(&router, "acme").await;
    let before = env.witness("acme");
    let callers = (0..CALLERS).map(|_| {
        let router = router.clone();
        tokio::spawn(async move {
            let client = router.get("acme").await.unwrap();
            assert_eq!(query_text(&client, "SELECT 'row'").await, "row");
        })
    });
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    let after = env.witness("acme");
    let woken = after.wakes.last().unwrap();
    let new = &after.auth_attempts[before.auth_attempts.len()..];
    let asleep = new.iter().filter(|at| **at < woken.at + woken.took).count();
    assert_eq!(asleep, 1, "attempts until it was up");
    assert_eq!(after.wakes.len(), before.wakes.len() + 1);
    assert!(
        new.len() <= 16,
        "no more connections than the pool has: {}",
        new.len()
    );
    let status = router.status();
    assert_eq!(
        (status.gets_failed, status.wakes_by_request.started),
        (0, 2)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_callers_that_give_up_cost_one_wake_and_the_next_one_is_served() {
    let (env, router) = slow_waking_env().await;
    env.create_suspended(&router, "acme").await;
    // So long that all have given up by then, also on a busy machine.
    env.emulator.set_wake_delay(Duration::from_secs(3));
    let before = env.witness("acme");
    let callers = (0..CALLERS).map(|_| {
        let router = router.clone();
        tokio::spawn(async move {
            let got = timeout(Duration::from_millis(100), router.get("acme")).await;
            assert!(got.is_err(), "a wake takes longer");
        })
    });
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    eventually("it wakes though nobody waits", || router.status().idle > 0).await;
    let reused = router.status().gets_warm;
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT 'row'").await, "row");
    assert_eq!(
        router.status().gets_warm,
        reused + 1,
        "the connection waited for it"
    );
    let after = env.witness("acme");
    assert_eq!(after.wakes.len(), before.wakes.len() + 1);
    assert_eq!(after.auth_attempts.len(), before.auth_attempts.len() + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wake_that_hangs_delays_no_other_tenant() {
    let (env, router) = slow_waking_env().await;
    env.create_suspended(&router, "stuck").await;
    for tenant in 0..4 {
        drop(router.get(&format!("other-{tenant}")).await.unwrap());
    }
    env.emulator.set_wake_delay(LONG);
    let stuck: Vec<_> = (0..CALLERS)
        .map(|_| {
            let router = router.clone();
            tokio::spawn(async move { router.get("stuck").await.map(drop) })
        })
        .collect();
    eventually("they wait", || router.status().attempts == 1).await;
    let others = (0..100).map(|caller| {
        let router = router.clone();
        async move {
            let client = router.get(&format!("other-{}", caller % 4)).await.unwrap();
            query_text(&client, "SELECT 'row'").await
        }
    });
    let served = timeout(LONG / 2, join_all(others)).await;
    assert!(served.unwrap().iter().all(|row| row == "row"));
    assert_eq!(env.witness("stuck").wakes.len(), 1, "still asleep");
    router.close().await;
    for caller in stuck {
        assert!(caller.await.unwrap().is_err());
    }
}
