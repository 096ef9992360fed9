//! The refusals of a database that a router remembers: until when they hold, which callers get them, and what ends
//! them.

use std::time::Duration;

use futures_util::{future::join_all, join};
use tenantry::{Error, ErrorKind, ExhaustedQuota, Stage, TenantRouter};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::support::{
    Backend, Counts, Failure, Gate, Step, TenantTable, query_text, without_spinning,
};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const CURRENT_DATABASE: &str = "SELECT current_database()";
/// Passes by itself, which is waited for.
const TOO_MANY_AWAKE: &str = "active endpoints limit exceeded";
/// The time for which the proxy repeats it.
const REPEAT_WINDOW: Duration = Duration::from_millis(30_500);

fn login_fails_with(text: &'static str) -> Gate {
    let code = "XX000";
    Gate::Fail(Failure::Error { code, text })
}

/// A caller, and when it was answered.
fn spawn_caller(router: &TenantRouter) -> JoinHandle<(Result<String, Error>, Instant)> {
    let router = router.clone();
    tokio::spawn(async move {
        let got = match router.get("acme").await {
            Ok(client) => Ok(query_text(&client, CURRENT_DATABASE).await),
            Err(err) => Err(err),
        };
        (got, Instant::now())
    })
}

#[test]
fn a_refusal_that_outlives_a_wake_is_waited_for_without_spinning() {
    without_spinning(|| async {
        let backend = Backend::default();
        let builder = backend.router().get_timeout(60 * SECOND);
        let router = builder.wake_timeout(10 * SECOND).build().unwrap();
        backend.set(Step::Login, login_fails_with(TOO_MANY_AWAKE));
        let (start, caller) = (Instant::now(), spawn_caller(&router));
        sleep(SECOND).await;
        backend.set(Step::Login, Gate::Open);
        let (got, answered) = caller.await.unwrap();
        assert_eq!(got.unwrap(), "acme");
        assert!(answered - start >= REPEAT_WINDOW);
        assert_eq!(backend.counts().logins_started, 2);
    });
}

#[test]
fn wakes_that_end_before_their_next_try_are_not_begun_without_a_pause() {
    without_spinning(|| async {
        let backend = Backend::default();
        let router = backend.router().wake_timeout(SECOND).build().unwrap();
        backend.set(
            Step::Login,
            login_fails_with("Too many connections to this endpoint."),
        );
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Wake));
        let logins = backend.counts().logins_started;
        assert!(logins <= 21, "{logins} logins");
    });
}

#[test]
fn a_refusal_of_another_attempt_is_waited_for_without_spinning() {
    without_spinning(|| async {
        let backend = Backend::default();
        let builder = backend.router().get_timeout(60 * SECOND);
        let router = builder.build().unwrap();
        let _held = router.get("acme").await.unwrap();
        let quota = "You have exceeded your quota. Upgrade your plan to increase limits.";
        backend.set(Step::Open, Gate::Slow(SECOND));
        backend.set(Step::Login, login_fails_with(quota));
        let direct = async |after: Duration| {
            sleep(after).await;
            router.direct("acme").await.map(drop).unwrap_err().kind()
        };
        let (first, second, ()) = join!(direct(Duration::ZERO), direct(SECOND / 2), async {
            sleep(6 * SECOND / 5).await;
            backend.set(Step::Login, login_fails_with(TOO_MANY_AWAKE)); // it is told to the second one
        });
        let quota = ErrorKind::QuotaExhausted(ExhaustedQuota::Other);
        assert_eq!((first, second), (quota, quota));
    });
}

