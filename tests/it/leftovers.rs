//! Work that a caller leaves half done, or state that it discards, and what the next one finds.

use std::{io::Cursor, pin::pin, time::Duration};

use futures_util::{SinkExt, StreamExt};
use tenantry::{
    TenantRouter,
    tokio_postgres::{self, Client, Statement, error::SqlState, types::Type},
};
use tokio::time::Instant;

use crate::support::{LONG, TestEnv, eventually, query_text};

/// A router with one connection, a tenant with an empty table, and the number of the one session.
async fn router_with_one_connection(env: &TestEnv) -> (TenantRouter, String) {
    let router = env.builder("test").pool_size(1).build().unwrap();
    let client = router.get("acme").await.unwrap();
    query_text(&client, "CREATE TABLE t (n int)").await;
    let pid = query_text(&client, "SELECT pg_backend_pid()").await;
    drop(client);
    (router, pid)
}

/// Sends `rows` to `COPY t FROM STDIN`, and ends it, if it is to be ended.
async fn copy_in(client: &Client, rows: &str, ends: bool) -> Option<SqlState> {
    let sink = client.copy_in("COPY t FROM STDIN").await.unwrap();
    let mut sink = pin!(sink);
    let sent = sink.send(Cursor::new(rows.to_owned())).await;
    let done = match sent {
        Ok(()) if ends => sink.finish().await.map(drop),
        sent => sent,
    };
    done.err().and_then(|err| err.code().cloned())
}

#[tokio::test]
async fn a_refused_copy_leaves_its_connection_usable() {
    let env = TestEnv::new().await;
    let (router, pid) = router_with_one_connection(&env).await;
    let long = format!("none\n{}", "1\n".repeat(500_000)); // refused while it is still being sent
    for bad in ["1\nnone\n3\n", "1\t2\n", &long] {
        for asks in [true, false] {
            let client = router.get("acme").await.unwrap();
            let refused = copy_in(&client, bad, true).await;
            assert!(refused.is_some(), "{bad:.9}");
            if asks {
                assert_eq!(query_text(&client, "SELECT count(*) FROM t").await, "0");
            }
            drop(client);
            let client = router.get("acme").await.unwrap();
            assert_eq!(query_text(&client, "SELECT pg_backend_pid()").await, pid);
        }
    }
    assert_eq!(router.status().discarded, 0);
}

#[tokio::test]
async fn a_copy_that_its_client_leaves_half_way_writes_nothing() {
    let env = TestEnv::new().await;
    let (router, _) = router_with_one_connection(&env).await;
    for goes_on in [true, false] {
        let client = router.get("acme").await.unwrap();
        assert_eq!(copy_in(&client, "1\n2\n", false).await, None);
        if goes_on {
            assert_eq!(query_text(&client, "SELECT count(*) FROM t").await, "0");
        }
        drop(client);
        let client = router.get("acme").await.unwrap();
        assert_eq!(query_text(&client, "SELECT count(*) FROM t").await, "0");
        assert_eq!(copy_in(&client, "3\n", true).await, None);
        assert_eq!(query_text(&client, "DELETE FROM t RETURNING n").await, "3");
    }
    // Past the pooler as well, and with a transaction that goes with it.
    let direct = router.direct("acme").await.unwrap();
    direct.batch_execute("BEGIN").await.unwrap();
    assert_eq!(copy_in(&direct, "4\n", false).await, None);
    drop(direct);
    eventually("its session ends", || {
        env.witness("acme").open_sessions == 1
    })
    .await;
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT count(*) FROM t").await, "0");
}

/// More rows than a caller can wait for.
const ENDLESS: &str = "SELECT generate_series(1, 2000000000)";

/// Reads a few rows of `sql` on `client`, and drops the rest.
async fn read_three_rows(client: &Client, sql: &str) {
    let none: [&str; 0] = [];
    let rows = client.query_raw(sql, none).await.unwrap();
    let mut rows = pin!(rows);
    for n in 1..=3 {
        let row = rows.next().await.unwrap().unwrap();
        assert_eq!(row.get::<_, i32>(0), n);
    }
}

