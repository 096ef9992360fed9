//! The moments at which sessions are reset, and the cost of a reset: on scripted servers, which count what they are
//! asked.

use std::time::Duration;

use futures_util::FutureExt;
use tenantry::{Endpoint, Error, SessionReset, TenantRouter, TransactionOptions};
use tokio::time::{Instant, sleep};

use crate::support::{Backend, Counts, Failure, Gate, Step};

const SECOND: Duration = Duration::from_secs(1);

/// Returns how often a session was reset.
fn resets(counts: &Counts) -> u64 {
    let resets = counts
        .queries
        .iter()
        .filter(|(sql, _)| sql.contains("RESET ALL"));
    resets.map(|(_, count)| count).sum()
}

async fn set_parameter(router: &TenantRouter) {
    let client = router.get("acme").await.unwrap();
    client.batch_execute("SET a = 1").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_statements_that_may_change_the_session_are_followed_by_a_reset() {
    let backend = Backend::default();
    let router = backend.router().pool_size(1).build().unwrap();
    for _ in 0..3 {
        let mut client = router.get("acme").await.unwrap();
        let select = client.prepare_cached("SELECT $1").await.unwrap();
        client.query(&select, &[&"a"]).await.unwrap();
        client.query_typed("SELECT 1", &[]).await.unwrap();
        client.query("UPDATE t SET a = $1", &[&"a"]).await.unwrap();
        client
            .execute("INSERT INTO t VALUES ($1)", &[&"a"])
            .await
            .unwrap();
        client.batch_execute("DELETE FROM t").await.unwrap();
        let transaction = client.transaction().await.unwrap();
        transaction
            .batch_execute("SET LOCAL ROLE alice")
            .await
            .unwrap();
        drop(transaction);
        drop(client);
        let options = TransactionOptions::new().statement_timeout(SECOND);
        let insert = router.transaction_with("acme", &options, |tx| async move {
            tx.execute("INSERT INTO t VALUES ($1)", &[&"a"]).await?;
            Ok::<_, Error>(())
        });
        insert.await.unwrap();
        let read = router.read("acme", |tx| async move {
            Ok::<_, Error>(tx.query_typed("SELECT 1", &[]).await?)
        });
        read.await.unwrap();
    }
    sleep(60 * SECOND).await; // nor later, by itself
    drop(router.get("acme").await.unwrap());
    assert_eq!(resets(&backend.counts()), 0);
    set_parameter(&router).await;
    drop(router.get("acme").await.unwrap());
    set_parameter(&router).await;
    sleep(SECOND).await;
    let counts = backend.counts();
    assert_eq!((resets(&counts), counts.logins_done), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn reset_always_runs_after_each_use_and_not_after_a_get_without_a_query() {
    let backend = Backend::default();
    let at = |tenant: &str| Some(Backend::endpoint(tenant).session_reset(SessionReset::Always));
    let router = backend.router_with_lookup(at).pool_size(1).build().unwrap();
    for _ in 0..3 {
        let client = router.get("acme").await.unwrap();
        client.query_typed("SELECT 1", &[]).await.unwrap();
        drop(client);
        drop(router.get("acme").await.unwrap());
    }
    assert_eq!(resets(&backend.counts()), 3);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_reset_behind_a_pooler() {
    let backend = Backend::default();
    let neon = |tenant: &str| {
        let pooled = format!("{tenant}-pooler");
        Some(Endpoint::neon(tenant, pooled, tenant, "app", "secret").without_tls())
    };
    let router = backend
        .router_with_lookup(neon)
        .pool_size(1)
        .build()
        .unwrap();
    for _ in 0..3 {
        set_parameter(&router).await;
    }
    sleep(SECOND).await;
    assert_eq!(resets(&backend.counts()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_during_a_reset_waits_for_it_and_opens_no_connection() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    set_parameter(&router).await;
    drop(router.get("acme").await.unwrap());
    backend.set(Step::Query, Gate::Slow(SECOND / 100));
    set_parameter(&router).await;
    assert!(
        router.get("acme").now_or_never().is_none(),
        "not before it is reset"
    );
    drop(router.get("acme").await.unwrap());
    let counts = backend.counts();
    assert_eq!((resets(&counts), counts.logins_done), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_cannot_be_reset_is_closed_and_its_place_is_free() {
    let fails = Failure::Error {
        code: "57014",
        text: "canceling statement due to statement timeout",
    };
    for gate in [Gate::Stuck, Gate::Fail(fails), Gate::Fail(Failure::Cut)] {
        let backend = Backend::default();
        let router = backend.router().pool_size(1).build().unwrap();
        set_parameter(&router).await;
        drop(router.get("acme").await.unwrap());
        set_parameter(&router).await;
        backend.set(Step::Query, gate);
        let began = Instant::now();
        let client = router.get("acme").await.unwrap();
        assert!(
            began.elapsed() <= 3 * SECOND,
            "{gate:?}: {:?}",
            began.elapsed()
        );
        backend.set(Step::Query, Gate::Open);
        client.query_typed("SELECT 1", &[]).await.unwrap();
        let counts = backend.counts();
        assert_eq!((counts.logins_done, counts.open), (2, 1), "{gate:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_long_been_silent_is_closed_and_not_reset() {
    let backend = Backend::default();
    let router = backend.router().pool_size(1).build().unwrap();
    let client = router.get("acme").await.unwrap();
    client.batch_execute("SET a = 1").await.unwrap();
    sleep(31 * SECOND).await;
    drop(client);
    backend.until_empty().await;
    assert_eq!(resets(&backend.counts()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reset_does_not_outlive_the_router() {
    let backend = Backend::default();
    let router = backend.router().pool_size(1).build().unwrap();
    set_parameter(&router).await;
    drop(router.get("acme").await.unwrap());
    set_parameter(&router).await;
    backend.set(Step::Query, Gate::Stuck);
    let began = Instant::now();
    router.close().await;
    assert!(began.elapsed() <= 4 * SECOND, "{:?}", began.elapsed());
    backend.until_empty().await;
}
