//! Operations on whole tenants: they are created, imported, deleted, undeleted, and compared with what is there.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tenantry::{
    ErrorKind, Fleet, Plan, Provisioner, Reconcile, TenantRouter,
    catalog::{Memory, State},
    fleet::{ForEach, Outcome, Provisioned, Report, Trouble},
    neon::{CreateProject, ListProjects},
};

use crate::support::{Backend, DOWN, FakeCatalog, FakeControlPlane, Gate, TestEnv, query_text};

const NO_DELAY: Duration = Duration::ZERO;

fn fleet(router: &TenantRouter) -> Fleet {
    router
        .fleet()
        .expect("a router that provisions has a fleet")
}

/// A router that creates nothing on access.
fn explicit_router(env: &TestEnv) -> TenantRouter {
    let provisioner = Provisioner::new(Memory::new(), env.neon(), "test").explicit();
    let router = env.configure(TenantRouter::provisioning(provisioner));
    router.build().expect("router")
}

/// Returns the number of projects.
async fn project_count(env: &TestEnv) -> usize {
    let wanted = ListProjects::new().limit(400);
    let page = env.neon().list_projects(&wanted).await.unwrap();
    page.projects.len()
}

/// Returns the findings of `report`, in short.
fn findings_of(report: &Report) -> Vec<(Trouble, &str)> {
    let mut found: Vec<_> = report
        .findings
        .iter()
        .map(|it| {
            let outcome = match it.outcome {
                Outcome::Reported => "reported",
                Outcome::Repaired => "repaired",
                Outcome::Left => "left",
                _ => "failed",
            };
            (it.trouble, outcome)
        })
        .collect();
    found.sort_unstable_by_key(|(trouble, _)| format!("{trouble:?}"));
    found
}

#[tokio::test]
async fn explicit_creates_nothing_on_access_and_the_fleet_creates_without_waking() {
    let env = TestEnv::new().await;
    let router = explicit_router(&env);
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::UnknownTenant);
    assert_eq!(project_count(&env).await, 0);

    let plan = Plan::new().named("pro").region("aws-eu-central-1");
    let done = fleet(&router).provision_with("acme", &plan).await.unwrap();
    assert_eq!(done, Provisioned::Created);
    fleet(&router).provision("acme").await.unwrap(); // it has one
    let it = env.witness("acme");
    assert_eq!(
        it.wakes.len(),
        1,
        "Neon starts the compute of a new project"
    );
    assert_eq!((it.auth_attempts.len(), it.sessions.len()), (0, 0));
    assert!(it.host.contains(".eu-central-1."), "{}", it.host);
    let record = fleet(&router).record("acme").await.unwrap().unwrap();
    assert_eq!(
        (record.state, record.plan.as_deref()),
        (State::Ready, Some("pro"))
    );
    drop(router.get("acme").await.unwrap());
    assert!(
        TenantRouter::builder(Memory::new())
            .build()
            .unwrap()
            .fleet()
            .is_none()
    );
}

#[tokio::test]
async fn a_deleted_tenant_is_refused_stays_deleted_and_comes_back_with_its_data() {
    let env = TestEnv::new().await;
    let router = env.router();
    let client = router.get("acme").await.unwrap();
    query_text(&client, "CREATE TABLE t AS SELECT 'kept' AS what").await;
    drop(client);

    fleet(&router).delete_after("acme", NO_DELAY).await.unwrap();
    assert_eq!(project_count(&env).await, 0);
    for _ in 0..2 {
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Deleted);
    }
    assert_eq!(project_count(&env).await, 0, "no access creates it again");
    fleet(&router).delete_after("acme", NO_DELAY).await.unwrap(); // may be repeated

    fleet(&router).undelete("acme").await.unwrap();
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT what FROM t").await, "kept");
    let err = fleet(&router).undelete("globex").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::UnknownTenant);
}

