//! Look-ups under way: how many there may be, what is remembered of those that failed, and that each comes to an end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tenantry::{ErrorKind, Provisioner, TenantRouter, catalog::State};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Backend, FakeCatalog, FakeControlPlane, Gate, Step, served_database};

const SECOND: Duration = Duration::from_secs(1);
/// Enough for all that takes no time.
const MOMENT: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn look_ups_under_way_never_exceed_the_limit_of_callers_though_all_of_them_leave() {
    let backend = Backend::default();
    backend.set(Step::Lookup, Gate::Stuck);
    let router = backend.router().waiting_callers(100).build().unwrap();
    let mut kinds = Vec::new();
    for number in 0..1000 {
        let tenant = format!("t{number}");
        if let Ok(answer) = timeout(MOMENT, router.get(&tenant)).await {
            kinds.push(answer.unwrap_err());
        }
    }
    assert_eq!(backend.counts().reached(Step::Lookup), 100);
    assert_eq!(kinds.len(), 900);
    for err in kinds {
        assert_eq!(err.kind(), ErrorKind::Overloaded);
        assert!(err.retry_after().is_some());
    }
    backend.set(Step::Lookup, Gate::Open);
    sleep(MOMENT).await;
    served_database(&router, "t999").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_invalid_record_is_read_again_now_and_then_and_not_for_each_call() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    catalog.publish("acme", "acme").await;
    catalog.break_record("acme");
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let router = backend.configure(TenantRouter::provisioning(provisioner));
    let router = router.build().unwrap();
    for _ in 0..1000 {
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::BadRecord);
    }
    assert_eq!(catalog.finds(), 1);
    sleep(11 * SECOND).await;
    router.get("acme").await.unwrap_err();
    assert_eq!(catalog.finds(), 2, "it may have been mended");
}

#[tokio::test(start_paused = true)]
async fn an_unusable_endpoint_without_a_password_is_read_again_now_and_then_and_not_for_each_call()
{
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let router = TenantRouter::provisioning(provisioner.passwords_from_control_plane());
    let router = backend.configure(router).build().unwrap();
    catalog.publish("acme", "acme").await;
    let made_wrong = catalog.change_endpoint("acme", |endpoint| {
        endpoint.password = "".into();
        endpoint.direct_host = "https://acme.test".into();
        endpoint.pooled_host = "https://acme.test".into();
    });
    made_wrong.await;
    for _ in 0..1000 {
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Misconfigured);
    }
    assert_eq!(catalog.finds(), 1);
    sleep(11 * SECOND).await;
    router.get("acme").await.unwrap_err();
    assert_eq!(catalog.finds(), 2, "it may have been mended");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_is_created_once_a_misconfiguration_is_fixed() {
    let (backend, wrong) = (Backend::default(), Arc::new(AtomicBool::new(true)));
    let control_plane = FakeControlPlane::misconfigured_while(&backend, Arc::clone(&wrong));
    let provisioner = Provisioner::new(FakeCatalog::without_notifications(), control_plane, "test")
        .on_first_access();
    let router = backend.configure(TenantRouter::provisioning(provisioner));
    let router = router.build().unwrap();
    for _ in 0..2 {
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Misconfigured);
        sleep(11 * SECOND).await;
    }
    wrong.store(false, Relaxed);
    served_database(&router, "acme").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_look_up_ends_though_the_tenant_is_evicted_again_and_again() {
    let backend = Backend::default();
    backend.set(Step::Lookup, Gate::Slow(SECOND));
    let router = backend.router().build().unwrap();
    let waiting = {
        let router = router.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            router.get("acme").await.map(|_| began.elapsed())
        })
    };
    for _ in 0..1000 {
        sleep(5 * MOMENT).await;
        router.evict("acme");
    }
    assert!(waiting.is_finished(), "5 s have passed");
    let took = waiting.await.unwrap().unwrap();
    assert!(took <= 3 * SECOND, "{took:?}");
    assert!(backend.counts().reached(Step::Lookup) <= 6);
}

#[tokio::test(start_paused = true)]
async fn a_silent_control_plane_does_not_delay_changes_of_the_catalog() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let silent = Arc::new(AtomicBool::new(false));
    let control_plane = FakeControlPlane::silent_while(&backend, Arc::clone(&silent));
    let provisioner = Provisioner::new(catalog.clone(), control_plane, "test").on_first_access();
    let router = TenantRouter::provisioning(provisioner.passwords_from_control_plane());
    let router = backend.configure(router).build().unwrap();
    let tenants: Vec<_> = (0..80).map(|number| format!("t{number}")).collect();
    for tenant in tenants.iter().map(String::as_str).chain(["globex"]) {
        catalog.publish(tenant, tenant).await;
        let kept = catalog.change_endpoint(tenant, |endpoint| endpoint.password = "".into());
        kept.await;
    }
    sleep(SECOND).await;
    let served = tenants
        .iter()
        .map(|tenant| served_database(&router, tenant));
    assert!(join_all(served).await.iter().all(Result::is_ok));
    served_database(&router, "globex").await.unwrap();
    silent.store(true, Relaxed);
    for tenant in &tenants {
        let moved =
            catalog.change_endpoint(tenant, |endpoint| endpoint.direct_host = "else".into());
        moved.await;
    }
    catalog.set_state("globex", State::Deleting).await;
    sleep(SECOND).await;
    let err = router.get("globex").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Deleted);
    // The next use of a tenant that has moved reads its password; that wait is its own.
    let waits = timeout(5 * SECOND, router.get("t0")).await;
    assert!(waits.is_err(), "its password is not known");
    silent.store(false, Relaxed);
    served_database(&router, "t1").await.unwrap();
}
