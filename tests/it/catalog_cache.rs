//! The entries of its catalog that a router remembers: for how long, and what makes it ask again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tenantry::{ErrorKind, Provisioner, TenantRouter, catalog::State};
use tokio::time::{Instant, sleep};

use crate::support::{
    Backend, CatalogFault, DOWN, FakeCatalog, FakeControlPlane, FaultyCatalog, Gate, Step,
    served_database,
};

const SECOND: Duration = Duration::from_secs(1);
/// Enough for all that takes no time.
const MOMENT: Duration = Duration::from_millis(1);
/// The age at which an entry is stale for certain.
const STALE_AFTER: Duration = Duration::from_secs(331);
/// The time for which a router remembers that there is no such tenant.
const NEGATIVE_TTL: Duration = Duration::from_secs(10);

fn provisioner(backend: &Backend, catalog: &FakeCatalog) -> Provisioner {
    FakeControlPlane::provisioner(backend, catalog.clone())
}

/// A router that asks for changes only when it is told of some, and has one pool at most.
fn single_pool_router(backend: &Backend, provisioner: Provisioner) -> TenantRouter {
    let builder = backend.configure(TenantRouter::provisioning(provisioner));
    let builder = builder.catalog_poll(None).max_pools(1);
    builder.build().unwrap()
}

/// Uses `tenant` without its pool: that of another takes its place first.
async fn get_without_pool(router: &TenantRouter, tenant: &str) -> Result<String, tenantry::Error> {
    assert!(router.status().pools <= 1); // who was used before the last one has left by now
    served_database(router, "other").await?;
    assert_eq!(router.status().pools, 1);
    served_database(router, tenant).await
}

#[tokio::test(start_paused = true)]
async fn a_known_tenant_is_looked_up_without_the_catalog_and_read_again_once_when_it_is_old() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    catalog.publish("acme", "acme").await;
    let router = single_pool_router(&backend, provisioner(&backend, &catalog));
    get_without_pool(&router, "acme").await.unwrap();
    let finds = catalog.finds();
    for _ in 0..100 {
        get_without_pool(&router, "acme").await.unwrap();
    }
    assert_eq!(catalog.finds(), finds);
    sleep(STALE_AFTER).await;
    catalog.set(Gate::Slow(SECOND));
    let start = Instant::now();
    for _ in 0..100 {
        get_without_pool(&router, "acme").await.unwrap();
    }
    assert!(start.elapsed() < SECOND, "in the background");
    sleep(2 * SECOND).await;
    get_without_pool(&router, "acme").await.unwrap();
    sleep(2 * SECOND).await;
    assert_eq!(catalog.finds(), finds + 2, "acme and the other, once each");
    assert_eq!(router.status().catalog_stale, 200);
}

