//! The texts of errors that people see: each as `main` prints it and as a log has it.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use tenantry::{
    Endpoint, Error, ErrorKind, Identify, Neon, Provisioner, Stage, Tenant, TenantRouter, Tenants,
    WarmLayer, catalog::Memory,
};
use tokio::net::TcpListener;
use tower::ServiceExt;

use crate::support::{Backend, Failure, FakeControlPlane, Gate, Step, TestEnv, query_text};

const SECOND: Duration = Duration::from_secs(1);
const NO_TABLE: Gate = Gate::Fail(Failure::Error {
    code: "42P01",
    text: "relation \"nots\" does not exist",
});
const NO_TABLE_TEXT: &str =
    "tenant \"acme\": the query failed: ERROR: relation \"nots\" does not exist (SQLSTATE 42P01)";

/// As `main` prints an error that it returns.
fn debug_text(err: &Error) -> String {
    format!("{err:?}")
}

/// The tenant's name, if an error knows it.
fn tenant_of(err: &Error) -> Option<&str> {
    err.tenant().map(tenantry::TenantId::as_str)
}

#[tokio::test(start_paused = true)]
async fn a_failed_query_shows_the_message_of_postgres_and_its_tenant() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    backend.set(Step::Query, NO_TABLE);
    let sql = "SELECT * FROM nots";
    let read = router.read("acme", |tx| async move {
        tx.batch_execute(sql).await?;
        Ok::<_, Error>(())
    });
    let written = router.transaction("acme", |tx| async move {
        tokio::task::yield_now().await;
        tx.batch_execute(sql).await?;
        Ok::<_, Error>(())
    });
    for err in [read.await.unwrap_err(), written.await.unwrap_err()] {
        assert_eq!(
            (tenant_of(&err), err.to_string()),
            (Some("acme"), NO_TABLE_TEXT.into())
        );
        assert_eq!(debug_text(&err), NO_TABLE_TEXT, "and nothing is said twice");
        assert!(format!("{err:#?}").contains("kind: Query"), "{err:#?}");
    }
    // What Postgres answers to BEGIN and COMMIT comes by the same way.
    for step in [Step::Begin, Step::Commit] {
        backend.set(Step::Query, Gate::Open);
        backend.set(step, NO_TABLE);
        let done = router.transaction("acme", |_tx| async { Ok::<_, Error>(()) });
        let err = done.await.unwrap_err();
        assert_eq!(tenant_of(&err), Some("acme"), "{step:?}: {err}");
        backend.set(step, Gate::Open);
    }
    // Elsewhere it is nobody's.
    backend.set(Step::Query, NO_TABLE);
    let client = router.get("acme").await.unwrap();
    let err = Error::from(client.batch_execute(sql).await.unwrap_err());
    assert_eq!(tenant_of(&err), None, "{err}");
}

