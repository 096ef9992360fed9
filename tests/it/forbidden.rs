//! A tenant that may not be used any more, while callers wait for its database: none of them gets it.

use std::time::Duration;

use tenantry::{Endpoint, Error, ErrorKind, TenantClient, TenantRouter, catalog::State};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::support::{
    Backend, ENDPOINT_NOT_FOUND, Failure, FakeCatalog, FakeControlPlane, Gate, Step,
    served_database, without_spinning,
};

const SECOND: Duration = Duration::from_secs(1);
/// Enough for all that takes no time.
const MOMENT: Duration = Duration::from_millis(1);
/// Time in which the router follows a change: twice the time between two questions for changes.
const FOLLOWED: Duration = Duration::from_millis(101);
/// A failure that passes, as Neon's proxy tells it.
const NOT_UP: Gate = Gate::Fail(Failure::Error {
    code: "XX000",
    text: "Couldn't connect to compute node",
});

/// A router that serves one tenant, whose database then falls asleep.
async fn sleeping_tenant() -> (Backend, FakeCatalog, TenantRouter) {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    catalog.publish("acme", "acme").await;
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let router = backend.configure(TenantRouter::provisioning(provisioner));
    let router = router.build().unwrap();
    assert_eq!(served_database(&router, "acme").await.unwrap(), "acme");
    backend.suspend();
    sleep(MOMENT).await;
    (backend, catalog, router)
}

fn spawn_get(router: &TenantRouter) -> JoinHandle<Result<TenantClient, Error>> {
    let router = router.clone();
    tokio::spawn(async move { router.get("acme").await })
}

