//! Each method of the client about projects and branches: exactly what it sends, and what it makes of the answer as
//! Neon describes it.

use std::time::Duration;

use serde_json::{Value, json};
use tenantry::{
    ErrorKind, Neon, Plan, Quota,
    neon::{CreateBranch, CreateProject, ListProjects, UpdateProject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use crate::support::{LONG, Reply, ScriptedApi};

/// An API that gives these answers, and a client of it.
pub(crate) async fn api_with_script(
    replies: impl IntoIterator<Item = Reply>,
) -> (ScriptedApi, Neon) {
    let api = ScriptedApi::new(replies).await;
    let neon = api.client().org_id("org-a").build().unwrap();
    (api, neon)
}

pub(crate) async fn api_with_answer(status: u16, body: Value) -> (ScriptedApi, Neon) {
    api_with_script([Reply::Json(status, body)]).await
}

/// Fails unless exactly this was sent.
pub(crate) fn assert_sent(api: &ScriptedApi, request: &str, body: Value) {
    assert_eq!(api.requests(), [format!("{request} ").trim_end()]);
    assert_eq!(api.bodies(), [body]);
    api.assert_done();
}

#[tokio::test]
async fn a_project_is_created_with_its_plan() {
    let answer = json!({ "project": { "id": "p-1" }, "connection_uris": [] });
    let (api, neon) = api_with_answer(201, answer).await;
    let mut order = CreateProject::new("acme");
    order.plan = Plan::new().pg_version(17).never_suspend();
    order.annotations.insert("tenant".into(), "acme".into());
    assert_eq!(neon.create_project(&order).await.unwrap().project.id, "p-1");
    let project = json!({
        "name": "acme",
        "pg_version": 17,
        "org_id": "org-a",
        "branch": {
            "database_name": "neondb", "role_name": "neondb_owner", "annotations": { "tenant": "acme" },
        },
        "default_endpoint_settings": { "suspend_timeout_seconds": -1 },
    });
    assert_sent(&api, "POST /api/v2/projects", json!({ "project": project }));
}

#[tokio::test]
async fn projects_are_listed_by_the_page() {
    let answer = json!({
        "projects": [
            { "id": "p-1", "deleted_at": "2026-01-01T00:00:00Z", "recoverable_until": "2026-01-08T00:00:00Z" },
        ],
        "unavailable_project_ids": ["p-9"],
        "pagination": { "cursor": "p-1" },
        "applications": {}, "integrations": {},
    });
    let (api, neon) = api_with_answer(200, answer).await;
    let list = ListProjects::new()
        .search("a&b")
        .cursor("p-0")
        .limit(50)
        .recoverable();
    let page = neon.list_projects(&list).await.unwrap();
    assert_eq!(page.cursor.as_deref(), Some("p-1"));
    assert_eq!(page.unavailable_project_ids, ["p-9"]);
    let project = &page.projects[0];
    assert_eq!(
        project.recoverable_until.as_deref(),
        Some("2026-01-08T00:00:00Z")
    );
    let query = "search=a%26b&limit=50&recoverable=true&org_id=org-a&cursor=p-0";
    assert_sent(&api, &format!("GET /api/v2/projects?{query}"), Value::Null);
}

#[tokio::test]
async fn a_project_says_what_it_consumed_and_what_it_may() {
    let answer = json!({ "project": {
        "id": "p-1", "org_id": "org-a", "pg_version": 17, "active_time_seconds": 60, "compute_time_seconds": 15,
        "written_data_bytes": 1024, "data_transfer_bytes": 2048,
        "settings": { "quota": { "active_time_seconds": 3600, "logical_size_bytes": 0 } },
    } });
    let (api, neon) = api_with_answer(200, answer).await;
    let project = neon.get_project("p-1").await.unwrap();
    let consumed = [
        project.active_time_seconds,
        project.compute_time_seconds,
        project.written_data_bytes,
        project.data_transfer_bytes,
    ];
    assert_eq!(consumed, [60, 15, 1024, 2048]);
    assert_eq!(project.quota.active_time, Some(Duration::from_secs(3600)));
    assert_eq!(project.quota.logical_size_bytes, None);
    assert_eq!(project.org_id.as_deref(), Some("org-a"));
    assert_sent(&api, "GET /api/v2/projects/p-1", Value::Null);
}

#[tokio::test]
async fn a_project_is_updated_with_a_whole_quota() {
    let answer = json!({ "project": { "id": "p-1", "name": "new" }, "operations": [] });
    let (api, neon) = api_with_answer(200, answer).await;
    let mut quota = Quota::default();
    quota.written_bytes = Some(9);
    let plan = Plan::new().compute_units(0.25, 1.0).quota(quota);
    let update = UpdateProject::new().name("new").plan(&plan);
    assert_eq!(
        neon.update_project("p-1", &update).await.unwrap().name,
        "new"
    );
    let project = json!({
        "name": "new",
        "default_endpoint_settings": {
            "autoscaling_limit_min_cu": 0.25, "autoscaling_limit_max_cu": 1.0, "suspend_timeout_seconds": 0,
        },
        "settings": { "quota": {
            "active_time_seconds": 0, "compute_time_seconds": 0, "written_data_bytes": 9, "data_transfer_bytes": 0,
            "logical_size_bytes": 0,
        } },
    });
    assert_sent(
        &api,
        "PATCH /api/v2/projects/p-1",
        json!({ "project": project }),
    );
}

#[tokio::test]
async fn a_project_is_deleted_and_recovered() {
    let answer = json!({ "project": { "id": "p-1" }, "branches": [] });
    let (api, neon) = api_with_answer(200, answer.clone()).await;
    assert_eq!(neon.delete_project("p-1").await.unwrap().id, "p-1");
    assert_sent(&api, "DELETE /api/v2/projects/p-1", Value::Null);
    let (api, neon) = api_with_answer(200, answer).await;
    assert_eq!(neon.recover_project("p-1").await.unwrap().id, "p-1");
    assert_sent(&api, "POST /api/v2/projects/p-1/recover", Value::Null);
}

#[tokio::test]
async fn a_branch_is_created_with_a_compute_unless_told_otherwise() {
    let answer = json!({
        "branch": { "id": "br-1", "name": "acme", "parent_id": "br-0", "current_state": "init", "pending_state": "ready" },
        "endpoints": [{ "id": "ep-1", "host": "ep-1.neon.tech", "type": "read_write" }],
        "operations": [{ "id": "op-1", "action": "create_branch", "status": "running", "branch_id": "br-1" }],
        "roles": [], "databases": [],
    });
    let (api, neon) = api_with_answer(201, answer.clone()).await;
    let mut order = CreateBranch::new("acme");
    order.parent_id = Some("br-0".into());
    order.annotations.insert("tenant".into(), "acme".into());
    order.plan = Plan::new().suspend_after(Duration::from_secs(60));
    let created = neon.create_project_branch("p-1", &order).await.unwrap();
    assert_eq!(created.branch.parent_id.as_deref(), Some("br-0"));
    assert_eq!(created.endpoints[0].id, "ep-1");
    assert!(created.operations[0].is_pending() && created.connection_uris.is_empty());
    let body = json!({
        "branch": { "name": "acme", "parent_id": "br-0" },
        "endpoints": [{ "type": "read_write", "suspend_timeout_seconds": 60 }],
        "annotation_value": { "tenant": "acme" },
    });
    assert_sent(&api, "POST /api/v2/projects/p-1/branches", body);

    let (api, neon) = api_with_answer(201, answer).await;
    let mut bare = CreateBranch::new("bare");
    bare.with_endpoint = false;
    neon.create_project_branch("p-1", &bare).await.unwrap();
    let body = json!({ "branch": { "name": "bare" } });
    assert_sent(&api, "POST /api/v2/projects/p-1/branches", body);
}

#[tokio::test]
async fn a_branch_of_a_name_that_is_taken_is_a_conflict() {
    let taken = json!({ "code": "", "message": "branch already exists", "request_id": "body-id" });
    let (_api, neon) = api_with_answer(409, taken).await;
    let err = neon
        .create_project_branch("p-1", &CreateBranch::new("main"))
        .await
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict);
    let text = "neon's api answered 409 Conflict: branch already exists [request req-1]";
    assert_eq!(err.to_string(), text);
}

#[tokio::test]
async fn branches_are_listed_through_all_pages_with_their_annotations() {
    let page = |id: &str, next: Option<&str>| {
        Reply::Json(
            200,
            json!({
                "branches": [{ "id": id, "name": id, "default": true }],
                "annotations": { id: { "object": { "type": "console/branch", "id": id }, "value": { "of": id } } },
                "pagination": { "next": next, "sort_by": "updated_at", "sort_order": "desc" },
            }),
        )
    };
    let empty = Reply::Json(200, json!({ "branches": [], "annotations": {} }));
    let (api, neon) =
        api_with_script([page("br-1", Some("a=/b")), page("br-2", Some("c")), empty]).await;
    let branches = neon.list_project_branches("p-1").await.unwrap();
    let noted: Vec<_> = branches
        .iter()
        .map(|branch| branch.annotations["of"].as_str())
        .collect();
    assert_eq!(noted, ["br-1", "br-2"]);
    let path = "GET /api/v2/projects/p-1/branches?limit=10000";
    let sent = ["", "&cursor=a%3D%2Fb", "&cursor=c"].map(|cursor| format!("{path}{cursor}"));
    assert_eq!(api.requests(), sent);
    api.assert_done();
}

#[tokio::test]
async fn a_branch_is_shown_with_its_annotations_and_deleted_once() {
    let answer = json!({ "branch": { "id": "br-1" }, "annotation": { "object": {}, "value": { "a": "b" } } });
    let (api, neon) = api_with_answer(200, answer).await;
    let branch = neon.get_project_branch("p-1", "br-1").await.unwrap();
    assert_eq!(branch.annotations["a"], "b");
    assert_sent(&api, "GET /api/v2/projects/p-1/branches/br-1", Value::Null);

    let deleted = json!({ "branch": { "id": "br-1" }, "operations": [] });
    for (reply, expected) in [
        (Reply::Json(200, deleted), Some("br-1")),
        (Reply::Text(204, ""), None),
    ] {
        let (api, neon) = api_with_script([reply]).await;
        let gone = neon.delete_project_branch("p-1", "br-1").await.unwrap();
        assert_eq!(gone.map(|branch| branch.id).as_deref(), expected);
        assert_sent(
            &api,
            "DELETE /api/v2/projects/p-1/branches/br-1",
            Value::Null,
        );
    }
}

#[tokio::test]
async fn a_change_of_unknown_outcome_is_sent_once() {
    for lost in [Reply::Html(502), Reply::Hangup, Reply::Html(200)] {
        let (api, neon) = api_with_script([lost.clone(), lost]).await;
        let update = UpdateProject::new().name("new");
        let changed = neon.update_project("p-1", &update).await.unwrap_err();
        assert_eq!(changed.kind(), ErrorKind::ControlPlane);
        let deleted = neon.delete_project("p-1").await.unwrap_err();
        assert_eq!(deleted.kind(), ErrorKind::ControlPlane);
        let sent = ["PATCH /api/v2/projects/p-1", "DELETE /api/v2/projects/p-1"];
        assert_eq!(api.requests(), sent);
    }
    let api = ScriptedApi::endless(Reply::Slow(Duration::from_secs(60))).await;
    let hurried = api.client().request_timeout(Duration::from_secs(5));
    let neon = hurried.build().unwrap();
    let created = neon.create_project(&CreateProject::new("p")).await;
    assert_eq!(created.unwrap_err().kind(), ErrorKind::ControlPlane);
    assert_eq!(api.requests(), ["POST /api/v2/projects"]);
}

#[tokio::test]
async fn a_creation_that_reached_no_server_is_sent_again() {
    // Bound, so that it is nobody else's, and not listened at for a while.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let neon = Neon::builder("napi_late").base_url(format!("http://{address}/api/v2"));
    let neon = neon.build().unwrap();
    let order = CreateProject::new("p");
    let late = async {
        tokio::time::sleep(Duration::from_millis(100)).await; // the first attempt leaves no trace
        let listener = socket.listen(1).unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let read = stream.read(&mut [0; 4096]).await.unwrap();
        assert!(read > 0);
        let body = r#"{"project":{"id":"p-1"}}"#;
        let head = format!("HTTP/1.1 201 Created\r\ncontent-length: {}", body.len());
        let answer = format!("{head}\r\nconnection: close\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    let both = async { tokio::join!(neon.create_project(&order), late) };
    let (created, ()) = tokio::time::timeout(LONG, both).await.expect("hangs");
    assert_eq!(created.unwrap().project.id, "p-1");
}
