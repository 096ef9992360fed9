//! Answers as Neon really gives them, and answers that nobody should give.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tenantry::{
    ControlPlane, DEFAULT_SUSPEND_WINDOW, Error, ErrorKind, ExhaustedQuota, Provisioner, Resolve,
    Stage, TenantRouter,
    catalog::Memory,
    control_plane::Progress,
    neon::{CreateProject, ListProjects},
};

use crate::support::{Reply, ScriptedApi};

/// The answer to a creation, in the shape and with the facts of one that was recorded at Neon in January 2025; names
/// and values are made up.
fn created_project() -> Value {
    serde_json::from_str(include_str!("fixtures/created_project.json")).unwrap()
}

#[tokio::test]
async fn a_creation_is_read_as_neon_answers_it() {
    let api = ScriptedApi::new([Reply::Json(201, created_project())]).await;
    let neon = api.client().build().unwrap();
    let created = neon
        .create_project(&CreateProject::new("test-acme"))
        .await
        .unwrap();
    let branch = created.branch.as_ref().expect("a branch");
    assert!(branch.default && branch.annotations.is_empty());
    assert_eq!(branch.pending_state.as_deref(), Some("ready"));
    let zero = "0001-01-01T00:00:00Z"; // before the first billing period
    assert_eq!(
        created.project.consumption_period_start.as_deref(),
        Some(zero)
    );

    let endpoint = &created.endpoints[0];
    assert_eq!(
        endpoint.suspend_window(),
        Some(DEFAULT_SUSPEND_WINDOW),
        "0 is the default, not never"
    );
    assert_eq!(endpoint.pending_state.as_deref(), Some("active"));
    let at = &created.connection_uris[0].connection_parameters;
    assert_eq!(
        at.host, endpoint.host,
        "the endpoint's host is the direct one"
    );
    assert_eq!(at.pooler_host, endpoint.host.replacen('.', "-pooler.", 1));
    let states: Vec<_> = created
        .operations
        .iter()
        .map(|operation| (operation.status.as_str(), operation.is_pending()))
        .collect();
    assert_eq!(states, [("running", true), ("scheduling", true)]);
    assert!(!format!("{created:?}").contains("npg_"));
}

/// Notes which hosts are asked for, and knows none.
#[derive(Clone, Default)]
struct FailingResolver(Arc<Mutex<Vec<String>>>);

impl Resolve for FailingResolver {
    async fn resolve(&self, host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        self.0.lock().unwrap().push(host.to_owned());
        Err(io::Error::other("no such host"))
    }
}

#[tokio::test]
async fn a_tenant_is_provisioned_from_that_answer_and_looked_for_at_the_pooled_host() {
    let operations = |status: &str| {
        let operation = json!({ "id": "op-1", "action": "create_timeline", "status": status });
        Reply::Json(200, json!({ "operations": [operation] }))
    };
    let api = ScriptedApi::new([
        Reply::Json(200, json!({ "projects": [] })),
        Reply::Json(201, created_project()),
        operations("running"),
        operations("finished"),
    ])
    .await;
    let hosts = FailingResolver::default();
    let provisioner =
        Provisioner::new(Memory::new(), api.client().build().unwrap(), "test").on_first_access();
    let router = TenantRouter::provisioning(provisioner)
        .resolve(hosts.clone())
        .get_timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let err = router.get("acme").await.unwrap_err();
    assert!(matches!(err.kind(), ErrorKind::Timeout(_)), "{err:?}");
    api.assert_done();
    let hosts = hosts.0.lock().unwrap();
    let pooled = "ep-amber-field-a9z8y7x6-pooler.us-east-2.aws.neon.tech";
    assert!(
        !hosts.is_empty() && hosts.iter().all(|host| host == pooled),
        "{hosts:?}"
    );
}

#[tokio::test]
async fn new_missing_or_null_fields_do_not_make_an_answer_unreadable() {
    let mut strange = created_project();
    strange["project"]["settings"] = Value::Null;
    strange["project"]["name"] = Value::Null;
    strange["project"]["active_time_seconds"] = json!(1.5);
    strange["project"]["written_data_bytes"] = Value::Null;
    strange["project"]["brand_new"] = json!({ "deep": [1] });
    strange["branch"] = Value::Null;
    strange["roles"] = Value::Null;
    strange["operations"] =
        json!([{ "id": "o-1", "action": "teleport", "status": "pondering", "error": null }]);
    let endpoint = &mut strange["endpoints"][0];
    for deprecated in ["pooler_enabled", "pooler_mode", "proxy_host", "settings"] {
        endpoint.as_object_mut().unwrap().remove(deprecated);
    }
    endpoint["current_state"] = json!("hibernating");
    endpoint["type"] = json!("write_only");
    endpoint["pending_state"] = Value::Null;
    endpoint["disabled"] = Value::Null;
    endpoint["suspend_timeout_seconds"] = json!(60.0);

    let api = ScriptedApi::new([Reply::Json(201, strange)]).await;
    let neon = api.client().build().unwrap();
    let created = neon.create_project(&CreateProject::new("p")).await.unwrap();
    assert_eq!(
        (
            created.project.name.as_str(),
            created.project.active_time_seconds
        ),
        ("", 1)
    );
    assert_eq!(created.branch, None);
    assert!(!created.operations[0].is_pending());
    let endpoint = &created.endpoints[0];
    assert_eq!(endpoint.current_state, "hibernating");
    assert_eq!(endpoint.suspend_window(), Some(Duration::from_secs(60)));
}

