//! The end of a router, gently and at once.

use std::time::Duration;

use tenantry::{ErrorKind, TenantRouter};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::support::{Backend, Gate, Projects, Step, place_of};

const SECOND: Duration = Duration::from_secs(1);

/// A router with one connection of a tenant that is held, one that lies idle, and a caller who waits for a wake of 2
/// seconds.
async fn scene() -> (
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
            Ok(place_of(&client).await)
        }
    });
    backend.until_waiting(Step::Login).await;
    (backend, router, held, caller)
}

#[tokio::test(start_paused = true)]
async fn who_is_at_it_finishes_and_nobody_new_begins() {
    let (backend, router, held, caller) = scene().await;
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
    assert_eq!(place_of(&held).await, "held");
    drop(held);
    assert_eq!(caller.await.unwrap().unwrap(), "waiting");
    assert!(closing.await.unwrap());
    assert_eq!(began.elapsed().as_secs(), 3, "as long as the last one took");
    backend.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn when_the_time_is_over_who_still_waits_hears_so() {
    let (backend, router, held, caller) = scene().await;
    let began = Instant::now();
    assert!(!router.close_within(SECOND).await);
    assert_eq!(began.elapsed().as_secs(), 1);
    assert_eq!(caller.await.unwrap(), Err(ErrorKind::Closed));
    assert_eq!(place_of(&held).await, "held", "what is held stays");
    drop(held);
    backend.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_router_that_nobody_uses_ends_at_once() {
    let router = Backend::default().router().build().unwrap();
    drop(router.get("acme").await.unwrap());
    let began = Instant::now();
    assert!(router.close_within(30 * SECOND).await);
    assert!(began.elapsed() < SECOND);
    assert!(router.close_within(Duration::MAX).await, "and once more");
}

#[tokio::test(start_paused = true)]
async fn what_the_fleet_is_at_ends_and_nothing_new_is_begun() {
    let backend = Backend::default();
    let router = Projects::router(&backend).build().unwrap();
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
async fn a_close_that_nobody_waits_for_keeps_nothing_open_that_comes_back() {
    let (backend, router, held, caller) = scene().await;
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
