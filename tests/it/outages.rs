//! A catalog that is down: known tenants are served, calls for others fail in time, and the router sends few probes.

use std::{error::Error as _, time::Duration};

use futures_util::future::join_all;
use tenantry::{ErrorKind, RouterBuilder, Stage, Status, TenantRouter};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Backend, DOWN, FakeCatalog, FakeControlPlane, Gate, Step, served_database};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// The longest time between two probes.
const PROBE: Duration = Duration::from_secs(5);

fn builder(backend: &Backend, catalog: &FakeCatalog) -> RouterBuilder {
    let provisioner = FakeControlPlane::provisioner(backend, catalog.clone());
    backend.configure(TenantRouter::provisioning(provisioner))
}

/// A router with one pool at most, so that every change of tenant is a look-up.
fn single_pool_router(backend: &Backend, catalog: &FakeCatalog) -> TenantRouter {
    builder(backend, catalog).max_pools(1).build().unwrap()
}

/// Returns what was counted of the catalog between two moments: calls, failures, outages.
fn counts_between(before: &Status, after: &Status) -> (u64, u64, u64) {
    (
        after.catalog_calls - before.catalog_calls,
        after.catalog_failures - before.catalog_failures,
        after.catalog_outages - before.catalog_outages,
    )
}

#[tokio::test(start_paused = true)]
async fn known_tenants_are_served_while_the_catalog_is_down_however_old_their_records_are() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let router = single_pool_router(&backend, &catalog);
    for tenant in ["acme", "globex"] {
        assert_eq!(served_database(&router, tenant).await.unwrap(), tenant);
    }
    catalog.set(DOWN);
    for age in [SECOND, HOUR, 24 * HOUR] {
        sleep(age).await;
        let before = router.status();
        for tenant in ["acme", "globex", "acme", "globex"] {
            assert_eq!(router.status().pools, 1); // and so the other one is looked up
            let start = Instant::now();
            assert_eq!(served_database(&router, tenant).await.unwrap(), tenant);
            assert!(start.elapsed() < SECOND / 10, "it waits for nobody");
        }
        let after = router.status();
        assert_eq!(after.catalog_hits, before.catalog_hits + 4, "{after:?}");
        let stale = after.catalog_stale - before.catalog_stale;
        assert_eq!(stale, if age < HOUR { 0 } else { 4 }, "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn known_tenants_are_served_while_the_catalog_is_silent() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let router = single_pool_router(&backend, &catalog);
    for tenant in ["acme", "globex"] {
        served_database(&router, tenant).await.unwrap();
    }
    catalog.set(Gate::Stuck);
    sleep(HOUR).await;
    let start = Instant::now();
    for tenant in ["acme", "globex"] {
        assert_eq!(served_database(&router, tenant).await.unwrap(), tenant);
    }
    assert!(start.elapsed() < SECOND / 10);
}

#[tokio::test(start_paused = true)]
async fn an_evicted_tenant_is_served_from_memory_while_the_catalog_is_down() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let router = builder(&backend, &catalog).build().unwrap();
    served_database(&router, "acme").await.unwrap();
    let finds = catalog.finds();
    router.evict("acme");
    served_database(&router, "acme").await.unwrap();
    assert_eq!(catalog.finds(), finds + 1, "evict means to ask again");
    catalog.set(DOWN);
    router.evict("acme");
    assert_eq!(served_database(&router, "acme").await.unwrap(), "acme");
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_calls_in_a_minute_of_outage_cost_a_few_probes() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let router = builder(&backend, &catalog).build().unwrap();
    sleep(SECOND).await;
    catalog.set(DOWN);
    let (before, calls, start) = (router.status(), catalog.calls(), Instant::now());
    let mut waited = 0;
    for number in 0..10_000 {
        let asked = Instant::now();
        let err = router.get(&format!("t{number}")).await.unwrap_err();
        assert_eq!(
            (err.kind(), err.stage()),
            (ErrorKind::Catalog, Some(Stage::Lookup))
        );
        // The one that comes first after the first failure waits for the first probe.
        let waits = asked.elapsed() >= SECOND / 10;
        assert!(!waits || number == 1 && asked.elapsed() < SECOND / 3);
        waited += u32::from(waits);
        assert!(
            err.retry_after().is_some_and(|wait| wait <= PROBE),
            "{err:?}"
        );
        assert!(err.source().is_some(), "{err:?}");
        sleep(Duration::from_millis(6)).await;
    }
    let took = start.elapsed();
    assert!(took >= 60 * SECOND && waited == 1);
    // 0.25 s doubling to 5 s, each a quarter shorter at most: 5 in the first 8 s, then one in 3.75 s.
    let most = 6 + u64::try_from(took.as_millis() / 3750).unwrap();
    let (made, failed, outages) = counts_between(&before, &router.status());
    assert!(made <= most, "{made} calls, {most} probes");
    assert_eq!((made, made), (failed, catalog.calls() - calls));
    assert_eq!(outages, 1);

    catalog.set(Gate::Open);
    sleep(PROBE).await;
    assert_eq!(served_database(&router, "t0").await.unwrap(), "t0");
}

