//! The usage of projects, their quotas, and the organization that looks at them.

use std::time::{Duration, SystemTime};

use tenantry::{
    ErrorKind, Plan,
    emulator::Usage,
    neon::{ConsumptionQuery, CreateProject, Granularity, ListProjects, UpdateProject},
};

use crate::{
    management::{connection_parameters, login_error, open_session},
    support::{TestEnv, eventually},
};

#[tokio::test]
async fn a_quota_reached_while_connected_ends_the_session_until_it_is_raised() {
    let env = TestEnv::new().await;
    let neon = env.neon();
    let mut order = CreateProject::new("p");
    order.plan = Plan::new().active_time_quota(Duration::from_secs(3600));
    let created = neon.create_project(&order).await.unwrap();
    let id = &created.project.id;
    neon.wait_for_operations(id).await.unwrap();
    let client = open_session(&env, connection_parameters(&created)).await;

    let mut usage = Usage::default();
    usage.active_time_seconds = 3600;
    assert!(env.emulator.add_usage(id, usage));
    eventually("its session is closed", || client.is_closed()).await;
    let text = login_error(&env, connection_parameters(&created)).await;
    assert!(text.contains("exceeded the active time quota"), "{text}");
    let start = neon
        .start_project_endpoint(id, &created.endpoints[0].id)
        .await;
    drop(start);
    assert_eq!(env.emulator.witnesses()[0].wakes.len(), 1);
    let seen = neon.get_project(id).await.unwrap();
    assert!(seen.active_time_seconds >= 3600, "{seen:?}");

    let mut update = UpdateProject::default();
    update.quota = Some(
        Plan::new()
            .active_time_quota(Duration::from_secs(7200))
            .quota,
    );
    neon.update_project(id, &update).await.unwrap();
    env.emulator.restart_proxy(); // it would repeat for 30 seconds that the quota is exhausted
    open_session(&env, connection_parameters(&created)).await;
}

#[tokio::test]
async fn the_usage_of_a_project_is_counted() {
    let env = TestEnv::new().await;
    let neon = env.neon();
    let mut order = CreateProject::new("p");
    order.plan = Plan::new().compute_units(1.0, 1.0);
    let created = neon.create_project(&order).await.unwrap();
    let id = &created.project.id;
    neon.wait_for_operations(id).await.unwrap();
    let client = open_session(&env, connection_parameters(&created)).await;
    let write = "CREATE TABLE notes AS SELECT repeat('x', 1000) AS n FROM generate_series(1, 1000)";
    client.batch_execute(write).await.unwrap();
    client.query("SELECT n FROM notes", &[]).await.unwrap();

    // WAL of a new table's rows is skipped at this level of logging; what is inserted later is not.
    let more = "INSERT INTO notes SELECT repeat('y', 1000) FROM generate_series(1, 1000)";
    client.batch_execute(more).await.unwrap();
    client.batch_execute("SELECT pg_sleep(1.1)").await.unwrap(); // time itself is under test
    let used = neon.get_project(id).await.unwrap();
    assert!(used.written_data_bytes > 1_000_000, "{used:?}");
    assert!(used.data_transfer_bytes > 1_000_000, "{used:?}");
    assert!(used.active_time_seconds >= 1, "{used:?}");
    assert!(used.compute_time_seconds >= 1, "{used:?}");
}

#[tokio::test]
async fn an_organization_sees_what_its_projects_used_and_hands_them_over() {
    const METRICS: [&str; 2] = ["compute_unit_seconds", "public_network_transfer_bytes"];
    let env = TestEnv::new().await;
    let neon = env.neon_with_org("org-first");
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        let created = neon.create_project(&CreateProject::new(name)).await;
        ids.push(created.unwrap().project.id);
    }
    let mut usage = Usage::default();
    usage.compute_time_seconds = 1000;
    env.emulator.add_usage(&ids[1], usage);

    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let mut query = ConsumptionQuery::new("org-first", now - hour, now + hour, METRICS)
        .granularity(Granularity::Hourly);
    query.limit = Some(2);
    let mut seen = Vec::new();
    loop {
        let page = neon
            .get_consumption_history_per_project_v2(&query)
            .await
            .unwrap();
        if page.projects.is_empty() {
            break;
        }
        for project in &page.projects {
            let metrics = &project.periods[0].consumption[0].metrics;
            assert_eq!(metrics[0].metric_name, METRICS[0]);
            seen.push((project.project_id.clone(), metrics[0].value));
        }
        query.cursor = page.cursor;
    }
    assert_eq!(
        seen.iter().map(|(id, _)| id).collect::<Vec<_>>(),
        ids.iter().rev().collect::<Vec<_>>()
    );
    assert!(seen[1].1 >= 1000 && seen[0].1 < 1000, "{seen:?}");
    (query.cursor, query.from) = (None, now - 400 * hour);
    let old = neon.get_consumption_history_per_project_v2(&query).await;
    assert_eq!(old.unwrap_err().kind(), ErrorKind::Refused);

    neon.transfer_projects_from_org_to_org("org-first", "org-second", &[&ids[0], &ids[1]])
        .await
        .unwrap();
    let again = neon
        .transfer_projects_from_org_to_org("org-first", "org-second", &[&ids[0]])
        .await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::NotFound);
    let named = |page: tenantry::neon::ProjectsPage| {
        let names = page.projects.into_iter().map(|it| it.name);
        names.collect::<Vec<_>>()
    };
    let list = ListProjects::default();
    assert_eq!(named(neon.list_projects(&list).await.unwrap()), ["c"]);
    let second = env.neon_with_org("org-second");
    assert_eq!(
        named(second.list_projects(&list).await.unwrap()),
        ["a", "b"]
    );
}

#[tokio::test]
async fn a_crashed_compute_is_not_active() {
    let env = TestEnv::new().await;
    let (neon, created) = (env.neon(), env.project().await);
    let id = &created.project.id;
    assert!(env.emulator.crash(&created.endpoints[0].id));
    let before = neon.get_project(id).await.unwrap().active_time_seconds;
    tokio::time::sleep(Duration::from_millis(2100)).await; // time itself is under test
    let after = neon.get_project(id).await.unwrap().active_time_seconds;
    assert_eq!(before, after);
}
