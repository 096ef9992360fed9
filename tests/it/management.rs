//! Neon's API, client and emulator together: what is done to projects, and what it does to their databases.

use std::time::Duration;

use tenantry::{
    ErrorKind, Plan,
    emulator::ApiFault,
    neon::{
        ConnectionParameters, CreateBranch, CreateProject, CreatedProject, ListProjects,
        UpdateEndpoint, UpdateProject,
    },
    tokio_postgres::{Client, error::SqlState},
};
use tokio::time::Instant;

use crate::{
    emulator::login_config,
    support::{LONG, RawClient, TestEnv, eventually},
};

const DISABLED: &str = "The endpoint has been disabled. Enable it using the API and retry.";

pub(crate) fn connection_parameters(created: &CreatedProject) -> &ConnectionParameters {
    &created.connection_uris[0].connection_parameters
}

pub(crate) async fn open_session(env: &TestEnv, at: &ConnectionParameters) -> Client {
    env.connect(&at.host, &login_config(at)).await.unwrap().0
}

async fn count_notes(client: &Client) -> i64 {
    let row = client.query_one("SELECT count(*) FROM notes", &[]).await;
    row.unwrap().get(0)
}

/// Returns the error that a client that knows the password gets in place of a session.
pub(crate) async fn login_error(env: &TestEnv, at: &ConnectionParameters) -> String {
    let mut client = RawClient::connect(env, &at.host).await;
    let seen = client.log_in(at.password.expose(), &[]).await;
    let error = seen.last().filter(|last| last.tag == 'E').expect("refused");
    error.field('M').unwrap()
}

#[tokio::test]
async fn a_branch_has_its_parents_data_as_it_was_and_goes_its_own_way() {
    let env = TestEnv::new().await;
    let (neon, created) = (env.neon(), env.project().await);
    let id = &created.project.id;
    let parent = open_session(&env, connection_parameters(&created)).await;
    parent
        .batch_execute("CREATE TABLE notes AS SELECT generate_series(1, 100000) AS n")
        .await
        .unwrap();

    let mut order = CreateBranch::new("feature");
    order.annotations.insert("colour".into(), "green".into());
    let branched = neon.create_project_branch(id, &order).await.unwrap();
    neon.wait_for_operations(id).await.unwrap();
    parent.batch_execute("DELETE FROM notes").await.unwrap();
    let there = &branched.connection_uris[0].connection_parameters;
    assert_ne!(there.host, connection_parameters(&created).host);
    assert_eq!(
        there.password,
        connection_parameters(&created).password,
        "roles come along"
    );
    let child = open_session(&env, there).await;
    assert_eq!(count_notes(&child).await, 100_000);
    child
        .batch_execute("INSERT INTO notes VALUES (0)")
        .await
        .unwrap();
    assert_eq!(
        (count_notes(&child).await, count_notes(&parent).await),
        (100_001, 0)
    );

    let all = neon.list_project_branches(id).await.unwrap();
    let [main, feature] = &all[..] else {
        panic!("{all:?}")
    };
    assert!(main.default && !feature.default);
    assert_eq!(feature.parent_id.as_ref(), Some(&main.id));
    assert_eq!(feature.annotations, order.annotations);
    let one = neon.get_project_branch(id, &feature.id).await.unwrap();
    assert_eq!(&one, feature);

    let taken = neon.create_project_branch(id, &order).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict);
    let default = neon.delete_project_branch(id, &main.id).await.unwrap_err();
    assert_eq!(default.kind(), ErrorKind::Refused);
    let deleted = neon.delete_project_branch(id, &feature.id).await.unwrap();
    assert_eq!(deleted.map(|branch| branch.id), Some(feature.id.clone()));
    let again = neon.delete_project_branch(id, &feature.id).await.unwrap();
    assert_eq!(again, None);
    eventually("its session is closed", || child.is_closed()).await;
    let data = env.emulator.folder().join(&feature.id);
    eventually("its data is gone", || !data.exists()).await;
    assert_eq!(count_notes(&parent).await, 0);
}

#[tokio::test]
async fn a_branch_of_a_sleeping_parent_wakes_only_itself() {
    let env = TestEnv::new().await;
    let (neon, created) = (env.neon(), env.project().await);
    let id = &created.project.id;
    let parent = open_session(&env, connection_parameters(&created)).await;
    let create = "CREATE TABLE notes AS SELECT 1 AS n";
    parent.batch_execute(create).await.unwrap();
    env.emulator.suspend_all().await;
    let mut order = CreateBranch::new("quiet");
    let branched = neon.create_project_branch(id, &order).await.unwrap();
    neon.wait_for_operations(id).await.unwrap();
    let there = &branched.connection_uris[0].connection_parameters;
    assert_eq!(count_notes(&open_session(&env, there).await).await, 1);

    order = CreateBranch::new("without");
    order.with_endpoint = false;
    let branched = neon.create_project_branch(id, &order).await.unwrap();
    assert!(branched.endpoints.is_empty() && branched.connection_uris.is_empty());
    neon.wait_for_operations(id).await.unwrap();
    let seen = env.emulator.witnesses();
    assert_eq!(seen.len(), 2, "one for each endpoint");
    assert!(!seen[0].is_awake && seen[1].is_awake);
    assert_eq!(neon.list_project_branches(id).await.unwrap().len(), 3);
}

