//! Connections that are opened while a tenant is woken, and log in only when it is up.

use std::time::Duration;

use futures_util::future::join_all;
use tenantry::{Endpoint, Error, ErrorKind, TenantRouter};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::support::{
    Backend, Failure, Gate, LONG, Step, TestEnv, current_database, eventually, query_text,
};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const QUOTA: Gate = Gate::Fail(Failure::Error {
    code: "XX000",
    text: "Your account or project has exceeded the compute time quota. Upgrade your plan to increase limits.",
});

/// A tenant's endpoint at Neon.
fn neon_endpoint(tenant: &str) -> Endpoint {
    let mut endpoint = Backend::endpoint(tenant);
    endpoint.is_neon = true;
    endpoint
}

/// A backend whose logins do what `login` says, and a router whose tenants are Neon's.
fn sleeping_backend(login: Gate) -> (Backend, tenantry::RouterBuilder) {
    let backend = Backend::default();
    backend.set(Step::Login, login);
    let router = backend.router_with_lookup(|tenant| Some(neon_endpoint(tenant)));
    (backend, router)
}

/// Callers who each use a connection of `tenant` for a second.
fn callers(
    router: &TenantRouter,
    tenant: &'static str,
    count: usize,
) -> Vec<JoinHandle<Result<(), Error>>> {
    let one = |_| {
        let router = router.clone();
        tokio::spawn(async move {
            let client = router.get(tenant).await?;
            assert_eq!(current_database(&client).await, tenant);
            sleep(SECOND).await;
            Ok(())
        })
    };
    (0..count).map(one).collect()
}

