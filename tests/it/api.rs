//! Neon's API: the client against the emulator, and against answers that no emulator gives.

use std::{error::Error as _, time::Duration};

use tokio::time::Instant;

use serde_json::json;
use tenantry::{
    Error, ErrorKind, Neon, Provisioner, TenantRouter, catalog::Memory, neon::CreateProject,
};

use crate::support::{LONG, Reply, ScriptedApi, TestEnv};

/// A `get` through `neon` that has two seconds, and what it ends in.
async fn first_access(neon: Neon) -> Error {
    let router =
        TenantRouter::provisioning(Provisioner::new(Memory::new(), neon, "test").on_first_access());
    let router = router.get_timeout(Duration::from_secs(2)).build().unwrap();
    let start = Instant::now();
    let err = tokio::time::timeout(LONG, router.get("acme"))
        .await
        .expect("hangs")
        .unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "past the deadline: {:?}",
        start.elapsed()
    );
    err
}

#[tokio::test]
async fn projects_are_created_found_and_deleted() {
    let env = TestEnv::new().await;
    let neon = env.neon();
    let mut order = CreateProject::new("test-acme-0123");
    order.annotations.insert("colour".into(), "blue".into());
    let created = neon.create_project(&order).await.unwrap();
    let id = &created.project.id;
    neon.create_project(&CreateProject::new("test-acme-01234"))
        .await
        .unwrap();

    let at = &created.connection_uris[0].connection_parameters;
    assert!(at.pooler_host.contains("-pooler."), "{}", at.pooler_host);
    assert_eq!(neon.get_project(id).await.unwrap().name, "test-acme-0123");
    let named: Vec<_> = neon
        .projects_named("test-acme-0123")
        .await
        .unwrap()
        .into_iter()
        .map(|it| it.id)
        .collect();
    assert_eq!(
        &named,
        std::slice::from_ref(id),
        "the search matches parts of names, the method does not"
    );
    let branches = neon.list_project_branches(id).await.unwrap();
    assert!(branches[0].default);
    assert_eq!(branches[0].annotations, order.annotations);

    let endpoint = &neon.list_project_endpoints(id).await.unwrap()[0];
    let uri = neon
        .get_connection_uri(id, &endpoint.id, &at.database, &at.role, true)
        .await
        .unwrap();
    assert!(uri.expose().contains(&at.pooler_host) && uri.expose().contains(at.password.expose()));
    neon.delete_project(id).await.unwrap();
    let gone = neon.get_project(id).await.unwrap_err();
    assert!(gone.to_string().contains("404"), "{gone}");
}