#[tokio::test]
async fn an_endpoint_is_disabled_enabled_resized_and_restarted() {
    let env = TestEnv::new().await;
    let (neon, created) = (env.neon(), env.project().await);
    let (id, endpoint) = (&created.project.id, &created.endpoints[0].id);
    let (client, end) = env
        .connect(
            &connection_parameters(&created).host,
            &login_config(connection_parameters(&created)),
        )
        .await
        .unwrap();

    let mut update = UpdateEndpoint::default();
    update.disabled = Some(true);
    let disabled = neon.update_project_endpoint(id, endpoint, &update).await;
    assert!(disabled.unwrap().disabled);
    let ended = tokio::time::timeout(LONG, end).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err().code(), Some(&SqlState::ADMIN_SHUTDOWN));
    assert!(client.is_closed());
    neon.wait_for_operations(id).await.unwrap();
    assert_eq!(
        login_error(&env, connection_parameters(&created)).await,
        DISABLED
    );
    assert_eq!(env.emulator.witnesses()[0].wakes.len(), 1);

    update.disabled = Some(false);
    update.compute_units = Some((0.5, 2.0));
    let enabled = neon.update_project_endpoint(id, endpoint, &update).await;
    assert!(!enabled.unwrap().disabled);
    neon.wait_for_operations(id).await.unwrap();
    let seen = neon.get_project_endpoint(id, endpoint).await.unwrap();
    assert!((seen.autoscaling_limit_max_cu - 2.0).abs() < 1e-9);
    assert_eq!(seen.current_state, "idle", "woken for a moment only");
    env.emulator.restart_proxy(); // it would repeat for 30 seconds that the endpoint is disabled
    let client = open_session(&env, connection_parameters(&created)).await;

    neon.restart_project_endpoint(id, endpoint).await.unwrap();
    neon.wait_for_operations(id).await.unwrap();
    eventually("its session is closed", || client.is_closed()).await;
    assert!(env.emulator.witnesses()[0].is_awake);
}

#[tokio::test]
async fn a_shorter_window_holds_from_the_moment_it_is_set() {
    let window = Duration::from_millis(400);
    let env = TestEnv::with(|emulator| emulator.suspend_after(window)).await;
    let neon = env.neon();
    let mut order = CreateProject::new("p");
    order.plan = Plan::new().never_suspend();
    let created = neon.create_project(&order).await.unwrap();
    let id = &created.project.id;
    neon.wait_for_operations(id).await.unwrap();
    tokio::time::sleep(3 * window).await; // time itself is under test
    assert!(env.emulator.witnesses()[0].is_awake);
    let mut update = UpdateEndpoint::default();
    update.suspend = Some(tenantry::Suspend::Default);
    let endpoint = &created.endpoints[0].id;
    neon.update_project_endpoint(id, endpoint, &update)
        .await
        .unwrap();
    eventually("it sleeps", || !env.emulator.witnesses()[0].is_awake).await;
}

#[tokio::test]
async fn a_roles_password_is_revealed_and_reset() {
    let env = TestEnv::new().await;
    let (neon, created) = (env.neon(), env.project().await);
    let (id, at) = (&created.project.id, connection_parameters(&created));
    let branch = &neon.list_project_branches(id).await.unwrap()[0].id;
    let known = neon.get_project_branch_role_password(id, branch, &at.role);
    assert_eq!(known.await.unwrap(), at.password);
    let nobody = neon.get_project_branch_role_password(id, branch, "nobody");
    assert_eq!(nobody.await.unwrap_err().kind(), ErrorKind::NotFound);

    let direct = open_session(&env, at).await;
    let (pooled, _) = env
        .connect(&at.pooler_host, &login_config(at))
        .await
        .unwrap();
    let reset = neon.reset_project_branch_role_password(id, branch, &at.role);
    let password = reset.await.unwrap();
    neon.wait_for_operations(id).await.unwrap();
    eventually("its sessions are closed", || {
        direct.is_closed() && pooled.is_closed()
    })
    .await;
    let mut config = login_config(at);
    let old = env.connect(&at.host, &config).await.err().unwrap();
    let text = old.as_db_error().unwrap().message().to_owned();
    assert!(text.starts_with("password authentication failed"), "{text}");
    config.password(password.expose());
    env.connect(&at.pooler_host, &config).await.unwrap();
    let uri = neon.get_connection_uri(id, &created.endpoints[0].id, &at.database, &at.role, true);
    assert!(uri.await.unwrap().expose().contains(password.expose()));
}

