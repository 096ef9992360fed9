//! The connections that a catalog in Postgres has: what is heard on them, how old they get, and what ends them.

use std::time::Duration;

use tenantry::{Records, emulator::CatalogServer, records::Postgres};
use tokio::time::timeout;

use crate::support::{LONG, publish, replica};

/// A moment in which nothing must be heard.
const QUIET: Duration = Duration::from_millis(300);

/// Listens until nothing is heard any more.
async fn hear_all(catalog: &Postgres) {
    timeout(LONG, catalog.nudged()).await.expect("it listens");
    while timeout(QUIET, catalog.nudged()).await.is_ok() {}
}

#[tokio::test]
async fn every_clone_of_a_catalog_hears_of_a_write_also_one_that_was_not_waiting_then() {
    let server = CatalogServer::start().await.unwrap();
    let writer = replica(&server).build().unwrap();
    let waits = replica(&server).build().unwrap();
    let busy = waits.clone(); // as a second router of the process has it
    hear_all(&waits).await;
    hear_all(&busy).await;
    publish(&writer, "acme").await;
    hear_all(&waits).await;
    timeout(LONG, busy.nudged())
        .await
        .expect("a ring that another clone has heard");
}
