//! A role that Postgres allows one connection (`CONNECTION LIMIT 1`).

use std::path::Path;

use futures_util::future::join_all;
use tenantry::{BoxError, Endpoint, TenantClient, TenantRouter, emulator::CatalogServer};

use crate::support::{Gateway, TestEnv, folder, superuser};

async fn limit_role_to_one_connection(folder: &Path) {
    let operator = superuser(folder, "neondb").await;
    let limit = "ALTER ROLE neondb_owner CONNECTION LIMIT 1";
    operator.batch_execute(limit).await.unwrap();
}

/// Ten callers at once who each ask something; what each is told.
async fn run_ten_callers(router: &TenantRouter) -> Vec<Result<String, tenantry::Error>> {
    let call = || async {
        let client: TenantClient = router.get("acme").await?;
        let row = client.query_one("SELECT 'told'", &[]).await?;
        Ok(row.get(0))
    };
    join_all((0..10).map(|_| call())).await
}

#[tokio::test]
async fn a_role_with_one_connection_serves_all_callers() {
    let server = CatalogServer::start().await.unwrap();
    limit_role_to_one_connection(&folder(&server)).await;
    let gateway = Gateway::to(&server.url()).await;
    let there = Endpoint::postgres("127.0.0.1", "neondb", "neondb_owner", "none");
    let there = there.port(gateway.address.port()).without_tls();
    let lookup = move |_| {
        let there = there.clone();
        async move { Ok::<_, BoxError>(Some(there)) }
    };
    let router = TenantRouter::builder(lookup).build().unwrap();
    for answer in run_ten_callers(&router).await {
        assert_eq!(answer.unwrap(), "told");
    }
    // Past the pool there is none left, and that is what is said.
    let held = router.get("acme").await.unwrap();
    let err = router.direct("acme").await.unwrap_err();
    assert!(
        format!("{err:?}").contains("too many connections for role"),
        "{err:?}"
    );
    drop(held);
    for answer in run_ten_callers(&router).await {
        assert_eq!(answer.unwrap(), "told");
    }
}

#[tokio::test]
async fn a_role_with_one_connection_serves_all_callers_through_the_pooler() {
    let env = TestEnv::new().await;
    let router = env.router();
    drop(router.get("acme").await.unwrap());
    let compute = env.emulator.folder().join(env.witness("acme").branch_id);
    limit_role_to_one_connection(&compute).await;
    for answer in run_ten_callers(&router).await {
        assert_eq!(answer.unwrap(), "told");
    }
    router.evict("acme");
    for answer in run_ten_callers(&router).await {
        assert_eq!(answer.unwrap(), "told");
    }
}
