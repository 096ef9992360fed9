//! The tenant that a request is for: a name that cannot be read is refused, and no other way is tried in its place.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderValue, Request, StatusCode},
};
use tenantry::{Identify, Tenant, Tenants, WarmLayer};
use tokio::time::sleep;
use tower::ServiceExt;

use super::support::Backend;

/// A header that is sent: its name and its bytes.
type Header = (&'static str, &'static [u8]);

const ACME: Header = ("host", b"acme.example.com");
const NO_TENANT: Header = ("host", b"example.com");

fn all_ways() -> Identify {
    let by_header = Identify::header("x-tenant").unwrap();
    let by_path = Identify::after_path("/t/").unwrap();
    let by_host = Identify::subdomain_of("example.com").unwrap();
    by_header.or(by_path).or(by_host)
}

/// Every tenant exists here, so what is refused is refused for how it was named.
fn app(backend: &Backend, identify: Identify) -> Router {
    let router = backend.router().build().unwrap();
    Router::new()
        .fallback(|Tenant(tenant): Tenant| async move { tenant.tenant().to_string() })
        .layer(WarmLayer::new(router.clone(), identify.clone()))
        .with_state(Tenants::new(router, identify))
}

async fn send_request(app: &Router, uri: &str, headers: &[Header]) -> (StatusCode, String) {
    let mut request = Request::builder().uri(uri).body(Body::empty()).unwrap();
    for (name, value) in headers {
        let value = HeaderValue::from_bytes(value).unwrap();
        request.headers_mut().append(*name, value);
    }
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), 10_000).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_name_that_cannot_be_read_is_a_bad_request_and_no_other_way_is_tried() {
    let backend = Backend::default();
    let app = app(&backend, all_ways());
    let cases: &[(&str, &[Header])] = &[
        ("/", &[ACME, ("x-tenant", "café".as_bytes())]),
        ("/", &[ACME, ("x-tenant", b"")]),
        (
            "/",
            &[ACME, ("x-tenant", b"globex"), ("x-tenant", b"globex")],
        ),
        (
            "/",
            &[ACME, ("x-tenant", b"globex"), ("x-tenant", b"initech")],
        ),
        ("/t/%ff/notes", &[ACME]),
        ("/t/%zz/notes", &[ACME]),
        ("/t/globex%2/notes", &[ACME]),
        ("/t//notes", &[ACME]),
        ("/", &[("host", "acmé.example.com".as_bytes())]),
        ("/", &[ACME, ACME]),
        ("/", &[ACME, ("host", b"globex.example.com")]),
        ("/", &[NO_TENANT, ACME]),
        ("http://globex.example.com/", &[ACME]),
        ("http://bob@acme.example.com/", &[]),
    ];
    let mut wrong = Vec::new();
    for (uri, headers) in cases {
        let (status, body) = send_request(&app, uri, headers).await;
        let code = body.contains(r#""code":"invalid_tenant""#);
        if status != StatusCode::BAD_REQUEST || !code {
            wrong.push((uri, headers, status, body));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    sleep(Duration::from_secs(1)).await; // a hint is followed in a task of its own
    assert!(
        backend.counts().opened.is_empty(),
        "nor is any tenant woken"
    );
}

#[tokio::test(start_paused = true)]
async fn a_host_below_the_domain_that_is_no_host_name_is_a_bad_request() {
    let backend = Backend::default();
    let app = app(
        &backend,
        all_ways().or(Identify::head(|_| Some("last".to_owned()))),
    );
    let long = format!("{}.example.com", "a".repeat(64));
    let mut wrong = Vec::new();
    for host in [
        "bob@acme.example.com",
        "*.example.com",
        "acme%2e.example.com",
        "acme_1.example.com",
        "-acme.example.com",
        "acme-.example.com",
        "xn--a.example.com",
        "acme,globex.example.com",
        ".example.com",
        "a..example.com",
        "acme.example.com..",
        "acme.example.com:port",
        "acme.example.com:99999",
        "acme.example.com:80:80",
        "acme.example.com@example.org",
        "[::1",
        "[acme.example.com]",
        &long,
    ] {
        let value = HeaderValue::from_str(host).unwrap();
        let mut request = Request::builder().uri("/").body(Body::empty()).unwrap();
        request.headers_mut().insert("host", value);
        let status = app.clone().oneshot(request).await.unwrap().status();
        if status != StatusCode::BAD_REQUEST {
            wrong.push((host, status));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(start_paused = true)]
async fn an_absent_name_leaves_the_request_to_the_next_way() {
    let backend = Backend::default();
    let app = app(
        &backend,
        all_ways().or(Identify::head(|_| Some("last".to_owned()))),
    );
    let cases: &[(&str, &[Header], &str)] = &[
        ("/", &[ACME, ("x-tenant", b"globex")], "globex"),
        ("/t/globex/notes", &[ACME], "globex"),
        ("/t/ac%20me", &[ACME], "ac me"),
        ("/team/globex", &[ACME], "acme"),
        ("/t", &[ACME], "acme"),
        ("/t/", &[ACME], "acme"),
        ("http://acme.example.com/", &[], "acme"),
        ("http://acme.example.com:8080/", &[ACME], "acme"),
        ("/", &[("host", b"ACME.Example.com.:8080")], "acme"),
        (
            "/",
            &[("host", b"xn--bcher-kva.example.com")],
            "xn--bcher-kva",
        ),
        ("/", &[NO_TENANT], "last"),
        ("/", &[("host", b"a.b.example.com")], "last"),
        ("/", &[("host", b"my_service:3000")], "last"),
        ("/", &[("host", b"127.0.0.1:3000")], "last"),
        ("/", &[("host", b"[::1]:3000")], "last"),
        ("/", &[("host", b"")], "last"),
        ("/", &[], "last"),
    ];
    for (uri, headers, tenant) in cases {
        let answer = send_request(&app, uri, headers).await;
        assert_eq!(
            answer,
            (StatusCode::OK, (*tenant).to_owned()),
            "{uri} {headers:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefix_is_whole_segments_of_the_path() {
    let backend = Backend::default();
    for prefix in ["/t", "/t/", "t"] {
        let app = app(&backend, Identify::after_path(prefix).unwrap());
        for (path, status) in [
            ("/t/acme/notes", StatusCode::OK),
            ("/t/acme", StatusCode::OK),
            ("/team/x", StatusCode::NOT_FOUND),
            ("/t", StatusCode::NOT_FOUND),
            ("/x/t/acme", StatusCode::NOT_FOUND),
        ] {
            let answer = send_request(&app, path, &[NO_TENANT]).await;
            assert_eq!(answer.0, status, "{path} after {prefix}: {answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_domain_is_found_however_it_is_written() {
    let backend = Backend::default();
    for (domain, host) in [
        ("example.com.", "acme.example.com"),
        (".example.com", "acme.example.com"),
        ("EXAMPLE.com", "acme.example.com"),
        ("bücher.example", "acme.xn--bcher-kva.example"),
        ("xn--BCHER-kva.example", "acme.xn--bcher-kva.example"),
        ("localhost", "acme.localhost"),
    ] {
        let app = app(&backend, Identify::subdomain_of(domain).unwrap());
        let request = Request::builder().uri("/").header("host", host);
        let request = request.body(Body::empty()).unwrap();
        let status = app.oneshot(request).await.unwrap().status();
        assert_eq!(status, StatusCode::OK, "{host} below {domain}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolver_gets_the_path_that_was_sent() {
    let router = Backend::default().router().build().unwrap();
    let asks = Identify::resolve_with(|named| async move { Ok(Some(named.path)) });
    let inner = Router::new()
        .fallback(|Tenant(tenant): Tenant| async move { tenant.tenant().to_string() })
        .with_state(Tenants::new(router, asks));
    let app = Router::new().nest("/t", inner);
    let answer = send_request(&app, "/t/acme/notes", &[NO_TENANT]).await;
    assert_eq!(answer, (StatusCode::OK, "/t/acme/notes".to_owned()));
}
