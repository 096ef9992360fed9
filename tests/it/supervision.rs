//! A panic in the application's own code ends no task that the router needs for as long as it lives.

use std::time::Duration;

use tenantry::{ErrorKind, TenantRouter, catalog::State};
use tokio::time::sleep;

use crate::support::{Backend, FakeCatalog, FakeControlPlane, served_database};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_catalog_costs_no_change_that_comes_after_it() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    for tenant in ["acme", "globex"] {
        catalog.publish(tenant, tenant).await;
    }
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let router = backend.configure(TenantRouter::provisioning(provisioner));
    let router = router.build().unwrap();
    for tenant in ["acme", "globex"] {
        served_database(&router, tenant).await.unwrap();
    }
    catalog.panic_in_changes(3);
    let moved = catalog.change_endpoint("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    moved.await;
    sleep(40 * SECOND).await;
    assert_eq!(served_database(&router, "acme").await.unwrap(), "new");
    catalog.set_state("globex", State::Deleting).await;
    sleep(SECOND).await;
    let err = router.get("globex").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Deleted);
}