#[tokio::test]
async fn deleting_closes_idle_connections_at_once_and_those_in_use_when_they_come_back() {
    let env = TestEnv::new().await;
    let router = env.router();
    let (used, idle) = (
        router.get("acme").await.unwrap(),
        router.get("acme").await.unwrap(),
    );
    drop(idle);
    let deletion = tokio::spawn({
        let fleet = fleet(&router);
        async move { fleet.delete_after("acme", Duration::from_millis(500)).await }
    });
    crate::support::eventually("the idle one is closed", || {
        router.status().connections == 1
    })
    .await;
    assert_eq!(query_text(&used, "SELECT 'still here'").await, "still here");
    drop(used);
    deletion.await.unwrap().unwrap();
    assert_eq!(router.status().connections, 0);
}

#[tokio::test]
async fn a_tombstone_gives_way_only_to_an_explicit_order_and_then_to_an_empty_database() {
    let env = TestEnv::new().await;
    let router = env.router();
    query_text(&router.get("acme").await.unwrap(), "CREATE TABLE t ()").await;
    fleet(&router).delete_after("acme", NO_DELAY).await.unwrap();
    let err = fleet(&router).provision("acme").await.unwrap_err();
    assert_eq!(
        err.kind(),
        ErrorKind::Deleted,
        "a loop over all tenants revives nobody"
    );
    let plan = Plan::new();
    let done = fleet(&router).reprovision("acme", &plan).await;
    assert_eq!(done.unwrap(), Provisioned::Created);
    let client = router.get("acme").await.unwrap();
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(query_text(&client, tables).await, "0");
    let err = fleet(&router).undelete("acme").await;
    assert!(err.is_ok(), "it is there: {err:?}");
}

#[tokio::test]
async fn an_existing_project_becomes_a_tenant_and_never_two() {
    let env = TestEnv::new().await;
    let router = explicit_router(&env);
    let theirs = env.project().await.project.id;
    fleet(&router).import("acme", &theirs, None).await.unwrap();
    fleet(&router).import("acme", &theirs, None).await.unwrap();
    drop(router.get("acme").await.unwrap());

    let err = fleet(&router)
        .import("globex", &theirs, None)
        .await
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::BadRecord, "{err:?}");
    let err = router.get("globex").await.unwrap_err();
    assert_eq!(
        err.kind(),
        ErrorKind::UnknownTenant,
        "an import that failed allows nothing"
    );
    let other = env.project().await.project.id;
    let err = fleet(&router)
        .import("acme", &other, None)
        .await
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict, "{err:?}");
    let err = fleet(&router)
        .import("initech", "no-such", None)
        .await
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound, "{err:?}");
    fleet(&router).provision("hooli").await.unwrap();
    let hoolis = env.witness("hooli").project_id;
    let err = fleet(&router)
        .import("initech", &hoolis, None)
        .await
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict, "{err:?}");
    let report = fleet(&router)
        .reconcile(&Reconcile::repair().grace(NO_DELAY))
        .await
        .unwrap();
    assert_eq!(
        project_count(&env).await,
        3,
        "none of them was touched: {report:?}"
    );
}

#[tokio::test]
async fn reconcile_removes_a_duplicate_of_a_known_attempt_and_nothing_else() {
    let env = TestEnv::new().await;
    let router = env.router();
    drop(router.get("acme").await.unwrap());
    let record = fleet(&router).record("acme").await.unwrap().unwrap();
    let known = env.second_project("acme", &record.attempts[0]).await;
    let unknown = env.second_project("acme", "another-catalogs").await;
    let foreign = env
        .neon()
        .create_project(&CreateProject::new("test-foreign"))
        .await;
    let other = env
        .neon()
        .create_project(&CreateProject::new("testing"))
        .await;
    let all = [foreign.unwrap().project.id, other.unwrap().project.id];

    let dry = fleet(&router)
        .reconcile(&Reconcile::dry_run().grace(NO_DELAY))
        .await
        .unwrap();
    let expected = |duplicate| {
        [
            (Trouble::Duplicate, duplicate),
            (Trouble::Foreign, "reported"),
            (Trouble::Orphan, "reported"),
        ]
    };
    assert_eq!(findings_of(&dry), expected("reported"));
    assert_eq!(project_count(&env).await, 5, "a dry run changes nothing");
    let young = fleet(&router).reconcile(&Reconcile::repair()).await;
    let young = young.unwrap();
    assert_eq!(
        findings_of(&young),
        expected("left"),
        "it may be younger than the grace"
    );
    let repair = Reconcile::repair().grace(NO_DELAY);
    let repaired = fleet(&router).reconcile(&repair).await.unwrap();
    assert_eq!(findings_of(&repaired), expected("repaired"));

    let left = env
        .neon()
        .list_projects(&ListProjects::new().limit(400))
        .await
        .unwrap();
    let left: Vec<_> = left.projects.into_iter().map(|it| it.id).collect();
    assert!(
        !left.contains(&known) && left.contains(&unknown),
        "{left:?}"
    );
    assert!(all.iter().all(|it| left.contains(it)), "{left:?}");
    drop(router.get("acme").await.unwrap());

    let last = Reconcile::repair().grace(NO_DELAY).remove_unrecorded();
    fleet(&router).reconcile(&last).await.unwrap();
    assert_eq!(
        project_count(&env).await,
        3,
        "the one that nobody recorded is gone as well"
    );
}

