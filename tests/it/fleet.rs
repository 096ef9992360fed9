//! What is done to tenants as a whole: created, imported, deleted, taken back, compared with what is there.

use std::time::Duration;

use tenantry::{
    ErrorKind, Fleet, Plan, Provisioner, Reconcile, TenantRouter,
    fleet::{Outcome, Report, Trouble},
    neon::{CreateProject, ListProjects},
    record::State,
    records::Memory,
};

use crate::support::{Stage, run_on};

const NOW: Duration = Duration::ZERO;

fn fleet(router: &TenantRouter) -> Fleet {
    router
        .fleet()
        .expect("a router that provisions has a fleet")
}

/// A router that creates nothing on access.
fn explicit(stage: &Stage) -> TenantRouter {
    let provisioner = Provisioner::new(Memory::new(), stage.neon(), "test").explicit();
    let router = stage.at(TenantRouter::provisioning(provisioner));
    router.build().expect("router")
}

/// How many projects there are.
async fn projects(stage: &Stage) -> usize {
    let wanted = ListProjects::new().limit(400);
    let page = stage.neon().list_projects(&wanted).await.unwrap();
    page.projects.len()
}

/// What was found, in short.
fn troubles(report: &Report) -> Vec<(Trouble, &str)> {
    let mut found: Vec<_> = report
        .findings
        .iter()
        .map(|it| {
            let outcome = match it.outcome {
                Outcome::Reported => "reported",
                Outcome::Mended => "mended",
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
    let stage = Stage::new().await;
    let router = explicit(&stage);
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::UnknownTenant);
    assert_eq!(projects(&stage).await, 0);

    let plan = Plan::new().named("pro").region("aws-eu-central-1");
    fleet(&router).provision_with("acme", &plan).await.unwrap();
    fleet(&router).provision("acme").await.unwrap(); // it has one
    let it = stage.witness("acme");
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
    let stage = Stage::new().await;
    let router = stage.router();
    let client = router.get("acme").await.unwrap();
    run_on(&client, "CREATE TABLE t AS SELECT 'kept' AS what").await;
    drop(client);

    fleet(&router).delete_after("acme", NOW).await.unwrap();
    assert_eq!(projects(&stage).await, 0);
    for _ in 0..2 {
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Deleted);
    }
    assert_eq!(projects(&stage).await, 0, "no access creates it again");
    fleet(&router).delete_after("acme", NOW).await.unwrap(); // may be repeated

    fleet(&router).undelete("acme").await.unwrap();
    let client = router.get("acme").await.unwrap();
    assert_eq!(run_on(&client, "SELECT what FROM t").await, "kept");
    let err = fleet(&router).undelete("globex").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::UnknownTenant);
}

#[tokio::test]
async fn deleting_closes_idle_connections_at_once_and_those_in_use_when_they_come_back() {
    let stage = Stage::new().await;
    let router = stage.router();
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
    assert_eq!(run_on(&used, "SELECT 'still here'").await, "still here");
    drop(used);
    deletion.await.unwrap().unwrap();
    assert_eq!(router.status().connections, 0);
}

#[tokio::test]
async fn a_tombstone_gives_way_only_to_an_explicit_order_and_then_to_an_empty_database() {
    let stage = Stage::new().await;
    let router = stage.router();
    run_on(&router.get("acme").await.unwrap(), "CREATE TABLE t ()").await;
    fleet(&router).delete_after("acme", NOW).await.unwrap();
    let err = fleet(&router).provision("acme").await.unwrap_err();
    assert_eq!(
        err.kind(),
        ErrorKind::Deleted,
        "a loop over all tenants revives nobody"
    );
    let plan = Plan::new();
    fleet(&router).provision_anew("acme", &plan).await.unwrap();
    let client = router.get("acme").await.unwrap();
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(run_on(&client, tables).await, "0");
    let err = fleet(&router).undelete("acme").await;
    assert!(err.is_ok(), "it is there: {err:?}");
}

