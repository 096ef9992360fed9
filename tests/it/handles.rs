//! Handles: what is kept of a tenant is right whatever happens to the tenant.

use std::time::Duration;

use tenantry::{ErrorKind, TenantHandle, TenantRouter, TransactionOptions};
use tokio::time::sleep;

use crate::support::{Backend, FakeCatalog, FakeControlPlane, current_database};

/// Enough for all that takes no time.
const MOMENT: Duration = Duration::from_millis(101); // twice the time between two questions for changes

/// A router on a catalog, and a handle to its one tenant, that was used.
async fn tenant_handle() -> (Backend, FakeCatalog, TenantRouter, TenantHandle) {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    catalog.publish("acme", "acme").await;
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let builder = backend.configure(TenantRouter::provisioning(provisioner));
    let router = builder.build().unwrap();
    sleep(MOMENT).await;
    let acme = router.handle("acme").unwrap();
    assert_eq!(database_of(&acme).await, "acme");
    (backend, catalog, router, acme)
}

async fn database_of(handle: &TenantHandle) -> String {
    current_database(&handle.get().await.unwrap()).await
}

#[tokio::test(start_paused = true)]
async fn every_method_reaches_the_tenant() {
    let (backend, _ledger, router, acme) = tenant_handle().await;
    assert_eq!(acme.tenant().as_str(), "acme");
    assert_eq!(
        format!("{acme:?}"),
        "TenantHandle { tenant: TenantId(\"acme\"), .. }"
    );
    let who = |tx: tenantry::Tx| async move {
        let rows = tx.query_typed("SELECT current_database()", &[]).await?;
        Ok::<_, tenantry::Error>(rows[0].get::<_, String>(0))
    };
    let options = TransactionOptions::new();
    let here = acme.clone();
    assert_eq!(here.read(who).await.unwrap(), "acme");
    assert_eq!(here.read_with(&options, who).await.unwrap(), "acme");
    assert_eq!(here.transaction(who).await.unwrap(), "acme");
    assert_eq!(here.transaction_with(&options, who).await.unwrap(), "acme");
    assert_eq!(router.status().gets_warm, 4);
    assert_eq!(acme.direct().await.unwrap().tenant(), acme.tenant());
    acme.warm().wait().await.unwrap();
    assert!(!acme.hint(), "it is awake");
    assert_eq!(backend.counts().opened["acme"], 2);
    let err = router.handle("").unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidTenant);
}

#[tokio::test(start_paused = true)]
async fn after_an_eviction_a_handle_looks_the_tenant_up_again() {
    let (backend, _ledger, router, acme) = tenant_handle().await;
    let lookups = router.status().lookups;
    assert_eq!(database_of(&acme).await, "acme");
    assert_eq!(router.status().lookups, lookups);
    let held = acme.get().await.unwrap(); // the pool lives on through it
    for held in [Some(held), None] {
        let (lookups, opened) = (router.status().lookups, backend.counts().opened["acme"]);
        assert!(router.evict("acme"));
        assert_eq!(database_of(&acme).await, "acme");
        assert_eq!(router.status().lookups, lookups + 1);
        assert_eq!(backend.counts().opened["acme"], opened + 1);
        drop(held);
    }
    assert_eq!(database_of(&acme).await, "acme");
    assert_eq!(router.status().lookups, lookups + 2);
}

#[tokio::test(start_paused = true)]
async fn a_handle_keeps_nothing_open_of_a_pool_that_was_evicted() {
    let (_backend, _ledger, router, acme) = tenant_handle().await;
    let before = router.status();
    assert_eq!((before.pools, before.connections), (1, 1));
    router.evict("acme");
    sleep(MOMENT).await;
    let after = router.status();
    assert_eq!((after.pools, after.connections), (0, 0));
    assert_eq!(after.gets_warm, before.gets_warm, "what was counted stays");
    assert_eq!(database_of(&acme).await, "acme");
}

#[tokio::test(start_paused = true)]
async fn after_a_move_a_handle_is_where_the_tenant_lives_now() {
    let (_backend, catalog, router, acme) = tenant_handle().await;
    let (held, idle) = (acme.get().await.unwrap(), acme.get().await.unwrap());
    drop(idle);
    let change = catalog.change_endpoint("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    change.await;
    sleep(MOMENT).await;
    assert_eq!(database_of(&acme).await, "new");
    assert_eq!(current_database(&held).await, "acme");
    drop(held);
    assert_eq!(database_of(&acme).await, "new");
    assert_eq!(router.status().moved, 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_deletion_a_handle_says_so() {
    let (_backend, _ledger, router, acme) = tenant_handle().await;
    let held = acme.get().await.unwrap();
    router.fleet().unwrap().delete("acme").await.unwrap();
    for held in [Some(held), None] {
        let err = acme.get().await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Deleted);
        assert_eq!(err.tenant(), Some(acme.tenant()));
        drop(held);
    }
    sleep(MOMENT).await;
    assert_eq!(router.status().connections, 0);
}

#[tokio::test(start_paused = true)]
async fn after_close_a_handle_is_closed_too() {
    let (_backend, _ledger, router, acme) = tenant_handle().await;
    router.close().await;
    assert_eq!(acme.get().await.unwrap_err().kind(), ErrorKind::Closed);
}
