//! A catalog of which some things fail and others do not: what fails must not keep out what works.

use std::time::Duration;

use futures_util::future::join_all;
use tenantry::{ErrorKind, Stage, TenantRouter, catalog::Postgres, emulator::CatalogServer};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    Backend, CatalogFault, DOWN, FakeCatalog, FakeControlPlane, FaultyCatalog, Gate, LONG,
    catalog_builder, keys, served_database, session,
};

const SECOND: Duration = Duration::from_secs(1);
/// Enough for all that takes no time.
const MOMENT: Duration = Duration::from_millis(1);

/// A router on a catalog that holds these tenants, of which it knows none.
async fn router_on(tenants: &[&str]) -> (Backend, FaultyCatalog, FakeCatalog, TenantRouter) {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    for tenant in tenants {
        catalog.publish(tenant, tenant).await;
    }
    let faulty = FaultyCatalog::new(&catalog);
    let provisioner = FakeControlPlane::provisioner(&backend, faulty.clone());
    let router = backend.configure(TenantRouter::provisioning(provisioner));
    let router = router.build().unwrap();
    sleep(SECOND).await;
    (backend, faulty, catalog, router)
}

#[tokio::test(start_paused = true)]
async fn rejected_writes_do_not_block_look_ups() {
    let names: Vec<_> = (0..100).map(|number| format!("old-{number}")).collect();
    let tenants: Vec<_> = names.iter().map(String::as_str).collect();
    for fault in [
        CatalogFault::Rejected,
        CatalogFault::Fails,
        CatalogFault::Silent(None),
    ] {
        let (_backend, faulty, _ledger, router) = router_on(&tenants).await;
        faulty.set("lease", fault.clone());
        let new_tenants = (0..20).map(|number| {
            let router = router.clone();
            async move { router.get(&format!("new-{number}")).await.map(drop) }
        });
        let new_tenants = tokio::spawn(join_all(new_tenants));
        for tenant in &tenants {
            sleep(SECOND / 5).await;
            let began = Instant::now();
            assert_eq!(served_database(&router, tenant).await.unwrap(), *tenant);
            assert!(began.elapsed() < SECOND / 10, "{fault:?}");
        }
        for answer in new_tenants.await.unwrap() {
            let kind = answer.unwrap_err().kind();
            let expected = [ErrorKind::Catalog, ErrorKind::Timeout(Stage::Provision)];
            assert!(
                expected.contains(&kind) || kind == ErrorKind::Provisioning,
                "{kind:?}"
            );
        }
        let outages = router.status().catalog_outages;
        assert_eq!(outages, u64::from(fault != CatalogFault::Rejected));
        faulty.set("lease", None);
        sleep(6 * SECOND).await;
        assert_eq!(
            served_database(&router, "new").await.unwrap(),
            "new",
            "{fault:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_cannot_tell_changes_still_looks_tenants_up() {
    for fault in [
        CatalogFault::Rejected,
        CatalogFault::Fails,
        CatalogFault::Silent(None),
    ] {
        let names: Vec<_> = (0..300).map(|number| format!("t{number}")).collect();
        let tenants: Vec<_> = names.iter().map(String::as_str).collect();
        let (_backend, faulty, catalog, router) = router_on(&tenants).await;
        faulty.set("changes", fault.clone());
        catalog.publish("news", "news").await;
        for tenant in tenants {
            sleep(SECOND / 7).await;
            let began = Instant::now();
            assert_eq!(
                served_database(&router, tenant).await.unwrap(),
                tenant,
                "{fault:?}"
            );
            assert!(began.elapsed() < SECOND / 10, "{fault:?}");
        }
        let (calls, outages) = (faulty.calls("changes"), router.status().catalog_outages);
        assert!(
            calls < 60 && outages <= 1,
            "{calls} calls, {outages} outages"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn one_tenant_without_an_answer_blocks_no_other_tenant() {
    for operation in ["find", "lease", "write"] {
        let (_backend, faulty, _ledger, router) = router_on(&["old"]).await;
        faulty.set(operation, CatalogFault::Silent(Some("stuck")));
        let stuck = tokio::spawn({
            let router = router.clone();
            async move { router.get("stuck").await.map(drop) }
        });
        for number in 0..100 {
            sleep(SECOND / 4).await;
            let began = Instant::now();
            let tenant = format!("new-{number}");
            assert_eq!(served_database(&router, &tenant).await.unwrap(), tenant);
            assert!(began.elapsed() < SECOND, "{operation}");
        }
        stuck.await.unwrap().unwrap_err();
        assert_eq!(router.status().catalog_outages, 0, "{operation}");
        assert!(router.status().catalog_failures > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn one_failed_call_rejects_no_caller_that_can_wait() {
    let names: Vec<_> = (0..200).map(|number| format!("t{number}")).collect();
    let tenants: Vec<_> = names.iter().map(String::as_str).collect();
    let (_backend, _half, catalog, router) = router_on(&tenants).await;
    catalog.set(DOWN);
    let err = router.get("first").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Catalog);
    catalog.set(Gate::Open);
    let began = Instant::now();
    let calls = catalog.calls();
    let others = names.into_iter().map(|tenant| {
        let router = router.clone();
        async move { router.get(&tenant).await.map(drop) }
    });
    let others = tokio::spawn(join_all(others));
    sleep(MOMENT).await;
    assert_eq!(catalog.calls(), calls, "it is not stormed");
    for answer in others.await.unwrap() {
        answer.unwrap();
    }
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    assert_eq!(router.status().catalog_outages, 1);
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_stays_down_is_reported_once_the_first_wait_is_over() {
    let (_backend, _half, catalog, router) = router_on(&[]).await;
    catalog.set(DOWN);
    router.get("first").await.unwrap_err();
    let (began, calls) = (Instant::now(), catalog.calls());
    let others = (0..200).map(|number| {
        let router = router.clone();
        async move { router.get(&format!("t{number}")).await.map(drop) }
    });
    for answer in join_all(others).await {
        let err = answer.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Catalog);
        assert!(err.retry_after().is_some());
    }
    assert!(began.elapsed() <= SECOND / 4, "{:?}", began.elapsed());
    assert_eq!(catalog.calls(), calls + 1, "one of them has probed");
}

/// Asks for newcomers, who get nothing, and for tenants that are in the catalog, who are all served.
async fn assert_only_new_tenants_fail(router: &TenantRouter, what: &str) {
    let new_tenants = ["a", "b", "c", "d"].map(|it| {
        let (router, tenant) = (router.clone(), format!("{it} {what}"));
        async move { router.get(&tenant).await.map(drop) }
    });
    let new_tenants = tokio::spawn(join_all(new_tenants));
    for number in 0..20 {
        let tenant = format!("old-{number}");
        let served = served_database(router, &tenant).await;
        assert_eq!(served.expect(what), tenant);
        sleep(SECOND / 10).await;
    }
    for answer in new_tenants.await.unwrap() {
        answer.expect_err(what);
    }
}

#[tokio::test]
async fn a_catalog_with_read_only_tables_still_serves_every_recorded_tenant() {
    let server = CatalogServer::start().await.unwrap();
    let admin = session(&server.url()).await;
    let app = "CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE neondb TO app";
    admin.batch_execute(app).await.unwrap();
    let owner = catalog_builder(&server).build().unwrap();
    owner.migrate().await.unwrap();
    let tables = "ALL TABLES IN SCHEMA tenantry";
    let grant = format!("GRANT INSERT, UPDATE ON {tables} TO app");
    let reading = format!("GRANT USAGE ON SCHEMA tenantry TO app; GRANT SELECT ON {tables} TO app");
    admin.batch_execute(&reading).await.unwrap();
    admin.batch_execute(&grant).await.unwrap();
    let backend = Backend::default();
    let url = server.url().replace("//neondb_owner@", "//app@");
    let router = || {
        let catalog = Postgres::builder(url.as_str()).keys(keys()).timeout(SECOND);
        let provisioner = FakeControlPlane::provisioner(&backend, catalog.build().unwrap());
        let router = backend.configure(TenantRouter::provisioning(provisioner));
        router.get_timeout(3 * SECOND).build().unwrap()
    };
    let before = router();
    for number in 0..20 {
        served_database(&before, &format!("old-{number}"))
            .await
            .unwrap();
    }
    drop(before);
    for (number, (take, give)) in [
        (
            format!("REVOKE INSERT, UPDATE ON {tables} FROM app"),
            grant.as_str(),
        ),
        (
            "BEGIN; LOCK TABLE tenantry.tenants, tenantry.namespaces IN SHARE MODE".to_owned(),
            "COMMIT",
        ),
        (
            "ALTER ROLE app SET default_transaction_read_only = on".to_owned(),
            "ALTER ROLE app RESET default_transaction_read_only",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        admin.batch_execute(&take).await.unwrap();
        let router = router(); // a new process
        assert_only_new_tenants_fail(&router, &take).await;
        admin.batch_execute(give).await.unwrap();
        let mut last = None;
        let back = async {
            while let Err(err) = router.get(&format!("back-{number}")).await {
                last = Some(err);
                sleep(SECOND / 10).await;
            }
        };
        let is_back = timeout(LONG, back).await.is_ok();
        assert!(is_back, "writes are taken again after {take}: {last:?}");
    }
}
