//! Connections between their users: reused, cleaned up or closed.

use std::time::Duration;

use tokio::time::Instant;

use tenantry::{BoxError, tokio_postgres::types::Type};

use crate::support::{LONG, Relay, TestEnv, eventually, query_text, retry_timeouts};

#[tokio::test]
async fn the_second_access_opens_nothing() {
    let env = TestEnv::new().await;
    let router = env.router();
    let first = query_text(
        &router.get("acme").await.unwrap(),
        "SELECT pg_backend_pid()",
    )
    .await;
    let before = env.witness("acme");
    for _ in 0..20 {
        assert_eq!(
            query_text(
                &router.get("acme").await.unwrap(),
                "SELECT pg_backend_pid()"
            )
            .await,
            first
        );
    }
    let after = env.witness("acme");
    assert_eq!((after.sessions.len(), after.auth_attempts.len()), (1, 1));
    assert_eq!(after.wakes, before.wakes);
    assert_eq!(router.status().gets_warm, 20);
}

#[tokio::test]
async fn a_connection_is_reused_whatever_was_done_with_it() {
    let env = TestEnv::new().await;
    let router = env.router();
    let mut client = router.get("acme").await.unwrap();
    let first = query_text(&client, "SELECT pg_backend_pid()").await;
    client
        .batch_execute("CREATE TABLE t (n int)")
        .await
        .unwrap();
    client.query("SELECT $1::int", &[&1]).await.unwrap(); // leaves the Close of a statement in flight
    client.prepare_cached("SELECT 1").await.unwrap();
    client
        .query_typed("SELECT $1", &[(&1, Type::INT4)])
        .await
        .unwrap();
    assert!(client.batch_execute("SELECT 1/0").await.is_err());
    let sink = client
        .copy_in::<_, &[u8]>("COPY t FROM STDIN")
        .await
        .unwrap();
    futures_util::pin_mut!(sink);
    futures_util::SinkExt::send(&mut sink, &b"1\n2\n"[..])
        .await
        .unwrap();
    assert_eq!(sink.finish().await.unwrap(), 2);
    let transaction = client.transaction().await.unwrap();
    transaction
        .execute("INSERT INTO t VALUES (3)", &[])
        .await
        .unwrap();
    drop(transaction); // rolls back, in flight when the client goes
    drop(client);

    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT pg_backend_pid()").await, first);
    assert_eq!(
        query_text(&client, "SELECT count(*) FROM t").await,
        "2",
        "the dropped transaction was rolled back"
    );
    assert_eq!(router.status().discarded, 0);
    assert_eq!(env.witness("acme").sessions.len(), 1);
}

#[tokio::test]
async fn a_cancelled_long_query_does_not_delay_the_next_user() {
    let env = TestEnv::new().await;
    let router = env.builder("test").pool_size(1).build().unwrap();
    for polled_first in [true, false] {
        let client = router.get("acme").await.unwrap();
        if polled_first {
            let cut = tokio::time::timeout(
                Duration::from_millis(50),
                client.batch_execute("SELECT pg_sleep(60)"),
            );
            assert!(cut.await.is_err());
        } else {
            // Sent, and dropped before the connection's task has had a turn to write it.
            let query = client.batch_execute("SELECT pg_sleep(60)");
            futures_util::pin_mut!(query);
            assert!(futures_util::poll!(query).is_pending());
        }
        drop(client);
        let start = Instant::now();
        assert_eq!(
            query_text(&router.get("acme").await.unwrap(), "SELECT 1").await,
            "1"
        );
        assert!(
            start.elapsed() < Duration::from_secs(20), // of 60
            "{:?}",
            start.elapsed()
        );
    }
    let client = router.get("acme").await.unwrap();
    let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()";
    let start = Instant::now();
    while query_text(&client, running).await != "0" {
        let of_60 = Duration::from_secs(20);
        assert!(start.elapsed() < of_60, "the server was not told to stop");
    }
    assert_eq!(router.status().discarded, 2);
}

#[tokio::test]
async fn an_abandoned_transaction_is_never_handed_out() {
    let env = TestEnv::new().await;
    let router = env.builder("test").pool_size(1).build().unwrap();
    query_text(&router.get("acme").await.unwrap(), "CREATE TABLE t (n int)").await;
    for left_behind in [
        "BEGIN",
        "BEGIN; INSERT INTO t VALUES (1)",
        "BEGIN; SELECT 1/0",
    ] {
        let client = router.get("acme").await.unwrap();
        let _ = client.batch_execute(left_behind).await;
        drop(client);
        let client = router.get("acme").await.unwrap();
        assert_eq!(
            query_text(&client, "SELECT count(*) FROM t").await,
            "0",
            "after {left_behind:?}"
        );
        let age = "SELECT now() = statement_timestamp()";
        assert_eq!(
            query_text(&client, age).await,
            "t",
            "in a transaction, after {left_behind:?}"
        );
    }
    assert_eq!(router.status().discarded, 3);
}

