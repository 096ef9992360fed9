//! Every catalog that comes with the crate behaves as the public suite says.

use tenantry::{
    KeyRing,
    catalog::{Memory, Postgres, suite},
    emulator::CatalogServer,
};

#[tokio::test]
async fn the_catalog_in_memory_passes_the_suite() {
    suite::run(true, || async { Memory::new() }).await;
}

#[tokio::test]
async fn the_catalog_in_postgres_passes_the_suite() {
    let server = CatalogServer::start().await.unwrap();
    run(server.url(), true).await;
}

#[tokio::test]
async fn the_catalog_in_postgres_passes_the_suite_without_passwords() {
    let server = CatalogServer::start().await.unwrap();
    run(server.url(), false).await;
}

#[tokio::test]
async fn the_catalog_in_postgres_passes_the_suite_behind_a_pooler() {
    let server = CatalogServer::start().await.unwrap();
    run(server.pooled_url().await.unwrap(), true).await;
}

/// Runs the suite, each case in a schema of its own.
async fn run(url: String, with_passwords: bool) {
    let mut cases = 0;
    suite::run(with_passwords, || {
        cases += 1;
        let schema = format!("case \"{cases}\" é; DROP");
        let mut catalog = Postgres::builder(url.as_str()).schema(schema);
        if with_passwords {
            catalog = catalog.keys(KeyRing::new("k1", [7; 32]));
        }
        async { catalog.build().unwrap() }
    })
    .await;
}