#[tokio::test]
async fn an_unreadable_success_is_an_error_that_describes_the_body_without_quoting_it() {
    const TRUNCATED_BODY: &str = r#"{"project":{"id":"p-1"},"connection_uris":[{"connection_parameters":{"password":"hunter2""#;
    for (reply, text) in [
        (
            Reply::Html(201),
            "a page of html, probably from a proxy in front of it",
        ),
        (Reply::Text(200, ""), "an empty body"),
        (Reply::Text(204, ""), "an empty body"),
        (
            Reply::Text(201, TRUNCATED_BODY),
            "a body of unexpected form (line 1",
        ),
        (Reply::Text(201, "hunter2"), "a body of unexpected form"),
        (
            Reply::Text(201, r#"{"project":"hunter2"}"#),
            "a body of unexpected form",
        ),
    ] {
        let api = ScriptedApi::new([reply]).await;
        let neon = api.client().build().unwrap();
        let err = neon
            .create_project(&CreateProject::new("p"))
            .await
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::ControlPlane, "it may have happened");
        let message = err.to_string();
        assert!(
            message.contains(text) && message.contains("[request req-1]"),
            "{message}"
        );
        assert!(!format!("{err:?}").contains("hunter2"), "{err:?}");
        assert_eq!(api.requests().len(), 1, "not sent again");
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_change() {
    let error_body = |message: &str| json!({ "code": "", "message": message });
    for (reply, kind, text) in [
        (
            Reply::Html(403),
            ErrorKind::Refused,
            "with a page of html, probably from a proxy in front of it",
        ),
        (Reply::Text(418, "plain words"), ErrorKind::Refused, "418"),
        (
            Reply::Json(400, error_body("org_id is required")),
            ErrorKind::Refused,
            "name the organization with org_id",
        ),
        (
            Reply::Json(404, error_body("not allowed for organization API keys")),
            ErrorKind::Refused,
            "use the personal api key",
        ),
        (
            Reply::Json(
                423,
                error_body("Your project has exceeded the active time quota."),
            ),
            ErrorKind::QuotaExhausted(ExhaustedQuota::Other),
            "a limit of the plan",
        ),
        (
            Reply::Json(
                422,
                json!({ "code": "PROJECTS_LIMIT_EXCEEDED", "message": null }),
            ),
            ErrorKind::QuotaExhausted(ExhaustedQuota::Other),
            "a limit of the plan",
        ),
    ] {
        let api = ScriptedApi::new([reply]).await;
        let neon = api.client().build().unwrap();
        let err = neon.get_project("p-1").await.unwrap_err();
        assert_eq!(err.kind(), kind, "{err}");
        assert!(err.to_string().contains(text), "{err}");
        api.assert_done();
    }
}

#[tokio::test]
async fn a_project_in_maintenance_or_in_transition_is_waited_for() {
    let locked = |message: &str| Reply::Json(423, json!({ "code": "", "message": message }));
    let api = ScriptedApi::new([
        locked("project is under maintenance"),
        locked("endpoint is in some transitive state, could not suspend"),
        Reply::Json(200, json!({ "project": { "id": "p-1" } })),
    ])
    .await;
    let neon = api.client().build().unwrap();
    assert_eq!(neon.delete_project("p-1").await.unwrap().id, "p-1");
    api.assert_done();
}

async fn transfer(reply: Reply) -> (ScriptedApi, Result<(), Error>) {
    let api = ScriptedApi::new([reply]).await;
    let neon = api.client().build().unwrap();
    let moved = neon.transfer_projects_from_org_to_org("org-a", "org-b", &["p-1", "p-2"]);
    let moved = moved.await;
    (api, moved)
}

#[tokio::test]
async fn projects_are_transferred_and_a_refusal_says_what_stands_in_the_way() {
    for done in [Reply::Json(200, json!({})), Reply::Text(200, "")] {
        let (api, moved) = transfer(done).await;
        moved.unwrap();
        let path = "POST /api/v2/organizations/org-a/projects/transfer";
        assert_eq!(api.requests(), [path]);
        let body = json!({ "destination_org_id": "org-b", "project_ids": ["p-1", "p-2"] });
        assert_eq!(api.bodies(), [body]);
    }
    let limits = json!({ "limits": [
        { "name": "projects_count", "expected": "10", "actual": "12" },
        { "name": "subscription_type", "expected": "scale_v3", "actual": "free_v3" },
    ] });
    let err = transfer(Reply::Json(406, limits)).await.1.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Refused);
    let text = "the destination's projects_count is 12, not 10; the destination's subscription_type is free_v3";
    assert!(err.to_string().contains(text), "{err}");

    let tied = json!({ "projects": [{ "id": "p-2", "integration": "github" }] });
    let err = transfer(Reply::Json(422, tied)).await.1.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Refused);
    assert!(
        err.to_string().contains("project p-2 is tied to github"),
        "{err}"
    );
}

