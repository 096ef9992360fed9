//! Campaigns: the migration of a fleet in waves, at a pace, by one process at a time.

use std::{collections::BTreeSet, future::ready};

use tenantry::{
    CampaignCount, ControlPlane, ErrorKind, Fleet, Login, OnAccess, Provisioner, Schema,
    SchemaFault, Stage, TenantId, TenantRouter,
    catalog::Placement,
    control_plane::Progress,
    emulator::{ApiFault, CatalogServer},
    fleet::{Campaign, CampaignState, CampaignStatus},
    neon::CreateBranch,
};
use tokio::{
    runtime::Runtime,
    sync::oneshot,
    time::{Duration, Instant, sleep, timeout},
};

use crate::support::{
    Databases, LONG, TestEnv, catalog_builder, column, counted_to, query_text, retry_timeouts,
};

/// Its second step fails where there is no table `fit`.
fn particular() -> Schema {
    counted_to(1).step(2, "particular", "INSERT INTO fit VALUES (1)")
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("t{n:02}")).collect()
}

async fn databases(count: usize) -> Databases {
    let names = names(count);
    Databases::recorded(&names.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// As fast as it goes, over all tenants, in one wave.
fn quick() -> Campaign {
    Campaign::new()
        .waves([100])
        .wakes_per_hour(u32::MAX)
        .awake_at_once(1000)
        .dormant(true)
}

fn fleet(router: &TenantRouter) -> Fleet {
    router.fleet().expect("a fleet")
}

/// A router that looks for campaigns often.
fn router(databases: &Databases, schema: Schema) -> TenantRouter {
    let builder = databases.leased_builder();
    let builder = builder.catalog_poll(Duration::from_millis(200));
    builder.schema(schema).build().expect("router")
}

async fn ended(fleet: &Fleet) -> CampaignStatus {
    let waited = timeout(4 * LONG, fleet.wait_for_campaign(|_| ()));
    waited.await.expect("it ends").expect("a campaign")
}

/// The tenants whose record has that version.
async fn at_version(databases: &Databases, count: usize, version: i64) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in names(count) {
        if databases.record(&name).await.schema.version == version {
            found.insert(name);
        }
    }
    found
}

/// Waits until a tenant of those has that version.
async fn until_some_at(databases: &Databases, count: usize, version: i64) {
    let began = Instant::now();
    while at_version(databases, count, version).await.is_empty() {
        assert!(began.elapsed() < 4 * LONG, "no tenant is migrated");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_campaign_migrates_all_and_the_canaries_first() {
    let databases = databases(12).await;
    let router = router(&databases, counted_to(3));
    let campaign = Campaign::new()
        .canaries(["t11", "t10"])
        .waves([10, 50, 100])
        .soak(Duration::from_millis(50))
        .wakes_per_hour(u32::MAX)
        .awake_at_once(1000)
        .dormant(true);
    let begun = fleet(&router).migrate(campaign).await.unwrap();
    assert_eq!((begun.state, begun.target), (CampaignState::Running, 3));
    let ended = ended(&fleet(&router)).await;
    assert_eq!(ended.state, CampaignState::Done);
    assert_eq!((ended.wave, ended.waves), (4, 4));
    let counts = (ended.migrated, ended.woken, ended.failed, ended.unreached);
    assert_eq!(counts, (12, 12, 0, 0));
    let mut times = Vec::new();
    for name in names(12) {
        let client = databases.session(&name).await;
        let steps = "SELECT string_agg(step::text, ' ' ORDER BY step) FROM log";
        assert_eq!(column(&client, steps).await, ["1 2 3"]);
        let at = "SELECT extract(epoch FROM max(applied_at)) FROM tenantry.schema_history";
        let at: f64 = column(&client, at).await[0].parse().unwrap();
        times.push((at, name));
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let first = BTreeSet::from([&*times[0].1, &times[1].1]);
    assert_eq!(first, BTreeSet::from(["t10", "t11"]));
    assert_eq!(at_version(&databases, 12, 3).await.len(), 12);
    assert_eq!(router.status().wakes_by_request.started, 0);
}

#[tokio::test]
async fn tenants_that_nobody_uses_stay_asleep_until_they_are_used() {
    let databases = databases(6).await;
    let old = router(&databases, counted_to(1));
    for tenant in names(6) {
        old.migrate(&tenant).await.unwrap();
    }
    let router = router(&databases, counted_to(2).requires(1));
    drop(router.get("t03").await.unwrap());
    let campaign = Campaign::new().waves([100]);
    fleet(&router).migrate(campaign).await.unwrap();
    let ended = ended(&fleet(&router)).await;
    assert_eq!(ended.state, CampaignState::Done);
    let migrated = at_version(&databases, 6, 2).await;
    assert_eq!(migrated, BTreeSet::from(["t03".to_owned()]));
    assert_eq!(ended.woken, 0, "it was awake anyway");
    drop(router.get("t04").await.unwrap());
    let began = Instant::now();
    while at_version(&databases, 6, 2).await.len() < 2 {
        assert!(began.elapsed() < 4 * LONG);
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_size_of_a_campaign_is_counted_and_wakes_nobody() {
    let databases = databases(10).await;
    let old = router(&databases, counted_to(1));
    for tenant in &names(10)[..4] {
        old.migrate(tenant).await.unwrap();
    }
    let router = router(
        &databases,
        counted_to(2).requires(1).on_access(OnAccess::Serve),
    );
    drop(router.get("t03").await.unwrap());
    let careful = Campaign::new().canaries(["t05"]).waves([100]);
    let estimate = fleet(&router).estimate(&careful).await.unwrap();
    let versions: Vec<_> = estimate.versions.iter().map(|(a, b)| (*a, *b)).collect();
    assert_eq!((estimate.target, versions), (2, vec![(0, 6), (1, 4)]));
    let counts = (estimate.due, estimate.wakes, estimate.left_asleep);
    assert_eq!(counts, (2, 1, 8), "the one that is awake, and the canary");
    assert_eq!(estimate.takes, Duration::from_secs(600 + 15));

    // Nine wakes, one every 6 s; a window of 5 minutes each, two beside each other.
    let all = careful.dormant(true).awake_at_once(2);
    let estimate = fleet(&router).estimate(&all).await.unwrap();
    assert_eq!((estimate.due, estimate.wakes), (10, 9));
    assert_eq!(estimate.takes, Duration::from_secs(600 + 150 + 8 * 150));
    let hours = 9.0 * 0.25 * 300.0 / 3600.0;
    assert!((estimate.compute_unit_hours - hours).abs() < 1e-9);
    assert!((estimate.cost(0.106) - hours * 0.106).abs() < 1e-9);
    let quick = fleet(&router)
        .estimate(&all.sleep_again(true))
        .await
        .unwrap();
    assert_eq!(quick.takes, Duration::from_secs(600 + 6 + 8 * 6));
    assert!(quick.compute_unit_hours < estimate.compute_unit_hours / 20.0);
    assert_eq!(router.status().wakes_by_migration.started, 0);
    assert_eq!(fleet(&router).campaign().await.unwrap(), None);
}

#[tokio::test]
async fn one_tenant_that_fails_keeps_no_other_and_too_many_stop_it() {
    let databases = databases(10).await;
    for name in names(10).iter().filter(|it| *it != "t07") {
        let client = databases.session(name).await;
        client
            .batch_execute("CREATE TABLE fit (a int)")
            .await
            .unwrap();
    }
    let router = router(&databases, particular());
    fleet(&router).migrate(quick()).await.unwrap();
    let first = ended(&fleet(&router)).await;
    assert_eq!((first.state, first.failed), (CampaignState::Done, 1));
    assert_eq!(first.woken, 10, "also the one that has failed");
    assert_eq!(first.failures[0].tenant, "t07");
    assert!(first.failures[0].error.contains("step 2"), "{first:?}");
    assert_eq!(at_version(&databases, 10, 2).await.len(), 9);
    let failure = databases.record("t07").await.schema.failure.unwrap();
    assert_eq!(failure.code.as_deref(), Some("42P01"));

    fleet(&router).schema_versions().await.unwrap();
    let status = router.status();
    assert_eq!((status.schema_migrated, status.schema_failed), (9, 1));
    let behind = status.behind;
    let lacking = [
        behind.none,
        behind.one,
        behind.two_to_five + behind.more,
        behind.failed,
    ];
    assert_eq!(lacking, [9, 1, 0, 1]);
    assert_eq!(status.campaign, CampaignCount::default(), "it has ended");

    let next = router_with_step_three(&databases);
    let campaign = quick().stop_after(3).concurrency(1);
    fleet(&next).migrate(campaign).await.unwrap();
    let stopped = ended(&fleet(&next)).await;
    assert_eq!((stopped.state, stopped.failed), (CampaignState::Stopped, 3));
    let err = fleet(&next).pause_campaign().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict, "{err:?}");
    let err = next.get(&stopped.failures[0].tenant).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Schema(SchemaFault::Failed));
}

/// No tenant is fit for its third step.
fn router_with_step_three(databases: &Databases) -> TenantRouter {
    let sql = "INSERT INTO nowhere VALUES (1)";
    router(databases, particular().step(3, "nowhere", sql))
}

#[tokio::test]
async fn another_process_goes_on_where_one_was_killed() {
    let databases = std::sync::Arc::new(databases(8).await);
    let (begun, is_begun) = oneshot::channel();
    let (killed, is_killed) = oneshot::channel::<()>();
    let own = std::sync::Arc::clone(&databases);
    let first = std::thread::spawn(move || {
        let runtime = Runtime::new().unwrap();
        let router = runtime.block_on(async {
            let slow = counted_to(2).step(3, "slow", "SELECT pg_sleep(0.4)");
            let router = router(&own, slow);
            let campaign = quick().concurrency(1);
            fleet(&router).migrate(campaign).await.unwrap();
            router
        });
        begun.send(()).unwrap();
        is_killed.blocking_recv().unwrap();
        runtime.shutdown_background(); // nothing is given back, as after a kill
        std::mem::forget(router);
    });
    is_begun.await.unwrap();
    until_some_at(&databases, 8, 3).await;
    killed.send(()).unwrap();
    let other = counted_to(2).step(3, "slow", "SELECT pg_sleep(0.4)");
    let second = router(&databases, other);
    let ended = ended(&fleet(&second)).await;
    first.join().unwrap();
    assert_eq!((ended.state, ended.failed), (CampaignState::Done, 0));
    assert_eq!(at_version(&databases, 8, 3).await.len(), 8);
    for name in names(8) {
        let client = databases.session(&name).await;
        let steps = "SELECT string_agg(step::text, ' ' ORDER BY step) FROM log";
        assert_eq!(column(&client, steps).await, ["1 2"], "{name}");
    }
    assert!(second.status().wakes_by_migration.started < 8, "it went on");
}

#[tokio::test]
async fn a_campaign_is_paused_and_resumed_by_any_process() {
    let databases = databases(10).await;
    let slow = || counted_to(1).step(2, "slow", "SELECT pg_sleep(0.2)");
    let (one, other) = (router(&databases, slow()), router(&databases, slow()));
    fleet(&one).migrate(quick().concurrency(1)).await.unwrap();
    until_some_at(&databases, 10, 2).await;
    let paused = fleet(&other).pause_campaign().await.unwrap();
    assert_eq!(paused.state, CampaignState::Paused);
    // The process that runs it notices, and what it has begun ends.
    let mut before = at_version(&databases, 10, 2).await.len();
    let still = async {
        loop {
            sleep(Duration::from_millis(1500)).await;
            let now = at_version(&databases, 10, 2).await.len();
            if now == before {
                return now;
            }
            before = now;
        }
    };
    let at_pause = timeout(4 * LONG, still).await.expect("it pauses");
    assert!(at_pause < 10, "{at_pause}");
    let status = fleet(&other).campaign().await.unwrap().unwrap();
    assert_eq!(status.state, CampaignState::Paused);
    // One may have been under way when the process noticed.
    let counted = usize::try_from(status.migrated).unwrap();
    assert!((at_pause - 1..=at_pause).contains(&counted), "{status:?}");
    fleet(&other).resume_campaign().await.unwrap();
    let ended = ended(&fleet(&one)).await;
    assert_eq!((ended.state, ended.failed), (CampaignState::Done, 0));
    assert_eq!(at_version(&databases, 10, 2).await.len(), 10);
}

#[tokio::test]
async fn wakes_keep_to_the_pace() {
    let databases = databases(12).await;
    let router = router(&databases, counted_to(1));
    let began = Instant::now();
    let campaign = quick().wakes_per_hour(5 * 3600);
    fleet(&router).migrate(campaign).await.unwrap();
    let ended = ended(&fleet(&router)).await;
    assert_eq!((ended.state, ended.woken), (CampaignState::Done, 12));
    let least = Duration::from_millis(200) * 11;
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
}

#[tokio::test]
async fn there_is_one_campaign_and_a_newer_target_replaces_it() {
    let databases = databases(3).await;
    let one = router(&databases, counted_to(1));
    let err = fleet(&one).pause_campaign().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound, "{err:?}");
    let wrong = quick().canaries(["t00", "nobody"]);
    let err = fleet(&one).migrate(wrong).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::UnknownTenant, "{err:?}");
    assert!(format!("{err:?}").contains("nobody"), "{err:?}");
    assert_eq!(fleet(&one).campaign().await.unwrap(), None);
    // Long in its first pause.
    let slow = quick().waves([1, 100]).soak(Duration::from_secs(3600));
    fleet(&one).migrate(slow).await.unwrap();
    let err = fleet(&one).migrate(quick()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict, "{err:?}");
    let newer = router(&databases, counted_to(2));
    fleet(&newer).migrate(quick()).await.unwrap();
    let ended = ended(&fleet(&newer)).await;
    assert_eq!((ended.state, ended.target), (CampaignState::Done, 2));
    assert_eq!(at_version(&databases, 3, 2).await.len(), 3);
    let cancelled = fleet(&newer).cancel_campaign().await.unwrap_err();
    assert_eq!(cancelled.kind(), ErrorKind::Conflict, "it has ended");

    let without = databases.leased_builder().build().unwrap();
    let err = fleet(&without).migrate(quick()).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Misused, "{err:?}");
    let client = newer.get("t00").await.unwrap();
    assert_eq!(query_text(&client, "SELECT max(step) FROM log").await, "2");
}

#[tokio::test]
async fn the_end_of_the_router_ends_its_part_in_a_campaign() {
    let databases = databases(2).await;
    let router = router(&databases, counted_to(1));
    let slow = quick().waves([1, 100]).soak(Duration::from_secs(3600));
    fleet(&router).migrate(slow).await.unwrap();
    until_soaking(&fleet(&router)).await;
    let running = router.status().campaign;
    assert_eq!((running.wave, running.waves), (1, 2));
    router.close_within(Duration::from_secs(1)).await;
    drop(router);
    let next = self::router(&databases, counted_to(1));
    let status = fleet(&next).campaign().await.unwrap().unwrap();
    assert_eq!(status.state, CampaignState::Running);
    fleet(&next).cancel_campaign().await.unwrap();
    let status = fleet(&next).campaign().await.unwrap().unwrap();
    assert_eq!(status.state, CampaignState::Cancelled);
}

#[tokio::test]
async fn a_process_takes_no_other_campaign_to_the_same_version_for_its_own() {
    let databases = databases(3).await;
    let router = router(&databases, counted_to(1));
    let slow = quick().waves([1, 100]).soak(Duration::from_secs(3600));
    let first = slow.canaries(["t00"]);
    fleet(&router).migrate(first).await.unwrap();
    until_soaking(&fleet(&router)).await;
    // As another process would cancel it and begin the next one, before this one notices.
    let next =
        r#"{"owner": "", "id": "next", "wave": 1, "waves": 1, "migrated": 0, "soaks_for": null}"#;
    let begin = format!(
        "UPDATE tenantry.notes SET version = version + 1, written_at = now(), text = (text::jsonb || '{next}'
         || jsonb_build_object('campaign', text::jsonb->'campaign' || '{{\"canaries\": [], \"waves\": [100]}}'))::text"
    );
    let catalog = databases.catalog_session().await;
    catalog.batch_execute(&begin).await.unwrap();
    let ended = ended(&fleet(&router)).await;
    assert_eq!((ended.state, ended.waves), (CampaignState::Done, 1));
    assert_eq!(ended.migrated, 2, "one was migrated in the first campaign");
    let id = column(&catalog, "SELECT text::jsonb->>'id' FROM tenantry.notes").await;
    assert_eq!(id, ["next"]);
}