#[tokio::test]
async fn an_existing_project_becomes_a_tenant_and_never_two() {
    let stage = Stage::new().await;
    let router = explicit(&stage);
    let theirs = stage.project().await.project.id;
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
    let other = stage.project().await.project.id;
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
    let hoolis = stage.witness("hooli").project_id;
    let err = fleet(&router)
        .import("initech", &hoolis, None)
        .await
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict, "{err:?}");
    let report = fleet(&router)
        .reconcile(&Reconcile::mend().grace(NOW))
        .await
        .unwrap();
    assert_eq!(
        projects(&stage).await,
        3,
        "none of them was touched: {report:?}"
    );
}

#[tokio::test]
async fn reconcile_removes_a_duplicate_of_a_known_attempt_and_nothing_else() {
    let stage = Stage::new().await;
    let router = stage.router();
    drop(router.get("acme").await.unwrap());
    let record = fleet(&router).record("acme").await.unwrap().unwrap();
    let known = stage.second_project("acme", &record.attempts[0]).await;
    let unknown = stage.second_project("acme", "another-catalogs").await;
    let foreign = stage
        .neon()
        .create_project(&CreateProject::new("test-foreign"))
        .await;
    let other = stage
        .neon()
        .create_project(&CreateProject::new("testing"))
        .await;
    let all = [foreign.unwrap().project.id, other.unwrap().project.id];

    let dry = fleet(&router)
        .reconcile(&Reconcile::dry_run().grace(NOW))
        .await
        .unwrap();
    let expected = |duplicate| {
        [
            (Trouble::Duplicate, duplicate),
            (Trouble::Foreign, "reported"),
            (Trouble::Orphan, "reported"),
        ]
    };
    assert_eq!(troubles(&dry), expected("reported"));
    assert_eq!(projects(&stage).await, 5, "a dry run changes nothing");
    let young = fleet(&router).reconcile(&Reconcile::mend()).await.unwrap();
    assert_eq!(
        troubles(&young),
        expected("left"),
        "it may be younger than the grace"
    );
    let mended = fleet(&router)
        .reconcile(&Reconcile::mend().grace(NOW))
        .await
        .unwrap();
    assert_eq!(troubles(&mended), expected("mended"));

    let left = stage
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

    let last = Reconcile::mend().grace(NOW).remove_unrecorded();
    fleet(&router).reconcile(&last).await.unwrap();
    assert_eq!(
        projects(&stage).await,
        3,
        "the one that nobody recorded is gone as well"
    );
}

#[tokio::test]
async fn reconcile_tells_what_is_missing_and_never_makes_an_empty_one_in_its_place() {
    let stage = Stage::new().await;
    let router = stage.router();
    drop(router.get("acme").await.unwrap());
    let project = stage.witness("acme").project_id;
    stage.neon().delete_project(&project).await.unwrap();
    let report = fleet(&router)
        .reconcile(&Reconcile::mend().grace(NOW))
        .await
        .unwrap();
    assert_eq!(troubles(&report), [(Trouble::Missing, "reported")]);
    assert!(
        report
            .findings
            .iter()
            .any(tenantry::fleet::Finding::needs_attention)
    );
    assert_eq!(projects(&stage).await, 0);
    stage.neon().recover_project(&project).await.unwrap();
    let report = fleet(&router)
        .reconcile(&Reconcile::mend().grace(NOW))
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
async fn a_deleted_tenants_database_that_somebody_recovered_is_found() {
    let stage = Stage::new().await;
    let router = stage.router();
    drop(router.get("acme").await.unwrap());
    let project = stage.witness("acme").project_id;
    fleet(&router).delete_after("acme", NOW).await.unwrap();
    stage.neon().recover_project(&project).await.unwrap();
    let dry = fleet(&router)
        .reconcile(&Reconcile::dry_run())
        .await
        .unwrap();
    assert_eq!(troubles(&dry), [(Trouble::Undead, "reported")]);
    let report = fleet(&router)
        .reconcile(&Reconcile::mend().grace(NOW).remove_undead())
        .await
        .unwrap();
    assert_eq!(troubles(&report), [(Trouble::Undead, "mended")]);
    assert_eq!(projects(&stage).await, 0);
    assert_eq!(
        router.get("acme").await.unwrap_err().kind(),
        ErrorKind::Deleted
    );
}
