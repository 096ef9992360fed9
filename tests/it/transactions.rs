//! Transactions: what survives, what is told apart, and what is never done twice.

use std::{
    future::Future,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use futures_util::FutureExt;
use tenantry::{
    Error, ErrorKind, Stage, TenantRouter, TransactionOptions, Tx,
    emulator::{Fault, Stop},
    tokio_postgres::{IsolationLevel, error::SqlState},
};

use crate::support::{TestEnv, eventually, query_text};

/// A test environment and a router whose tenant `acme` has an empty table of keys without a constraint.
async fn env_with_keys() -> (TestEnv, TenantRouter) {
    let env = TestEnv::new().await;
    let router = env.router();
    let client = router.get("acme").await.unwrap();
    query_text(&client, "CREATE TABLE keys (key int)").await;
    drop(client);
    (env, router)
}

async fn insert(tx: &Tx, key: i32) -> Result<(), Error> {
    tx.execute("INSERT INTO keys VALUES ($1)", &[&key]).await?;
    Ok(())
}

/// Returns how often `key` was inserted.
async fn count(router: &TenantRouter, key: i32) -> i64 {
    let count = router.read("acme", |tx| async move {
        let sql = "SELECT count(*) FROM keys WHERE key = $1";
        Ok::<i64, Error>(tx.query_one(sql, &[&key]).await?.get(0))
    });
    count.await.unwrap()
}

/// The SQLSTATE of the query that failed.
fn sqlstate(err: &Error) -> Option<SqlState> {
    let source = std::error::Error::source(err)?;
    let err = source.downcast_ref::<tenantry::tokio_postgres::Error>()?;
    err.code().cloned()
}

async fn spawn_and_join<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    tokio::spawn(future).await.unwrap()
}

/// As a handler of a web framework has it: arguments borrowed from the request, and the whole future sent to a thread.
async fn handler(router: &TenantRouter, tenant: &str, keys: &[i32]) -> Result<i64, Error> {
    let note = format!("{} keys", keys.len());
    let (note, options) = (note.as_str(), TransactionOptions::new());
    router
        .transaction_with(tenant, &options, |tx| async move {
            for key in keys {
                insert(&tx, *key).await?;
            }
            let sql = "SELECT count(*), $1::text FROM keys";
            Ok::<i64, Error>(tx.query_one(sql, &[&note]).await?.get(0))
        })
        .await
}

#[test]
fn a_handler_of_axum_may_run_a_transaction() {
    use axum::{
        Router,
        extract::{Path, State},
        routing::put,
    };
    async fn put_keys(
        State(router): State<TenantRouter>,
        Path(tenant): Path<String>,
        body: String,
    ) -> Result<String, String> {
        let keys: Vec<i32> = body.lines().filter_map(|line| line.parse().ok()).collect();
        let answer = handler(&router, &tenant, &keys).await;
        answer
            .map(|count| count.to_string())
            .map_err(|err| err.to_string())
    }
    let _: Router<TenantRouter> = Router::new().route("/{tenant}/keys", put(put_keys));
}

#[derive(Debug)]
enum HandlerError {
    Database,
    Full,
}

impl From<Error> for HandlerError {
    fn from(_: Error) -> Self {
        Self::Database
    }
}

impl From<tenantry::tokio_postgres::Error> for HandlerError {
    fn from(_: tenantry::tokio_postgres::Error) -> Self {
        Self::Database
    }
}

#[tokio::test]
async fn a_handler_may_borrow_what_it_needs_and_be_sent_to_a_thread() {
    let (_stage, router) = env_with_keys().await;
    let inserted = spawn_and_join({
        let router = router.clone();
        async move {
            let (tenant, keys) = (String::from("acme"), vec![1, 2, 3]);
            handler(&router, &tenant, &keys).await
        }
    });
    assert_eq!(inserted.await.unwrap(), 3);
    assert_eq!(count(&router, 2).await, 1);
}

#[tokio::test]
async fn an_error_of_the_closures_own_rolls_back_and_comes_out_as_it_is() {
    let (_stage, router) = env_with_keys().await;
    let mut runs = 0;
    let result: Result<(), HandlerError> = router
        .transaction("acme", |tx| {
            runs += 1;
            async move {
                insert(&tx, 7).await?;
                Err(HandlerError::Full)
            }
        })
        .await;
    assert!(matches!(result, Err(HandlerError::Full)), "{result:?}");
    assert_eq!((runs, count(&router, 7).await), (1, 0));
    assert_eq!(router.status().discarded, 0, "the connection was kept");
}