#[tokio::test]
async fn a_request_that_turns_up_on_an_idle_connection_is_cancelled() {
    let env = TestEnv::new().await;
    let router = env.router();
    let client = router.get("acme").await.unwrap();
    {
        let query = client.batch_execute("SELECT pg_sleep(60)");
        futures_util::pin_mut!(query);
        assert!(futures_util::poll!(query).is_pending());
    }
    drop(client); // nobody comes for another connection: the pool notices by itself
    eventually("the stray query is seen", || router.status().discarded == 1).await;
    eventually("its session ends", || {
        env.witness("acme").open_sessions == 0
    })
    .await;
}

#[tokio::test]
async fn waiting_callers_are_served_in_turn_by_few_connections() {
    let env = TestEnv::new().await;
    let router = env.builder("test").pool_size(2).build().unwrap();
    let calls = (0..40).map(|_| {
        let router = router.clone();
        tokio::spawn(async move {
            let client = router.get("acme").await?;
            client.batch_execute("SELECT pg_sleep(0.01)").await?;
            Ok::<_, BoxError>(())
        })
    });
    for call in futures_util::future::join_all(calls).await {
        call.unwrap().unwrap();
    }
    assert!(env.witness("acme").most_open_sessions <= 2);
}

#[tokio::test]
async fn a_caller_that_leaves_the_queue_takes_nothing_with_it() {
    let env = TestEnv::new().await;
    let router = env.builder("test").pool_size(1).build().unwrap();
    let held = router.get("acme").await.unwrap();
    for _ in 0..10 {
        let impatient = tokio::time::timeout(Duration::from_millis(2), router.get("acme"));
        assert!(impatient.await.is_err());
    }
    let waiting = tokio::spawn({
        let router = router.clone();
        async move { router.get("acme").await.map(drop) }
    });
    eventually("the last caller waits", || !waiting.is_finished()).await;
    drop(held);
    tokio::time::timeout(LONG, waiting)
        .await
        .expect("never served")
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_full_pool_is_a_timeout_that_says_so() {
    let env = TestEnv::new().await;
    let router = env
        .builder("test")
        .pool_size(1)
        .get_timeout(Duration::from_secs(2))
        .build()
        .unwrap();
    let held = retry_timeouts(|| router.get("acme")).await;
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(
        err.kind(),
        tenantry::ErrorKind::Timeout(tenantry::Stage::Checkout)
    );
    assert_eq!(err.tenant().map(tenantry::TenantId::as_str), Some("acme"));
    assert!(err.retry_after().is_some());
    drop(held);
}

#[tokio::test]
async fn idle_connections_that_died_silently_cost_one_wait_together() {
    let env = TestEnv::new().await;
    let relay = Relay::to(env.emulator.proxy_address()).await;
    let router = env
        .builder("test")
        .resolve(relay.resolver())
        .verify_after(Duration::ZERO)
        .build()
        .unwrap();
    let held = futures_util::future::join_all((0..4).map(|_| router.get("acme"))).await;
    assert!(held.iter().all(Result::is_ok));
    drop(held);
    eventually("all four are open", || router.status().connections == 4).await;
    relay.freeze();
    let start = Instant::now();
    assert_eq!(
        query_text(&router.get("acme").await.unwrap(), "SELECT 1").await,
        "1"
    );
    // One connection is asked, for two seconds, and ended within one more; its siblings, for eight, are not asked.
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
    eventually("the dead ones are gone", || {
        router.status().connections == 1
    })
    .await;
}

#[tokio::test]
async fn a_recently_used_connection_is_not_pinged() {
    let env = TestEnv::new().await;
    let relay = Relay::to(env.emulator.proxy_address()).await;
    let router = env
        .builder("test")
        .resolve(relay.resolver())
        .build()
        .unwrap();
    drop(router.get("acme").await.unwrap());
    relay.freeze();
    drop(router.get("acme").await.unwrap());
    let dials = router.status().dials;
    assert_eq!(dials, 1, "it was asked, did not answer, and was replaced");
}

#[tokio::test]
async fn connections_with_swapped_clients_are_not_pooled() {
    let env = TestEnv::new().await;
    let router = env.router();
    let (mut acme, mut globex) = (
        router.get("acme").await.unwrap(),
        router.get("globex").await.unwrap(),
    );
    query_text(&acme, "CREATE TABLE t AS SELECT 'acme' AS owner").await;
    query_text(&globex, "CREATE TABLE t AS SELECT 'globex' AS owner").await;
    std::mem::swap(&mut *acme, &mut *globex);
    drop((acme, globex));
    for tenant in ["acme", "globex"] {
        assert_eq!(
            query_text(&router.get(tenant).await.unwrap(), "SELECT owner FROM t").await,
            tenant
        );
    }
}