#[tokio::test]
async fn reconcile_reports_a_missing_database_and_never_creates_an_empty_one() {
    let env = TestEnv::new().await;
    let router = env.router();
    drop(router.get("acme").await.unwrap());
    let project = env.witness("acme").project_id;
    env.neon().delete_project(&project).await.unwrap();
    let report = fleet(&router)
        .reconcile(&Reconcile::repair().grace(NO_DELAY))
        .await
        .unwrap();
    assert_eq!(findings_of(&report), [(Trouble::Missing, "reported")]);
    assert!(
        report
            .findings
            .iter()
            .any(tenantry::fleet::Finding::needs_attention)
    );
    assert_eq!(project_count(&env).await, 0);
    env.neon().recover_project(&project).await.unwrap();
    let report = fleet(&router)
        .reconcile(&Reconcile::repair().grace(NO_DELAY))
        .await
        .unwrap();
    assert!(
        !report
            .findings
            .iter()
            .any(tenantry::fleet::Finding::needs_attention),
        "{report:?}"
    );
}

#[tokio::test]
async fn reconcile_finds_a_deleted_tenants_database_that_was_recovered() {
    let env = TestEnv::new().await;
    let router = env.router();
    drop(router.get("acme").await.unwrap());
    let project = env.witness("acme").project_id;
    fleet(&router).delete_after("acme", NO_DELAY).await.unwrap();
    env.neon().recover_project(&project).await.unwrap();
    let dry = fleet(&router)
        .reconcile(&Reconcile::dry_run())
        .await
        .unwrap();
    assert_eq!(
        findings_of(&dry),
        [(Trouble::DeletedButPresent, "reported")]
    );
    let report = fleet(&router)
        .reconcile(&Reconcile::repair().grace(NO_DELAY).remove_deleted())
        .await
        .unwrap();
    assert_eq!(
        findings_of(&report),
        [(Trouble::DeletedButPresent, "repaired")]
    );
    assert_eq!(project_count(&env).await, 0);
    assert_eq!(
        router.get("acme").await.unwrap_err().kind(),
        ErrorKind::Deleted
    );
}

#[tokio::test(start_paused = true)]
async fn provisioning_with_a_plan_returns_the_plan_that_an_existing_tenant_keeps() {
    let backend = Backend::default();
    let router = FakeControlPlane::router(&backend).build().unwrap();
    let (free, pro) = (Plan::new().named("free"), Plan::new().named("pro"));
    let fleet = fleet(&router);
    let kept = Provisioned::Existing {
        plan: Some("free".into()),
    };
    let done = fleet.provision_with("acme", &free).await.unwrap();
    assert_eq!(done, Provisioned::Created);
    assert_eq!(fleet.provision_with("acme", &pro).await.unwrap(), kept);
    assert_eq!(fleet.reprovision("acme", &pro).await.unwrap(), kept);
    fleet.provision("acme").await.unwrap(); // any number of times
    let record = fleet.record("acme").await.unwrap().unwrap();
    assert_eq!(record.plan.as_deref(), Some("free"));

    // Two at once: one of them has created it.
    let both = futures_util::future::join(
        fleet.provision_with("globex", &free),
        fleet.provision_with("globex", &pro),
    );
    let (one, other) = both.await;
    let both = [one.unwrap(), other.unwrap()];
    let created = both.iter().filter(|it| **it == Provisioned::Created);
    assert_eq!(created.count(), 1, "{both:?}");
    assert_eq!(backend.counts().created, 2);
}

