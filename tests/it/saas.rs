//! The example of a whole service, driven over HTTP as its clients would.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use reqwest::{Client, Response, StatusCode};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tenantry::{Status, TenantRouter, emulator::Emulator};
use tokio::net::TcpListener;

#[expect(dead_code, reason = "the example has a `main` as well")]
#[path = "../../examples/saas.rs"]
mod example;

const WAKE: Duration = Duration::from_millis(350);
const HERD: usize = 200;

/// Settings for a client that needs none: reqwest takes no guess where several providers of cryptography are linked.
fn no_tls() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    builder
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

/// The service on an emulator, and a client of it.
struct Service {
    emulator: Emulator,
    router: TenantRouter,
    address: String,
    client: Client,
}

impl Service {
    async fn start() -> Self {
        let emulator = Emulator::builder().wake_delay(WAKE).start().await.unwrap();
        let metrics = example::metrics().build_recorder();
        let router = metrics::with_local_recorder(&metrics, || example::on(&emulator).unwrap());
        let app = example::app(&router, metrics.handle());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let client = Client::builder()
            .tls_backend_preconfigured(no_tls())
            .build()
            .unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self {
            emulator,
            router,
            address,
            client,
        }
    }

    /// A request by path.
    async fn get(&self, path: &str) -> Response {
        let url = format!("http://{}{path}", self.address);
        self.client.get(url).send().await.unwrap()
    }

    /// A request to the host of `tenant`, or to that of all.
    async fn post(&self, tenant: Option<&str>, path: &str, body: &str) -> Response {
        let host = tenant.map_or("localhost".to_owned(), |it| format!("{it}.localhost"));
        let request = self.client.post(format!("http://{}{path}", self.address));
        let request = request.header("host", host).body(body.to_owned());
        request.send().await.unwrap()
    }

    async fn notes(&self, tenant: &str) -> Value {
        let answer = self.get(&format!("/t/{tenant}/notes")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json().await.unwrap()
    }
}

#[tokio::test]
async fn a_tenant_signs_up_writes_falls_asleep_and_reads_and_so_does_a_herd() {
    let service = Service::start().await;
    for tenant in ["acme", "globex"] {
        for _ in 0..2 {
            let signed_up = service.post(None, &format!("/signup/{tenant}"), "").await;
            assert_eq!(
                signed_up.status(),
                StatusCode::CREATED,
                "also if it was lost"
            );
        }
    }
    let written = service.post(Some("acme"), "/notes", "hello").await;
    assert_eq!(written.status(), StatusCode::CREATED);
    let note = json!([{ "id": 1, "text": "hello" }]);
    assert_eq!(service.notes("acme").await, note);
    assert_eq!(
        service.notes("globex").await,
        json!([]),
        "what is acme's is acme's"
    );

    service.emulator.suspend_all().await;
    assert_eq!(service.notes("acme").await, note);

    service.emulator.suspend_all().await;
    let before = service.router.status();
    let stray = service.post(Some("acme"), "/nowhere", "").await;
    assert_eq!(stray.status(), StatusCode::NOT_FOUND);
    assert_eq!(service.notes("globex").await, json!([]));
    let after = service.router.status();
    let wakes = |it: &Status| it.wakes_by_request.started + it.wakes_by_hint.started;
    assert_eq!(
        wakes(&after) - wakes(&before),
        1,
        "what no route matches wakes nobody"
    );

    let before = service.router.status();
    let herd = join_all((0..HERD).map(|_| service.notes("acme"))).await;
    assert!(herd.iter().all(|it| *it == note));
    let after = service.router.status();
    assert_eq!(wakes(&after) - wakes(&before), 1);
    assert_eq!(after.gets_failed, 0);
    service.router.close().await;
}

#[tokio::test]
async fn who_is_no_tenant_hears_so_and_operators_see_what_happens() {
    let service = Service::start().await;
    let unknown = service.get("/t/nobody/notes").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    let problem: Value = unknown.json().await.unwrap();
    assert_eq!(problem["code"], "unknown_tenant");
    assert_eq!(
        service.get("/notes").await.status(),
        StatusCode::NOT_FOUND,
        "no tenant named"
    );
    service.post(None, "/signup/acme", "").await;
    let long = "x".repeat(10_001);
    for (text, status) in [
        ("", StatusCode::UNPROCESSABLE_ENTITY),
        (&*long, StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        assert_eq!(
            service.post(Some("acme"), "/notes", text).await.status(),
            status
        );
    }
    service.notes("acme").await;

    let status: Value = service.get("/status").await.json().await.unwrap();
    assert_eq!(status["provisioned"], 1);
    let acme: Value = service.get("/status/acme").await.json().await.unwrap();
    assert_eq!(
        (&acme["tenant"], &acme["next"]),
        (&json!("acme"), &json!("reuse"))
    );
    let metrics = service.get("/metrics").await.text().await.unwrap();
    let created = r#"tenantry_databases_created{db_client_connection_pool_name="tenantry"} 1"#;
    assert!(metrics.contains(created), "{metrics}");
    assert_eq!(service.get("/ready").await.status(), StatusCode::OK);
    service.router.close().await;
    assert_eq!(
        service.get("/ready").await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
}