#[tokio::test]
async fn projects_are_renamed_paged_through_and_recovered() {
    let env = TestEnv::new().await;
    let neon = env.neon();
    let mut ids = Vec::new();
    for n in 0..5 {
        let order = CreateProject::new(format!("p-{n}"));
        ids.push(neon.create_project(&order).await.unwrap().project.id);
    }
    let mut update = UpdateProject::default();
    update.name = Some("renamed".into());
    let renamed = neon.update_project(&ids[4], &update).await.unwrap();
    assert_eq!(renamed.name, "renamed");

    let mut list = ListProjects::default();
    (list.search, list.limit) = (Some("p-".into()), Some(3));
    let first = neon.list_projects(&list).await.unwrap();
    list.cursor.clone_from(&first.cursor);
    let second = neon.list_projects(&list).await.unwrap();
    let found = first.projects.iter().chain(&second.projects);
    let found: Vec<_> = found.map(|it| it.id.as_str()).collect();
    assert_eq!(found, ids[..4]);

    neon.delete_project(&ids[0]).await.unwrap();
    let gone = neon.delete_project(&ids[0]).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    let mut deleted = ListProjects::default();
    deleted.recoverable = true;
    let recoverable = neon.list_projects(&deleted).await.unwrap().projects;
    assert_eq!(recoverable[0].id, ids[0]);
    assert!(recoverable[0].recoverable_until.is_some());
    neon.recover_project(&ids[0]).await.unwrap();
    assert!(
        neon.list_projects(&deleted)
            .await
            .unwrap()
            .projects
            .is_empty()
    );
    assert_eq!(neon.get_project(&ids[0]).await.unwrap().name, "p-0");
}

#[tokio::test]
async fn an_api_that_is_ahead_of_its_description_is_understood() {
    let env = TestEnv::new().await;
    let neon = env.neon();
    env.emulator.fail_api("", ApiFault::Unfamiliar, u32::MAX);
    let created = neon.create_project(&CreateProject::new("p")).await.unwrap();
    let (id, endpoint) = (&created.project.id, &created.endpoints[0].id);
    assert_eq!(created.operations[0].action, "unheard_of");
    neon.wait_for_operations(id).await.unwrap();
    neon.get_project_endpoint(id, endpoint).await.unwrap();
    neon.list_project_branches(id).await.unwrap();
    let order = CreateBranch::new("b");
    neon.create_project_branch(id, &order).await.unwrap();
    assert_eq!(neon.projects_named("p").await.unwrap().len(), 1);
    let router = env.router();
    drop(router.get("acme").await.unwrap());
}

#[tokio::test]
async fn a_client_that_knows_the_apis_limits_meets_none_of_them() {
    let env = TestEnv::with(|emulator| emulator.api_limits(700, 40)).await;
    let neon = env.neon_with_rate(700);
    let created = neon.create_project(&CreateProject::new("p")).await.unwrap();
    let calls = (0..60).map(|_| neon.get_project(&created.project.id));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(env.emulator.refused_requests(), 0);

    let http = reqwest::Client::builder()
        .tls_backend_preconfigured((*env.tls_config()).clone())
        .build()
        .unwrap();
    let url = format!("{}/projects/{}", env.emulator.api_url(), created.project.id);
    let key = env.emulator.api_key();
    let start = Instant::now();
    while env.emulator.refused_requests() == 0 {
        assert!(start.elapsed() < LONG, "one that does not know them does");
        let calls = (0..120).map(|_| http.get(&url).bearer_auth(key.expose()).send());
        let answers = futures_util::future::join_all(calls).await;
        assert!(answers.iter().all(Result::is_ok));
    }
}

#[tokio::test]
async fn a_login_before_a_branch_has_its_data_waits_for_it() {
    let time = Duration::from_millis(200);
    let env = TestEnv::with(|emulator| emulator.operation_time(time)).await;
    let (neon, created) = (env.neon(), env.project().await);
    let id = &created.project.id;
    let parent = open_session(&env, connection_parameters(&created)).await;
    let create = "CREATE TABLE notes AS SELECT 1 AS n";
    parent.batch_execute(create).await.unwrap();
    let order = CreateBranch::new("hurried");
    let branched = neon.create_project_branch(id, &order).await.unwrap();
    let there = &branched.connection_uris[0].connection_parameters;
    assert_eq!(count_notes(&open_session(&env, there).await).await, 1);
    neon.wait_for_operations(id).await.unwrap();
}

#[tokio::test]
async fn a_project_that_is_recovered_at_once_works() {
    let env = TestEnv::new().await;
    let (neon, created) = (env.neon(), env.project().await);
    let id = &created.project.id;
    for _ in 0..10 {
        neon.delete_project(id).await.unwrap();
        neon.recover_project(id).await.unwrap();
        open_session(&env, connection_parameters(&created)).await;
    }
}