/// A catalog of 2500 tenants, three of which cannot be used.
async fn router_with_many_tenants() -> (Backend, FakeCatalog, TenantRouter) {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    for number in 0..2500 {
        catalog.publish(&format!("t{number:04}"), "host").await;
    }
    catalog.set_state("t0001", State::Deleting).await;
    catalog.set_state("t0001", State::Deleted).await;
    catalog.set_state("t1000", State::Held).await;
    catalog.set_state("t2499", State::Deleting).await;
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let router = backend.configure(TenantRouter::provisioning(provisioner));
    (backend, catalog, router.build().unwrap())
}

#[tokio::test(start_paused = true)]
async fn all_tenants_are_listed_with_their_states_over_all_pages() {
    let (backend, _ledger, router) = router_with_many_tenants().await;
    let mut tenants = fleet(&router).list();
    let mut seen = Vec::new();
    while let Some(record) = tenants.next().await.unwrap() {
        seen.push((record.tenant.to_string(), record.state));
    }
    assert_eq!(seen.len(), 2500);
    assert!(seen.is_sorted_by_key(|(tenant, _)| tenant.clone()));
    let odd: Vec<_> = seen.iter().filter(|(_, it)| *it != State::Ready).collect();
    let state = |tenant: &str, state| (tenant.to_owned(), state);
    let expected = [
        state("t0001", State::Deleted),
        state("t1000", State::Held),
        state("t2499", State::Deleting),
    ];
    assert_eq!(odd, expected.iter().collect::<Vec<_>>());
    assert!(tenants.next().await.unwrap().is_none(), "and it stays so");
    assert_eq!(backend.counts().logins_started, 0);
    router.close().await;
    let err = fleet(&router).list().next().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn for_each_visits_each_tenant_once_with_limited_concurrency_and_wakes_none() {
    let (backend, _ledger, router) = router_with_many_tenants().await;
    let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let how = ForEach::new()
        .concurrency(7)
        .on_progress(move |visit| log.lock().unwrap().push((visit.succeeded, visit.failed)));
    let work = |record: tenantry::catalog::Record| {
        let (now, most) = (&now, &most);
        async move {
            most.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
            now.fetch_sub(1, Relaxed);
            if record.tenant.as_str().ends_with("00") {
                return Err(record.tenant.to_string());
            }
            Ok(())
        }
    };
    let visits = fleet(&router).for_each(&how, work).await.unwrap();
    assert_eq!((visits.succeeded, visits.skipped), (2473, 3));
    assert_eq!(visits.failed.len(), 24, "t1000 is held");
    assert!(
        visits
            .failed
            .iter()
            .all(|(tenant, err)| tenant.as_str() == err)
    );
    assert_eq!(most.load(Relaxed), 7);
    let seen = seen.lock().unwrap();
    assert_eq!((seen.len(), seen.last()), (2497, Some(&(2473, 24))));
    assert_eq!(backend.counts().logins_started, 0, "none was woken");
    let status = router.status();
    assert_eq!((status.dials, status.pools), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn for_each_outlasts_a_catalog_outage_and_can_start_after_any_tenant() {
    let (_backend, catalog, router) = router_with_many_tenants().await;
    let after = ForEach::new().after("t2489".parse().unwrap());
    catalog.set(DOWN);
    let fleet = fleet(&router);
    let ok = |_| async { Ok::<_, tenantry::Error>(()) };
    let (visits, ()) = futures_util::future::join(fleet.for_each(&after, ok), async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        catalog.set(Gate::Open);
    })
    .await;
    let visits = visits.unwrap();
    assert_eq!((visits.succeeded, visits.skipped), (9, 1));
    catalog.set(DOWN);
    let err = fleet.for_each(&after, ok).await.unwrap_err();
    assert_eq!(
        err.kind(),
        ErrorKind::Timeout(tenantry::Stage::Lookup),
        "{err}"
    );
}
