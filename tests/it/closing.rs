//! The end of a router, gently and at once.

use std::time::Duration;

use tenantry::{ErrorKind, TenantRouter};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

use crate::support::{Backend, FakeControlPlane, Gate, Step, current_database, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// A router with one connection of a tenant that is held, one that lies idle, and a caller who waits for a wake of 2
/// seconds.
async fn busy_router() -> (
    Backend,
    TenantRouter,
    tenantry::TenantClient,
    JoinHandle<Result<String, ErrorKind>>,
) {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    let held = router.get("held").await.unwrap();
    drop(router.get("idle").await.unwrap());
    backend.set(Step::Login, Gate::Slow(2 * SECOND));
    let caller = tokio::spawn({
        let router = router.clone();
        async move {
            let client = router.get("waiting").await;
            let client = client.map_err(|err| err.kind())?;
            sleep(SECOND).await;
            Ok(current_database(&client).await)
        }
    });
    backend.until_waiting(Step::Login).await;
    (backend, router, held, caller)
}

#[tokio::test(start_paused = true)]
async fn running_calls_finish_and_new_calls_are_refused() {
    let (backend, router, held, caller) = busy_router().await;
    let handle = router.handle("idle").unwrap();
    assert!(router.is_ready());
    let began = Instant::now();
    let closing = tokio::spawn({
        let router = router.clone();
        async move { router.close_within(30 * SECOND).await }
    });
    sleep(SECOND).await;
    assert!(!router.is_ready());
    assert_eq!(backend.counts().open, 2, "what was idle is closed");
    for refused in [
        router.get("idle").await.err(),
        handle.get().await.err(),
        router.direct("idle").await.err(),
        router.warm("idle").wait().await.err(),
    ] {
        assert_eq!(refused.unwrap().kind(), ErrorKind::Closed);
    }
    assert!(!router.hint("idle"));
    assert_eq!(current_database(&held).await, "held");
    drop(held);
    assert_eq!(caller.await.unwrap().unwrap(), "waiting");
    assert!(closing.await.unwrap());
    assert_eq!(began.elapsed().as_secs(), 3, "as long as the last one took");
    backend.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn callers_that_still_wait_get_closed_when_the_time_is_over() {
    let (backend, router, held, caller) = busy_router().await;
    let began = Instant::now();
    assert!(!router.close_within(SECOND).await);
    assert_eq!(began.elapsed().as_secs(), 1);
    assert_eq!(caller.await.unwrap(), Err(ErrorKind::Closed));
    assert_eq!(current_database(&held).await, "held", "what is held stays");
    drop(held);
    backend.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_router_closes_at_once() {
    let router = Backend::default().router().build().unwrap();
    drop(router.get("acme").await.unwrap());
    let began = Instant::now();
    assert!(router.close_within(30 * SECOND).await);
    assert!(began.elapsed() < SECOND);
    assert!(router.close_within(Duration::MAX).await, "and once more");
}

#[tokio::test(start_paused = true)]
async fn a_running_fleet_call_finishes_and_new_ones_are_refused() {
    let backend = Backend::default();
    let router = FakeControlPlane::router(&backend).build().unwrap();
    let fleet = router.fleet().unwrap();
    backend.set(Step::Create, Gate::Slow(3 * SECOND));
    let provisioning = tokio::spawn({
        let fleet = fleet.clone();
        async move { fleet.provision("acme").await }
    });
    backend.until_waiting(Step::Create).await;
    let closing = tokio::spawn({
        let router = router.clone();
        async move { router.close_within(30 * SECOND).await }
    });
    sleep(SECOND).await;
    let refused = fleet.provision("late").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
    let refused = fleet.record("acme").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
    provisioning.await.unwrap().unwrap();
    assert!(closing.await.unwrap());
    assert_eq!(backend.counts().created, 1);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_close_still_closes_connections_that_come_back() {
    let (backend, router, held, caller) = busy_router().await;
    // One whose pool comes into the cache only after all were dropped from there.
    backend.set(Step::Lookup, Gate::Slow(SECOND));
    let late = tokio::spawn({
        let router = router.clone();
        async move { router.get("late").await.map(drop) }
    });
    backend.until_waiting(Step::Lookup).await;
    drop(tokio::time::timeout(SECOND / 2, router.close_within(30 * SECOND)).await);
    assert_eq!(caller.await.unwrap().unwrap(), "waiting");
    late.await.unwrap().unwrap();
    drop(held);
    sleep(SECOND).await;
    assert_eq!(backend.counts().open, 0);
}

#[tokio::test(start_paused = true)]
async fn callers_that_wait_for_a_lent_connection_of_any_tenant_get_closed_at_once() {
    const TENANTS: usize = 20;
    const CALLERS: usize = 5;
    let backend = Backend::default();
    let router = backend.router().pool_size(1).build().unwrap();
    let (mut held, mut callers) = (Vec::new(), JoinSet::new());
    for tenant in (0..TENANTS).map(|n| format!("tenant-{n}")) {
        held.push(router.get(&tenant).await.unwrap());
        for _ in 0..CALLERS {
            let (router, tenant) = (router.clone(), tenant.clone());
            callers.spawn(async move { router.get(&tenant).await.map(drop) });
        }
    }
    let all = (TENANTS * CALLERS) as u64;
    eventually("all wait", || router.status().waiting == all).await;
    let began = Instant::now();
    let closing = tokio::spawn({
        let router = router.clone();
        async move { router.close().await }
    });
    while let Some(ended) = callers.join_next().await {
        assert_eq!(ended.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(router.status().waiting, 0);
    drop(held);
    closing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_comes_back_as_the_router_closes_serves_no_caller() {
    let backend = Backend::default();
    let router = backend.router().pool_size(1).build().unwrap();
    let held = router.get("acme").await.unwrap();
    let caller = tokio::spawn({
        let router = router.clone();
        async move { router.get("acme").await.map(drop) }
    });
    eventually("it waits", || router.status().waiting == 1).await;
    drop(held); // hands the connection over; the caller does not run before the router is closed
    router.close().await;
    let err = caller.await.unwrap().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Closed);
    backend.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_whose_connection_is_being_checked_gets_closed_at_once() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    drop(router.get("acme").await.unwrap());
    sleep(31 * SECOND).await; // so that the server is asked whether it lives
    backend.set(Step::Verify, Gate::Stuck);
    let caller = tokio::spawn({
        let router = router.clone();
        async move { router.get("acme").await.map(drop) }
    });
    backend.until_waiting(Step::Verify).await;
    let began = Instant::now();
    let closing = tokio::spawn(async move { router.close().await });
    let err = caller.await.unwrap().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Closed);
    assert_eq!(began.elapsed(), Duration::ZERO);
    closing.await.unwrap();
}