#[tokio::test(start_paused = true)]
async fn errors_of_concurrent_transactions_name_their_own_tenant() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    backend.set(Step::Query, NO_TABLE);
    let all = (0..20).map(|number| {
        let router = router.clone();
        async move {
            let name = format!("t{number}");
            let inner = router.clone();
            let done = router.transaction(&name, |tx| {
                let inner = inner.clone();
                async move {
                    // Another tenant's within it, whose error is its own.
                    let other = inner.transaction("other", |tx| async move {
                        tx.batch_execute("x").await?;
                        Ok::<_, Error>(())
                    });
                    assert_eq!(tenant_of(&other.await.unwrap_err()), Some("other"));
                    tx.batch_execute("x").await?;
                    Ok::<_, Error>(())
                }
            });
            assert_eq!(tenant_of(&done.await.unwrap_err()), Some(name.as_str()));
        }
    });
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn errors_do_not_repeat_the_values_of_a_row() {
    let env = TestEnv::new().await;
    let router = env.router();
    let client = router.get("acme").await.unwrap();
    query_text(&client, "CREATE TABLE people (email text PRIMARY KEY)").await;
    query_text(&client, "INSERT INTO people VALUES ('ann@example.com')").await;
    for (sql, text) in [
        (
            "INSERT INTO people VALUES ('ann@example.com')",
            "ERROR: duplicate key value violates unique constraint \"people_pkey\" (SQLSTATE 23505)",
        ),
        (
            "SELECT 'ann@example.com'::uuid",
            "ERROR: invalid input syntax for type uuid: \"…\" (SQLSTATE 22P02)",
        ),
        (
            "SELECT 'ann@example.com",
            "ERROR: unterminated quoted string at or near \"…\" (SQLSTATE 42601)",
        ),
        (
            "SELECT emial FROM people",
            "ERROR: column \"emial\" does not exist (SQLSTATE 42703; Perhaps you meant to reference the column \
             \"people.email\".)",
        ),
    ] {
        let failed = client.batch_execute(sql).await.unwrap_err();
        let err = Error::from(failed);
        assert_eq!(err.to_string(), format!("the query failed: {text}"));
        assert_eq!(debug_text(&err), err.to_string());
    }
    let row = client.query_typed("SELECT 1::int8", &[]).await.unwrap();
    let err = Error::from(row[0].try_get::<_, i32>(0).unwrap_err());
    let text = "the query failed: error deserializing column 0: cannot convert between the Rust type `i32` and the \
                Postgres type `int8`";
    assert_eq!(err.to_string(), text);
    env.emulator.suspend_all().await;
    let failed = client.batch_execute("SELECT 1").await.unwrap_err();
    let err = Error::from(failed).to_string();
    assert!(err.contains("`transaction` run again"), "{err}");
}

/// An error of a handler, as the answer that tells its tenant.
struct HandlerError(Error);

impl From<Error> for HandlerError {
    fn from(err: Error) -> Self {
        Self(err)
    }
}

impl From<tenantry::tokio_postgres::Error> for HandlerError {
    fn from(err: tenantry::tokio_postgres::Error) -> Self {
        Self(err.into())
    }
}

impl IntoResponse for HandlerError {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response()
    }
}

async fn failing_handler(Tenant(tenant): Tenant) -> Result<String, HandlerError> {
    let client = tenant.get().await?;
    tokio::task::yield_now().await;
    client.batch_execute("SELECT * FROM nots").await?;
    Ok(String::new())
}

async fn other_tenant_handler(State(tenants): State<Tenants>) -> Result<String, HandlerError> {
    let client = tenants.router().get("internal").await?;
    client.batch_execute("SELECT * FROM nots").await?;
    Ok(String::new())
}

#[tokio::test(start_paused = true)]
async fn a_driver_error_of_a_handler_names_the_tenant_of_the_request() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    backend.set(Step::Query, NO_TABLE);
    let identify = Identify::resolve_with(|named| async move {
        tokio::task::yield_now().await;
        Ok(named
            .host
            .split_once('.')
            .map(|(tenant, _)| tenant.to_owned()))
    });
    let early = WarmLayer::new(router.clone(), identify.clone());
    let app = Router::new()
        .route("/broken", get(failing_handler))
        .route("/none", get(other_tenant_handler))
        .route_layer(early)
        .with_state(Tenants::new(router, identify));
    let ask = |host: &'static str, path: &'static str| {
        let request = Request::builder().uri(path).header("host", host);
        let answer = app.clone().oneshot(request.body(Body::empty()).unwrap());
        async move {
            let body = answer.await.unwrap().into_body();
            String::from_utf8(to_bytes(body, 10_000).await.unwrap().to_vec()).unwrap()
        }
    };
    let (acme, globex, none) = tokio::join!(
        ask("acme.example.com", "/broken"),
        ask("globex.example.com", "/broken"),
        ask("acme.example.com", "/none")
    );
    assert_eq!(acme, NO_TABLE_TEXT);
    assert_eq!(globex, NO_TABLE_TEXT.replace("acme", "globex"));
    assert!(none.starts_with("the query failed: ERROR"), "{none}");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_at_a_full_pool_says_what_is_full_and_for_how_long() {
    let backend = Backend::default();
    let router = backend.router().pool_size(2).direct_connections(1);
    let router = router.build().unwrap();
    let held = [
        router.get("acme").await.unwrap(),
        router.get("acme").await.unwrap(),
    ];
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(
        debug_text(&err),
        "tenant \"acme\": out of time while waiting for a connection, 20.0s after it began: all 2 connections that the \
         tenant may have are held, one of them for 20.0s; hold them for less time, or raise pool_size"
    );
    assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Checkout));
    drop(held);
    let limited = Backend::endpoint("globex").max_connections(1);
    let router = backend.router_with_lookup(move |_| Some(limited.clone()));
    let router = router.build().unwrap();
    drop(router.get("globex").await.unwrap());
    let _held = router.get("globex").await.unwrap(); // was idle
    let err = debug_text(&router.get("globex").await.unwrap_err());
    assert!(err.contains("held, one of them for 20.0s;"), "{err}");
    assert!(
        err.ends_with("or raise max_connections of the tenant's entry"),
        "{err}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_a_direct_connection_names_its_limit() {
    let backend = Backend::default();
    let router = backend.router().direct_connections(1).build().unwrap();
    let _held = router.direct("acme").await.unwrap();
    let err = debug_text(&router.direct("acme").await.unwrap_err());
    assert!(err.ends_with("or raise direct_connections"), "{err}");
}