async fn assert_served(callers: Vec<JoinHandle<Result<(), Error>>>) {
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn no_login_but_the_wakes_is_sent_before_the_tenant_is_up() {
    let (backend, router) = sleeping_backend(Gate::Slow(SECOND));
    let router = router.build().unwrap();
    let waiting = callers(&router, "acme", 10);
    sleep(SECOND.saturating_sub(MILLISECOND)).await;
    let counts = backend.counts();
    assert_eq!((counts.open, counts.logins_started), (4, 1));
    assert_eq!(router.status().budget_used, 4, "each has a permit");
    assert_eq!(router.status().attempts, 1);
    sleep(2 * MILLISECOND).await;
    assert_eq!(
        backend.counts().logins_started,
        4,
        "all at once when it is up"
    );
    assert_served(waiting).await;
    let counts = backend.counts();
    assert_eq!((counts.opened["acme"], counts.logins_started), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn callers_that_come_during_the_wake_get_spares_too() {
    let (backend, router) = sleeping_backend(Gate::Slow(SECOND));
    let router = router.build().unwrap();
    let mut waiting = callers(&router, "acme", 1);
    sleep(100 * MILLISECOND).await;
    assert_eq!(backend.counts().open, 1, "one caller needs one connection");
    waiting.extend(callers(&router, "acme", 2));
    sleep(SECOND / 2).await;
    assert_eq!(
        (backend.counts().open, backend.counts().logins_started),
        (3, 1)
    );
    assert_served(waiting).await;
    assert_eq!(backend.counts().opened["acme"], 3);
}

#[tokio::test(start_paused = true)]
async fn spares_are_only_for_callers_who_want_a_connection_of_a_sleeping_neon_database() {
    let (backend, router) = sleeping_backend(Gate::Slow(SECOND));
    let router = router.build().unwrap();
    let warm = [(); 4].map(|()| router.warm("acme"));
    sleep(SECOND / 2).await;
    assert_eq!(backend.counts().open, 1, "they want no connection");
    for warm in warm {
        warm.wait().await.unwrap();
    }

    let other = backend.router().build().unwrap();
    let waiting = callers(&other, "globex", 10);
    sleep(SECOND / 2).await;
    assert_eq!(backend.counts().opened["globex"], 1, "not Neon's");
    assert_served(waiting).await;

    backend.set(Step::Login, Gate::Slow(4 * MILLISECOND));
    backend.set(Step::Open, Gate::Slow(3 * MILLISECOND));
    let waiting = callers(&router, "initech", 10);
    backend
        .until("it is up", |counts| counts.opened.contains_key("initech"))
        .await;
    sleep(3 * MILLISECOND).await;
    let counts = backend.counts();
    assert_eq!(
        (counts.opened["initech"], counts.waiting(Step::Open)),
        (1, 0),
        "its login has not been silent for long"
    );
    assert_served(waiting).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_wake_leaves_no_spare_and_no_permit() {
    let (backend, router) = sleeping_backend(Gate::Stuck);
    let router = router.build().unwrap();
    let waiting = callers(&router, "acme", 10);
    backend
        .until("spares are open", |counts| counts.open == 4)
        .await;
    backend.set(Step::Login, QUOTA);
    for caller in waiting {
        let err = caller.await.unwrap().unwrap_err();
        assert!(
            matches!(err.kind(), ErrorKind::QuotaExhausted(_)),
            "{err:?}"
        );
    }
    backend.until_empty().await;
    sleep(MILLISECOND).await;
    assert_eq!(router.status().budget_used, 0);
    assert_eq!(backend.counts().logins_started, 1);
}

#[tokio::test(start_paused = true)]
async fn another_tenant_gets_the_permit_of_a_spare_at_once() {
    let (backend, router) = sleeping_backend(Gate::Stuck);
    for tenant in ["globex", "initech", "umbrella"] {
        backend.set_at(tenant, Step::Login, Gate::Open);
    }
    let router = router.max_connections(4).wake_reserve(1).build().unwrap();
    let _waiting = callers(&router, "acme", 10);
    backend
        .until("spares are open", |counts| counts.open == 3)
        .await;
    let mut held = Vec::new();
    for tenant in ["globex", "initech", "umbrella"] {
        let client = timeout(100 * MILLISECOND, router.get(tenant)).await;
        held.push(client.unwrap_or_else(|_| panic!("{tenant} waits")).unwrap());
    }
    sleep(5 * SECOND).await;
    let counts = backend.counts();
    assert_eq!(
        (counts.open, counts.most_open),
        (4, 4),
        "the wake goes on, without spares"
    );
    assert_eq!(router.status().closed_for_others, 0);
}

#[tokio::test(start_paused = true)]
async fn a_spare_lives_for_ten_seconds() {
    let (backend, router) = sleeping_backend(Gate::Stuck);
    let router = router.build().unwrap();
    let waiting = callers(&router, "acme", 10);
    sleep(9 * SECOND).await;
    assert_eq!(
        (backend.counts().open, backend.counts().logins_started),
        (4, 1)
    );
    sleep(7 * SECOND).await;
    assert_eq!(
        (backend.counts().open, backend.counts().logins_started),
        (2, 2),
        "two logins"
    );
    assert_eq!(router.status().budget_used, 2);
    backend.set(Step::Login, Gate::Open);
    assert_served(waiting).await;
}

#[tokio::test(start_paused = true)]
async fn spares_end_with_the_wake_if_their_callers_have_left() {
    let (backend, router) = sleeping_backend(Gate::Slow(SECOND));
    let router = router.build().unwrap();
    let waiting = callers(&router, "acme", 4);
    sleep(SECOND / 2).await;
    assert_eq!(backend.counts().open, 4);
    waiting.iter().for_each(JoinHandle::abort);
    sleep(SECOND).await;
    let counts = backend.counts();
    assert_eq!((counts.open, counts.logins_started), (1, 1));
    assert_eq!(router.status().budget_used, 1);
}

#[tokio::test(start_paused = true)]
async fn spares_end_with_the_pools_stay_in_the_cache_and_with_the_router() {
    let (backend, router) = sleeping_backend(Gate::Stuck);
    let router = router.build().unwrap();
    let waiting = callers(&router, "acme", 4);
    sleep(SECOND).await;
    assert_eq!(backend.counts().open, 4);
    router.evict("acme");
    sleep(SECOND).await;
    assert_eq!(backend.counts().open, 1, "the callers' wake goes on");

    let others = callers(&router, "globex", 4);
    sleep(SECOND).await;
    assert_eq!(backend.counts().open, 5);
    router.close().await;
    for caller in waiting.into_iter().chain(others) {
        assert_eq!(caller.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    }
    backend.until_empty().await;
    assert_eq!(router.status().budget_used, 0);
}

#[tokio::test]
async fn the_further_connections_after_a_wake_cost_no_new_handshake() {
    let env = TestEnv::new().await;
    let router = env.router();
    env.create_suspended(&router, "acme").await;
    env.emulator.set_wake_delay(3 * SECOND);
    let before = env.witness("acme");
    let waiting = (0..4).map(|_| {
        let router = router.clone();
        tokio::spawn(async move { router.get("acme").await })
    });
    let waiting: Vec<_> = waiting.collect();
    let handshakes = || env.witness("acme").handshakes.len() - before.handshakes.len();
    eventually("spares are open", || handshakes() == 4).await;
    let asleep = env.witness("acme");
    assert!(!asleep.is_awake);
    assert!(asleep.auth_attempts.len() <= before.auth_attempts.len() + 1);
    let mut clients = Vec::new();
    for caller in waiting {
        clients.push(caller.await.unwrap().unwrap());
    }
    let rows = join_all(
        clients
            .iter()
            .map(|client| query_text(client, "SELECT 'row'")),
    );
    assert!(rows.await.iter().all(|row| row == "row"));
    let after = env.witness("acme");
    assert_eq!(after.sessions.len(), before.sessions.len() + 4);
    assert_eq!(handshakes(), 4, "no other was needed");
    let woken = after.wakes.last().unwrap();
    let new = &after.auth_attempts[before.auth_attempts.len()..];
    let early = new.iter().filter(|at| **at < woken.at + woken.took).count();
    assert_eq!(early, 1, "attempts while it slept");
}

#[tokio::test]
async fn a_spare_that_the_proxy_has_closed_costs_no_caller_an_error() {
    let env = TestEnv::new().await;
    let router = env.router();
    env.create_suspended(&router, "acme").await;
    env.emulator.set_wake_delay(SECOND);
    let before = env.witness("acme").handshakes.len();
    let waiting = (0..4).map(|_| {
        let router = router.clone();
        tokio::spawn(async move { router.get("acme").await })
    });
    let waiting: Vec<_> = waiting.collect();
    eventually("spares are open", || {
        env.witness("acme").handshakes.len() == before + 4
    })
    .await;
    env.emulator.restart_proxy();
    let clients = timeout(LONG, join_all(waiting)).await.unwrap();
    assert!(clients.into_iter().all(|it| it.unwrap().is_ok()));
    assert_eq!(router.status().gets_failed, 0);
}