#[tokio::test]
async fn a_list_without_its_key_is_no_empty_list() {
    let impatient = |api: &ScriptedApi| {
        let client = api.client().call_timeout(Duration::from_millis(100));
        client.build().unwrap()
    };
    let api = ScriptedApi::endless(Reply::Json(200, json!({}))).await;
    let neon = impatient(&api);
    let errors = [
        neon.list_projects(&ListProjects::new()).await.err(),
        neon.list_project_branches("p-1").await.err(),
        neon.list_project_endpoints("p-1").await.err(),
        neon.list_project_operations("p-1").await.err(),
        neon.wait_for_operations("p-1").await.err(),
    ];
    for err in errors {
        let err = format!("{:?}", err.expect("an error"));
        assert!(err.contains("a body of unexpected form"), "{err}");
    }

    let null = json!({ "projects": null, "branches": null, "endpoints": null, "operations": null });
    let api = ScriptedApi::endless(Reply::Json(200, null)).await;
    let neon = impatient(&api);
    let page = neon.list_projects(&ListProjects::new()).await.unwrap();
    assert_eq!(page.projects, []);
    assert_eq!(neon.list_project_branches("p-1").await.unwrap(), []);
    assert_eq!(neon.list_project_endpoints("p-1").await.unwrap(), []);
    assert_eq!(neon.list_project_operations("p-1").await.unwrap(), []);
}

async fn ready(operation: Value) -> Result<(), Error> {
    let answer = Reply::Json(200, json!({ "operations": [operation] }));
    let api = ScriptedApi::new([answer]).await;
    let neon = api.client().build().unwrap();
    let progress = Progress::new(Stage::Provision, Duration::from_secs(5));
    ControlPlane::ready(&neon, "p-1", &progress).await
}

#[tokio::test]
async fn only_the_failed_creation_of_the_project_itself_is_a_failure() {
    let failed = |action: &str, error: &str| json!({ "id": "o-1", "action": action, "status": "failed", "error": error });
    ready(failed("create_branch", "a colleague's"))
        .await
        .unwrap();
    let err = ready(failed("create_timeline", "no\nspace"))
        .await
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Refused);
    assert!(err.to_string().ends_with("failed: nospace"), "{err}");
    let err = ready(failed("create_timeline", "role has npg_hunter2"))
        .await
        .unwrap_err();
    assert!(!err.to_string().contains("hunter2"), "{err}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_keeps_the_id_of_its_request() {
    for (reply, text) in [
        (
            Reply::HalfBody(201),
            "answered 201 Created and closed the connection before the end of its answer [request req-1]",
        ),
        (Reply::HalfBody(404), "[request req-1]"),
        (Reply::Hangup, "closed the connection before it answered"),
    ] {
        let api = ScriptedApi::new([reply]).await;
        let neon = api.client().build().unwrap();
        let err = neon.create_project(&CreateProject::new("p")).await;
        let err = err.unwrap_err();
        assert!(err.to_string().contains(text), "{err}");
    }
}

#[tokio::test]
async fn a_malformed_part_does_not_fail_the_whole_answer() {
    let mut odd = created_project();
    odd["connection_uris"][0]["connection_parameters"]
        .as_object_mut()
        .unwrap()
        .remove("pooler_host");
    let branches = json!({
        "branches": [{ "id": "br-1" }],
        "annotations": { "br-1": { "value": { "tenant": "acme", "count": 7 } } },
        "pagination": { "next": "" },
    });
    let api = ScriptedApi::new([Reply::Json(201, odd), Reply::Json(200, branches)]).await;
    let neon = api.client().build().unwrap();
    let created = neon.create_project(&CreateProject::new("p")).await.unwrap();
    let at = &created.connection_uris[0].connection_parameters;
    assert!(at.pooler_host.is_empty() && !at.host.is_empty());
    let branches = neon.list_project_branches("p-1").await.unwrap();
    assert_eq!(branches[0].annotations["tenant"], "acme");
    assert_eq!(branches[0].annotations["count"], "7");
    api.assert_done();
}
