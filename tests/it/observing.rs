//! An operator's view: status, the busiest tenants, and why a tenant is where it is.

use std::time::Duration;

use serde_json::Value;
use tenantry::{NextGet, Remembered, TenantRouter};
use tokio::time::sleep;

use crate::support::{Backend, DOWN, Failure, FakeCatalog, FakeControlPlane, Gate, Step};

const SECOND: Duration = Duration::from_secs(1);
const DISABLED: Gate = Gate::Fail(Failure::Error {
    code: "XX000",
    text: "The endpoint has been disabled. Enable it using Neon API and retry.",
});

#[tokio::test(start_paused = true)]
async fn a_call_is_counted_by_the_way_in_which_it_came_to_its_connection() {
    let backend = Backend::default();
    let router = FakeControlPlane::router(&backend).build().unwrap();
    let by_path = || {
        let it = router.status();
        let paths = [it.gets_warm, it.gets_reopened, it.gets_cold];
        [&paths[..], &[it.gets_provisioned, it.gets_failed]].concat()
    };
    let first = router.get("acme").await.unwrap();
    assert_eq!(by_path(), [0, 0, 0, 1, 0]);
    drop(router.get("acme").await.unwrap());
    assert_eq!(by_path(), [0, 1, 0, 1, 0], "beside the one that is held");
    drop(first);
    drop(router.get("acme").await.unwrap());
    assert_eq!(by_path(), [1, 1, 0, 1, 0]);
    assert_eq!((router.status().connections, router.status().idle), (2, 2));

    // Idle for longer than verify_after: the first question finds it dead, and the rest is a wake.
    backend.set(Step::Verify, Gate::Fail(Failure::Cut));
    sleep(40 * SECOND).await;
    drop(router.get("acme").await.unwrap());
    assert_eq!(by_path(), [1, 1, 1, 1, 0]);
    assert!(router.get("").await.is_err());
    assert_eq!(by_path(), [1, 1, 1, 1, 1]);

    let status = serde_json::to_value(router.status()).unwrap();
    assert_eq!(status["gets_cold"], 1);
    assert_eq!(status["wakes_by_request"]["started"], 2);
    assert!(status["wakes_by_request"]["total_seconds"].is_f64());
    assert!(status["catalog_staleness_seconds"].as_f64().unwrap() < 60.0);
}