#[tokio::test]
async fn a_compute_is_started_and_suspended_and_operations_are_waited_for() {
    let env = TestEnv::with(|emulator| emulator.operation_time(Duration::from_millis(100))).await;
    let neon = env.neon();
    let created = neon.create_project(&CreateProject::new("p")).await.unwrap();
    let (id, endpoint) = (&created.project.id, &created.endpoints[0].id);
    assert!(
        created
            .operations
            .iter()
            .all(tenantry::neon::Operation::is_pending)
    );

    // Locked by its creation, which the client waits out.
    assert_eq!(
        neon.start_project_endpoint(id, endpoint)
            .await
            .unwrap()
            .current_state,
        "active"
    );
    let operations = neon.wait_for_operations(id).await.unwrap();
    assert!(
        operations
            .iter()
            .all(|operation| operation.status == "finished"),
        "{operations:?}"
    );
    let one = neon
        .get_project_operation(id, &operations[0].id)
        .await
        .unwrap();
    assert_eq!(one, operations[0]);

    neon.suspend_project_endpoint(id, endpoint).await.unwrap();
    neon.wait_for_operations(id).await.unwrap();
    assert_eq!(
        neon.get_project_endpoint(id, endpoint)
            .await
            .unwrap()
            .current_state,
        "idle"
    );
    neon.start_project_endpoint(id, endpoint).await.unwrap();
    neon.wait_for_operations(id).await.unwrap();
    assert_eq!(
        neon.get_project_endpoint(id, endpoint)
            .await
            .unwrap()
            .current_state,
        "active"
    );
    assert_eq!(env.emulator.witnesses()[0].wakes.len(), 2);
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_says_what_to_check() {
    let env = TestEnv::new().await;
    let neon = Neon::builder("napi_wrong")
        .base_url(env.emulator.api_url())
        .build()
        .unwrap();
    let err = first_access(neon).await;
    assert_eq!(err.kind(), ErrorKind::Refused);
    assert!(err.to_string().contains("check the api key"), "{err}");
    assert_eq!(err.tenant().map(tenantry::TenantId::as_str), Some("acme"));
}

#[tokio::test]
async fn an_unreachable_api_is_an_error_that_names_the_cause() {
    // Bound and dropped: nobody listens there.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let neon = Neon::builder("napi_key")
        .base_url(format!("http://127.0.0.1:{port}/api/v2"))
        .build()
        .unwrap();
    let err = first_access(neon).await;
    assert_eq!(err.kind(), ErrorKind::Provisioning);
    let cause = err
        .source()
        .and_then(|cause| cause.downcast_ref::<Error>())
        .expect("a cause");
    assert_eq!(cause.kind(), ErrorKind::ControlPlane);
    assert!(err.retry_after().is_some());
}

#[tokio::test]
async fn endless_429s_are_an_error_that_says_when_to_come_back() {
    for (retry_after, expected) in [(None, 1), (Some(1), 1), (Some(30), 30)] {
        let api = ScriptedApi::endless(Reply::TooMany { retry_after }).await;
        let err = first_access(api.client().build().unwrap()).await;
        assert_eq!(err.kind(), ErrorKind::Provisioning);
        let (wait, expected) = (err.retry_after().unwrap(), Duration::from_secs(expected));
        // What the server asked for, less what has passed since it did.
        assert!(
            wait <= expected && wait + Duration::from_secs(3) > expected,
            "{wait:?}"
        );
        let cause = err
            .source()
            .and_then(|cause| cause.downcast_ref::<Error>())
            .expect("a cause");
        assert_eq!(cause.kind(), ErrorKind::RateLimited);
        assert!(
            api.requests().len() < 20,
            "not a flood: {}",
            api.requests().len()
        );
    }
}

#[tokio::test]
async fn a_temporary_refusal_is_retried_and_a_call_that_may_have_happened_is_not() {
    let project = json!({ "project": { "id": "p-1" } });
    let locked = Reply::Json(
        423,
        json!({ "code": "", "message": "running conflicting operations" }),
    );
    let api = ScriptedApi::new([
        locked.clone(),
        Reply::Json(503, json!({})),
        Reply::TooMany {
            retry_after: Some(0),
        },
        Reply::Json(201, project.clone()),
    ])
    .await;
    let created = api
        .client()
        .build()
        .unwrap()
        .create_project(&CreateProject::new("p"))
        .await
        .unwrap();
    assert_eq!(created.project.id, "p-1");
    api.assert_done();

    for lost in [
        Reply::Html(502),
        Reply::Html(503),
        Reply::Json(500, json!({})),
        Reply::Hangup,
        Reply::Html(200),
    ] {
        let api = ScriptedApi::new([lost.clone()]).await;
        let err = api
            .client()
            .build()
            .unwrap()
            .create_project(&CreateProject::new("p"))
            .await
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::ControlPlane, "{lost:?}");
        assert_eq!(api.requests().len(), 1, "{lost:?}");

        let api = ScriptedApi::new([lost.clone(), Reply::Json(200, project.clone())]).await;
        let read = api.client().build().unwrap().get_project("p-1").await;
        assert_eq!(
            read.unwrap().id,
            "p-1",
            "a GET is sent again after {lost:?}"
        );
        api.assert_done();
    }
}

#[tokio::test]
async fn a_slow_answer_ends_at_the_deadline_and_a_redirect_is_not_followed() {
    let api = ScriptedApi::endless(Reply::Slow(Duration::from_secs(60))).await;
    let client = api
        .client()
        .request_timeout(Duration::from_millis(100))
        .call_timeout(Duration::from_secs(1));
    let err = client
        .build()
        .unwrap()
        .projects_named("p")
        .await
        .unwrap_err();
    assert!(matches!(err.kind(), ErrorKind::Timeout(_)), "{err:?}");
    let message = err.to_string();
    assert!(message.contains("while calling neon's api"), "{message}");

    let api = ScriptedApi::new([Reply::Redirect]).await;
    let err = api
        .client()
        .build()
        .unwrap()
        .get_project("p-1")
        .await
        .unwrap_err();
    assert!(err.to_string().contains("redirect"), "{err}");
}

