//! Connections over pipes inside the process, to a server by script, under paused time.

use std::{
    error::Error as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use tenantry::{
    BoxError, Endpoint, ErrorKind, Stage, TenantClient, TenantId, TenantRouter,
    tokio_postgres::{Error, error::SqlState},
};
use tokio::time::Instant;

use super::support::{Backend, Counts, Failure, Gate, Step, query_text};

const SECOND: Duration = Duration::from_secs(1);
const CURRENT_DATABASE: &str = "SELECT current_database()";
const FAULT: Failure = Failure::Error {
    code: "XX000",
    text: "Couldn't connect to compute node",
};

fn backend_and_router() -> (Backend, TenantRouter) {
    let backend = Backend::default();
    let router = backend.router().build().expect("router");
    (backend, router)
}

/// Returns the tenant whose database `client` is connected to, by the server's own word.
async fn current_database(client: &TenantClient) -> Result<String, Error> {
    let rows = client.query_typed(CURRENT_DATABASE, &[]).await?;
    Ok(rows[0].get(0))
}

fn sqlstate(err: &Error) -> Option<&str> {
    err.code().map(SqlState::code)
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_query_is_answered_by_the_tenants_own_server() {
    let (backend, router) = backend_and_router();
    for tenant in ["acme", "globex"] {
        let mut client = router.get(tenant).await.unwrap();
        assert_eq!(current_database(&client).await.unwrap(), tenant);
        assert_eq!(query_text(&client, CURRENT_DATABASE).await, tenant);
        let row = client.query_one("SELECT $1::text", &[&"x"]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), tenant);
        let tx = client.transaction().await.unwrap();
        assert_eq!(tx.execute("UPDATE t SET a = 1", &[]).await.unwrap(), 1);
        tx.commit().await.unwrap();
        drop(client);
        drop(router.get(tenant).await.unwrap());
    }
    let counts = backend.counts();
    assert_eq!((counts.logins_started, counts.logins_done), (2, 2));
    assert_eq!(
        (counts.query_count(CURRENT_DATABASE), counts.commits),
        (4, 2)
    );
    assert_eq!(router.status().gets_warm, 2);
}

#[tokio::test(start_paused = true)]
async fn a_stuck_login_costs_a_caller_its_time_and_the_wake_nothing() {
    let backend = Backend::default();
    // Less than the silence after which a second login goes out.
    let router = backend.router().get_timeout(9 * SECOND).build().unwrap();
    backend.set(Step::Login, Gate::Stuck);
    let start = Instant::now();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Wake));
    assert_eq!(start.elapsed(), 9 * SECOND);
    backend.set(Step::Login, Gate::Open);
    let client = router.get("acme").await.unwrap();
    assert_eq!(current_database(&client).await.unwrap(), "acme");
    assert_eq!(start.elapsed(), 9 * SECOND);
    let counts = backend.counts();
    assert_eq!((counts.logins_started, counts.logins_done), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn thousands_of_tenants_have_connections_side_by_side() {
    const TENANTS: u64 = 5000;
    let backend = Backend::default();
    let builder = backend.router().max_pools(2 * TENANTS);
    let router = builder.max_connections(10_000).build().unwrap();
    backend.set(Step::Login, Gate::Stuck);
    let callers: Vec<_> = (0..TENANTS)
        .map(|n| {
            let router = router.clone();
            tokio::spawn(async move {
                let tenant = format!("tenant-{n}");
                let client = router.get(&tenant).await.unwrap();
                assert_eq!(current_database(&client).await.unwrap(), tenant);
                client
            })
        })
        .collect();
    let all_wait = |counts: &Counts| counts.waiting(Step::Login) == TENANTS;
    backend.until("all are logging in", all_wait).await;
    backend.set(Step::Login, Gate::Open);
    let clients: Vec<_> = futures_util::future::try_join_all(callers).await.unwrap();
    let counts = backend.counts();
    assert_eq!((counts.open, clients.len() as u64), (TENANTS, TENANTS));
    assert!(counts.opened.values().all(|times| *times == 1));
    drop(clients);
    router.close().await;
    assert!(backend.counts().is_empty());
    assert_eq!(backend.counts().terminates, TENANTS);
}

#[tokio::test(start_paused = true)]
async fn after_a_close_at_any_step_nothing_is_open() {
    for step in Step::ALL.into_iter().filter(|it| *it != Step::Create) {
        let (backend, router) = backend_and_router();
        let caller = tokio::spawn({
            let router = router.clone();
            async move {
                drop(router.get("acme").await.unwrap());
                tokio::time::sleep(31 * SECOND).await; // so that it is verified
                let mut client = router.get("acme").await.unwrap();
                for end in ["COMMIT", "ROLLBACK"] {
                    let tx = client.transaction().await.unwrap();
                    tx.batch_execute(CURRENT_DATABASE).await.unwrap();
                    tx.batch_execute(end).await.unwrap();
                }
                std::future::pending::<()>().await;
            }
        });
        backend.set(step, Gate::Stuck);
        backend.until_waiting(step).await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled(), "{step:?}");
        router.close().await;
        backend.until_empty().await;
        assert_eq!(router.status().connections, 0, "{step:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_scripted_failure_reaches_the_client() {
    let (backend, router) = backend_and_router();
    backend.set(Step::Open, Gate::Fail(Failure::Cut));
    let caller = tokio::spawn({
        let router = router.clone();
        async move { router.get("acme").await }
    });
    let tried = |counts: &Counts| counts.reached(Step::Open) > 1;
    backend.until("it is tried again", tried).await;
    backend.set(Step::Login, Gate::Fail(FAULT));
    backend.set(Step::Open, Gate::Open);
    let refused = |counts: &Counts| counts.reached(Step::Login) > 1;
    backend.until("it is tried again", refused).await;
    backend.set(Step::Login, Gate::Open);
    let client = caller.await.unwrap().unwrap();

    backend.set(Step::Query, Gate::Fail(FAULT));
    let err = current_database(&client).await.unwrap_err();
    assert_eq!(sqlstate(&err), Some("XX000"));
    backend.set(Step::Query, Gate::Open);
    assert_eq!(
        current_database(&client).await.unwrap(),
        "acme",
        "it goes on"
    );

    let fatal = Failure::Fatal {
        code: "57P01",
        text: "terminating connection due to administrator command",
    };
    backend.set(Step::Query, Gate::Fail(fatal));
    let err = current_database(&client).await.unwrap_err();
    assert_eq!(sqlstate(&err), Some("57P01"));
    backend.until_empty().await;
    assert_eq!(backend.counts().terminates, 0);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_has_what_a_failing_login_said_as_its_source() {
    let (backend, router) = backend_and_router();
    backend.set(Step::Login, Gate::Fail(FAULT));
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Wake));
    let cause = err.source().unwrap().source().unwrap();
    assert_eq!(sqlstate(cause.downcast_ref().unwrap()), Some("XX000"));
}

#[tokio::test(start_paused = true)]
async fn a_failed_transaction_accepts_only_its_end() {
    let (backend, router) = backend_and_router();
    let client = router.get("acme").await.unwrap();
    client
        .batch_execute("BEGIN; SET LOCAL a = 1")
        .await
        .unwrap();
    backend.set(Step::Query, Gate::Fail(FAULT));
    assert_eq!(
        sqlstate(&current_database(&client).await.unwrap_err()),
        Some("XX000")
    );
    backend.set(Step::Query, Gate::Open);
    assert_eq!(
        sqlstate(&current_database(&client).await.unwrap_err()),
        Some("25P02")
    );
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(current_database(&client).await.unwrap(), "acme");
    assert_eq!(backend.counts().commits, 0);
}

#[tokio::test(start_paused = true)]
async fn a_commit_with_a_lost_answer_may_or_may_not_be_done() {
    for (failure, commits) in [(Failure::Cut, 0), (Failure::Lost, 1)] {
        let (backend, router) = backend_and_router();
        let mut client = router.get("acme").await.unwrap();
        backend.set(Step::Commit, Gate::Fail(failure));
        let tx = client.transaction().await.unwrap();
        assert!(tx.commit().await.unwrap_err().is_closed());
        assert_eq!(backend.counts().commits, commits, "{failure:?}");
        backend.until_empty().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_query_dropped_half_way_is_cancelled_and_its_connection_closed() {
    let (backend, router) = backend_and_router();
    let client = router.get("acme").await.unwrap();
    backend.set(Step::Query, Gate::Stuck);
    tokio::select! {
        _ = current_database(&client) => panic!("it is stuck"),
        () = backend.until_waiting(Step::Query) => {}
    }
    drop(client);
    backend.until_empty().await;
    let counts = backend.counts();
    assert_eq!((counts.cancels, counts.terminates), (1, 1));
    backend.set(Step::Query, Gate::Open);
    let client = router.get("acme").await.unwrap();
    assert_eq!(current_database(&client).await.unwrap(), "acme");
}

#[tokio::test(start_paused = true)]
async fn a_request_to_cancel_ends_the_query_and_not_the_session() {
    let (backend, router) = backend_and_router();
    let client = router.get("acme").await.unwrap();
    backend.set(Step::Query, Gate::Slow(60 * SECOND));
    let (ended, ()) = tokio::join!(current_database(&client), async {
        backend.until_waiting(Step::Query).await;
        client.cancel_token().cancel().await.unwrap();
    });
    assert_eq!(sqlstate(&ended.unwrap_err()), Some("57014"));
    let start = Instant::now();
    assert_eq!(current_database(&client).await.unwrap(), "acme");
    assert_eq!(start.elapsed(), 60 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_answer_is_replaced_after_two_seconds() {
    let (backend, router) = backend_and_router();
    drop(router.get("acme").await.unwrap());
    tokio::time::sleep(31 * SECOND).await;
    backend.set(Step::Verify, Gate::Stuck);
    let start = Instant::now();
    let client = router.get("acme").await.unwrap();
    assert_eq!(current_database(&client).await.unwrap(), "acme");
    assert_eq!(start.elapsed(), 2 * SECOND);
    assert_eq!(backend.counts().logins_done, 2);
    let one_left = |counts: &Counts| counts.open == 1;
    backend.until("the old one is closed", one_left).await;
}

#[tokio::test(start_paused = true)]
async fn callers_that_leave_early_do_not_keep_a_dead_connection_in_use() {
    let (backend, router) = backend_and_router();
    drop(router.get("acme").await.unwrap());
    tokio::time::sleep(31 * SECOND).await;
    backend.set(Step::Verify, Gate::Stuck);
    for _ in 0..5 {
        let _ = tokio::time::timeout(SECOND, router.get("acme")).await;
    }
    assert_eq!(backend.counts().logins_done, 2);
}

#[tokio::test(start_paused = true)]
async fn a_login_that_hangs_where_the_tenant_lived_does_not_keep_it_from_where_it_lives() {
    let old = Backend::default();
    let new = Backend::default();
    old.set(Step::Login, Gate::Stuck);
    let host = Arc::new(Mutex::new("old"));
    let lookup = {
        let host = Arc::clone(&host);
        move |tenant: TenantId| {
            let host = *host.lock().unwrap();
            let endpoint = Endpoint::postgres(host, tenant.as_str(), "role", "password");
            async move { Ok::<_, BoxError>(Some(endpoint.without_tls())) }
        }
    };
    let router = TenantRouter::builder(lookup).open_streams({
        let (old, new) = (old.clone(), new.clone());
        move |host, _| {
            let there = if host == "old" { &old } else { &new };
            there.clone().open(host.to_owned())
        }
    });
    let router = router.build().unwrap();
    let (client, ()) = tokio::join!(router.get("acme"), async {
        old.until_waiting(Step::Login).await;
        *host.lock().unwrap() = "new";
        router.evict("acme");
        let client = router.get("acme").await.unwrap();
        assert_eq!(current_database(&client).await.unwrap(), "acme");
    });
    drop(client.unwrap());
    assert_eq!((old.counts().logins_done, new.counts().logins_done), (0, 2));
}
