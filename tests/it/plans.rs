//! Prepared statements after a schema change.

use futures_util::future::join_all;
use tenantry::{Error, TenantClient, TenantRouter};

use crate::support::{TestEnv, query_text};

const SELECT_ALL: &str = "SELECT * FROM notes";

/// Runs `sql` past the pooler.
async fn execute_direct(router: &TenantRouter, sql: &str) {
    let direct = router.direct("acme").await.unwrap();
    direct.batch_execute(sql).await.unwrap();
}

/// Has so many server connections of the pooler prepare `sql`: those of transactions that run side by side.
async fn prepare_on_connections(router: &TenantRouter, count: usize, sql: &str) {
    let clients: Vec<_> = join_all((0..count).map(|_| router.get("acme"))).await;
    let clients: Vec<TenantClient> = clients.into_iter().map(Result::unwrap).collect();
    for client in &clients {
        client.batch_execute("BEGIN").await.unwrap();
    }
    for client in &clients {
        client.query(sql, &[]).await.unwrap();
        client.prepare_cached(sql).await.unwrap();
    }
    for client in &clients {
        client.batch_execute("COMMIT").await.unwrap();
    }
}

/// Returns the number of columns of `sql`, by a connection that is taken for it.
async fn column_count(router: &TenantRouter, sql: &str) -> Result<usize, Error> {
    let client = router.get("acme").await?;
    let statement = client.prepare_cached(sql).await?;
    let rows = client.query(&statement, &[]).await?;
    assert_eq!(rows[0].len(), statement.columns().len());
    Ok(rows[0].len())
}

async fn env_with_notes() -> (TestEnv, TenantRouter) {
    let env = TestEnv::new().await;
    let router = env.router();
    let table = "CREATE TABLE notes (note text); INSERT INTO notes VALUES ('one')";
    execute_direct(&router, table).await;
    (env, router)
}

#[tokio::test]
async fn a_new_column_fails_one_pooled_query_at_the_most() {
    for count in [1, 3] {
        let (_stage, router) = env_with_notes().await;
        prepare_on_connections(&router, count, SELECT_ALL).await;
        for width in 2..5 {
            execute_direct(
                &router,
                &format!("ALTER TABLE notes ADD COLUMN c{width} int"),
            )
            .await;
            let mut failures = Vec::new();
            for _ in 0..8 {
                match column_count(&router, SELECT_ALL).await {
                    Ok(columns) => assert_eq!(columns, width),
                    Err(err) => failures.push(err),
                }
            }
            assert!(failures.len() <= 1, "{count} prepared: {failures:?}");
        }
    }
}

#[tokio::test]
async fn a_new_column_fails_no_second_query_while_the_first_connection_is_cleaned_up() {
    let (_stage, router) = env_with_notes().await;
    prepare_on_connections(&router, 3, SELECT_ALL).await;
    execute_direct(&router, "ALTER TABLE notes ADD COLUMN c2 int").await;
    let client = router.get("acme").await.unwrap();
    let statement = client.prepare_cached(SELECT_ALL).await.unwrap();
    tokio::select! {
        biased;
        refused = client.query(&statement, &[]) => drop(refused.unwrap_err()),
        _ = client.batch_execute("SELECT pg_sleep(30)") => panic!("it sleeps"),
    }
    drop(client); // while it sleeps
    for _ in 0..8 {
        assert_eq!(column_count(&router, SELECT_ALL).await.unwrap(), 2);
    }
}

#[tokio::test]
async fn a_new_column_fails_no_read_and_no_transaction() {
    let (_stage, router) = env_with_notes().await;
    prepare_on_connections(&router, 4, SELECT_ALL).await;
    for width in 2..5 {
        execute_direct(
            &router,
            &format!("ALTER TABLE notes ADD COLUMN c{width} int"),
        )
        .await;
        let read = router.read("acme", |tx| async move {
            Ok::<_, Error>(tx.query(SELECT_ALL, &[]).await?[0].len())
        });
        assert_eq!(read.await.unwrap(), width);
        let written = router.transaction("acme", |tx| async move {
            tx.batch_execute("INSERT INTO notes VALUES ('two')").await?;
            let statement = tx.prepare_cached(SELECT_ALL).await?;
            Ok::<_, Error>(tx.query(&statement, &[]).await?[0].len())
        });
        assert_eq!(written.await.unwrap(), width);
    }
    let client = router.get("acme").await.unwrap();
    let count = query_text(&client, "SELECT count(*) FROM notes").await;
    assert_eq!(count, "4", "each was written once");
}