#[tokio::test]
async fn half_read_rows_delay_no_other_caller() {
    let env = TestEnv::new().await;
    let (router, pid) = router_with_one_connection(&env).await;
    // A few more: the connection is used on at once, and by the next caller.
    let client = router.get("acme").await.unwrap();
    read_three_rows(&client, "SELECT generate_series(1, 100000)").await;
    assert_eq!(query_text(&client, "SELECT pg_backend_pid()").await, pid);
    read_three_rows(&client, "SELECT generate_series(1, 10)").await;
    drop(client);
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT 1").await, "1");
    // Far too many: the next caller does not wait for them, and the server stops.
    read_three_rows(&client, ENDLESS).await;
    drop(client);
    let next = tokio::time::timeout(LONG, router.get("acme")).await;
    let client = next.expect("it waits for the rest").unwrap();
    let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%2000000000%' \
                   AND pid <> pg_backend_pid()";
    let start = Instant::now();
    while query_text(&client, running).await != "0" {
        assert!(start.elapsed() < LONG, "the server goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_portal_that_is_read_half_ends_with_its_transaction() {
    let env = TestEnv::new().await;
    let (router, pid) = router_with_one_connection(&env).await;
    for commits in [true, false] {
        let mut client = router.get("acme").await.unwrap();
        let transaction = client.transaction().await.unwrap();
        let portal = transaction.bind(ENDLESS, &[]).await.unwrap();
        let rows = transaction.query_portal(&portal, 3).await.unwrap();
        assert_eq!(rows.len(), 3);
        if commits {
            transaction.commit().await.unwrap();
        } else {
            drop(transaction);
        }
        drop((portal, client));
        let client = router.get("acme").await.unwrap();
        assert_eq!(query_text(&client, "SELECT pg_backend_pid()").await, pid);
    }
    assert_eq!(router.status().discarded, 0);
}

const COUNT: &str = "SELECT count(*) FROM t WHERE n >= $1";

/// Asks with a statement that the connection remembers.
async fn run_statement(
    client: &Client,
    statement: &Statement,
) -> Result<i64, tokio_postgres::Error> {
    let row = client.query_one(statement, &[&0]).await?;
    Ok(row.get(0))
}

#[tokio::test]
async fn discarding_all_takes_the_remembered_statements_and_no_more() {
    let env = TestEnv::new().await;
    let (router, _) = router_with_one_connection(&env).await;
    for uses_it in [false, true] {
        let client = router.get("acme").await.unwrap();
        let sql = format!("{COUNT} -- {uses_it}"); // a statement of its own
        let before = client.prepare_cached(&sql).await.unwrap();
        assert_eq!(run_statement(&client, &before).await.unwrap(), 0);
        client.batch_execute("DISCARD ALL").await.unwrap();
        // What names no statement works on, as does what is prepared from now on.
        let typed = client.query_typed(COUNT, &[(&0, Type::INT4)]).await;
        assert_eq!(typed.unwrap()[0].get::<_, i64>(0), 0);
        let after = client.prepare(COUNT).await.unwrap();
        assert_eq!(run_statement(&client, &after).await.unwrap(), 0);
        if uses_it {
            // Only what was prepared before is gone, and with it, at PgBouncer, the connection.
            let err = run_statement(&client, &before).await.unwrap_err();
            assert_eq!(err.code(), Some(&SqlState::PROTOCOL_VIOLATION), "{err:?}");
        }
        drop(client);
        let client = router.get("acme").await.unwrap();
        let typed = client.query_typed(COUNT, &[(&0, Type::INT4)]).await;
        assert_eq!(typed.unwrap()[0].get::<_, i64>(0), 0, "{uses_it}");
    }
    let direct = router.direct("acme").await.unwrap();
    let before = direct.prepare_cached(COUNT).await.unwrap();
    assert_eq!(run_statement(&direct, &before).await.unwrap(), 0);
    direct.batch_execute("DISCARD ALL").await.unwrap();
    let err = run_statement(&direct, &before).await.unwrap_err();
    let gone = SqlState::INVALID_SQL_STATEMENT_NAME;
    assert_eq!(err.code(), Some(&gone), "{err:?}");
    direct.query_one(COUNT, &[&0]).await.unwrap();
}

#[tokio::test]
async fn a_caller_is_not_affected_by_what_the_previous_caller_discarded() {
    let env = TestEnv::new().await;
    let (router, _) = router_with_one_connection(&env).await;
    for discards in ["DISCARD ALL", "DEALLOCATE ALL", "SELECT 1; deallocate all"] {
        for _ in 0..2 {
            let client = router.get("acme").await.unwrap();
            let count = client.prepare_cached(COUNT).await.unwrap();
            assert_eq!(run_statement(&client, &count).await.expect(discards), 0);
            client.batch_execute(discards).await.unwrap();
        }
    }
}