#[tokio::test(start_paused = true)]
async fn an_eviction_while_the_table_is_asked_is_not_undone_by_its_answer() {
    for gone in [None, Some("b")] {
        let (backend, table) = (Backend::default(), TenantTable::with_host("a"));
        let router = table.router(&backend).build().unwrap();
        let client = router.get("acme").await.unwrap();
        backend.set(Step::Query, Gate::Fail(Failure::Cut));
        client.simple_query(CURRENT_DATABASE).await.unwrap_err();
        drop(client);
        backend.set(Step::Query, Gate::Open);
        let wrong = "password authentication failed for user 'app'";
        backend.set(Step::Login, login_fails_with(wrong));
        table.set(gone);
        table.set_delay(2 * SECOND);
        let first = spawn_caller(&router);
        sleep(SECOND).await; // it asks the table
        table.set("a");
        table.set_delay(Duration::ZERO);
        router.evict("acme");
        backend.set(Step::Login, Gate::Open);
        assert_eq!(
            spawn_caller(&router).await.unwrap().0.unwrap(),
            "a",
            "{gone:?}"
        );
        assert_eq!(first.await.unwrap().0.unwrap(), "a", "{gone:?}");
        assert_eq!(router.status().moved, 0, "{gone:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_table_does_not_hold_a_direct_connection_beyond_its_time() {
    let (backend, table) = (Backend::default(), TenantTable::with_host("a"));
    let builder = table.router(&backend).get_timeout(2 * SECOND);
    let router = builder.build().unwrap();
    let _held = router.get("acme").await.unwrap();
    let wrong = "password authentication failed for user 'app'";
    backend.set(Step::Login, login_fails_with(wrong));
    table.set_delay(60 * SECOND);
    let start = Instant::now();
    router.direct("acme").await.map(drop).unwrap_err();
    assert!(start.elapsed() <= 2 * SECOND, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_a_login_from_before_an_eviction_does_not_hold() {
    let (backend, table) = (Backend::default(), TenantTable::with_host("old"));
    let router = table.router(&backend).build().unwrap();
    backend.set(Step::Login, Gate::Stuck);
    let first = spawn_caller(&router);
    backend.until_waiting(Step::Login).await;
    router.evict("acme");
    let second = spawn_caller(&router);
    sleep(MILLISECOND).await;
    backend.set(Step::Open, Gate::Slow(MILLISECOND));
    backend.set(
        Step::Login,
        login_fails_with("The endpoint has been disabled. Enable it using Neon API and retry."),
    );
    let refused = |counts: &Counts| counts.waiting(Step::Login) == 0;
    backend.until("it is refused", refused).await;
    backend.set(Step::Login, Gate::Open);
    for caller in [first, second] {
        assert_eq!(caller.await.unwrap().0.unwrap(), "old");
    }
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, CURRENT_DATABASE).await, "old");
}

#[tokio::test(start_paused = true)]
async fn an_older_answer_of_the_table_does_not_move_a_tenant_back() {
    let (backend, table) = (Backend::default(), TenantTable::with_host("a"));
    let router = table.router(&backend).build().unwrap();
    let client = router.get("acme").await.unwrap();
    backend.set(Step::Query, Gate::Fail(Failure::Cut));
    client.simple_query(CURRENT_DATABASE).await.unwrap_err();
    drop(client);
    backend.set(Step::Query, Gate::Open);
    backend.set(
        Step::Login,
        login_fails_with("password authentication failed for user 'app'"),
    );
    table.set("b");
    table.set_delay(2 * SECOND);
    let first = spawn_caller(&router);
    sleep(SECOND).await; // it asks the table
    backend.set(Step::Login, Gate::Open);
    table.set("c");
    table.set_delay(Duration::ZERO);
    router.evict("acme");
    let second = spawn_caller(&router);
    for caller in [first, second] {
        assert_eq!(caller.await.unwrap().0.unwrap(), "c");
    }
    sleep(2 * SECOND).await;
    assert_eq!(spawn_caller(&router).await.unwrap().0.unwrap(), "c");
    assert_eq!(router.status().moved, 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_returned_as_soon_as_no_connection_is_left_to_wait_for() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    let held = router.get("acme").await.unwrap();
    backend.set(Step::Login, login_fails_with(TOO_MANY_AWAKE));
    let (start, caller) = (Instant::now(), spawn_caller(&router));
    sleep(SECOND).await;
    backend.set(Step::Query, Gate::Fail(Failure::Cut));
    held.simple_query(CURRENT_DATABASE).await.unwrap_err();
    let (got, answered) = caller.await.unwrap();
    assert_eq!(got.unwrap_err().kind(), ErrorKind::ActiveComputeLimit);
    assert_eq!(answered - start, SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_beside_an_open_connection_is_not_retried_by_each_caller() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    let held = router.get("acme").await.unwrap();
    let network = "This IP address 127.0.0.1 is not allowed to connect to this endpoint.";
    backend.set(Step::Login, login_fails_with(network));
    let callers = (0..100).map(|_| spawn_caller(&router));
    let answers = join_all(callers).await;
    assert!(answers.iter().all(|it| it.as_ref().unwrap().0.is_err()));
    let logins = backend.counts().logins_started;
    assert!(logins <= 6, "{logins} logins");
    drop(held);
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, CURRENT_DATABASE).await, "acme");
}