#[tokio::test]
async fn a_type_that_was_recreated_fails_one_pooled_query_at_the_most() {
    let (_stage, router) = env_with_notes().await;
    let mood = "CREATE TYPE mood AS ENUM ('fine'); CREATE TABLE moods (mood mood)";
    execute_direct(&router, mood).await;
    let insert = "INSERT INTO moods VALUES ($1::text::mood) RETURNING mood::text";
    let typed = "SELECT count(*) FROM moods WHERE mood = $1";
    let client = router.get("acme").await.unwrap();
    client.query(insert, &[&"fine"]).await.unwrap();
    client.prepare(typed).await.unwrap();
    drop(client);
    execute_direct(
        &router,
        &format!("DROP TABLE moods; DROP TYPE mood; {mood}"),
    )
    .await;
    let mut failures = 0;
    for _ in 0..8 {
        let client = router.get("acme").await.unwrap();
        let done = client.query(insert, &[&"fine"]).await;
        failures += i32::from(done.is_err());
        failures += i32::from(client.prepare(typed).await.is_err());
    }
    assert!(failures <= 1, "{failures} failures");
}

#[tokio::test]
async fn a_failure_that_the_closure_handles_is_its_own() {
    let (_stage, router) = env_with_notes().await;
    prepare_on_connections(&router, 1, SELECT_ALL).await;
    execute_direct(&router, "ALTER TABLE notes ADD COLUMN c int").await;
    let mut runs = 0;
    let done = router.transaction("acme", |tx| {
        runs += 1;
        async move {
            tx.batch_execute("SAVEPOINT s").await?;
            let failed = tx.query(SELECT_ALL, &[]).await.is_err();
            tx.batch_execute("ROLLBACK TO s").await?;
            tx.batch_execute("INSERT INTO notes VALUES ('two')").await?;
            Ok::<_, Error>(failed)
        }
    });
    assert!(done.await.unwrap());
    assert_eq!(runs, 1);
    assert_eq!(
        column_count(&router, SELECT_ALL).await.unwrap(),
        2,
        "none is handed on that may fail"
    );
}

#[tokio::test]
async fn cleared_statements_are_prepared_again_also_for_other_routers() {
    let (env, router) = env_with_notes().await;
    let other = env.builder("test").build().unwrap();
    let id = "SELECT id FROM notes WHERE id = $1";
    execute_direct(&router, "ALTER TABLE notes ADD COLUMN id int DEFAULT 1").await;
    for router in [&router, &other] {
        prepare_on_connections(router, 3, SELECT_ALL).await;
        let client = router.get("acme").await.unwrap();
        client.query(id, &[&1_i32]).await.unwrap();
    }
    execute_direct(&router, "ALTER TABLE notes ALTER COLUMN id TYPE bigint").await;
    router.clear_cached_statements("acme").await.unwrap();
    for router in [&router, &other] {
        for _ in 0..4 {
            let client = router.get("acme").await.unwrap();
            let rows = client.query(id, &[&1_i64]).await.unwrap();
            assert_eq!(rows[0].get::<_, i64>(0), 1);
            client.query(SELECT_ALL, &[]).await.unwrap();
        }
    }
    let handle = router.handle("acme").unwrap();
    execute_direct(&router, "ALTER TABLE notes ALTER COLUMN id TYPE text").await;
    handle.clear_cached_statements().await.unwrap();
    let held = join_all((0..4).map(|_| handle.get())).await;
    for client in held {
        let client = client.unwrap();
        let statement = client.prepare_cached(SELECT_ALL).await.unwrap();
        let rows = client.query(&statement, &[]).await.unwrap();
        assert_eq!(rows[0].get::<_, &str>("id"), "1");
    }
}

#[tokio::test]
async fn an_error_that_clearing_does_not_help_clears_a_few_times_and_no_more() {
    let (env, router) = env_with_notes().await;
    let raise = "DO $$ BEGIN RAISE EXCEPTION 'cache lookup failed for type 1' USING ERRCODE = 'XX000'; END $$";
    for _ in 0..50 {
        let client = router.get("acme").await.unwrap();
        client.batch_execute(raise).await.unwrap_err();
    }
    let logins = env.witness("acme").auth_attempts.len();
    assert!(logins <= 100, "{logins} logins for 50 errors");
    drop(router.get("acme").await.unwrap());
    assert_eq!(router.status().connections, 1);
}