async fn until_soaking(fleet: &Fleet) {
    let began = Instant::now();
    loop {
        let status = fleet.campaign().await.unwrap().unwrap();
        if status.soaks_for.is_some() {
            return;
        }
        assert!(began.elapsed() < 4 * LONG, "{status:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_database_that_the_campaign_has_woken_sleeps_again_if_nobody_uses_it() {
    let (env, server) = (TestEnv::new().await, CatalogServer::start().await.unwrap());
    let router = |schema: Option<Schema>| {
        let catalog = catalog_builder(&server).build().unwrap();
        let provisioner = Provisioner::new(catalog, env.neon(), "test").on_first_access();
        let builder = env.configure(TenantRouter::provisioning(provisioner));
        let builder = builder.catalog_poll(Duration::from_millis(200));
        match schema {
            Some(schema) => builder.schema(schema).build().unwrap(),
            None => builder.build().unwrap(),
        }
    };
    let tenants = ["acme", "globex", "used"];
    let old = router(Some(counted_to(1)));
    for tenant in tenants {
        drop(retry_timeouts(|| old.get(tenant)).await);
    }
    assert!(old.close_within(LONG).await);
    for tenant in tenants {
        env.suspend(tenant).await;
    }
    let bystander = router(None);
    let own = bystander.direct("used").await.unwrap();
    own.batch_execute("CREATE DATABASE other").await.unwrap();
    drop(own);
    // The session of another user, in another database of the same compute.
    let mut endpoint = env.endpoint(&env.witness("used")).await;
    endpoint.database = "other".to_owned();
    let other = TenantRouter::builder(move |_: TenantId| ready(Ok(Some(endpoint.clone()))));
    let other = env.configure(other).build().unwrap();
    let held = other.direct("used").await.unwrap();

    let new = router(Some(counted_to(2)));
    let campaign = quick().sleep_again(true);
    fleet(&new).migrate(campaign).await.unwrap();
    let ended = ended(&fleet(&new)).await;
    assert_eq!((ended.state, ended.migrated), (CampaignState::Done, 3));
    let awake = tenants.map(|tenant| env.witness(tenant).is_awake);
    assert_eq!(awake, [false, false, true]);
    held.simple_query("SELECT 1").await.expect("it is not cut");
    let client = new.get("acme").await.expect("it is woken again");
    assert_eq!(query_text(&client, "SELECT max(step) FROM log").await, "2");
}

#[tokio::test]
async fn a_rehearsal_shows_failures_on_copies_and_leaves_the_tenants_alone() {
    let (env, server) = (TestEnv::new().await, CatalogServer::start().await.unwrap());
    let router = |schema: Schema| {
        let catalog = catalog_builder(&server).build().unwrap();
        let provisioner = Provisioner::new(catalog, env.neon(), "test").on_first_access();
        let builder = env.configure(TenantRouter::provisioning(provisioner));
        builder.schema(schema).build().unwrap()
    };
    let old = router(counted_to(1));
    let tenants = ["acme", "globex", "initech"];
    for tenant in tenants {
        let client = retry_timeouts(|| old.get(tenant)).await;
        if tenant != "globex" {
            client
                .execute("CREATE TABLE fit (a int)", &[])
                .await
                .unwrap();
        }
    }
    assert!(old.close_within(LONG).await);
    for tenant in tenants {
        env.suspend(tenant).await;
    }

    let new = router(particular());
    let one = fleet(&new).rehearse(&Campaign::new(), 1).await.unwrap();
    assert_eq!(one.len(), 1);
    let mut all = fleet(&new).rehearse(&Campaign::new(), 10).await.unwrap();
    all.sort_by(|a, b| a.tenant.cmp(&b.tenant));
    let [acme, globex, initech] = &all[..] else {
        panic!("{all:?}")
    };
    for rehearsed in [acme, initech] {
        let migrated = rehearsed.result.as_ref().unwrap();
        let steps: Vec<_> = migrated.steps.iter().map(|it| it.version).collect();
        assert_eq!((migrated.from, steps), (1, vec![2]));
    }
    let err = globex.result.as_ref().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Schema(SchemaFault::Failed));
    assert!(err.to_string().contains("step 2"), "{err}");

    for tenant in tenants {
        let project = env.projects(tenant);
        let awake: Vec<_> = project.iter().filter(|it| it.is_awake).collect();
        assert_eq!(awake.len(), 0, "{tenant}");
        let id = &project[0].project_id;
        let branches = env.neon().list_project_branches(id).await.unwrap();
        assert_eq!(branches.len(), 1, "the copy is deleted");
        let known = fleet(&new).schema_of(tenant).await.unwrap();
        assert_eq!((known.version, known.failure), (Some(1), None));
    }
}

#[tokio::test]
async fn a_copy_that_cannot_be_reached_is_deleted() {
    let env = TestEnv::new().await;
    let created = env.project().await;
    let (neon, project) = (env.neon(), &created.project.id);
    let route = format!("GET /projects/{project}/connection_uri");
    env.emulator.fail_api(&route, ApiFault::Status(403), 1);
    let before = env.emulator.requests("DELETE");
    let progress = Progress::new(Stage::Provision, LONG);
    let (placement, login) = (
        Placement::new(project),
        Login::new("neondb", "neondb_owner"),
    );
    let lifetime = Duration::from_secs(3600);
    let copied = neon.copy(&placement, &login, lifetime, &progress).await;
    assert!(copied.is_err(), "{copied:?}");
    assert_eq!(env.emulator.requests("DELETE"), before + 1);
    let branches = neon.list_project_branches(project).await.unwrap();
    assert_eq!(branches.len(), 1, "{branches:?}");
}

#[tokio::test]
async fn only_a_copy_is_deleted_as_one() {
    let env = TestEnv::new().await;
    let created = env.project().await;
    let neon = env.neon();
    let project = &created.project.id;
    let default = neon.list_project_branches(project).await.unwrap().remove(0);
    let wanted = CreateBranch::new("own");
    let own = neon.create_project_branch(project, &wanted).await;
    let own = own.unwrap().branch;
    neon.wait_for_operations(project).await.unwrap();
    for branch in [&default.id, &own.id] {
        let mut placement = Placement::new(project);
        placement.branch = Some(branch.clone());
        let progress = Progress::new(Stage::Provision, LONG);
        let err = neon.delete_copy(&placement, &progress).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Refused, "{err:?}");
    }
    assert_eq!(neon.list_project_branches(project).await.unwrap().len(), 2);
}
