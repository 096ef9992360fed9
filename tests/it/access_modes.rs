//! Access modes of transactions: what was asked for, within what the database's operator allows.

use tenantry::{Error, TenantRouter, tokio_postgres::error::SqlState};

use crate::support::{TestEnv, query_text};

/// A tenant with an empty table, whose database its operator has set read-only since.
async fn read_only_database() -> (TestEnv, TenantRouter) {
    let env = TestEnv::new().await;
    let router = env.router();
    let client = router.get("acme").await.unwrap();
    query_text(&client, "CREATE TABLE keys (key int)").await;
    let operator = "ALTER DATABASE neondb SET default_transaction_read_only = on";
    query_text(&client, operator).await;
    drop(client);
    env.suspend("acme").await; // it holds for sessions that begin now, the pooler's too
    (env, router)
}

async fn insert(router: &TenantRouter, first: &str) -> Result<(), Option<SqlState>> {
    let inserted = router.transaction("acme", |tx| async move {
        tx.batch_execute(first).await?;
        tx.execute("INSERT INTO keys VALUES (1)", &[]).await?;
        Ok::<_, Error>(())
    });
    inserted.await.map_err(|err| {
        let source = std::error::Error::source(&err)?;
        let err = source.downcast_ref::<tenantry::tokio_postgres::Error>()?;
        err.code().cloned()
    })
}

#[tokio::test]
async fn a_transaction_writes_nothing_to_a_database_that_its_operator_set_read_only() {
    let (_stage, router) = read_only_database().await;
    let refused = insert(&router, "").await.unwrap_err();
    assert_eq!(refused, Some(SqlState::READ_ONLY_SQL_TRANSACTION));
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT count(*) FROM keys").await, "0");
    drop(client);
    insert(&router, "SET TRANSACTION READ WRITE").await.unwrap();
}
