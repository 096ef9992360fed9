//! Connections that died without a word: they are noticed soon, at no cost to the ones that live.

use std::time::Duration;

use futures_util::future::join_all;
use tenantry::{Error, TenantRouter};
use tokio::time::{Instant, sleep, timeout};

use super::support::{Backend, Gate, Relay, Step, TestEnv, query_text};

const SECOND: Duration = Duration::from_secs(1);
const CURRENT_DATABASE: &str = "SELECT current_database()";
/// The steps at which a swallowed session stops.
const SESSION_STEPS: [Step; 5] = [
    Step::Verify,
    Step::Begin,
    Step::Query,
    Step::Commit,
    Step::Rollback,
];

/// A tenant with so many idle connections.
async fn router_with_idle(count: usize) -> (Backend, TenantRouter) {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    let held = join_all((0..count).map(|_| router.get("acme"))).await;
    assert!(held.iter().all(Result::is_ok));
    drop(held);
    assert_eq!(router.status().idle, u64::try_from(count).unwrap());
    (backend, router)
}

/// From now on nothing comes back on the sessions that are open; later ones work.
fn silence_open_sessions(backend: &Backend) {
    for step in SESSION_STEPS {
        backend.set(step, Gate::Stuck);
    }
    backend.set_at("acme", Step::Login, Gate::Open); // gates of their own for those to come
}

/// Runs a transaction, and returns the time that it took.
async fn time_transaction(router: &TenantRouter) -> Duration {
    let start = Instant::now();
    let done = router.transaction("acme", |tx| async move {
        tx.simple_query("INSERT").await?;
        Ok::<_, Error>(())
    });
    done.await.unwrap();
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn dead_idle_connections_do_not_cost_a_transaction_its_time() {
    for silent in [Duration::ZERO, 10 * SECOND, 29 * SECOND, 31 * SECOND] {
        for (count, callers) in [(1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (4, 4), (4, 8)] {
            let (backend, router) = router_with_idle(count).await;
            sleep(silent).await;
            silence_open_sessions(&backend);
            let took = join_all((0..callers).map(|_| time_transaction(&router))).await;
            let longest = took.into_iter().max().unwrap();
            let limit = if silent.is_zero() { 7 } else { 4 };
            let case = format!("silent for {silent:?}, {count} idle, {callers} callers");
            assert!(longest <= limit * SECOND, "{case}: {longest:?}");
            assert_eq!(backend.counts().commits, callers, "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_silence_of_one_connection_has_the_others_pinged_before_they_are_handed_out() {
    let (backend, router) = router_with_idle(3).await;
    sleep(10 * SECOND).await;
    let held = router.get("acme").await.unwrap();
    silence_open_sessions(&backend);
    let (dead, alive) = futures_util::join!(time_transaction(&router), async {
        sleep(3 * SECOND).await;
        let client = router.get("acme").await.unwrap();
        timeout(SECOND, query_text(&client, CURRENT_DATABASE)).await
    });
    assert!(dead <= 4 * SECOND, "{dead:?}");
    assert_eq!(alive.unwrap(), "acme", "the one that a plain get was given");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_query_that_was_abandoned_unanswered_has_the_other_connections_pinged() {
    let (backend, router) = router_with_idle(2).await;
    silence_open_sessions(&backend);
    let client = router.get("acme").await.unwrap();
    assert!(
        timeout(3 * SECOND, query_text(&client, CURRENT_DATABASE))
            .await
            .is_err()
    );
    drop(client);
    sleep(SECOND).await;
    let client = router.get("acme").await.unwrap();
    let answer = timeout(SECOND, query_text(&client, CURRENT_DATABASE)).await;
    assert_eq!(answer.unwrap(), "acme");
}

#[tokio::test(start_paused = true)]
async fn a_slow_begin_closes_no_connection_but_its_own() {
    let (backend, router) = router_with_idle(4).await;
    sleep(10 * SECOND).await;
    backend.set(Step::Begin, Gate::Slow(6 * SECOND));
    assert!(time_transaction(&router).await <= 8 * SECOND);
    sleep(SECOND).await;
    let counts = backend.counts();
    assert_eq!(
        (counts.logins_done, counts.open),
        (4, 3),
        "no new one was needed"
    );
    assert_eq!(counts.reached(Step::Verify), 1, "one short question");
}

#[tokio::test(start_paused = true)]
async fn a_pooler_without_room_costs_no_connection_that_is_in_use() {
    let (backend, router) = router_with_idle(3).await;
    let held = router.get("acme").await.unwrap();
    sleep(10 * SECOND).await;
    // As PgBouncer, which lets a client in, and answers it nothing until it has a server connection for it.
    for step in [Step::Begin, Step::Verify] {
        backend.set(step, Gate::Slow(20 * SECOND));
    }
    assert!(time_transaction(&router).await <= 25 * SECOND);
    for step in [Step::Begin, Step::Verify] {
        backend.set(step, Gate::Open);
    }
    assert_eq!(query_text(&held, CURRENT_DATABASE).await, "acme");
    drop(held);
    let logins = backend.counts().logins_done;
    time_transaction(&router).await;
    assert_eq!(backend.counts().logins_done, logins, "both were kept");
    assert_eq!(backend.counts().open, 2);
}

#[tokio::test]
async fn two_connections_that_died_silently_cost_a_transaction_seconds() {
    let env = TestEnv::new().await;
    let relay = Relay::to(env.emulator.proxy_address()).await;
    let router = env.builder("test").resolve(relay.resolver());
    let router = router.build().unwrap();
    drop(join_all((0..2).map(|_| router.get("acme"))).await);
    relay.freeze();
    let start = Instant::now();
    let read = router.read("acme", |tx| async move {
        tx.simple_query("SELECT 1").await?;
        Ok::<_, Error>(())
    });
    read.await.unwrap();
    assert!(start.elapsed() < 15 * SECOND, "{:?}", start.elapsed());
}
