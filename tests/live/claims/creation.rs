//! The answer to the creation of a project, and the calls that wait for its end.

use serde_json::{Value, json};
use tenantry::BoxError;

use crate::{findings::Findings, subject::Subject};

/// The answer of Neon's that the emulator's was made after.
const RECORDED: &str = include_str!("../../it/fixtures/created_project.json");
/// The answer to every change while operations go on.
const LOCKED: &str = r#"423 code "" "project already has running conflicting operations, scheduling of new ones is prohibited""#;

/// While a project's creation goes on, its endpoint cannot be changed, and the project can.
pub(crate) async fn locks(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    let (api, endpoint) = (&subject.api, subject.endpoint_path(""));
    let size = json!({ "endpoint": { "autoscaling_limit_max_cu": 0.5 } });
    let name = json!({ "project": { "name": subject.name } });
    let started = api.post(&format!("{endpoint}/start"), None).await?;
    let changed = api.patch(&endpoint, size).await?;
    let renamed = api.patch(&subject.path(""), name).await?;
    if !subject.is_busy().await? {
        findings.note("not asked: the creation was over too soon");
        return Ok(());
    }
    findings.same("a start during the creation", LOCKED, started.said());
    findings.same(
        "an update of the endpoint during the creation",
        LOCKED,
        changed.said(),
    );
    findings.same(
        "a refusal has a request_id",
        true,
        changed.body["request_id"].is_string(),
    );
    findings.same(
        "an update of the project during the creation",
        "200",
        renamed.said(),
    );
    Ok(())
}

pub(crate) fn shape(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    let created = &subject.created;
    findings.same("status", 201, created.status);
    findings.same(
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
    findings.same(
        "operations",
        "[create_timeline, start_compute]",
        created.actions(),
    );
    let pending = |it: &Value| it["status"] == "scheduling" || it["status"] == "running";
    let operations = created.body["operations"].as_array();
    let all = operations.is_some_and(|all| all.iter().all(pending));
    findings.holds(
        "operations are scheduling or running",
        all,
        created.at("/operations"),
    );
    for (path, expected) in [
        ("/project/name", &*subject.name),
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
        findings.same(path, expected, created.at(path));
    }
    hosts(subject, findings);
    Ok(())
}

/// Host names are made of the endpoint's id and the project's proxy host.
fn hosts(subject: &Subject, findings: &mut Findings) {
    let (created, login) = (&subject.created, &subject.login);
    let (id, proxy) = (&subject.endpoint, created.at("/project/proxy_host"));
    findings.holds(
        "an endpoint's id begins with ep-",
        id.starts_with("ep-"),
        id,
    );
    findings.same(
        "the endpoint's host",
        &login.direct,
        created.at("/endpoints/0/host"),
    );
    findings.same("host", format!("{id}.{proxy}"), &login.direct);
    findings.same("pooler_host", format!("{id}-pooler.{proxy}"), &login.pooled);
    let uri = created.at("/connection_uris/0/connection_uri");
    let direct = uri.contains(&format!("@{}/{}", login.direct, login.database));
    findings.holds("connection_uri has the direct host", direct, &uri);
    let known = created.at("/roles/0/password") == login.password;
    findings.holds("the role has the uri's password", known, "another one");
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
        _ => findings.same(&format!("type of {path}"), kind(expected), kind(seen)),
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
pub(crate) async fn operations(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    subject.settle().await?;
    let api = &subject.api;
    let listed = api.get(&subject.path("/operations?limit=10")).await?;
    findings.same(
        "newest first",
        "[start_compute, create_timeline]",
        listed.actions(),
    );
    for place in ["/operations/0/status", "/operations/1/status"] {
        findings.same(place, "finished", listed.at(place));
    }
    let endpoint = api.get(&subject.endpoint_path("")).await?;
    findings.same(
        "the endpoint's state",
        "active",
        endpoint.at("/endpoint/current_state"),
    );
    findings.same(
        "the endpoint's next state",
        "nothing",
        endpoint.at("/endpoint/pending_state"),
    );
    let branch = api
        .get(&subject.path(&format!("/branches/{}", subject.branch)))
        .await?;
    findings.same(
        "the branch's state",
        "ready",
        branch.at("/branch/current_state"),
    );
    findings.same(
        "the branch's next state",
        "nothing",
        branch.at("/branch/pending_state"),
    );
    Ok(())
}

/// A connection URI can be asked for with either host.
pub(crate) async fn uris(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    let login = &subject.login;
    for (pooled, host) in [(true, &login.pooled), (false, &login.direct)] {
        let query = format!(
            "/connection_uri?database_name={}&role_name={}&endpoint_id={}&pooled={pooled}",
            login.database, login.role, subject.endpoint
        );
        let answer = subject.api.get(&subject.path(&query)).await?;
        let expected = format!(
            "postgresql://{}:{}@{host}/{}?sslmode=require&channel_binding=require",
            login.role, login.password, login.database
        );
        findings.same(&format!("pooled={pooled}"), expected, answer.at("/uri"));
    }
    Ok(())
}