#[tokio::test(start_paused = true)]
async fn a_caller_behind_a_slow_wake_fails_as_soon_as_the_change_is_noticed() {
    for (state, kind) in [
        (State::Held, ErrorKind::Held),
        (State::Deleting, ErrorKind::Deleted),
    ] {
        let (backend, catalog, router) = sleeping_tenant().await;
        backend.set(Step::Login, Gate::Slow(8 * SECOND));
        let waiting = spawn_get(&router);
        sleep(SECOND).await;
        catalog.set_state("acme", state).await;
        let answer = timeout(SECOND, waiting).await.expect("told at once");
        assert_eq!(answer.unwrap().unwrap_err().kind(), kind);
        let logins = backend.counts().logins_done;
        sleep(60 * SECOND).await;
        assert_eq!(
            backend.counts().logins_done,
            logins,
            "the login is given up"
        );
        assert_eq!(router.status().connections, 0);
        assert_eq!(router.get("acme").await.unwrap_err().kind(), kind);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_behind_failing_logins_fails_and_no_more_logins_are_sent() {
    let (backend, catalog, router) = sleeping_tenant().await;
    backend.set(Step::Login, NOT_UP);
    let waiting = spawn_get(&router);
    sleep(SECOND).await;
    catalog.set_state("acme", State::Held).await;
    let answer = timeout(SECOND, waiting).await.expect("told at once");
    assert_eq!(answer.unwrap().unwrap_err().kind(), ErrorKind::Held);
    let logins = backend.counts().logins_started;
    sleep(60 * SECOND).await;
    assert_eq!(backend.counts().logins_started, logins);
    // What was refused is not remembered beyond the record that said so.
    backend.set(Step::Login, Gate::Open);
    catalog.set_state("acme", State::Ready).await;
    sleep(MOMENT).await;
    assert_eq!(served_database(&router, "acme").await.unwrap(), "acme");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_a_wake_met_ends_with_the_record_that_said_so() {
    for host in ["acme", "new"] {
        let (backend, catalog, router) = sleeping_tenant().await;
        // The router follows this change at once, and the next one 50 ms later: the wake reads the record first.
        catalog.set_max_connections("acme", Some(3)).await;
        sleep(MOMENT).await;
        catalog.set_state("acme", State::Held).await;
        backend.set(Step::Login, Gate::Fail(ENDPOINT_NOT_FOUND));
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Held);
        backend.set(Step::Login, Gate::Open);
        let moves = |endpoint: &mut Endpoint| *endpoint = Backend::endpoint(host);
        catalog.change_endpoint("acme", moves).await;
        catalog.set_state("acme", State::Ready).await;
        sleep(FOLLOWED).await;
        assert_eq!(served_database(&router, "acme").await.unwrap(), host);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_caller_fails_when_the_same_process_deletes_the_tenant() {
    let (backend, _ledger, router) = sleeping_tenant().await;
    backend.set(Step::Login, Gate::Slow(8 * SECOND));
    let waiting = spawn_get(&router);
    sleep(SECOND).await;
    let fleet = router.fleet().unwrap();
    let deletion = tokio::spawn(async move { fleet.delete("acme").await });
    let answer = timeout(SECOND, waiting).await.expect("told at once");
    assert_eq!(answer.unwrap().unwrap_err().kind(), ErrorKind::Deleted);
    deletion.await.unwrap().unwrap();
    sleep(60 * SECOND).await;
    assert_eq!(router.status().connections, 0);
}

#[tokio::test(start_paused = true)]
async fn neither_a_direct_connection_nor_a_warm_up_gets_a_tenant_that_is_held() {
    let (backend, catalog, router) = sleeping_tenant().await;
    backend.set(Step::Login, Gate::Slow(8 * SECOND));
    let direct = {
        let router = router.clone();
        tokio::spawn(async move { router.direct("acme").await.map(drop) })
    };
    let warm = router.warm("acme");
    sleep(SECOND).await;
    catalog.set_state("acme", State::Held).await;
    let answer = timeout(SECOND, async { (direct.await.unwrap(), warm.wait().await) });
    let (direct, warm) = answer.await.expect("told at once");
    assert_eq!(direct.unwrap_err().kind(), ErrorKind::Held);
    assert_eq!(warm.unwrap_err().kind(), ErrorKind::Held);
    sleep(60 * SECOND).await;
    assert_eq!(router.status().connections, 0);
}

#[test]
fn a_waiting_caller_gets_the_new_database_of_a_recreated_tenant_without_a_storm() {
    without_spinning(|| async {
        let (backend, catalog, router) = sleeping_tenant().await;
        backend.set(Step::Login, NOT_UP);
        backend.set(Step::Create, Gate::Slow(10 * SECOND));
        let waiting = spawn_get(&router);
        sleep(SECOND).await;
        let (logins, finds) = (backend.counts().logins_started, catalog.finds());
        for state in [State::Deleting, State::Deleted, State::Claimed] {
            catalog.set_state("acme", state).await;
        }
        sleep(5 * SECOND).await;
        let (logins, finds) = (
            backend.counts().logins_started - logins,
            catalog.finds() - finds,
        );
        assert!(logins <= 1, "{logins} logins to what is being created");
        assert!(finds <= 5, "{finds} reads in 5 s");
        backend.set(Step::Login, Gate::Open);
        let client = waiting.await.unwrap().unwrap();
        assert_eq!(client.tenant().as_str(), "acme");
        assert_eq!(backend.counts().created, 1);
    });
}

#[test]
fn a_record_that_stays_unfinished_is_read_now_and_then_and_not_dialed() {
    without_spinning(|| async {
        let (backend, catalog, router) = sleeping_tenant().await;
        backend.set(Step::Login, NOT_UP);
        let waiting = spawn_get(&router);
        sleep(SECOND).await;
        let (logins, finds) = (backend.counts().logins_started, catalog.finds());
        // Another replica works on it for as long as this takes.
        for state in [State::Deleting, State::Deleted, State::Claimed] {
            catalog.set_state("acme", state).await;
        }
        catalog.set_state_and_lease("acme", State::Creating).await;
        let answer = waiting.await.unwrap().unwrap_err();
        assert_eq!(answer.kind(), ErrorKind::Provisioning, "{answer}");
        let (logins, finds) = (
            backend.counts().logins_started - logins,
            catalog.finds() - finds,
        );
        assert!(logins <= 1, "{logins} logins");
        assert!(finds <= 60, "{finds} reads in 20 s");
    });
}

#[tokio::test(start_paused = true)]
async fn evictions_in_a_loop_do_not_disable_the_waits_between_logins() {
    let (backend, _ledger, router) = sleeping_tenant().await;
    backend.set(Step::Open, Gate::Slow(10 * MOMENT));
    backend.set(Step::Login, NOT_UP);
    let logins = backend.counts().logins_started;
    let waiting = spawn_get(&router);
    sleep(5 * MOMENT).await;
    for _ in 0..1000 {
        router.evict("acme");
        sleep(3 * MOMENT).await;
    }
    let logins = backend.counts().logins_started - logins;
    assert!(logins <= 12, "{logins} logins in 3 s");
    waiting.abort();
}
