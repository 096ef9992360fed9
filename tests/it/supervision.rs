//! A panic in the application's own code ends no task that the router needs for as long as it lives.

use std::time::Duration;

use tenantry::{ErrorKind, TenantRouter, catalog::State};
use tokio::time::sleep;

use crate::support::{Backend, Ledger, Projects, place};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_catalog_costs_no_change_that_comes_after_it() {
    let (backend, ledger) = (Backend::default(), Ledger::new());
    for tenant in ["acme", "globex"] {
        ledger.publish(tenant, tenant).await;
    }
    let provisioner = Projects::provisioner(&backend, ledger.clone());
    let router = backend.at(TenantRouter::provisioning(provisioner));
    let router = router.build().unwrap();
    for tenant in ["acme", "globex"] {
        place(&router, tenant).await.unwrap();
    }
    ledger.panic_in_changes(3);
    let moved = ledger.change("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    moved.await;
    sleep(40 * SECOND).await;
    assert_eq!(place(&router, "acme").await.unwrap(), "new");
    ledger.turn("globex", State::Deleting).await;
    sleep(SECOND).await;
    let err = router.get("globex").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Deleted);
}