#[tokio::test]
async fn a_search_that_is_not_complete_proves_no_absence() {
    let partial = json!({ "projects": [], "unavailable_project_ids": ["p-9"] });
    let api = ScriptedApi::new([
        Reply::Json(200, partial),
        Reply::Json(200, json!({ "projects": [] })),
    ])
    .await;
    assert_eq!(
        api.client()
            .build()
            .unwrap()
            .projects_named("p")
            .await
            .unwrap(),
        []
    );
    api.assert_done();
}

#[tokio::test]
async fn a_search_goes_through_all_pages_and_stops_at_the_last() {
    let page = |from: usize, count: usize| {
        let projects: Vec<_> = (from..from + count)
            .map(|n| json!({ "id": format!("p-{n:04}"), "name": if n == 405 { "p" } else { "p-other" } }))
            .collect();
        Reply::Json(
            200,
            json!({ "projects": projects, "pagination": { "cursor": format!("p-{:04}", from + count - 1) } }),
        )
    };
    let api = ScriptedApi::new([page(0, 400), page(400, 10)]).await;
    let found = api
        .client()
        .build()
        .unwrap()
        .projects_named("p")
        .await
        .unwrap();
    assert_eq!(
        found.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(),
        ["p-0405"]
    );
    assert!(
        api.requests()[1].contains("cursor=p-0399"),
        "{:?}",
        api.requests()
    );
    api.assert_done();
}

#[tokio::test]
async fn a_search_whose_cursor_stands_still_ends() {
    let projects: Vec<_> = (0..400).map(|_| json!({ "id": "p-1" })).collect();
    let page = json!({ "projects": projects, "pagination": { "cursor": "p-1" } });
    let api = ScriptedApi::new([Reply::Json(200, page.clone()), Reply::Json(200, page)]).await;
    let found = api.client().build().unwrap().projects_named("p").await;
    assert_eq!(found.unwrap(), []);
    api.assert_done();
}

#[tokio::test]
async fn ids_that_would_call_something_else_are_not_sent() {
    let api = ScriptedApi::new([]).await;
    let neon = api.client().build().unwrap();
    for bad in ["", "..", "a/b", "a?b", "a b", &"x".repeat(61)] {
        assert_eq!(
            neon.get_project(bad).await.unwrap_err().kind(),
            ErrorKind::Refused,
            "{bad:?}"
        );
    }
    assert_eq!(api.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn a_client_with_settings_that_cannot_work_is_not_built() {
    for url in [
        "",
        "neon.tech",
        "ftp://neon.tech",
        "postgres://u:p@h/d",
        "https://user@neon.tech",
        "https://:password@neon.tech",
        "https://neon.tech/api?key=1",
        "https://neon.tech/api#key",
    ] {
        assert!(
            Neon::builder("key").base_url(url).build().is_err(),
            "{url:?}"
        );
    }
    for share in [0.0, -0.5, 1.01, f64::NAN, f64::INFINITY] {
        let client = Neon::builder("key").rate_share(share);
        assert!(client.build().is_err(), "{share}");
    }
    for key in ["", "a b", "a\nb", "clé"] {
        assert!(Neon::builder(key).build().is_err(), "{key:?}");
    }
}

#[tokio::test]
async fn all_clients_of_a_key_share_one_rate() {
    let api = ScriptedApi::endless(Reply::Json(200, json!({ "project": { "id": "p-1" } }))).await;
    let neon = api.client().requests_per_minute(120).rate_share(0.5);
    let neon = neon.build().unwrap();
    let another = api.client().build().unwrap();
    let start = Instant::now();
    for client in [&neon, &another, &neon.background()] {
        client.get_project("p-1").await.unwrap();
    }
    // Two of sixty pass at once; the third has its turn a second later.
    assert!(
        start.elapsed() > Duration::from_millis(900),
        "{:?}",
        start.elapsed()
    );
    assert!(api.client().requests_per_minute(0).build().is_err());
}