#[tokio::test]
async fn an_unreachable_api_is_not_reported_as_a_creation_under_way() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener); // nobody listens there
    let neon = Neon::builder("napi_key").base_url(format!("http://{address}/api/v2"));
    let provisioner =
        Provisioner::new(Memory::new(), neon.build().unwrap(), "test").on_first_access();
    let router = TenantRouter::provisioning(provisioner).get_timeout(SECOND);
    let router = router.build().unwrap();
    let err = router.get("acme").await.unwrap_err();
    let text = debug_text(&err);
    assert!(!text.contains("being created"), "{text}");
    let begins = "tenant \"acme\": the tenant's database cannot be created at the moment; tenantry tries again, so \
                  call again later, and fix the cause if this persists: neon's api at 127.0.0.1 cannot be reached; check \
                  the network";
    assert!(text.starts_with(begins), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_creation_is_reported_as_a_creation_under_way() {
    let backend = Backend::default();
    backend.set(Step::Create, Gate::Slow(60 * SECOND));
    let router = FakeControlPlane::router(&backend).build().unwrap();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(
        debug_text(&err),
        "tenant \"acme\": the tenant's database is being created; the creation continues, so call again later"
    );
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_named_in_the_error() {
    let env = TestEnv::new().await;
    let project = env.project().await;
    let at = &project.connection_uris[0].connection_parameters;
    let (host, password) = (at.host.clone(), at.password.clone());
    let endpoint = Endpoint::neon(&at.host, &at.pooler_host, &at.database, &at.role, password);
    let router = TenantRouter::builder(move |_| {
        let endpoint = endpoint.clone();
        async move { Ok(Some(endpoint)) }
    });
    let router = router.resolve(env.emulator.resolver()).build().unwrap();
    let err = router.direct("acme").await.unwrap_err();
    let text = debug_text(&err);
    let begins = format!(
        "tenant \"acme\": the certificate that {host} shows is not trusted: no trusted authority has signed it; if the \
         authority is your own, add its root certificate with `root_certificate`"
    );
    assert!(text.starts_with(&begins), "{text}");
    assert_eq!(err.kind(), ErrorKind::Misconfigured);
}

#[tokio::test]
async fn an_api_certificate_that_is_not_trusted_is_an_immediate_error() {
    // With TLS, and a certificate that nobody has signed.
    let env = TestEnv::new().await;
    let base = format!("https://{}/api/v2", env.emulator.proxy_address());
    let neon = Neon::builder("napi_key").base_url(base).build().unwrap();
    let err = neon.get_project("p").await.unwrap_err();
    let text = debug_text(&err);
    assert!(text.contains("is not trusted"), "{text}");
    assert_eq!(err.kind(), ErrorKind::Misconfigured);
}

#[test]
fn an_applications_own_http_client_needs_no_provider_for_us() {
    // Feature choices are added up over all who use a crate: ours must not leave another without what it needs.
    let client = std::panic::catch_unwind(reqwest::Client::new);
    assert!(client.is_ok(), "reqwest has TLS and no provider for it");
}