#[tokio::test(start_paused = true)]
async fn a_silent_catalog_costs_each_call_its_time_at_most_and_then_nothing() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let router = builder(&backend, &catalog)
        .catalog_timeout(2 * SECOND)
        .build()
        .unwrap();
    sleep(SECOND).await;
    catalog.set(Gate::Stuck);
    let before = router.status();
    let start = Instant::now();
    let calls = (0..50).map(|number| {
        let router = router.clone();
        async move { router.get(&format!("t{number}")).await.unwrap_err().kind() }
    });
    let errors = join_all(calls).await;
    assert_eq!(errors, [ErrorKind::Catalog; 50]);
    assert_eq!(start.elapsed().as_secs(), 2);
    let (calls, failures, outages) = counts_between(&before, &router.status());
    assert_eq!(
        (calls, failures, outages),
        (50, 50, 1),
        "one outage, though 50 were under way"
    );
    let err = router.get("later").await.unwrap_err();
    assert_eq!(
        (err.kind(), start.elapsed().as_secs()),
        (ErrorKind::Catalog, 2)
    );
    assert!(
        err.retry_after() <= Some(SECOND / 4),
        "they did not make it longer"
    );
    let (calls, ..) = counts_between(&before, &router.status());
    assert_eq!(calls, 50);

    catalog.set(Gate::Open);
    sleep(PROBE).await;
    assert_eq!(served_database(&router, "later").await.unwrap(), "later");
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_is_back_is_noticed_without_calls() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let router = builder(&backend, &catalog)
        .catalog_poll(None)
        .build()
        .unwrap();
    sleep(SECOND).await;
    catalog.set(DOWN);
    router.get("acme").await.unwrap_err();
    sleep(HOUR).await;
    catalog.set(Gate::Open);
    // The first one probes.
    assert_eq!(served_database(&router, "acme").await.unwrap(), "acme");
    assert_eq!(served_database(&router, "globex").await.unwrap(), "globex");
}

#[tokio::test(start_paused = true)]
async fn a_creation_interrupted_by_an_outage_goes_on_soon_after_it() {
    for outage in [SECOND, 10 * SECOND] {
        let (backend, catalog) = (Backend::default(), FakeCatalog::new());
        let router = builder(&backend, &catalog).build().unwrap();
        backend.set(Step::Create, Gate::Stuck);
        let caller = tokio::spawn({
            let router = router.clone();
            async move { served_database(&router, "acme").await }
        });
        backend.until_waiting(Step::Create).await;
        catalog.set(DOWN);
        backend.set(Step::Create, Gate::Open);
        sleep(outage).await;
        catalog.set(Gate::Open);
        let back = timeout(PROBE + SECOND, caller).await;
        assert_eq!(back.expect("soon").unwrap().unwrap(), "acme");
        assert_eq!(backend.counts().created, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn look_ups_beyond_the_limit_are_told_when_to_retry() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let router = builder(&backend, &catalog).build().unwrap();
    sleep(SECOND).await;
    catalog.set(Gate::Stuck);
    let calls = (0..1100).map(|number| {
        let router = router.clone();
        async move { router.get(&format!("t{number}")).await.unwrap_err() }
    });
    let errors = join_all(calls).await;
    let overloaded = errors
        .iter()
        .filter(|err| err.kind() == ErrorKind::Overloaded);
    let overloaded: Vec<_> = overloaded.collect();
    assert_eq!(overloaded.len(), 100);
    assert!(overloaded.iter().all(|err| err.retry_after().is_some()));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_is_no_outage() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let router = builder(&backend, &catalog).build().unwrap();
    catalog.break_record("acme");
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::BadRecord);
    assert_eq!(served_database(&router, "globex").await.unwrap(), "globex");
    assert_eq!(router.status().catalog_outages, 0);
}