#[tokio::test]
async fn a_failed_statement_that_the_closure_ignores_is_a_rolled_back_error() {
    let (_stage, router) = env_with_keys().await;
    let result: Result<(), Error> = router
        .transaction("acme", |tx| async move {
            insert(&tx, 7).await?;
            let _ = tx.execute("INSERT INTO nowhere VALUES (1)", &[]).await;
            Ok(())
        })
        .await;
    let err = result.unwrap_err();
    assert_eq!(
        (err.kind(), err.stage()),
        (ErrorKind::RolledBack, Some(Stage::Commit))
    );
    assert!(err.to_string().contains("42P01"), "{err}");
    assert_eq!(err.tenant().map(AsRef::as_ref), Some("acme"));
    assert_eq!(count(&router, 7).await, 0);
}

#[tokio::test]
async fn a_constraint_that_fails_at_the_commit_is_postgress_own_error() {
    let (_stage, router) = env_with_keys().await;
    let client = router.get("acme").await.unwrap();
    query_text(
        &client,
        "CREATE TABLE p (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)",
    )
    .await;
    drop(client);
    let result: Result<(), Error> = router
        .transaction("acme", |tx| async move {
            tx.execute("INSERT INTO p VALUES (1), (1)", &[]).await?;
            Ok(())
        })
        .await;
    let err = result.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Query);
    assert_eq!(sqlstate(&err), Some(SqlState::UNIQUE_VIOLATION));
}

#[tokio::test]
async fn a_read_writes_nothing() {
    let (_stage, router) = env_with_keys().await;
    let result: Result<(), Error> = router
        .read("acme", |tx| async move { insert(&tx, 7).await })
        .await;
    assert_eq!(
        sqlstate(&result.unwrap_err()),
        Some(SqlState::READ_ONLY_SQL_TRANSACTION)
    );
}

#[tokio::test]
async fn the_options_reach_postgres_and_end_with_the_transaction() {
    let (_stage, router) = env_with_keys().await;
    let settings = |tx: Tx| async move {
        let sql = "SELECT current_setting('transaction_isolation') || ' ' || \
                   current_setting('transaction_deferrable') || ' ' || \
                   current_setting('transaction_read_only') || ' ' || \
                   current_setting('statement_timeout')";
        Ok::<String, Error>(tx.query_one(sql, &[]).await?.get(0))
    };
    let options = TransactionOptions::new()
        .isolation_level(IsolationLevel::Serializable)
        .deferrable(true)
        .statement_timeout(Duration::from_millis(1500));
    let asked = router.read_with("acme", &options, settings).await.unwrap();
    assert_eq!(asked, "serializable on on 1500ms");
    let plain = router.transaction("acme", settings).await.unwrap();
    assert_eq!(plain, "read committed off off 0");
}

#[tokio::test]
async fn a_statement_over_its_time_is_ended_by_postgres() {
    let (_stage, router) = env_with_keys().await;
    let options = TransactionOptions::new().statement_timeout(Duration::from_millis(50));
    let result: Result<(), Error> = router
        .transaction_with("acme", &options, |tx| async move {
            insert(&tx, 7).await?;
            tx.execute("SELECT pg_sleep(60)", &[]).await?;
            Ok(())
        })
        .await;
    assert_eq!(
        sqlstate(&result.unwrap_err()),
        Some(SqlState::QUERY_CANCELED)
    );
    assert_eq!(count(&router, 7).await, 0);
}

#[tokio::test]
async fn a_transaction_over_its_time_is_ended_and_its_query_with_it() {
    let (env, router) = env_with_keys().await;
    let options = TransactionOptions::new().timeout(Duration::from_millis(300));
    let result: Result<(), Error> = router
        .transaction_with("acme", &options, |tx| async move {
            insert(&tx, 7).await?;
            tx.execute("SELECT pg_sleep(60)", &[]).await?;
            Ok(())
        })
        .await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Timeout(Stage::Query));
    assert_eq!(count(&router, 7).await, 0);
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' \
                    AND state = 'active' AND pid <> pg_backend_pid()";
    let other = env.builder("test").build().unwrap();
    for _ in 0..200 {
        if query_text(&other.get("acme").await.unwrap(), sleeping).await == "0" {
            return;
        }
    }
    panic!("the query runs on");
}

