//! The router inside an axum server: tenants by request, errors as answers, and wakes begun early.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode, header::RETRY_AFTER},
    routing::get,
};
use tenantry::{Error, Identify, Tenant, TenantRouter, Tenants, WarmLayer};
use tokio::time::{Instant, sleep};
use tower::ServiceExt;

use super::support::{Backend, Failure, Gate, Step};

const MILLISECOND: Duration = Duration::from_millis(1);
/// The time that a wake takes, and the time that a handler works before it wants its tenant.
const WAKE: Duration = Duration::from_millis(350);
const OTHER_WORK: Duration = Duration::from_millis(300);

/// The tenant's own name, from its own database.
async fn whoami(Tenant(tenant): Tenant) -> Result<String, Error> {
    let client = tenant.get().await?;
    let row = client.query_typed("SELECT current_database()", &[]).await?;
    Ok(row[0].get(0))
}

/// The same by who has something else to do first.
async fn slow_whoami(tenant: Tenant) -> Result<String, Error> {
    sleep(OTHER_WORK).await;
    whoami(tenant).await
}

fn identify() -> Identify {
    let by_host = Identify::subdomain_of("example.com").unwrap();
    by_host.or(Identify::after_path("/t/").unwrap())
}

fn app(router: &TenantRouter) -> Router {
    Router::new()
        .route("/whoami", get(whoami))
        .route("/later", get(slow_whoami))
        .nest("/t", Router::new().route("/{tenant}/whoami", get(whoami)))
        .with_state(Tenants::new(router.clone(), identify()))
}

/// The answer to a request for `path` at `host`: its status, when to come back, and its body.
async fn send_request(
    app: &Router,
    host: &str,
    path: &str,
) -> (StatusCode, Option<String>, String) {
    let request = Request::builder().uri(path).header("host", host);
    let request = request.body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.map(|it| it.to_str().unwrap().to_owned());
    let status = response.status();
    let body = to_bytes(response.into_body(), 10_000).await.unwrap();
    (
        status,
        retry_after,
        String::from_utf8(body.to_vec()).unwrap(),
    )
}

fn router_without_nobody(backend: &Backend) -> tenantry::RouterBuilder {
    backend.router_with_lookup(|tenant| (tenant != "nobody").then(|| Backend::endpoint(tenant)))
}

#[tokio::test(start_paused = true)]
async fn a_request_gets_its_own_tenant_by_host_and_by_path() {
    let backend = Backend::default();
    let router = router_without_nobody(&backend).build().unwrap();
    let app = app(&router);
    for (host, path, tenant) in [
        ("acme.example.com", "/whoami", "acme"),
        ("globex.example.com:8080", "/whoami", "globex"),
        ("example.com", "/t/initech/whoami", "initech"),
        ("acme.example.com", "/t/initech/whoami", "acme"),
    ] {
        let answer = send_request(&app, host, path).await;
        assert_eq!(answer, (StatusCode::OK, None, tenant.to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_served_gets_a_problem_that_leaks_nothing() {
    let backend = Backend::default();
    let router = router_without_nobody(&backend).build().unwrap();
    let app = app(&router);
    backend.set_at(
        "dark",
        Step::Login,
        Gate::Fail(Failure::Error {
            code: "XX000",
            text: "Your account or project has exceeded the compute time quota. Upgrade your plan to increase limits.",
        }),
    );
    let cases = [
        (
            "example.com",
            "/whoami",
            StatusCode::NOT_FOUND,
            "unknown_tenant",
        ),
        (
            "nobody.example.com",
            "/whoami",
            StatusCode::NOT_FOUND,
            "unknown_tenant",
        ),
        (
            "example.com",
            "/t/a%00b/whoami",
            StatusCode::BAD_REQUEST,
            "invalid_tenant",
        ),
        (
            "dark.example.com",
            "/whoami",
            StatusCode::PAYMENT_REQUIRED,
            "quota_exhausted",
        ),
    ];
    for (host, path, status, code) in cases {
        let (is, _, body) = send_request(&app, host, path).await;
        assert_eq!(is, status, "{body}");
        let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["code"], code);
        assert_eq!(problem["status"], status.as_u16());
        for secret in ["dark", "nobody", "upgrade", "secret"] {
            assert!(!body.to_lowercase().contains(secret), "{body}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_beyond_the_limit_is_told_when_to_retry() {
    let backend = Backend::default();
    let router = router_without_nobody(&backend)
        .waiting_per_tenant(1)
        .build()
        .unwrap();
    let app = app(&router);
    backend.set(Step::Login, Gate::Stuck);
    let wake = router.warm("acme");
    backend.until_waiting(Step::Login).await;
    let (status, retry_after, _) = send_request(&app, "acme.example.com", "/whoami").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        retry_after.as_deref(),
        Some("1"),
        "whole seconds, never too early"
    );
    drop(wake);
}

#[tokio::test(start_paused = true)]
async fn a_wake_begun_with_the_head_is_not_added_to_what_the_handler_does() {
    let backend = Backend::default();
    backend.set(Step::Login, Gate::Slow(WAKE));
    let router = router_without_nobody(&backend).build().unwrap();
    let plain = app(&router);
    let warming = plain
        .clone()
        .layer(WarmLayer::new(router.clone(), identify()));
    let took = async |app: &Router, host: &str| {
        let began = Instant::now();
        let (status, ..) = send_request(app, host, "/later").await;
        assert_eq!(status, StatusCode::OK);
        began.elapsed()
    };
    let added = took(&plain, "acme.example.com").await;
    assert!(added >= WAKE + OTHER_WORK, "{added:?}");
    let beside = took(&warming, "globex.example.com").await;
    assert!(beside < WAKE + 30 * MILLISECOND, "{beside:?}");
    assert_eq!(router.status().wakes_by_hint.succeeded, 1);
    let (status, ..) = send_request(&warming, "nobody.example.com", "/later").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(router.status().wakes_by_hint.started, 1, "nobody is woken");
}
