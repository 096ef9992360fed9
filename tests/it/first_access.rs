//! Accesses that create a database: none, unless a policy was named; and no request, unless that was allowed as well.

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Path,
    http::{Request, StatusCode},
};
use tenantry::{
    Error, ErrorKind, Identify, Provisioner, RouterBuilder, Tenant, TenantHandle, TenantRouter,
    Tenants, catalog::Memory,
};
use tower::ServiceExt;

use super::support::{Backend, FakeCatalog, FakeControlPlane, Gate, Step, TestEnv};

/// Each call of a handle that takes a connection. The last one needs a real Postgres.
const CALLS: [&str; 6] = ["get", "read", "transaction", "direct", "warm", "clear"];

/// A router as it comes, whose provisioner is set up by `policy`.
fn router(backend: &Backend, policy: impl FnOnce(Provisioner) -> Provisioner) -> RouterBuilder {
    let control_plane = FakeControlPlane::with_read_counter(backend, Arc::default());
    let provisioner = Provisioner::new(Memory::new(), control_plane, "test");
    backend.configure(TenantRouter::provisioning(policy(provisioner)))
}

async fn make_call(tenant: &TenantHandle, how: &str) -> Result<(), Error> {
    match how {
        "get" => tenant.get().await.map(drop),
        "read" => tenant.read(|_| ready(Ok(()))).await,
        "transaction" => tenant.transaction(|_| ready(Ok(()))).await,
        "direct" => tenant.direct().await.map(drop),
        "clear" => tenant.clear_cached_statements().await,
        _ => tenant.warm().wait().await,
    }
}

/// An app that calls its tenant as the path says.
fn app(tenants: Tenants) -> Router {
    let calls =
        async |Tenant(tenant): Tenant, Path(how): Path<String>| make_call(&tenant, &how).await;
    Router::new()
        .route("/{how}", axum::routing::get(calls))
        .with_state(tenants)
}

fn tenants_of(router: &TenantRouter) -> Tenants {
    let identify = Identify::subdomain_of("example.com").unwrap();
    Tenants::new(router.clone(), identify)
}

async fn send_request(app: &Router, tenant: &str, path: &str) -> (StatusCode, String) {
    let host = format!("{tenant}.example.com");
    let request = Request::builder().uri(path).header("host", host);
    let request = request.body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), 10_000).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn no_access_creates_a_database_unless_a_policy_was_named() {
    let backend = Backend::default();
    let router = router(&backend, |provisioner| provisioner).build().unwrap();
    for how in CALLS {
        let err = make_call(&router.handle(how).unwrap(), how)
            .await
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::UnknownTenant, "{how}");
        for name in ["Fleet::provision", "on_first_access", "decide"] {
            assert!(err.to_string().contains(name), "{err}");
        }
    }
    assert_eq!(backend.counts().created, 0);
    router.fleet().unwrap().provision("get").await.unwrap();
    drop(router.get("get").await.unwrap());
    assert_eq!(backend.counts().created, 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_creates_no_database_unless_that_was_allowed() {
    let backend = Backend::default();
    let router = router(&backend, Provisioner::on_first_access);
    let router = router.build().unwrap();
    let (finds, creates) = (
        app(tenants_of(&router)),
        app(tenants_of(&router).on_first_access()),
    );
    for how in CALLS {
        let (status, body) = send_request(&finds, "acme", &format!("/{how}")).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{how}: {body}");
        let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["code"], "unknown_tenant");
        assert!(
            !body.contains("acme") && !body.contains("rovision"),
            "{body}"
        );
    }
    assert_eq!(backend.counts().created, 0);
    for how in &CALLS[..5] {
        let (status, body) = send_request(&creates, how, &format!("/{how}")).await;
        assert_eq!(status, StatusCode::OK, "{how}: {body}");
    }
    assert_eq!(backend.counts().created, 5);
    // What the application itself asks for is created, and found by requests at once.
    drop(router.get("acme").await.unwrap());
    assert_eq!(send_request(&finds, "acme", "/get").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_request_finishes_what_the_application_has_begun() {
    let env = TestEnv::new().await;
    let fails = AtomicBool::new(true);
    let router = env.provisioning(|provisioner| {
        provisioner.explicit().prepare(move |_| {
            let fails = fails.swap(false, Relaxed);
            ready(if fails { Err("not yet".into()) } else { Ok(()) })
        })
    });
    let router = router.build().unwrap();
    let begun = router.fleet().unwrap().provision("acme").await;
    begun.unwrap_err();
    let app = app(tenants_of(&router));
    let (status, body) = send_request(&app, "acme", "/get").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(
        send_request(&app, "globex", "/get").await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(env.emulator.witnesses().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_beside_the_applications_own_access_neither_stops_nor_begins_a_creation() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let router = backend.configure(TenantRouter::provisioning(provisioner));
    let router = router.build().unwrap();
    catalog.set(Gate::Slow(Duration::from_secs(1)));
    let finds = app(tenants_of(&router));
    let asks = tokio::spawn(async move { send_request(&finds, "acme", "/get").await });
    tokio::task::yield_now().await; // its look-up is under way, and the next call joins it
    let gets = router.get("acme").await;
    drop(gets.unwrap());
    assert_eq!(asks.await.unwrap().0, StatusCode::NOT_FOUND);
    assert_eq!(backend.counts().created, 1);

    // The other way round: the request joins the creation.
    backend.set(Step::Create, Gate::Slow(Duration::from_secs(1)));
    let own = router.clone();
    let gets = tokio::spawn(async move { own.get("globex").await.map(drop) });
    backend.until_waiting(Step::Create).await;
    assert_eq!(
        send_request(&app(tenants_of(&router)), "globex", "/get")
            .await
            .0,
        StatusCode::OK
    );
    gets.await.unwrap().unwrap();
}