#[tokio::test(start_paused = true)]
async fn the_busiest_and_the_most_failing_tenants_are_listed_by_name() {
    let backend = Backend::default();
    let lookup = |tenant: &str| (tenant != "nobody").then(|| Backend::endpoint(tenant));
    let router = backend
        .router_with_lookup(lookup)
        .waiting_per_tenant(1)
        .build()
        .unwrap();
    backend.set_at("off", Step::Login, DISABLED);
    for n in 0..60_u32 {
        drop(router.get("busy").await.unwrap());
        if n % 10 == 0 {
            drop(router.get("quiet").await.unwrap());
            assert!(router.get("off").await.is_err());
            assert!(router.get("nobody").await.is_err());
        }
    }
    sleep(6 * SECOND).await; // a sweep
    let names = |all: Vec<(tenantry::TenantId, f64)>| -> Vec<(String, f64)> {
        all.into_iter()
            .map(|(it, times)| (it.to_string(), times.round()))
            .collect()
    };
    let busiest = names(router.busiest(10));
    assert_eq!(busiest[0].0, "busy");
    assert!((50.0..=60.0).contains(&busiest[0].1), "{busiest:?}");
    assert_eq!(busiest[1].0, "quiet");
    assert_eq!(router.busiest(1).len(), 1);
    let failing = names(router.failing(10));
    assert_eq!(
        failing.len(),
        1,
        "an id that is no tenant's is not listed: {failing:?}"
    );
    assert_eq!(failing[0].0, "off");
    sleep(600 * SECOND).await;
    assert_eq!(router.busiest(10), []);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_is_explained_in_each_state() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    catalog.publish("acme", "acme").await;
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let builder = backend.configure(TenantRouter::provisioning(provisioner));
    let router = builder.pool_size(1).build().unwrap();
    let next = |tenant: &str| router.explain(tenant).unwrap().next;

    assert_eq!(next("acme"), NextGet::LookUp);
    assert_eq!(router.explain("acme").unwrap().catalog, Remembered::Nothing);
    assert!(router.explain("").is_err());

    backend.set(Step::Login, Gate::Slow(2 * SECOND));
    let waiting = tokio::spawn({
        let router = router.clone();
        async move { router.get("acme").await.unwrap() }
    });
    backend.until_waiting(Step::Login).await;
    assert_eq!(next("acme"), NextGet::JoinWake);
    let held = waiting.await.unwrap();
    assert_eq!(next("acme"), NextGet::Wait);
    drop(held);
    let handle = router.handle("acme").unwrap();
    let known = handle.explain();
    assert_eq!(known.next, NextGet::Reuse);
    let (wake, pool) = (&known.wakes[0], known.pool.as_ref().unwrap());
    assert_eq!(
        (wake.reason, wake.took, wake.failure),
        ("request", 2 * SECOND, None)
    );
    assert_eq!(
        (pool.open, pool.idle, pool.limit, pool.asleep),
        (1, 1, 1, false)
    );
    assert_eq!(
        known.to_string(),
        "tenant \"acme\"\nnext get: returns an idle connection at once\ncatalog: at acme\npool: at acme, awake: \
         connections are open, and none was lost; 1 open of 1, 1 idle, 0 opening, 0 waiting\nwake 2.0s ago, for request: up \
         after 2.0s\n"
    );
    sleep(40 * SECOND).await;
    assert_eq!(next("acme"), NextGet::Verify);
    backend.suspend();
    sleep(SECOND).await;
    let asleep = router.explain("acme").unwrap();
    assert_eq!(asleep.next, NextGet::Wake);
    assert!(asleep.pool.unwrap().asleep);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_and_a_creation_are_explained_and_nothing_is_touched() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    catalog.publish("acme", "acme").await;
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let router = backend.configure(TenantRouter::provisioning(provisioner));
    let router = router.build().unwrap();
    let next = |tenant: &str| router.explain(tenant).unwrap().next;
    drop(router.get("acme").await.unwrap());
    backend.suspend();
    sleep(SECOND).await;
    backend.set(Step::Login, DISABLED);
    assert!(router.get("acme").await.is_err());
    let refused = router.explain("acme").unwrap();
    assert_eq!(refused.next, NextGet::Refuse);
    assert_eq!(
        refused
            .wakes
            .iter()
            .map(|it| it.failure)
            .collect::<Vec<_>>(),
        [Some("disabled"), None]
    );
    let json = serde_json::to_value(&refused).unwrap();
    assert_eq!(
        (&json["next"], &json["refusal"]["code"]),
        (&Value::from("refuse"), &Value::from("disabled"))
    );
    assert!(!refused.to_string().contains("secret") && !json.to_string().contains("secret"));

    let (opened, lookups, reads) = (
        backend.counts().opened,
        router.status().lookups,
        catalog.calls(),
    );
    for _ in 0..100 {
        next("acme");
        next("other");
        router.status();
        router.busiest(5);
    }
    assert_eq!(backend.counts().opened, opened);
    assert_eq!((router.status().lookups, catalog.calls()), (lookups, reads));

    backend.set(Step::Login, Gate::Open);
    backend.set(Step::Create, Gate::Stuck);
    let creating = tokio::spawn({
        let router = router.clone();
        async move { router.get("new").await.map(drop) }
    });
    backend.until_waiting(Step::Create).await;
    let new = router.explain("new").unwrap();
    assert_eq!(
        (new.next, new.flight),
        (NextGet::JoinLookUp, Some("provision"))
    );
    creating.abort();
    router.close().await;
    assert_eq!(next("acme"), NextGet::Closed);
}

#[tokio::test(start_paused = true)]
async fn explaining_a_tenant_does_not_keep_it_in_the_cache() {
    let backend = Backend::default();
    let router = backend.router().max_pools(2).build().unwrap();
    for tenant in ["old", "young"] {
        drop(router.get(tenant).await.unwrap());
    }
    assert_eq!(router.explain("old").unwrap().next, NextGet::Reuse);
    drop(router.get("new").await.unwrap());
    sleep(SECOND).await;
    assert_eq!(router.explain("old").unwrap().next, NextGet::LookUp);
    assert_eq!(router.explain("young").unwrap().next, NextGet::Reuse);
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_has_never_answered_grows_stale() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    catalog.set(DOWN);
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let router = backend
        .configure(TenantRouter::provisioning(provisioner))
        .build()
        .unwrap();
    sleep(600 * SECOND).await;
    assert!(router.status().catalog_staleness >= 600 * SECOND);
    catalog.set(Gate::Open);
    sleep(120 * SECOND).await;
    assert!(router.status().catalog_staleness < 60 * SECOND);
}