#[tokio::test]
async fn conflicts_are_run_again_only_if_that_is_asked_for() {
    let (_stage, router) = env_with_keys().await;
    let client = router.get("acme").await.unwrap();
    query_text(&client, "CREATE TABLE sums AS SELECT 0 AS total").await;
    drop(client);
    let serializable = TransactionOptions::new().isolation_level(IsolationLevel::Serializable);
    for (options, runs_wanted) in [
        (serializable.clone(), 1),
        (serializable.retry_conflicts(true), 2),
    ] {
        let runs = AtomicU32::new(0);
        let result: Result<(), Error> = router
            .transaction_with("acme", &options, |tx| {
                let (router, runs) = (&router, &runs);
                async move {
                    tx.query("SELECT total FROM sums", &[]).await?;
                    if runs.fetch_add(1, Relaxed) == 0 {
                        // Another transaction comes in between, once.
                        let other = router.get("acme").await?;
                        query_text(&other, "UPDATE sums SET total = total + 1").await;
                    }
                    tx.execute("UPDATE sums SET total = total + 10", &[])
                        .await?;
                    Ok(())
                }
            })
            .await;
        assert_eq!(runs.load(Relaxed), runs_wanted);
        match runs_wanted {
            1 => assert_eq!(
                sqlstate(&result.unwrap_err()),
                Some(SqlState::T_R_SERIALIZATION_FAILURE)
            ),
            _ => result.unwrap(),
        }
    }
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT total FROM sums").await, "12");
}

#[tokio::test]
async fn a_transaction_whose_compute_is_suspended_under_it_is_run_again() {
    for stop in [Stop::Neon, Stop::Fast, Stop::Immediate, Stop::Kill] {
        let (env, router) = env_with_keys().await;
        let endpoint = env.witness("acme").endpoint_id;
        let runs = AtomicU32::new(0);
        router
            .transaction("acme", |tx| {
                let (runs, env, endpoint) = (&runs, &env, &endpoint);
                async move {
                    insert(&tx, 7).await?;
                    if runs.fetch_add(1, Relaxed) == 0 {
                        env.emulator.stop(endpoint, stop).await;
                    }
                    insert(&tx, 8).await
                }
            })
            .await
            .unwrap();
        assert_eq!(runs.load(Relaxed), 2, "{stop:?}");
        assert_eq!((count(&router, 7).await, count(&router, 8).await), (1, 1));
        assert_eq!(router.status().transactions_repeated, 1);
    }
}

#[tokio::test]
async fn a_closure_that_ignores_the_loss_of_its_connection_is_run_again() {
    let (env, router) = env_with_keys().await;
    let endpoint = env.witness("acme").endpoint_id;
    let runs = AtomicU32::new(0);
    let answer: Result<u32, Error> = router
        .read("acme", |tx| {
            let (runs, env, endpoint) = (&runs, &env, &endpoint);
            async move {
                let run = runs.fetch_add(1, Relaxed);
                if run == 0 {
                    env.emulator.stop(endpoint, Stop::Neon).await;
                    let _ = tx.query("SELECT 1", &[]).await;
                }
                Ok(run)
            }
        })
        .await;
    assert_eq!(answer.unwrap(), 1);
}

#[tokio::test]
async fn the_retry_budget_ends_and_says_that_nothing_was_committed() {
    let (env, router) = env_with_keys().await;
    let endpoint = env.witness("acme").endpoint_id;
    let runs = AtomicU32::new(0);
    let options = TransactionOptions::new().retries(1);
    let result: Result<(), Error> = router
        .transaction_with("acme", &options, |tx| {
            let (runs, env, endpoint) = (&runs, &env, &endpoint);
            async move {
                runs.fetch_add(1, Relaxed);
                insert(&tx, 7).await?;
                env.emulator.stop(endpoint, Stop::Neon).await;
                insert(&tx, 8).await
            }
        })
        .await;
    let err = result.unwrap_err();
    assert_eq!(
        (err.kind(), err.stage()),
        (ErrorKind::Connect, Some(Stage::Query))
    );
    assert!(err.retry_after().is_some());
    assert!(err.to_string().contains("nothing was committed"), "{err}");
    assert_eq!((runs.load(Relaxed), count(&router, 7).await), (2, 0));
}

