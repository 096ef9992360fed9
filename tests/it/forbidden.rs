//! A tenant that may not be used any more, while callers wait for its database: none of them gets it.

use std::time::Duration;

use tenantry::{Error, ErrorKind, TenantClient, TenantRouter, catalog::State};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::support::{Backend, Failure, Gate, Ledger, Projects, Step, place, without_spinning};

const SECOND: Duration = Duration::from_secs(1);
/// Enough for all that takes no time.
const MOMENT: Duration = Duration::from_millis(1);
/// A failure that passes, as Neon's proxy tells it.
const NOT_UP: Gate = Gate::Fail(Failure::Error {
    code: "XX000",
    text: "Couldn't connect to compute node",
});

/// A router that serves one tenant, whose database then falls asleep.
async fn asleep() -> (Backend, Ledger, TenantRouter) {
    let (backend, ledger) = (Backend::default(), Ledger::new());
    ledger.publish("acme", "acme").await;
    let provisioner = Projects::provisioner(&backend, ledger.clone());
    let router = backend.at(TenantRouter::provisioning(provisioner));
    let router = router.build().unwrap();
    assert_eq!(place(&router, "acme").await.unwrap(), "acme");
    backend.suspend();
    sleep(MOMENT).await;
    (backend, ledger, router)
}

fn caller(router: &TenantRouter) -> JoinHandle<Result<TenantClient, Error>> {
    let router = router.clone();
    tokio::spawn(async move { router.get("acme").await })
}

#[tokio::test(start_paused = true)]
async fn who_waits_behind_a_slow_wake_is_told_as_soon_as_it_is_heard() {
    for (state, kind) in [
        (State::Held, ErrorKind::Held),
        (State::Deleting, ErrorKind::Deleted),
    ] {
        let (backend, ledger, router) = asleep().await;
        backend.set(Step::Login, Gate::Slow(8 * SECOND));
        let waiting = caller(&router);
        sleep(SECOND).await;
        ledger.turn("acme", state).await;
        let told = timeout(SECOND, waiting).await.expect("told at once");
        assert_eq!(told.unwrap().unwrap_err().kind(), kind);
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
async fn who_waits_behind_logins_that_fail_is_told_and_no_more_are_sent() {
    let (backend, ledger, router) = asleep().await;
    backend.set(Step::Login, NOT_UP);
    let waiting = caller(&router);
    sleep(SECOND).await;
    ledger.turn("acme", State::Held).await;
    let told = timeout(SECOND, waiting).await.expect("told at once");
    assert_eq!(told.unwrap().unwrap_err().kind(), ErrorKind::Held);
    let logins = backend.counts().logins_started;
    sleep(60 * SECOND).await;
    assert_eq!(backend.counts().logins_started, logins);
    // What was refused is not remembered beyond the record that said so.
    backend.set(Step::Login, Gate::Open);
    ledger.turn("acme", State::Ready).await;
    sleep(MOMENT).await;
    assert_eq!(place(&router, "acme").await.unwrap(), "acme");
}

#[tokio::test(start_paused = true)]
async fn who_waits_while_the_same_process_deletes_the_tenant_is_told() {
    let (backend, _ledger, router) = asleep().await;
    backend.set(Step::Login, Gate::Slow(8 * SECOND));
    let waiting = caller(&router);
    sleep(SECOND).await;
    let fleet = router.fleet().unwrap();
    let deletion = tokio::spawn(async move { fleet.delete("acme").await });
    let told = timeout(SECOND, waiting).await.expect("told at once");
    assert_eq!(told.unwrap().unwrap_err().kind(), ErrorKind::Deleted);
    deletion.await.unwrap().unwrap();
    sleep(60 * SECOND).await;
    assert_eq!(router.status().connections, 0);
}

#[tokio::test(start_paused = true)]
async fn neither_a_direct_connection_nor_a_warm_up_gets_a_tenant_that_is_held() {
    let (backend, ledger, router) = asleep().await;
    backend.set(Step::Login, Gate::Slow(8 * SECOND));
    let direct = {
        let router = router.clone();
        tokio::spawn(async move { router.direct("acme").await.map(drop) })
    };
    let warm = router.warm("acme");
    sleep(SECOND).await;
    ledger.turn("acme", State::Held).await;
    let told = timeout(SECOND, async { (direct.await.unwrap(), warm.wait().await) });
    let (direct, warm) = told.await.expect("told at once");
    assert_eq!(direct.unwrap_err().kind(), ErrorKind::Held);
    assert_eq!(warm.unwrap_err().kind(), ErrorKind::Held);
    sleep(60 * SECOND).await;
    assert_eq!(router.status().connections, 0);
}

#[test]
fn who_waits_while_the_tenant_is_created_anew_gets_the_new_database_without_a_storm() {
    without_spinning(|| async {
        let (backend, ledger, router) = asleep().await;
        backend.set(Step::Login, NOT_UP);
        backend.set(Step::Create, Gate::Slow(10 * SECOND));
        let waiting = caller(&router);
        sleep(SECOND).await;
        let (logins, finds) = (backend.counts().logins_started, ledger.finds());
        for state in [State::Deleting, State::Deleted, State::Claimed] {
            ledger.turn("acme", state).await;
        }
        sleep(5 * SECOND).await;
        let (logins, finds) = (
            backend.counts().logins_started - logins,
            ledger.finds() - finds,
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
fn what_stays_unfinished_for_long_is_read_now_and_then_and_not_dialed() {
    without_spinning(|| async {
        let (backend, ledger, router) = asleep().await;
        backend.set(Step::Login, NOT_UP);
        let waiting = caller(&router);
        sleep(SECOND).await;
        let (logins, finds) = (backend.counts().logins_started, ledger.finds());
        // Another replica works on it for as long as this takes.
        for state in [State::Deleting, State::Deleted, State::Claimed] {
            ledger.turn("acme", state).await;
        }
        ledger.hold("acme", State::Creating).await;
        let told = waiting.await.unwrap().unwrap_err();
        assert_eq!(told.kind(), ErrorKind::Provisioning, "{told}");
        let (logins, finds) = (
            backend.counts().logins_started - logins,
            ledger.finds() - finds,
        );
        assert!(logins <= 1, "{logins} logins");
        assert!(finds <= 60, "{finds} reads in 20 s");
    });
}

#[tokio::test(start_paused = true)]
async fn an_eviction_in_a_loop_does_not_turn_the_waits_between_logins_off() {
    let (backend, _ledger, router) = asleep().await;
    backend.set(Step::Open, Gate::Slow(10 * MOMENT));
    backend.set(Step::Login, NOT_UP);
    let logins = backend.counts().logins_started;
    let waiting = caller(&router);
    sleep(5 * MOMENT).await;
    for _ in 0..1000 {
        router.evict("acme");
        sleep(3 * MOMENT).await;
    }
    let logins = backend.counts().logins_started - logins;
    assert!(logins <= 12, "{logins} logins in 3 s");
    waiting.abort();
}
