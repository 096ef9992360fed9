//! Guesses that a tenant will be wanted, and what a wake counts for.

use std::time::Duration;

use futures_util::future::try_join_all;
use tenantry::{TenantRouter, WakeCount};
use tokio::time::sleep;

use super::support::{Backend, Failure, FakeControlPlane, Gate, Step, eventually, query_text};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DISABLED: Failure = Failure::Error {
    code: "XX000",
    text: "The endpoint has been disabled. Enable it using Neon API and retry.",
};
const CURRENT_DATABASE: &str = "SELECT current_database()";

fn router_with_hint_budget(per_minute: usize) -> (Backend, TenantRouter) {
    let backend = Backend::default();
    let router = backend.router().hints_per_minute(per_minute);
    (backend, router.build().unwrap())
}

/// Waits until a wake of `tenant` that is under way has ended.
async fn wait_until_awake(router: &TenantRouter) {
    // Until it has begun.
    sleep(Duration::from_millis(1)).await;
    eventually("it is awake", || router.status().attempts == 0).await;
}

fn hint_wakes(router: &TenantRouter) -> u64 {
    router.status().wakes_by_hint.started
}

#[tokio::test(start_paused = true)]
async fn a_hint_wakes_a_tenant_that_sleeps_and_the_next_caller_need_not_wait() {
    let (backend, router) = router_with_hint_budget(1);
    backend.set(Step::Login, Gate::Slow(SECOND));
    assert!(router.hint("acme"));
    sleep(2 * SECOND).await;
    backend.set(Step::Login, Gate::Stuck);
    assert_eq!(
        query_text(&router.get("acme").await.unwrap(), CURRENT_DATABASE).await,
        "acme"
    );
    let status = router.status();
    assert_eq!(
        (hint_wakes(&router), status.wakes_by_request.started),
        (1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn hints_and_warm_ups_open_no_connections_beyond_the_one_that_wakes() {
    let (backend, router) = router_with_hint_budget(1);
    backend.set(Step::Login, Gate::Slow(SECOND));
    assert!(router.hint("acme"));
    let warm = router.warm("acme");
    sleep(SECOND / 2).await; // all of them wait, in whatever order they came
    let another = router.warm("acme");
    let caller = router.get("acme").await.unwrap();
    warm.wait().await.unwrap();
    assert_eq!(query_text(&caller, CURRENT_DATABASE).await, "acme");
    drop(caller);
    another.wait().await.unwrap();
    let _caller = router.get("acme").await.unwrap();
    sleep(10 * SECOND).await;
    assert_eq!(backend.counts().opened["acme"], 1);
    let another = router.get("acme").await.unwrap();
    assert_eq!(
        query_text(&another, CURRENT_DATABASE).await,
        "acme",
        "and nothing is kept from others"
    );
    assert_eq!(backend.counts().opened["acme"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_hint_of_a_tenant_that_is_awake_or_waking_does_nothing_and_costs_nothing() {
    let (backend, router) = router_with_hint_budget(1);
    drop(router.get("acme").await.unwrap());
    let held = router.get("globex").await.unwrap();
    backend.set(Step::Login, Gate::Stuck);
    let waking = router.warm("initech");
    backend.until_waiting(Step::Login).await;
    let before = backend.counts();
    for tenant in ["acme", "globex", "initech"] {
        assert!(!router.hint(tenant), "{tenant}");
    }
    sleep(SECOND).await;
    let after = backend.counts();
    assert_eq!(after.reached(Step::Open), before.reached(Step::Open));
    assert!(after.queries.is_empty());
    assert_eq!((hint_wakes(&router), router.status().hints_ignored), (0, 0));
    backend.set(Step::Login, Gate::Open);
    waking.wait().await.unwrap();
    drop(held);
    assert!(router.hint("umbrella"), "the budget is whole");
}

#[tokio::test(start_paused = true)]
async fn a_hint_after_the_compute_fell_asleep_wakes_it_again() {
    let (backend, router) = router_with_hint_budget(1);
    drop(router.get("acme").await.unwrap());
    backend.suspend();
    backend.until_empty().await;
    sleep(SECOND).await;
    assert!(router.hint("acme"));
    wait_until_awake(&router).await;
    assert_eq!((hint_wakes(&router), backend.counts().open), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn needless_wakes_by_hint_stay_within_the_budget_of_a_minute() {
    let (backend, router) = router_with_hint_budget(3);
    let hints = (0..10).filter(|n| router.hint(&format!("tenant-{n}")));
    assert_eq!(hints.count(), 3);
    wait_until_awake(&router).await;
    assert_eq!((hint_wakes(&router), router.status().hints_ignored), (3, 7));
    assert_eq!(backend.counts().logins_done, 3);
    sleep(59 * SECOND).await;
    assert!(!router.hint("tenant-3"));
    sleep(SECOND).await;
    let hints = (10..20).filter(|n| router.hint(&format!("tenant-{n}")));
    assert_eq!(hints.count(), 3);
    wait_until_awake(&router).await;
    assert_eq!(
        (hint_wakes(&router), router.status().hints_ignored),
        (6, 15)
    );
}

#[tokio::test(start_paused = true)]
async fn a_hint_that_was_right_gives_its_place_back() {
    let (backend, router) = router_with_hint_budget(1);
    for n in 0..20 {
        let tenant = format!("tenant-{n}");
        assert!(router.hint(&tenant), "{tenant}");
        // By a caller who comes after the wake, and by one who comes into it.
        if n % 2 == 0 {
            wait_until_awake(&router).await;
        } else {
            backend.set(Step::Login, Gate::Slow(SECOND));
            backend.until_waiting(Step::Login).await;
        }
        let client = router.get(&tenant).await.unwrap();
        assert_eq!(query_text(&client, CURRENT_DATABASE).await, tenant);
        backend.set(Step::Login, Gate::Open);
    }
    let status = router.status();
    assert_eq!((hint_wakes(&router), status.hints_ignored), (20, 0));
    // Once each: the second use gives nothing.
    drop(router.get("tenant-0").await.unwrap());
    assert!(router.hint("acme"));
    wait_until_awake(&router).await;
    assert!(!router.hint("globex"));
}

#[tokio::test(start_paused = true)]
async fn several_hints_of_one_tenant_cost_one() {
    let (_backend, router) = router_with_hint_budget(2);
    for _ in 0..2 {
        router.hint("acme");
    }
    wait_until_awake(&router).await;
    assert!(router.hint("globex"));
    wait_until_awake(&router).await;
    assert_eq!(hint_wakes(&router), 2);
    assert!(!router.hint("initech"));
}

#[tokio::test(start_paused = true)]
async fn hints_of_an_unreachable_tenant_cost_one() {
    let (backend, router) = router_with_hint_budget(2);
    backend.set(Step::Login, Gate::Fail(DISABLED));
    for _ in 0..5 {
        router.hint("acme");
        wait_until_awake(&router).await;
    }
    backend.set(Step::Login, Gate::Open);
    assert!(router.hint("globex"));
    wait_until_awake(&router).await;
    let status = router.status();
    assert_eq!(
        (hint_wakes(&router), status.wakes_by_hint.succeeded),
        (2, 1)
    );
    assert_eq!(status.hints_ignored, 0);
}

#[tokio::test(start_paused = true)]
async fn a_hint_of_an_unknown_tenant_creates_nothing() {
    let backend = Backend::default();
    let router = FakeControlPlane::router(&backend).build().unwrap();
    router.hint("acme");
    router.hint("");
    sleep(MINUTE).await;
    let counts = backend.counts();
    assert_eq!((counts.created, counts.reached(Step::Open)), (0, 0));
    let status = router.status();
    assert_eq!(
        (status.pools, status.lookups, hint_wakes(&router)),
        (0, 1, 0)
    );
    drop(router.get("acme").await.unwrap());
    assert_eq!(backend.counts().created, 1);
}

#[tokio::test(start_paused = true)]
async fn hints_can_be_turned_off() {
    let (backend, router) = router_with_hint_budget(0);
    assert!(!router.hint("acme"));
    sleep(MINUTE).await;
    assert_eq!(backend.counts().reached(Step::Open), 0);
    let status = router.status();
    assert_eq!((status.hints_ignored, status.lookups), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn each_wake_is_counted_with_its_reason_and_its_time() {
    let (backend, router) = router_with_hint_budget(10);
    backend.set(Step::Login, Gate::Slow(3 * SECOND));
    let count = |started, succeeded: u32| {
        let mut count = WakeCount::default();
        (count.started, count.succeeded) = (started, succeeded.into());
        count.total_time = succeeded * 3 * SECOND;
        count
    };
    let callers = (0..4).map(|_| router.get("acme"));
    drop(try_join_all(callers).await.unwrap());
    let ok = |_| async { Ok::<_, tenantry::Error>(()) };
    router.read("globex", ok).await.unwrap();
    router.transaction("initech", ok).await.unwrap();
    drop(router.direct("umbrella").await.unwrap());
    router.warm("hooli").wait().await.unwrap();
    router.warm("acme").wait().await.unwrap(); // which is awake
    router.hint("soylent");
    sleep(4 * SECOND).await;
    let status = router.status();
    assert_eq!(status.wakes_by_request, count(4, 4));
    assert_eq!(status.wakes_by_warm, count(1, 1));
    assert_eq!(status.wakes_by_hint, count(1, 1));

    backend.set(Step::Login, Gate::Fail(DISABLED));
    router.get("cyberdyne").await.unwrap_err();
    assert_eq!(router.status().wakes_by_request, count(5, 4));
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_is_answered_by_an_open_connection_if_no_other_may_be_opened() {
    let backend = Backend::default();
    let router = backend.router().pool_size(1).build().unwrap();
    drop(router.get("acme").await.unwrap());
    // A direct connection that the server ends says that the compute may be asleep; the idle one says nothing.
    let direct = router.direct("acme").await.unwrap();
    backend.set(Step::Query, Gate::Fail(Failure::Cut));
    drop(direct.simple_query("SELECT 1").await);
    sleep(SECOND).await;
    backend.set(Step::Query, Gate::Open);
    backend.set(Step::Login, Gate::Stuck);
    let warm = tokio::time::timeout(SECOND, router.warm("acme").wait());
    warm.await.expect("it need not wait").unwrap();
    assert!(!router.hint("acme"), "nor is there anything to guess");
    assert_eq!(router.status().gets_failed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_of_an_awake_tenant_does_not_wait() {
    let backend = Backend::default();
    let router = backend.router().pool_size(1).build().unwrap();
    let _held = router.get("acme").await.unwrap();
    let before = router.status();
    let warm = tokio::time::timeout(SECOND, router.warm("acme").wait());
    warm.await.expect("it need not wait").unwrap();
    assert_eq!(router.status().gets_reopened, before.gets_reopened);
}