#[tokio::test]
async fn a_lost_commit_is_an_error_of_its_own_and_never_repeated() {
    let (env, router) = env_with_keys().await;
    let endpoint = env.witness("acme").endpoint_id;
    let runs = AtomicU32::new(0);
    let result: Result<(), Error> = router
        .transaction("acme", |tx| {
            let (runs, env, endpoint) = (&runs, &env, &endpoint);
            async move {
                runs.fetch_add(1, Relaxed);
                insert(&tx, 7).await?;
                env.emulator.set_fault(endpoint, Fault::CommitAnswerLost);
                Ok(())
            }
        })
        .await;
    env.emulator.set_fault(&endpoint, None);
    let err = result.unwrap_err();
    assert_eq!(
        (err.kind(), err.stage()),
        (ErrorKind::CommitUnknown, Some(Stage::Commit))
    );
    assert!(!err.kind().is_transient());
    // It was committed, as it happens; a second run would have made it two.
    assert_eq!((runs.load(Relaxed), count(&router, 7).await), (1, 1));
}

#[tokio::test]
async fn a_tx_that_is_kept_is_an_error_and_its_work_is_undone() {
    let (_stage, router) = env_with_keys().await;
    let mut kept = None;
    let result: Result<(), Error> = router
        .transaction("acme", |tx| {
            kept = Some(tokio::spawn(async move {
                insert(&tx, 7).await.unwrap();
                tx
            }));
            std::future::ready(Ok(()))
        })
        .await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Misused);
    drop(kept.unwrap().await.unwrap());
    assert_eq!(count(&router, 7).await, 0);
}

#[tokio::test]
async fn a_closure_that_ends_the_transaction_itself_is_an_error() {
    let (_stage, router) = env_with_keys().await;
    let result: Result<(), Error> = router
        .transaction("acme", |tx| async move {
            insert(&tx, 7).await?;
            Ok(tx.batch_execute("COMMIT").await?)
        })
        .await;
    let err = result.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Misused);
    assert!(err.to_string().contains("COMMIT"), "{err}");
}

#[tokio::test]
async fn a_panic_or_a_dropped_call_undoes_everything_and_leaves_nothing_open() {
    let (_stage, router) = env_with_keys().await;
    let panics = router.transaction("acme", |tx| async move {
        insert(&tx, 7).await?;
        assert!(tx.is_closed(), "a panic in the closure");
        Ok::<(), Error>(())
    });
    assert!(
        std::panic::AssertUnwindSafe(panics)
            .catch_unwind()
            .await
            .is_err()
    );
    let leaves = router.transaction("acme", |tx| async move {
        insert(&tx, 7).await?;
        tx.execute("SELECT pg_sleep(60)", &[]).await?;
        Ok::<(), Error>(())
    });
    let left = tokio::time::timeout(Duration::from_millis(200), leaves).await;
    assert!(left.is_err(), "the closure takes longer");
    assert_eq!(count(&router, 7).await, 0);
    router.evict("acme");
    eventually("nothing is left open", || router.status().connections == 0).await;
}

#[tokio::test]
async fn savepoints_and_cached_statements_work_inside() {
    let (_stage, router) = env_with_keys().await;
    let inserted: i64 = router
        .transaction("acme", |tx| async move {
            let insert = tx.prepare_cached("INSERT INTO keys VALUES ($1)").await?;
            tx.execute(&insert, &[&1]).await?;
            tx.batch_execute("SAVEPOINT s").await?;
            let failed = tx.execute("INSERT INTO nowhere VALUES (1)", &[]).await;
            assert!(failed.is_err());
            tx.batch_execute("ROLLBACK TO s").await?;
            tx.execute(&insert, &[&2]).await?;
            let row = tx.query_one("SELECT count(*) FROM keys", &[]).await?;
            Ok::<i64, Error>(row.get(0))
        })
        .await
        .unwrap();
    assert_eq!(inserted, 2);
    assert_eq!(count(&router, 2).await, 1);
}
