//! The answer to the creation of a project, and the calls that wait for its end.

use serde_json::{Value, json};
use tenantry::BoxError;

use crate::{findings::Findings, test_project::TestProject};

/// The answer of Neon's that the emulator's was made after.
const RECORDED: &str = include_str!("../../it/fixtures/created_project.json");
/// The answer to every change while operations go on.
const LOCKED: &str = r#"423 code "" "project already has running conflicting operations, scheduling of new ones is prohibited""#;

/// While a project's creation goes on, its endpoint cannot be changed, and the project can.
pub(crate) async fn locks(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    let (api, endpoint) = (&test_project.api, test_project.endpoint_path(""));
    let size = json!({ "endpoint": { "autoscaling_limit_max_cu": 0.5 } });
    let name = json!({ "project": { "name": test_project.name } });
    let started = api.post(&format!("{endpoint}/start"), None).await?;
    let changed = api.patch(&endpoint, size).await?;
    let renamed = api.patch(&test_project.path(""), name).await?;
    if !test_project.is_busy().await? {
        findings.remark("not asked: the creation was over too soon");
        return Ok(());
    }
    findings.expect_eq("a start during the creation", LOCKED, started.summary());
    findings.expect_eq(
        "an update of the endpoint during the creation",
        LOCKED,
        changed.summary(),
    );
    findings.expect_eq(
        "a refusal has a request_id",
        true,
        changed.body["request_id"].is_string(),
    );
    findings.expect_eq(
        "an update of the project during the creation",
        "200",
        renamed.summary(),
    );
    Ok(())
}

pub(crate) fn shape(test_project: &TestProject, findings: &mut Findings) -> Result<(), BoxError> {
    let created = &test_project.created;
    findings.expect_eq("status", 201, created.status);
    findings.expect_eq(
        "the answer has x-neon-ret-request-id",
        true,
        created.identified,
    );
    compare(
        findings,
        "",
        &serde_json::from_str(RECORDED)?,
        &created.body,
    );
    findings.expect_eq(
        "operations",
        "[create_timeline, start_compute]",
        created.actions(),
    );
    let pending = |it: &Value| it["status"] == "scheduling" || it["status"] == "running";
    let operations = created.body["operations"].as_array();
    let all = operations.is_some_and(|all| all.iter().all(pending));
    findings.expect(
        "operations are scheduling or running",
        all,
        created.value_at("/operations"),
    );
    for (path, expected) in [
        ("/project/name", &*test_project.name),
        ("/project/store_passwords", "true"),
        ("/branch/name", "main"),
        ("/branch/default", "true"),
        ("/branch/current_state", "init"),
        ("/branch/pending_state", "ready"),
        ("/branch/annotations", "nothing"),
        ("/endpoints/0/type", "read_write"),
        ("/endpoints/0/current_state", "init"),
        ("/endpoints/0/pending_state", "active"),
        ("/endpoints/0/suspend_timeout_seconds", "0"),
        ("/endpoints/0/autoscaling_limit_max_cu", "0.25"),
        ("/endpoints/0/disabled", "false"),
        ("/databases/0/name", "neondb"),
        ("/roles/0/name", "neondb_owner"),
    ] {
        findings.expect_eq(path, expected, created.value_at(path));
    }
    hosts(test_project, findings);
    Ok(())
}

/// Host names are made of the endpoint's id and the project's proxy host.
fn hosts(test_project: &TestProject, findings: &mut Findings) {
    let (created, login) = (&test_project.created, &test_project.login);
    let (id, proxy) = (
        &test_project.endpoint,
        created.value_at("/project/proxy_host"),
    );
    findings.expect(
        "an endpoint's id begins with ep-",
        id.starts_with("ep-"),
        id,
    );
    findings.expect_eq(
        "the endpoint's host",
        &login.direct,
        created.value_at("/endpoints/0/host"),
    );
    findings.expect_eq("host", format!("{id}.{proxy}"), &login.direct);
    findings.expect_eq("pooler_host", format!("{id}-pooler.{proxy}"), &login.pooled);
    let uri = created.value_at("/connection_uris/0/connection_uri");
    let direct = uri.contains(&format!("@{}/{}", login.direct, login.database));
    findings.expect("connection_uri has the direct host", direct, &uri);
    let known = created.value_at("/roles/0/password") == login.password;
    findings.expect("the role has the uri's password", known, "another one");
}

/// Every field that was recorded is there, with a value of the same type.
fn compare(findings: &mut Findings, path: &str, expected: &Value, seen: &Value) {
    match (expected, seen) {
        (Value::Object(expected), Value::Object(seen)) => {
            for (name, expected) in expected {
                let seen = seen.get(name).unwrap_or(&Value::Null);
                compare(findings, &format!("{path}/{name}"), expected, seen);
            }
        }
        (Value::Array(expected), Value::Array(seen)) if !expected.is_empty() => {
            let seen = seen.first().unwrap_or(&Value::Null);
            compare(findings, &format!("{path}/0"), &expected[0], seen);
        }
        _ => findings.expect_eq(&format!("type of {path}"), kind(expected), kind(seen)),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Operations end as finished, are listed newest first, and leave everything ready.
pub(crate) async fn operations(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    test_project.wait_until_idle().await?;
    let api = &test_project.api;
    let listed = api.get(&test_project.path("/operations?limit=10")).await?;
    findings.expect_eq(
        "newest first",
        "[start_compute, create_timeline]",
        listed.actions(),
    );
    for place in ["/operations/0/status", "/operations/1/status"] {
        findings.expect_eq(place, "finished", listed.value_at(place));
    }
    let endpoint = api.get(&test_project.endpoint_path("")).await?;
    findings.expect_eq(
        "the endpoint's state",
        "active",
        endpoint.value_at("/endpoint/current_state"),
    );
    findings.expect_eq(
        "the endpoint's next state",
        "nothing",
        endpoint.value_at("/endpoint/pending_state"),
    );
    let branch = api
        .get(&test_project.path(&format!("/branches/{}", test_project.branch)))
        .await?;
    findings.expect_eq(
        "the branch's state",
        "ready",
        branch.value_at("/branch/current_state"),
    );
    findings.expect_eq(
        "the branch's next state",
        "nothing",
        branch.value_at("/branch/pending_state"),
    );
    Ok(())
}

/// A connection URI can be asked for with either host.
pub(crate) async fn uris(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    let login = &test_project.login;
    for (pooled, host) in [(true, &login.pooled), (false, &login.direct)] {
        let query = format!(
            "/connection_uri?database_name={}&role_name={}&endpoint_id={}&pooled={pooled}",
            login.database, login.role, test_project.endpoint
        );
        let answer = test_project.api.get(&test_project.path(&query)).await?;
        let expected = format!(
            "postgresql://{}:{}@{host}/{}?sslmode=require&channel_binding=require",
            login.role, login.password, login.database
        );
        findings.expect_eq(
            &format!("pooled={pooled}"),
            expected,
            answer.value_at("/uri"),
        );
    }
    Ok(())
}