#[tokio::test(start_paused = true)]
async fn cached_records_are_read_again_at_different_times() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    let builder = backend.configure(TenantRouter::provisioning(provisioner(&backend, &catalog)));
    let router = builder.catalog_poll(None).build().unwrap();
    let names: Vec<_> = (0..50).map(|number| format!("t{number}")).collect();
    for name in &names {
        catalog.publish(name, name).await;
        served_database(&router, name).await.unwrap();
    }
    let finds = catalog.finds();
    sleep(300 * SECOND).await;
    for name in &names {
        served_database(&router, name).await.unwrap();
    }
    sleep(SECOND).await;
    let read = catalog.finds() - finds;
    assert!((1..50).contains(&read), "{read}");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_tenant_is_looked_up_once_in_ten_seconds() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    let router = single_pool_router(&backend, provisioner(&backend, &catalog).explicit());
    router.get("nobody").await.unwrap_err();
    let (finds, start) = (catalog.finds(), Instant::now());
    for _ in 0..90 {
        let err = router.get("nobody").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::UnknownTenant);
        sleep(SECOND / 10).await;
    }
    assert!(start.elapsed() < NEGATIVE_TTL);
    assert_eq!(catalog.finds(), finds);
    sleep(SECOND).await;
    router.get("nobody").await.unwrap_err();
    assert!(catalog.finds() > finds);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_created_here_is_not_unknown_any_more() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    let router = single_pool_router(&backend, provisioner(&backend, &catalog).explicit());
    router.get("acme").await.unwrap_err();
    router.fleet().unwrap().provision("acme").await.unwrap();
    assert_eq!(served_database(&router, "acme").await.unwrap(), "acme");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_created_elsewhere_is_found_within_ten_seconds_without_a_notification() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    let router = single_pool_router(&backend, provisioner(&backend, &catalog).explicit());
    router.get("acme").await.unwrap_err();
    catalog.publish("acme", "acme").await;
    router.get("acme").await.unwrap_err();
    sleep(NEGATIVE_TTL).await;
    assert_eq!(served_database(&router, "acme").await.unwrap(), "acme");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_created_on_access_is_cached_without_another_read() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    let router = single_pool_router(&backend, provisioner(&backend, &catalog));
    sleep(MOMENT).await;
    served_database(&router, "acme").await.unwrap();
    sleep(MOMENT).await;
    assert_eq!(catalog.finds(), 2, "one for the look-up, one to create it");
    served_database(&router, "other").await.unwrap();
    assert_eq!(router.status().pools, 1);
    catalog.set(DOWN);
    served_database(&router, "acme").await.unwrap();
    assert_eq!(catalog.finds(), 4);
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_before_a_change_is_neither_remembered_nor_used() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    catalog.publish("acme", "old").await;
    let router = single_pool_router(&backend, provisioner(&backend, &catalog));
    sleep(SECOND).await;
    catalog.hold_answers(true);
    let caller = tokio::spawn({
        let router = router.clone();
        async move { served_database(&router, "acme").await }
    });
    sleep(SECOND).await;
    catalog
        .change_endpoint("acme", |endpoint| *endpoint = Backend::endpoint("new"))
        .await;
    sleep(SECOND).await; // the follower has heard
    catalog.hold_answers(false);
    assert_eq!(caller.await.unwrap().unwrap(), "new");
    assert_eq!(backend.counts().opened.get("old"), None);
    assert_eq!(get_without_pool(&router, "acme").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_changes_during_each_of_its_look_ups_is_served_at_its_last_place() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let control_plane = FakeControlPlane::slow(&backend, SECOND);
    let provisioner = Provisioner::new(catalog.clone(), control_plane, "test");
    let router = single_pool_router(&backend, provisioner.passwords_from_control_plane());
    catalog.set_project("acme", "old").await;
    catalog.set_state("acme", State::Preparing).await;
    catalog.set_state("acme", State::Ready).await;
    sleep(SECOND).await;
    let caller = tokio::spawn({
        let router = router.clone();
        async move { served_database(&router, "acme").await }
    });
    sleep(SECOND / 2).await;
    for limit in 1..3 {
        catalog.set_max_connections("acme", Some(limit)).await;
        sleep(SECOND).await;
    }
    catalog.set_project("acme", "new").await;
    // The move came before the last look-up had ended, so that answer is no good.
    assert_eq!(caller.await.unwrap().unwrap(), "new");
    assert_eq!(served_database(&router, "acme").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_late_read_in_the_background_does_not_undo_a_newer_change() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    catalog.publish("acme", "old").await;
    let router = single_pool_router(&backend, provisioner(&backend, &catalog));
    get_without_pool(&router, "acme").await.unwrap();
    sleep(STALE_AFTER).await;
    catalog.hold_answers(true);
    get_without_pool(&router, "acme").await.unwrap();
    sleep(SECOND).await;
    let change = catalog.change_endpoint("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    change.await;
    sleep(SECOND).await;
    catalog.hold_answers(false);
    sleep(SECOND).await;
    assert_eq!(served_database(&router, "acme").await.unwrap(), "new");
    assert_eq!(get_without_pool(&router, "acme").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn an_evicted_tenant_is_looked_up_in_the_catalog_before_its_next_use() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    catalog.publish("acme", "old").await;
    let router = single_pool_router(&backend, provisioner(&backend, &catalog));
    served_database(&router, "acme").await.unwrap();
    let opened = backend.counts().opened["old"];
    let change = catalog.change_endpoint("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    change.await;
    catalog.set(Gate::Slow(SECOND));
    router.evict("acme");
    assert_eq!(served_database(&router, "acme").await.unwrap(), "new");
    assert_eq!(backend.counts().opened["old"], opened);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_with_a_lost_record_is_still_served_and_not_created_again() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    let router = single_pool_router(&backend, provisioner(&backend, &catalog));
    get_without_pool(&router, "acme").await.unwrap();
    catalog.lose_record("acme");
    for _ in 0..3 {
        sleep(STALE_AFTER).await;
        assert_eq!(get_without_pool(&router, "acme").await.unwrap(), "acme");
        sleep(MOMENT).await;
        router.evict("acme");
        assert_eq!(get_without_pool(&router, "acme").await.unwrap(), "acme");
    }
    assert_eq!(backend.counts().created, 2, "acme and the other");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_tenant_with_a_lost_tombstone_is_not_created_again() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    let router = single_pool_router(&backend, provisioner(&backend, &catalog));
    catalog.publish("acme", "acme").await;
    catalog.set_state("acme", State::Deleting).await;
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Deleted);
    catalog.lose_record("acme");
    for _ in 0..3 {
        sleep(NEGATIVE_TTL).await;
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::BadRecord);
    }
    assert_eq!(backend.counts().created, 0);
}

#[tokio::test(start_paused = true)]
async fn a_password_from_the_control_plane_is_read_again_only_with_another_generation() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    let reads = Arc::new(AtomicU64::new(0));
    let control_plane = FakeControlPlane::with_read_counter(&backend, Arc::clone(&reads));
    let provisioner = Provisioner::new(catalog.clone(), control_plane, "test").on_first_access();
    let router = single_pool_router(&backend, provisioner.passwords_from_control_plane());
    catalog.publish("acme", "acme").await;
    catalog
        .change_endpoint("acme", |endpoint| endpoint.password = "".into())
        .await;
    served_database(&router, "acme").await.unwrap();
    assert_eq!(reads.load(Relaxed), 1);
    served_database(&router, "other").await.unwrap();
    let before = reads.load(Relaxed);
    for _ in 0..3 {
        sleep(STALE_AFTER).await;
        let finds = catalog.finds();
        get_without_pool(&router, "acme").await.unwrap();
        sleep(SECOND).await;
        assert_eq!(catalog.finds(), finds + 2, "both were read again");
    }
    assert_eq!(reads.load(Relaxed), before);
    catalog
        .change_endpoint("acme", |endpoint| endpoint.direct_host = "else".into())
        .await;
    sleep(STALE_AFTER).await;
    get_without_pool(&router, "acme").await.unwrap();
    sleep(SECOND).await;
    assert_eq!(reads.load(Relaxed), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_password_is_read_again_past_the_cache() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    let reads = Arc::new(AtomicU64::new(0));
    let control_plane = FakeControlPlane::with_read_counter(&backend, Arc::clone(&reads));
    let provisioner = Provisioner::new(catalog.clone(), control_plane, "test").on_first_access();
    let router = single_pool_router(&backend, provisioner.passwords_from_control_plane());
    served_database(&router, "acme").await.unwrap();
    served_database(&router, "other").await.unwrap();
    let (finds, before) = (catalog.finds(), reads.load(Relaxed));
    assert_eq!(router.status().pools, 1);
    let refused = login_refused();
    backend.set_at("acme", Step::Login, refused);
    router.get("acme").await.unwrap_err();
    assert!(catalog.finds() > finds);
    assert_eq!(reads.load(Relaxed), before + 1);
}

/// A login that Neon refuses.
fn login_refused() -> Gate {
    Gate::Fail(crate::support::Failure::Error {
        code: "28P01",
        text: "password authentication failed for user 'app'",
    })
}

#[tokio::test(start_paused = true)]
async fn after_a_preload_all_tenants_are_served_without_the_catalog() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let names: Vec<_> = (0..2500).map(|number| format!("t{number}")).collect();
    for name in &names {
        catalog.publish(name, name).await;
    }
    catalog.set_state("t7", State::Held).await;
    let router = single_pool_router(&backend, provisioner(&backend, &catalog));
    assert_eq!(router.preload().await.unwrap(), 2499);
    catalog.set(DOWN);
    for name in ["t0", "t1234", "t2499"] {
        assert_eq!(served_database(&router, name).await.unwrap(), name);
    }
    assert_eq!(catalog.finds(), 0);
    assert_eq!(
        router.get("t7").await.unwrap_err().kind(),
        ErrorKind::Catalog
    );
    assert!(
        catalog.finds() <= 1,
        "a tenant that may not be used is asked for once"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_preloaded_at_once_is_not_read_again() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    let names: Vec<_> = (0..100).map(|number| format!("t{number}")).collect();
    for name in &names {
        catalog.publish(name, name).await;
    }
    catalog.set(Gate::Slow(SECOND)); // also of the first question for changes
    let router = single_pool_router(&backend, provisioner(&backend, &catalog));
    assert_eq!(router.preload().await.unwrap(), 100);
    sleep(2 * SECOND).await;
    for name in &names {
        assert_eq!(served_database(&router, name).await.unwrap(), *name);
    }
    sleep(2 * SECOND).await;
    assert_eq!(catalog.finds(), 0);
    assert_eq!(router.status().catalog_stale, 0);
}

#[tokio::test(start_paused = true)]
async fn a_preload_does_without_changes_that_a_catalog_does_not_report() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    catalog.publish("acme", "acme").await;
    for (fault, limit) in [
        (CatalogFault::Silent(None), 6 * SECOND),
        (CatalogFault::Rejected, SECOND),
    ] {
        let faulty = FaultyCatalog::new(&catalog);
        faulty.set("changes", fault.clone());
        let provisioner = FakeControlPlane::provisioner(&backend, faulty);
        let router = single_pool_router(&backend, provisioner);
        let start = Instant::now();
        assert_eq!(router.preload().await.unwrap(), 1, "{fault:?}");
        assert!(start.elapsed() < limit, "{fault:?} {:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_preload_misses_no_move_of_a_tenant_during_it() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let names: Vec<_> = (0..100).map(|number| format!("t{number}")).collect();
    for name in &names {
        catalog.publish(name, name).await;
    }
    let builder = backend.configure(TenantRouter::provisioning(provisioner(&backend, &catalog)));
    let router = builder.build().unwrap();
    sleep(SECOND).await;
    catalog.hold_answers(true);
    let preload = tokio::spawn({
        let router = router.clone();
        async move { router.preload().await }
    });
    sleep(SECOND).await; // the page is read, and not yet here
    for name in &names[..50] {
        let change = catalog.change_endpoint(name, |endpoint| *endpoint = Backend::endpoint("new"));
        change.await;
    }
    sleep(SECOND).await;
    catalog.hold_answers(false);
    let remembered = preload.await.unwrap().unwrap();
    assert!(remembered <= 50, "{remembered}");
    let databases = names.iter().map(|name| served_database(&router, name));
    for (name, database) in names.iter().zip(join_all(databases).await) {
        let moved = names[..50].contains(name);
        assert_eq!(database.unwrap(), if moved { "new" } else { name });
    }
}

#[tokio::test(start_paused = true)]
async fn a_preload_returns_the_error_of_a_failing_catalog() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    catalog.publish("acme", "acme").await;
    let router = single_pool_router(&backend, provisioner(&backend, &catalog));
    sleep(SECOND).await;
    catalog.set(DOWN);
    let err = router.preload().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Catalog);
    router.close().await;
    assert_eq!(
        router.preload().await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    let own = backend.router().build().unwrap();
    assert_eq!(own.preload().await.unwrap(), 0);
}
