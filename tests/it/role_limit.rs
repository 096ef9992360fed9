//! A role that Postgres allows one connection (`CONNECTION LIMIT 1`).

use std::path::Path;

use futures_util::future::join_all;
use tenantry::{BoxError, Endpoint, TenantClient, TenantRouter, emulator::CatalogServer};

use crate::support::{Gateway, Stage, folder, superuser};

async fn limit(folder: &Path) {
    let operator = superuser(folder, "neondb").await;
    let limit = "ALTER ROLE neondb_owner CONNECTION LIMIT 1";
    operator.batch_execute(limit).await.unwrap();
}

/// Ten callers at once who each ask something; what each is told.
async fn ten_at_once(router: &TenantRouter) -> Vec<Result<String, tenantry::Error>> {
    let call = || async {
        let client: TenantClient = router.get("acme").await?;
        let row = client.query_one("SELECT 'told'", &[]).await?;
        Ok(row.get(0))
    };
    join_all((0..10).map(|_| call())).await
}

#[tokio::test]
async fn a_role_with_one_connection_serves_everybody_by_it() {
    let server = CatalogServer::start().await.unwrap();
    limit(&folder(&server)).await;
    let gateway = Gateway::to(&server.url()).await;
    let there = Endpoint::postgres("127.0.0.1", "neondb", "neondb_owner", "none");
    let there = there.port(gateway.address.port()).without_tls();
    let lookup = move |_| {
        let there = there.clone();
        async move { Ok::<_, BoxError>(Some(there)) }
    };
    let router = TenantRouter::builder(lookup).build().unwrap();
    for told in ten_at_once(&router).await {
        assert_eq!(told.unwrap(), "told");
    }
    // Past the pool there is none left, and that is what is said.
    let held = router.get("acme").await.unwrap();
    let err = router.direct("acme").await.unwrap_err();
    assert!(
        format!("{err:?}").contains("too many connections for role"),
        "{err:?}"
    );
    drop(held);
    for told in ten_at_once(&router).await {
        assert_eq!(told.unwrap(), "told");
    }
}

#[tokio::test]
async fn a_role_with_one_connection_serves_everybody_through_the_pooler() {
    let stage = Stage::new().await;
    let router = stage.router();
    drop(router.get("acme").await.unwrap());
    let compute = stage
        .emulator
        .folder()
        .join(stage.witness("acme").branch_id);
    limit(&compute).await;
    for told in ten_at_once(&router).await {
        assert_eq!(told.unwrap(), "told");
    }
    router.evict("acme");
    for told in ten_at_once(&router).await {
        assert_eq!(told.unwrap(), "told");
    }
}
